package load

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"reflect"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// faulty is a server that answers each request by what f makes of it: n counts the requests of all connections.
func faulty(t *testing.T, f func(w io.Writer, br *bufio.Reader, n int, body []byte) error) string {
	t.Helper()
	ln := listen(t)
	var all sync.WaitGroup
	var mu sync.Mutex
	served, conns := 0, map[net.Conn]bool{}
	serve := func(c net.Conn) {
		defer c.Close()
		br := bufio.NewReader(c)
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				fmt.Fprint(c, "HTTP/1.1 400 Bad Request\r\nConnection: close\r\n\r\n")
				return
			}
			body, err := io.ReadAll(req.Body)
			if err != nil {
				return
			}
			if req.Method != http.MethodPost { // a request without its first byte is one too: "OST /echo"
				fmt.Fprint(c, "HTTP/1.1 405 Method Not Allowed\r\nContent-Length: 0\r\n\r\n")
				continue
			}
			mu.Lock()
			served++
			n := served
			mu.Unlock()
			if f(c, br, n, body) != nil {
				return
			}
		}
	}
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			all.Go(func() { serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		all.Wait()
	})
	return ln.Addr().String()
}

func answer(w io.Writer, body []byte) error {
	_, err := fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n%s: 3\r\n\r\n%s", len(body), generationHeader, body)
	return err
}

// mixer puts eight bytes of an earlier request into every fiftieth answer.
func mixer() func(io.Writer, *bufio.Reader, int, []byte) error {
	var mu sync.Mutex
	var before []byte
	return func(w io.Writer, _ *bufio.Reader, n int, body []byte) error {
		mu.Lock()
		defer mu.Unlock()
		whole := bytes.Clone(body)
		if at := min(len(before), len(body)) - 8; n%50 == 0 {
			copy(body[at:at+8], before[at:at+8])
		}
		before = whole
		return answer(w, body)
	}
}

// Whatever a server does to one request in fifty shows, with every way to use connections that stay open.
func TestSeesEveryFault(t *testing.T) {
	log.SetOutput(io.Discard) // Go's client tells of answers nobody asked for
	t.Cleanup(func() { log.SetOutput(os.Stderr) })
	type fault func(w io.Writer, br *bufio.Reader, n int, body []byte) error
	for _, tc := range []struct {
		name  string
		fault func() fault
		body  int
	}{
		{"an answer is dropped", func() fault {
			return func(w io.Writer, _ *bufio.Reader, n int, body []byte) error {
				if n%50 == 0 {
					return nil
				}
				return answer(w, body)
			}
		}, 0},
		{"an answer is doubled", func() fault {
			return func(w io.Writer, _ *bufio.Reader, n int, body []byte) error {
				if n%50 == 0 {
					answer(w, body)
				}
				return answer(w, body)
			}
		}, 0},
		{"answers are mixed", func() fault { return mixer() }, 0},
		{"large answers are mixed", func() fault { return mixer() }, 300_000},
		{"an answer is cut short", func() fault {
			return func(w io.Writer, _ *bufio.Reader, n int, body []byte) error {
				if n%50 == 0 {
					body = body[:len(body)-1]
				}
				return answer(w, body)
			}
		}, 0},
		{"an answer ends in the middle", func() fault {
			return func(w io.Writer, _ *bufio.Reader, n int, body []byte) error {
				if n%50 == 0 {
					fmt.Fprintf(w, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(body), body[:len(body)/2])
					return io.EOF
				}
				return answer(w, body)
			}
		}, 0},
		{"an answer has more than the request", func() fault {
			return func(w io.Writer, _ *bufio.Reader, n int, body []byte) error {
				if n%50 == 0 {
					body = append(body, 'x')
				}
				return answer(w, body)
			}
		}, 0},
	} {
		for _, kind := range []Kind{KeepAlive, Pipelined, GoClient} {
			t.Run(fmt.Sprintf("%s, %s", tc.name, kind), func(t *testing.T) {
				leak.Check(t)
				const conns = 4
				run := start(t, Config{
					Streams: []Stream{{Kind: kind, Address: faulty(t, tc.fault()), Conns: conns, Rate: 400, Body: tc.body}},
					Timeout: 2 * time.Second,
				})
				seen := func(c Counts) bool { return c.Lost+c.Broken > 0 || c.Dials > conns }
				await(t, run, seen)
				rep := run.Stop()
				require.True(t, rep.Lost > 0 || rep.Broken > 0 || rep.Dials > conns)
				require.NotZero(t, rep.Answered, "%s", rep)
				require.Zero(t, rep.Refused, "%s", rep)
				require.Equal(t, rep.Sent, rep.Answered+rep.Lost, "%s", rep)
			})
		}
	}
}

