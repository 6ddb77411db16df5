package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"github.com/fdhandoff/handoff/internal/refusing"
)

// echoApp answers as the server under test does.
func echoApp(generation int) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(generationHeader, fmt.Sprint(generation))
		body, err := io.ReadAll(r.Body)
		if err != nil {
			return
		}
		w.Write(body)
	})
	return mux
}

// serve serves h on ln until the test ends.
func serve(t *testing.T, ln net.Listener, h http.Handler) *http.Server {
	t.Helper()
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() {
		defer close(done)
		srv.Serve(ln)
	}()
	t.Cleanup(func() { srv.Close(); <-done })
	return srv
}

func listen(t *testing.T) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// start begins a run that ends with the test at the latest.
func start(t *testing.T, cfg Config) *Run {
	t.Helper()
	run, err := Start(t.Context(), cfg)
	require.NoError(t, err)
	t.Cleanup(func() { run.Stop() })
	return run
}

// await waits for a condition on the run's counts.
func await(t *testing.T, run *Run, enough func(Counts) bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	require.NoError(t, run.Wait(ctx, enough), "so far: %+v", run.Counts())
}

func TestNothingLostOnAServerThatStays(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	serve(t, ln, echoApp(7))
	unixLn, err := net.Listen("unix", t.TempDir()+"/s")
	require.NoError(t, err)
	serve(t, unixLn, echoApp(7))
	addr := ln.Addr().String()
	run := start(t, Config{Streams: []Stream{
		{Kind: KeepAlive, Address: addr, Conns: 10, Rate: 500},
		{Kind: KeepAlive, Network: "unix", Address: unixLn.Addr().String(), Conns: 2, Rate: 100},
		{Kind: Pipelined, Address: addr, Conns: 5, Rate: 100},
		{Kind: GoClient, Address: addr, Conns: 6, Rate: 200},
		{Kind: NewConn, Address: addr, Rate: 100},
		{Kind: H2C, Address: addr, Conns: 3, Rate: 200},
	}})
	await(t, run, Answers(7, 500))
	rep := run.Stop()
	require.Zero(t, rep.Lost, "%s", rep)
	require.Zero(t, rep.Broken, "%s", rep)
	require.Zero(t, rep.Refused, "%s", rep)
	require.Equal(t, rep.Sent, rep.Answered)
	require.Equal(t, rep.Answered, rep.Generations[7])
	require.EqualValues(t, 12, rep.ByKind[KeepAlive].Dials)
	require.EqualValues(t, 5, rep.ByKind[Pipelined].Dials)
	require.GreaterOrEqual(t, rep.ByKind[GoClient].Dials, uint64(6))
	require.LessOrEqual(t, rep.ByKind[GoClient].Dials, 6+rep.ByKind[GoClient].GivenUp)
	require.EqualValues(t, 3, rep.ByKind[H2C].Dials)
	require.Equal(t, rep.ByKind[NewConn].Sent, rep.ByKind[NewConn].Dials)
	for _, k := range []Kind{KeepAlive, Pipelined, GoClient, NewConn, H2C} {
		require.NotZero(t, rep.ByKind[k].Answered, k)
	}
}

// Shutdown of the old server while a new one serves the same socket is the restart that everybody tests, and that
// loses requests. A load tester that cannot see it is of no use.
func TestSeesTheLossesOfShutdown(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	old := serve(t, ln, echoApp(0))
	run := start(t, Config{Streams: []Stream{{Kind: KeepAlive, Address: ln.Addr().String(), Conns: 100, Rate: 3000}}})
	for generation := uint64(1); run.Counts().Lost == 0; generation++ {
		require.Less(t, generation, uint64(200), "no loss in 200 restarts: %s", run.rec.report())
		await(t, run, run.More(100))
		f, err := ln.File()
		require.NoError(t, err)
		next, err := net.FileListener(f)
		require.NoError(t, err)
		f.Close()
		successor := serve(t, next, echoApp(int(generation)))
		require.NoError(t, old.Shutdown(t.Context()))
		await(t, run, Answers(generation, 10))
		old, ln = successor, next.(*net.TCPListener)
	}
	rep := run.Stop()
	require.NotEmpty(t, rep.Losses)
	require.Contains(t, []Cause{CauseClosed, CauseReset}, rep.Losses[0].Cause)
	require.NotEmpty(t, rep.Losses[0].Error)
	require.Contains(t, rep.String(), "lost: keep-alive at ")
}

