package handoff

import (
	"context"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// patiently gives what ends by itself at the deadline as long as a test waits.
func patiently(h *HTTPServer) { h.drain.grace = patience }

// TestRequestContextsEndAtTheDeadline: by HTTP/1, and where the connection was
// taken over; http_h2_test.go has HTTP/2.
func TestRequestContextsEndAtTheDeadline(t *testing.T) {
	leak.CheckExact(t)
	causes := make(chan error, 2)
	entered := make(chan struct{}, 2)
	mux := http.NewServeMux()
	mux.HandleFunc("/waits", func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
		causes <- context.Cause(r.Context())
		io.WriteString(w, "sorry")
	})
	mux.HandleFunc("/hijacks", func(w http.ResponseWriter, r *http.Request) {
		nc, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		defer nc.Close()
		entered <- struct{}{}
		<-r.Context().Done()
		causes <- context.Cause(r.Context())
		io.WriteString(nc, "1012")
	})
	s := serveHTTP(t, mux, patiently)
	waits, hijacks := s.dial(), s.dial()
	waits.send(get("/waits"))
	hijacks.send(get("/hijacks"))
	<-entered
	<-entered
	s.beginDrain(false)
	select {
	case err := <-causes:
		t.Fatalf("ended before the deadline: %v", err)
	default:
	}
	require.Empty(t, s.drain.cut(), "both ended by themselves, in the time that they had")
	require.ErrorIs(t, <-causes, ErrDrainDeadline)
	require.ErrorIs(t, <-causes, ErrDrainDeadline)
	require.Equal(t, "sorry", waits.ok(true))
	rest, err := io.ReadAll(hijacks.r)
	require.NoError(t, err)
	require.Equal(t, "1012", string(rest))
}

// A request whose handler heeds nothing has its connection closed a second
// after its context has ended.
func TestConnectionIsClosedASecondAfterTheDeadline(t *testing.T) {
	leak.CheckExact(t)
	ended := make(chan struct{})
	g := newGate(tell("too late"))
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		context.AfterFunc(r.Context(), func() { close(ended) })
		g.ServeHTTP(w, r)
	}), nil)
	t.Cleanup(func() { close(g.open) })
	c := s.dial()
	c.send(get("/"))
	g.waitEntered(t)
	s.beginDrain(false)
	begun := time.Now() // what the context's end has called may run a moment late
	require.Equal(t, map[string]int{"active": 1}, s.drain.cut())
	_, err := c.r.ReadByte()
	require.Error(t, err)
	require.GreaterOrEqual(t, time.Since(begun), cutGrace)
	<-ended
}

// The context of a connection that ends before the deadline ends with it.
func TestConnectionContextEndsWithTheConnection(t *testing.T) {
	leak.CheckExact(t)
	contexts := make(chan context.Context, 1)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := serveHTTPOn(t, ln, &http.Server{
		Handler: tell("hello"),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			contexts <- ctx
			return ctx
		},
	}, nil)
	c := s.dial()
	c.get("/", false)
	ctx := <-contexts
	require.NoError(t, ctx.Err())
	require.NoError(t, c.Close())
	select {
	case <-ctx.Done():
		require.NotErrorIs(t, context.Cause(ctx), ErrDrainDeadline)
	case <-time.After(patience):
		t.Fatal("the context outlived its connection")
	}
}

func TestAnsweredRequestsAreCounted(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	ln := c.listen(one, "tcp", "127.0.0.1:0")
	h := NewHTTPServer(one, &http.Server{Handler: tell("hello")})
	go h.Serve(ln)
	c.ready(one)
	client := dialRaw(t, ln.Addr().String())
	const n = 3
	for range n {
		client.get("/", false)
	}
	// A handler has returned a moment after its client has the answer.
	c.until("all are counted", func() bool { return c.statusOf(1).Answered == n })
	one.Stop()
	require.EqualValues(t, n, c.wait(one).Answered)
}

// A handler that gives up at the deadline, as handlers do whose client has gone,
// must not seem to have succeeded.
func TestNoAnswerIsNotAnEmptyOne(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(http.ResponseWriter)
		want string
	}{
		{"without a word", func(http.ResponseWriter) {}, ""},
		{"by a panic", func(http.ResponseWriter) { panic(http.ErrAbortHandler) }, ""},
		{"in the middle", func(w http.ResponseWriter) {
			w.Header().Set("Content-Length", "9")
			io.WriteString(w, "half")
			http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}, "half"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			leak.CheckExact(t)
			entered := make(chan struct{}, 1)
			s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				entered <- struct{}{}
				<-r.Context().Done()
				tc.end(w)
			}), patiently)
			c := s.dial()
			c.send(get("/"))
			<-entered
			s.beginDrain(false)
			require.Equal(t, map[string]int{"active": 1}, s.drain.cut())
			rest, err := io.ReadAll(c.r)
			require.NoError(t, err)
			_, body, _ := strings.Cut(string(rest), "\r\n\r\n")
			require.Equal(t, tc.want, body)
		})
	}
}