// What a mover does that takes a connection at no message boundary: bytes of the next request, which the server has read
// already, are gone. Only a client that sends such bytes can see it.
func TestPipelinedSeesBytesSwallowed(t *testing.T) {
	leak.Check(t)
	addr := faulty(t, func(w io.Writer, br *bufio.Reader, _ int, body []byte) error {
		if n := br.Buffered(); n < 4 { // less than net/http waits for
			br.Discard(n)
		}
		return answer(w, body)
	})
	run := start(t, Config{Streams: []Stream{{Kind: Pipelined, Address: addr, Conns: 10, Rate: 500}}})
	await(t, run, func(c Counts) bool { return c.Lost > 0 })
	rep := run.Stop()
	require.Equal(t, CauseStatus, rep.Losses[0].Cause, "%s", rep)
	require.Contains(t, rep.String(), fmt.Sprintf("seed: %d\n", rep.Seed))
}

// A connection that a server closes while the first bytes of a request are on it loses that request; one on which there
// is nothing is broken.
func TestPipelinedSeesConnectionsClosed(t *testing.T) {
	for name, whenHeld := range map[string]bool{"with bytes of a request": true, "with none": false} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			addr := faulty(t, func(w io.Writer, br *bufio.Reader, _ int, body []byte) error {
				if err := answer(w, body); err != nil {
					return err
				}
				if (br.Buffered() > 0) == whenHeld {
					return io.EOF
				}
				return nil
			})
			// Slowly: what closes must not meet the next train.
			run := start(t, Config{Streams: []Stream{{Kind: Pipelined, Address: addr, Conns: 10, Rate: 40}}})
			await(t, run, func(c Counts) bool { return whenHeld && c.Lost > 2 || !whenHeld && c.Broken > 2 })
			rep := run.Stop()
			if whenHeld {
				require.Contains(t, []Cause{CauseClosed, CauseReset}, rep.Losses[0].Cause, "%s", rep)
				require.Zero(t, rep.Broken, "%s", rep)
			} else {
				require.Equal(t, CauseClosed, rep.Breaks[0].Cause, "%s", rep)
			}
			require.Equal(t, rep.Sent, rep.Answered+rep.Lost, "%s", rep)
		})
	}
}

// What comes behind an answer with "Connection: close" was not looked at: a server that keeps to HTTP says so by it.
func TestPipelinedBehindAnAnnouncedClose(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	app := echoApp(1)
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		app.ServeHTTP(w, r)
	}))
	run := start(t, Config{Streams: []Stream{{Kind: Pipelined, Address: ln.Addr().String(), Conns: 4, Rate: 200}}})
	await(t, run, func(c Counts) bool { return c.Answered > 50 && c.Refused > 50 })
	rep := run.Stop()
	require.Zero(t, rep.Lost+rep.Broken, "%s", rep)
	require.Equal(t, rep.Answered, rep.Announced)
	require.Equal(t, rep.Sent, rep.Answered+rep.Refused)
}

// Trains follow from the seed, or a run could not be repeated, and have all that is to be tried.
func TestTrainsFollowFromTheSeed(t *testing.T) {
	planner := func(seed uint64) *pipelined {
		return newPipelined(&worker{cfg: Config{Seed: seed}, stream: Stream{Kind: Pipelined}, id: 1})
	}
	a, b, other := planner(1), planner(1), planner(2)
	var few, header, body, early, late, single, longest, cuts, gaps int
	for range 500 {
		train := a.plan()
		require.Equal(t, train, b.plan())
		require.False(t, reflect.DeepEqual(train, other.plan()))
		last := train.posts[len(train.posts)-1]
		require.Less(t, train.held, len(last.wire))
		switch {
		case train.held == 0:
		case train.held <= 3:
			few++
		case train.held < len(last.wire)-len(last.body):
			header++
		default:
			body++
		}
		if train.held > 0 && train.late {
			late++
		} else if train.held > 0 {
			early++
		}
		if len(train.posts) == 1 {
			single++
		}
		if len(train.posts) == trainMax {
			longest++
		}
		cuts += len(train.parts)
		for _, gap := range train.gaps {
			if gap > 0 {
				gaps++
			}
		}
	}
	for name, n := range map[string]int{
		"1 to 3 bytes": few, "part of a header": header, "part of a body": body, "early": early, "late": late,
		"one request": single, "four requests": longest, "cuts": cuts, "gaps": gaps,
	} {
		require.Greater(t, n, 20, name)
	}
}

