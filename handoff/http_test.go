package handoff

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

func TestLameDuckAnnouncesClose(t *testing.T) {
	leak.CheckExact(t)
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, []byte(strings.Repeat("x", 10_000)), 0o600))

	mux := http.NewServeMux()
	mux.HandleFunc("/write", tell("hello"))
	mux.HandleFunc("/string", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })
	mux.HandleFunc("/status", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) })
	mux.HandleFunc("/nothing", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/error", func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusTeapot) })
	mux.HandleFunc("/flush", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() })
	mux.HandleFunc("/control", func(w http.ResponseWriter, _ *http.Request) { http.NewResponseController(w).Flush() })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) { http.ServeFile(w, r, file) })
	mux.HandleFunc("/early", func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusEarlyHints)
		io.WriteString(w, "late")
	})
	mux.HandleFunc("/keep", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "Keep-Alive")
		w.Header().Set("Keep-Alive", "timeout=5")
	})
	mux.HandleFunc("/upgrade", func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "h2c")
		w.WriteHeader(http.StatusUpgradeRequired)
	})
	mux.HandleFunc("/dir/", tell("dir"))

	cases := []struct {
		name, request string
		status        string
		connection    string // all values of the answer's Connection header
	}{
		{"body", get("/write"), "HTTP/1.1 200", "close"},
		{"string", get("/string"), "HTTP/1.1 200", "close"},
		{"status only", get("/status"), "HTTP/1.1 204", "close"},
		{"nothing written", get("/nothing"), "HTTP/1.1 200", "close"},
		{"error", get("/error"), "HTTP/1.1 418", "close"},
		{"flush", get("/flush"), "HTTP/1.1 200", "close"},
		{"flush by controller", get("/control"), "HTTP/1.1 200", "close"},
		{"file", get("/file"), "HTTP/1.1 200", "close"},
		{"part of a file", "GET /file HTTP/1.1\r\nHost: test\r\nRange: bytes=1-2\r\n\r\n", "HTTP/1.1 206", "close"},
		{"head", "HEAD /file HTTP/1.1\r\nHost: test\r\n\r\n", "HTTP/1.1 200", "close"},
		{"not found by the mux", get("/missing"), "HTTP/1.1 404", "close"},
		{"redirect by the mux", get("/dir"), "HTTP/1.1 307", "close"},
		{"handler keeps alive", get("/keep"), "HTTP/1.1 200", "close"},
		{"handler asks for an upgrade", get("/upgrade"), "HTTP/1.1 426", "close, Upgrade"},
		{"http/1.0", "GET /write HTTP/1.0\r\nConnection: keep-alive\r\n\r\n", "HTTP/1.0 200", "close"},
		{"options", "OPTIONS * HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.1 200", "close"},
		{"body not read", "POST /nothing HTTP/1.1\r\nHost: test\r\nContent-Length: 2\r\n\r\nhi", "HTTP/1.1 200", "close"},
	}
	for _, tc := range cases {
		t.Run(tc.name, func(t *testing.T) {
			s := serveHTTP(t, mux, nil)
			c := s.dial()
			c.send(tc.request)
			header := c.header()
			require.True(t, strings.HasPrefix(header, tc.status), header)
			require.NotContains(t, connectionOptions(header), "close")

			c = s.dial()
			c.get("/write", false)
			s.beginDrain(false)
			c.send(tc.request)
			header = c.header()
			require.True(t, strings.HasPrefix(header, tc.status), header)
			require.Equal(t, tc.connection, connectionOptions(header))
			require.NotContains(t, header, "Keep-Alive")
			_, err := io.Copy(io.Discard, c.r)
			require.NoError(t, err, "closed by the server after the answer")
		})
	}
}

// connectionOptions lists what the Connection lines of a header say.
func connectionOptions(header string) string {
	var options []string
	for line := range strings.SplitSeq(header, "\r\n") {
		if value, ok := strings.CutPrefix(line, "Connection: "); ok {
			options = append(options, value)
		}
	}
	return strings.Join(options, ", ")
}