// The server closes right after its answer, and two seconds before it is asked again: neither of the two waits for a clock
// that a machine which was stopped meanwhile makes meet the other.
func TestSeesIdleConnectionsClosed(t *testing.T) {
	leak.Check(t)
	addr := faulty(t, func(w io.Writer, _ *bufio.Reader, _ int, body []byte) error {
		answer(w, body)
		return io.EOF
	})
	run := start(t, Config{Streams: []Stream{{Kind: KeepAlive, Address: addr, Conns: 4, Rate: 2}}})
	await(t, run, func(c Counts) bool { return c.Broken >= 5 && c.Answered >= 5 })
	rep := run.Stop()
	require.Zero(t, rep.Lost, "%s", rep)
	require.Greater(t, rep.Dials, uint64(4), "broken connections are dialled again")
	require.Equal(t, CauseClosed, rep.Breaks[0].Cause)
}

func TestAnnouncedCloseIsNoBreak(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	app := echoApp(1)
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Connection", "close")
		app.ServeHTTP(w, r)
	}))
	run := start(t, Config{Streams: []Stream{{Kind: KeepAlive, Address: ln.Addr().String(), Conns: 4, Rate: 400}}})
	await(t, run, Answers(1, 100))
	rep := run.Stop()
	require.Zero(t, rep.Lost+rep.Broken, "%s", rep)
	require.Equal(t, rep.Answered, rep.Announced)
	require.GreaterOrEqual(t, rep.Dials, rep.Answered)
}

// scripted answers each connection with f, in place of an HTTP server.
func scripted(t *testing.T, f func(c *net.TCPConn)) string {
	t.Helper()
	ln := listen(t)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.AcceptTCP()
			if err != nil {
				return
			}
			f(c)
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return ln.Addr().String()
}

func readRequest(c net.Conn) (string, error) {
	req, err := http.ReadRequest(bufio.NewReader(c))
	if err != nil {
		return "", err
	}
	b, err := io.ReadAll(req.Body)
	return string(b), err
}

func TestEveryCauseIsNamed(t *testing.T) {
	answer := func(status, body string) string {
		return fmt.Sprintf("HTTP/1.1 %s\r\nContent-Length: %d\r\nX-Handoff-Generation: 3\r\n\r\n%s", status, len(body), body)
	}
	for _, tc := range []struct {
		name   string
		server func(c *net.TCPConn)
		want   Cause
	}{
		{"reset with a request outstanding", func(c *net.TCPConn) { readRequest(c); c.SetLinger(0) }, CauseReset},
		{"reset with half the answer sent", func(c *net.TCPConn) {
			body, _ := readRequest(c)
			io.WriteString(c, answer("200 OK", body)[:80])
		}, CauseClosed},
		{"closed with a request outstanding", func(c *net.TCPConn) { readRequest(c) }, CauseClosed},
		{"another body", func(c *net.TCPConn) {
			body, _ := readRequest(c)
			io.WriteString(c, answer("200 OK", strings.ToUpper(body)))
		}, CauseEcho},
		{"the body cut short", func(c *net.TCPConn) {
			body, _ := readRequest(c)
			io.WriteString(c, answer("200 OK", body[:len(body)-1]))
		}, CauseEcho},
		{"503", func(c *net.TCPConn) {
			body, _ := readRequest(c)
			io.WriteString(c, answer("503 Service Unavailable", body))
		}, CauseStatus},
		{"no HTTP", func(c *net.TCPConn) { readRequest(c); io.WriteString(c, "what?\r\n\r\n") }, CauseProtocol},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, kind := range []Kind{KeepAlive, GoClient, NewConn} {
				leak.Check(t)
				run := start(t, Config{Streams: []Stream{{Kind: kind, Address: scripted(t, tc.server), Rate: 100}}})
				await(t, run, func(c Counts) bool { return c.Lost > 0 })
				rep := run.Stop()
				require.Equal(t, tc.want, rep.Losses[0].Cause, "%s", rep)
				require.Zero(t, rep.Answered)
				require.Equal(t, rep.Sent, rep.Lost)
			}
		})
	}
}