// Go's client shows only by another dial that a server closed an idle connection. Here nothing is sent before the client
// has closed its side: a request that meets the server's close is lost, and rightly told of.
func TestGoClientDialsAgain(t *testing.T) {
	leak.Check(t)
	const conns = 4
	noticed := make(chan struct{}, conns+1)
	addr := faulty(t, func(w io.Writer, br *bufio.Reader, _ int, body []byte) error {
		answer(w, body)
		w.(*net.TCPConn).CloseWrite()
		io.Copy(io.Discard, br)
		noticed <- struct{}{}
		return io.EOF
	})
	rec := newRecorder(1)
	c := newGoClient(&worker{stream: Stream{Kind: GoClient, Address: addr, Conns: conns}, id: 1, rec: rec})
	defer c.transport.CloseIdleConnections()
	c.connect(t.Context())
	for range conns {
		select {
		case <-noticed:
		case <-time.After(time.Minute):
			t.Fatal("the client keeps a connection that was closed")
		}
	}
	c.post(t.Context(), time.Now(), c.body(), func(r io.Reader) io.Reader { return io.MultiReader(r) })
	rep := rec.report()
	require.Zero(t, rep.Lost, "%s", rep)
	require.EqualValues(t, conns+1, rep.Answered, "%s", rep)
	require.EqualValues(t, conns+1, rep.Dials, "%s", rep)
}

// slowWriter has its writes return long after they are done.
type slowWriter struct{ net.Conn }

func (c slowWriter) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	time.Sleep(200 * time.Millisecond) // longer than Go's client waits for them behind an answer
	return n, err
}

// Go's client gives a connection up by itself where it has the answer long before it notices that the request is
// written. That is told apart from what a server does.
func TestGoClientGivesUp(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	serve(t, ln, echoApp(1))
	w := &worker{stream: Stream{Kind: GoClient, Address: ln.Addr().String()}, rec: newRecorder(1)}
	c := newGoClient(w)
	defer c.transport.CloseIdleConnections()
	slow := true
	c.transport.DialContext = func(ctx context.Context, network, addr string) (net.Conn, error) {
		conn, err := w.dialContext(ctx, network, addr)
		if slow {
			conn = slowWriter{conn}
		}
		return &readConn{Conn: conn}, err
	}
	post := func() Counts {
		c.post(t.Context(), time.Now(), c.body(), func(r io.Reader) io.Reader { return r })
		return w.rec.total()
	}
	n := post()
	require.EqualValues(t, []uint64{1, 1, 1}, []uint64{n.Answered, n.Dials, n.GivenUp})
	slow = false
	n = post()
	require.EqualValues(t, []uint64{2, 2, 1}, []uint64{n.Answered, n.Dials, n.GivenUp})
	n = post()
	require.EqualValues(t, []uint64{3, 2, 1}, []uint64{n.Answered, n.Dials, n.GivenUp})
}

// Shutdown of the server behind it loses requests of Go's client too: it must not send them again.
func TestGoClientSeesConnectionsCut(t *testing.T) {
	leak.Check(t)
	addr := faulty(t, func(w io.Writer, _ *bufio.Reader, n int, body []byte) error {
		if n > 20 {
			return io.EOF // the request was read, and is not answered
		}
		return answer(w, body)
	})
	run := start(t, Config{Streams: []Stream{{Kind: GoClient, Address: addr, Conns: 4, Rate: 400}}})
	await(t, run, func(c Counts) bool { return c.Lost > 10 })
	rep := run.Stop()
	require.EqualValues(t, 20, rep.Answered, "%s", rep)
	require.Equal(t, rep.Sent, rep.Answered+rep.Lost)
	for _, l := range rep.Losses {
		require.Contains(t, []Cause{CauseClosed, CauseReset}, l.Cause, "%s", rep)
	}
}

// A body of 2 MB comes back whole, and no two requests have the same eight bytes at one place but by chance.
func TestLargeBodies(t *testing.T) {
	leak.Check(t)
	const size = 2 << 20
	ln := listen(t)
	serve(t, ln, echoApp(7))
	addr := ln.Addr().String()
	// A machine that is busy does not keep up with the rates, and what is queued by then has to be answered, too.
	run := start(t, Config{Timeout: time.Minute, Streams: []Stream{
		{Kind: KeepAlive, Address: addr, Conns: 2, Rate: 4, Body: size},
		{Kind: NewConn, Address: addr, Rate: 2, Body: size},
		{Kind: GoClient, Address: addr, Conns: 2, Rate: 4, Body: size},
		{Kind: Pipelined, Address: addr, Conns: 2, Rate: 2, Body: size},
	}})
	await(t, run, Answers(7, 20))
	rep := run.Stop()
	require.Equal(t, rep.Sent, rep.Answered, "%s", rep)
	require.Zero(t, rep.Broken, "%s", rep)

	a := (&worker{id: 1}).appendBody(nil, size)
	same := 0
	for _, other := range [][]byte{(&worker{id: 2}).appendBody(nil, size), (&worker{id: 1, serial: 1}).appendBody(nil, size)} {
		require.Len(t, other, size)
		for at := minBody; at+8 <= size; at += 8 {
			if bytes.Equal(a[at:at+8], other[at:at+8]) {
				same++
			}
		}
	}
	require.LessOrEqual(t, same, 1)
}