func TestInformationalAnswersAreUntouched(t *testing.T) {
	leak.CheckExact(t)
	g := newGate(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</style.css>")
		w.WriteHeader(http.StatusEarlyHints)
		io.Copy(w, r.Body)
	})
	s := serveHTTP(t, g, nil)
	c := s.dial()
	c.send("POST / HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: 4\r\n\r\n")
	g.waitEntered(t)
	s.beginDrain(false)
	close(g.open)

	require.Equal(t, "HTTP/1.1 103 Early Hints\r\nLink: </style.css>\r\n", c.header())
	require.Equal(t, "HTTP/1.1 100 Continue\r\n", c.header())
	c.send("body")
	require.Equal(t, "body", c.ok(true))
}

func TestUpgradeIsUntouched(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/first" {
			return
		}
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", "test")
		w.WriteHeader(http.StatusSwitchingProtocols)
	}), nil)
	c := s.dial()
	c.get("/first", false)
	s.beginDrain(false)
	c.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: upgrade\r\nUpgrade: test\r\n\r\n")
	header := c.header()
	require.True(t, strings.HasPrefix(header, "HTTP/1.1 101 "), header)
	require.Equal(t, "Upgrade", connectionOptions(header))
}

func TestRequestUnderWayWhenTheDrainBegins(t *testing.T) {
	leak.CheckExact(t)
	t.Run("header not given", func(t *testing.T) {
		g := newGate(tell("done"))
		s := serveHTTP(t, g, nil)
		c := s.dial()
		c.send(get("/"))
		g.waitEntered(t)
		s.beginDrain(false)
		s.waitOpen(map[string]int{"active": 1})
		s.notDrained()
		close(g.open)
		require.Equal(t, "done", c.ok(true))
		s.waitDrained()
	})
	t.Run("header given", func(t *testing.T) {
		// What the handler has begun stays as it is; the next answer says it.
		given := make(chan struct{})
		s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(http.StatusOK)
			if r.URL.Path == "/slow" {
				given <- struct{}{}
				<-Draining(r.Context())
			}
			io.WriteString(w, "done")
		}), nil)
		c := s.dial()
		c.send(get("/slow"))
		<-given
		s.beginDrain(false)
		require.Equal(t, "done", c.ok(false))
		s.waitOpen(map[string]int{"idle": 1})
		require.Equal(t, "done", c.get("/", true))
		s.waitDrained()
	})
}

func TestNothingThatMayCarryARequestIsClosed(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, tell("hello"), nil)
	fresh, idle, half, halfNext := s.dial(), s.dial(), s.dial(), s.dial()
	idle.get("/", false)
	half.send("GET / HT")
	halfNext.get("/", false)
	halfNext.send("GET / HTTP/1.1\r\nHost: test\r\n")
	s.waitOpen(map[string]int{"new": 1, "idle": 1, "active": 2})
	s.beginDrain(false)
	s.notDrained()

	half.send("TP/1.1\r\nHost: test\r\n\r\n")
	halfNext.send("\r\n")
	for _, c := range []*rawClient{half, halfNext} {
		require.Equal(t, "hello", c.ok(true))
	}
	s.waitOpen(map[string]int{"new": 1, "idle": 1})
	require.Equal(t, "hello", idle.get("/", true))
	s.waitOpen(map[string]int{"new": 1})
	s.notDrained()
	require.Equal(t, "hello", fresh.get("/", true))
	s.waitDrained()
	require.Empty(t, s.drain.cut(), "nothing is left to cut")
}

func TestEventsEndCleanlyWithTheDrain(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-Draining(r.Context()):
			io.WriteString(w, "event: drain\ndata:\n\n")
		case <-r.Context().Done():
		}
	}), nil)
	c := s.dial()
	c.send(get("/"))
	resp, err := http.ReadResponse(c.r, nil)
	require.NoError(t, err)
	first := make([]byte, len("data: first\n\n"))
	_, err = io.ReadFull(resp.Body, first)
	require.NoError(t, err)
	s.beginDrain(false)
	rest, err := io.ReadAll(resp.Body)
	require.NoError(t, err, "a chunked body that ends early is an error")
	require.Equal(t, "event: drain\ndata:\n\n", string(rest))
}

