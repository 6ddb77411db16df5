package load

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"github.com/fdhandoff/handoff/internal/leak"
)

// eventApp sends events until the request or drain ends, and then, if told to, says goodbye.
func eventApp(drain <-chan struct{}, goodbye bool) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set(generationHeader, "4")
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			fmt.Fprint(w, "event: tick\ndata: x\n\n")
			w.(http.Flusher).Flush()
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			case <-drain:
				if goodbye {
					fmt.Fprint(w, "event: drain\ndata: bye\n\n")
				}
				return
			}
		}
	})
}

func TestEventStreamsEndWithTheirWord(t *testing.T) {
	for _, goodbye := range []bool{true, false} {
		t.Run(fmt.Sprintf("goodbye %v", goodbye), func(t *testing.T) {
			leak.Check(t)
			ln := listen(t)
			drain := make(chan struct{})
			serve(t, ln, eventApp(drain, goodbye))
			run := start(t, Config{Streams: []Stream{{Kind: Events, Address: ln.Addr().String(), Conns: 3}}})
			await(t, run, func(c Counts) bool { return c.Events >= 10 })
			close(drain)
			await(t, run, func(c Counts) bool { return c.Drained+c.Lost >= 3 })
			rep := run.Stop()
			if goodbye {
				require.Zero(t, rep.Lost, "%s", rep)
				require.GreaterOrEqual(t, rep.Drained, uint64(3))
				require.NotZero(t, rep.Generations[4])
			} else {
				require.Zero(t, rep.Drained, "%s", rep)
				require.Equal(t, CauseStream, rep.Losses[0].Cause)
			}
		})
	}
}

func TestEventStreamCutIsALoss(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	srv := serve(t, ln, eventApp(nil, true))
	run := start(t, Config{Streams: []Stream{{Kind: Events, Address: ln.Addr().String(), Conns: 2}}})
	await(t, run, func(c Counts) bool { return c.Events >= 2 })
	require.NoError(t, srv.Close())
	await(t, run, func(c Counts) bool { return c.Lost >= 2 })
	rep := run.Stop()
	require.Equal(t, CauseClosed, rep.Losses[0].Cause, "%s", rep)
}

// An event stream that is open when the run stops did what it should.
func TestEventStreamOpenAtTheEnd(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	serve(t, ln, eventApp(nil, true))
	run := start(t, Config{Streams: []Stream{{Kind: Events, Address: ln.Addr().String(), Conns: 2}}})
	await(t, run, func(c Counts) bool { return c.Events >= 4 })
	rep := run.Stop()
	require.Zero(t, rep.Lost, "%s", rep)
	require.EqualValues(t, 2, rep.Answered)
}

// h2Refusing speaks HTTP/2 by hand: on each connection it answers GOAWAY, naming a stream below the request's as the
// last one it looked at, or resets the request's stream with the given code.
func h2Refusing(t *testing.T, c *net.TCPConn, goAway bool, code http2.ErrCode) {
	t.Helper()
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(c, preface); err != nil {
		return
	}
	fr := http2.NewFramer(c, c)
	if fr.WriteSettings() != nil {
		return
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return
		}
		h, ok := f.(*http2.HeadersFrame)
		switch {
		case !ok:
		case goAway:
			// The last stream is below this one: it was not processed.
			if fr.WriteGoAway(h.StreamID-1, code, nil) != nil {
				return
			}
		default:
			if fr.WriteRSTStream(h.StreamID, code) != nil {
				return
			}
		}
	}
}

func TestOnlyProvableRefusalsAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name    string
		goAway  bool
		code    http2.ErrCode
		refused bool
	}{
		{"goaway below the stream", true, http2.ErrCodeNo, true},
		{"refused stream", false, http2.ErrCodeRefusedStream, true},
		{"cancelled stream", false, http2.ErrCodeCancel, false},
		{"internal error", false, http2.ErrCodeInternal, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.Check(t)
			addr := scripted(t, func(c *net.TCPConn) { h2Refusing(t, c, tc.goAway, tc.code) })
			run := start(t, Config{Streams: []Stream{{Kind: H2C, Address: addr, Rate: 50}}})
			await(t, run, func(c Counts) bool { return c.Refused+c.Lost >= 2 })
			rep := run.Stop()
			if tc.refused {
				require.Zero(t, rep.Lost, "%s", rep)
			} else {
				require.Zero(t, rep.Refused, "%s", rep)
			}
			require.Equal(t, rep.Sent, rep.Refused+rep.Lost)
		})
	}
}

func TestH2CSeesAConnectionCut(t *testing.T) {
	leak.Check(t)
	ln := listen(t)
	started := make(chan struct{}, 100)
	block := make(chan struct{})
	srv := serve(t, ln, http.HandlerFunc(func(http.ResponseWriter, *http.Request) { started <- struct{}{}; <-block }))
	go func() {
		<-started
		srv.Close()
		close(block)
	}()
	run := start(t, Config{Streams: []Stream{{Kind: H2C, Address: ln.Addr().String(), Rate: 10}}})
	rep := run.Stop()
	require.NotZero(t, rep.Lost, "%s", rep)
	require.Zero(t, rep.Answered)
	require.Zero(t, rep.Refused, "the server had the request")
}

func TestDatagrams(t *testing.T) {
	for _, network := range []string{"udp", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			leak.Check(t)
			addr := "127.0.0.1:0"
			if network == "unixgram" {
				addr = t.TempDir() + "/s"
			}
			pc, err := net.ListenPacket(network, addr)
			require.NoError(t, err)
			done := make(chan struct{})
			go func() {
				defer close(done)
				buf := make([]byte, 2048)
				for i := 0; ; i++ {
					n, from, err := pc.ReadFrom(buf)
					if err != nil {
						return
					}
					if i%10 != 9 { // each tenth is swallowed
						pc.WriteTo(buf[:n], from)
					}
				}
			}()
			t.Cleanup(func() { pc.Close(); <-done })
			run := start(t, Config{
				Streams: []Stream{{Kind: Datagram, Network: network, Address: pc.LocalAddr().String(), Conns: 2, Rate: 500}},
				Timeout: 50 * time.Millisecond,
			})
			await(t, run, func(c Counts) bool { return c.Answered >= 45 })
			rep := run.Stop()
			require.GreaterOrEqual(t, rep.Lost, uint64(4), "%s", rep)
			require.True(t, slices.ContainsFunc(rep.Losses, func(l Loss) bool { return l.Cause == CauseTimeout }), "%s", rep)
		})
	}
}