func TestSilenceIsALoss(t *testing.T) {
	leak.Check(t)
	release := make(chan struct{})
	addr := scripted(t, func(c *net.TCPConn) { readRequest(c); <-release })
	run := start(t, Config{
		Streams: []Stream{{Kind: KeepAlive, Address: addr, Rate: 100}},
		Timeout: time.Second, // for the dial, too
	})
	cause := CauseDial // a dial may take too long as well
	for n := 0; cause == CauseDial; n++ {
		await(t, run, func(c Counts) bool { return c.Lost > uint64(n) })
		cause = run.Report().Losses[n].Cause
	}
	close(release)
	rep := run.Stop()
	require.Equal(t, CauseTimeout, cause, "%s", rep)
}

func TestRefusedDialIsALoss(t *testing.T) {
	leak.Check(t)
	addr := refusing.Address(t)
	for _, kind := range []Kind{KeepAlive, Pipelined, GoClient, NewConn, H2C, Events} {
		run := start(t, Config{Streams: []Stream{{Kind: kind, Address: addr, Rate: 50}}})
		await(t, run, func(c Counts) bool { return c.Lost > 2 })
		rep := run.Stop()
		require.Equal(t, CauseDial, rep.Losses[0].Cause, "%s", rep)
		require.Contains(t, rep.Losses[0].Error, "connection refused")
	}
}

// A stalled server delays requests that were due meanwhile: their latency counts from when they were due.
func TestLatencyCountsFromTheDueTime(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	const stall = 300 * time.Millisecond
	var served atomic.Int64
	app := echoApp(1)
	serve(t, ln, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if served.Add(1) == 10 {
			select { // the stall is what is measured
			case <-time.After(stall):
			case <-r.Context().Done():
			}
		}
		app.ServeHTTP(w, r)
	}))
	run := start(t, Config{Streams: []Stream{{Kind: KeepAlive, Address: ln.Addr().String(), Rate: 100}}})
	await(t, run, Answers(1, 60))
	rep := run.Stop()
	delayed := 0
	for _, s := range rep.samples {
		if s.latency > stall/3 {
			delayed++
		}
	}
	require.Greater(t, delayed, 10, "a stall of 300 ms at 100/s delays more than the one request that hit it: %s", rep)
}

func TestWindowsOfLatency(t *testing.T) {
	at := func(ms int) time.Time { return time.Unix(100, 0).Add(time.Duration(ms) * time.Millisecond) }
	var rep Report
	for i := range 1000 {
		rep.samples = append(rep.samples, sample{due: at(i), latency: time.Duration(i+1) * time.Microsecond, kind: KeepAlive})
	}
	us := func(n int) time.Duration { return time.Duration(n) * time.Microsecond }
	require.Equal(t, Latency{N: 1000, P50: us(500), P99: us(990), P999: us(999), Max: us(1000)}, rep.Latency(time.Time{}, time.Time{}))
	require.Equal(t, Latency{N: 10, P50: us(105), P99: us(110), P999: us(110), Max: us(110)}, rep.Latency(at(100), at(110)))
	require.Zero(t, rep.Latency(time.Time{}, time.Time{}, H2C))
}

func TestBadConfigurations(t *testing.T) {
	for name, cfg := range map[string]Config{
		"no streams":   {},
		"no rate":      {Streams: []Stream{{Kind: KeepAlive, Address: "x"}}},
		"no address":   {Streams: []Stream{{Kind: Events}}},
		"TLS, kept":    {Streams: []Stream{{Kind: KeepAlive, Address: "x", Rate: 1, TLS: new(tls.Config)}}},
		"unknown kind": {Streams: []Stream{{Kind: "smoke signals", Address: "x", Rate: 1}}},
	} {
		_, err := Start(t.Context(), cfg)
		require.Error(t, err, name)
	}
}

func TestMaxEndsTheRun(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	serve(t, ln, echoApp(1))
	run := start(t, Config{
		Streams: []Stream{{Kind: KeepAlive, Address: ln.Addr().String(), Rate: 100}},
		Max:     time.Second,
	})
	err := run.Wait(t.Context(), func(Counts) bool { return false })
	require.ErrorIs(t, err, context.Canceled)
	require.NotZero(t, run.Stop().Answered)
}