func TestDrainingOutsideAServerBlocksForEver(t *testing.T) {
	require.Nil(t, Draining(context.Background()))
}

func TestServe(t *testing.T) {
	leak.CheckExact(t)
	t.Run("several listeners", func(t *testing.T) {
		s := serveHTTP(t, tell("hello"), nil)
		second, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		served := make(chan error, 1)
		go func() { served <- s.Serve(second) }()
		dialRaw(t, second.Addr().String()).get("/", false)
		c := s.dial()
		c.get("/", false)
		s.beginDrain(false)
		require.NoError(t, <-served)
		s.waitOpen(map[string]int{"idle": 2})
	})
	t.Run("closed listener", func(t *testing.T) {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		s := serveHTTPOn(t, ln, &http.Server{Handler: tell("hello")}, nil)
		c := s.dial()
		c.get("/", false)
		require.NoError(t, ln.Close()) // as one does that was handed over
		require.NoError(t, <-s.served)
		s.served <- nil
		c.get("/", false)
		s.beginDrain(false)
		c.get("/", true)
	})
	t.Run("after the drain began", func(t *testing.T) {
		s := serveHTTP(t, tell("hello"), nil)
		s.beginDrain(false)
		late, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		require.NoError(t, s.Serve(late))
		_, err = late.Accept()
		require.ErrorIs(t, err, net.ErrClosed)
	})
	t.Run("failing listener", func(t *testing.T) {
		broken := errors.New("broken")
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		s := serveHTTP(t, tell("hello"), nil)
		require.ErrorIs(t, s.Serve(failingListener{ln, broken}), broken)
	})
	t.Run("shut down by the program", func(t *testing.T) {
		s := serveHTTP(t, tell("hello"), nil)
		s.dial().get("/", false)
		require.NoError(t, s.srv.Shutdown(within(t)))
		require.ErrorIs(t, <-s.served, http.ErrServerClosed)
	})
	t.Run("twice", func(t *testing.T) {
		srv := &http.Server{}
		newHTTPServer(&fakeHost{}, srv)
		require.Panics(t, func() { newHTTPServer(&fakeHost{}, srv) })
	})
}

type failingListener struct {
	net.Listener
	err error
}

func (l failingListener) Accept() (net.Conn, error) { return nil, l.err }

func TestHooksAreChained(t *testing.T) {
	leak.CheckExact(t)
	type key struct{}
	states := make(chan http.ConnState, 10)
	var bare net.Conn
	var base net.Listener
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.Context().Value(key{}).(string))
		}),
		ConnState: func(_ net.Conn, s http.ConnState) { states <- s },
		ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
			bare = nc.(interface{ NetConn() net.Conn }).NetConn()
			return context.WithValue(ctx, key{}, "mine")
		},
		BaseContext: func(ln net.Listener) context.Context { base = ln; return context.Background() },
	}
	s := serveHTTPOn(t, ln, srv, nil)
	c := s.dial()
	require.Equal(t, "mine", c.get("/", false))
	for _, want := range []http.ConnState{http.StateNew, http.StateActive, http.StateIdle} {
		require.Equal(t, want, <-states)
	}
	require.IsType(t, &net.TCPConn{}, bare)
	require.Equal(t, ln, base)
	require.NoError(t, c.Close())
	require.Equal(t, http.StateClosed, <-states)
}

func TestOptionsAskTheHandlerWhereTheProgramSaysSo(t *testing.T) {
	leak.CheckExact(t)
	const request = "OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n"
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := serveHTTPOn(t, ln, &http.Server{Handler: tell("mine"), DisableGeneralOptionsHandler: true}, nil)
	c := s.dial()
	c.send(request)
	require.Equal(t, "mine", c.ok(false))

	s = serveHTTP(t, tell("mine"), nil)
	c = s.dial()
	c.send(request)
	require.Empty(t, c.ok(false))
}

func TestDefaultServeMux(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, nil, nil)
	c := s.dial()
	c.send(get("/nobody-registered-this"))
	resp, body := c.answer()
	require.Equal(t, http.StatusNotFound, resp.StatusCode)
	require.Equal(t, "404 page not found\n", body)
}
