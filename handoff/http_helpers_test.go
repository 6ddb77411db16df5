package handoff

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"log"
	"maps"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience is how long a test waits for what should happen at once.
const patience = 10 * time.Second

// fakeHost is a process that can only drain and count.
type fakeHost struct {
	drainers []drainer
	answered atomic.Int64
}

func (h *fakeHost) countAnswer() { h.answered.Add(1) }

func (h *fakeHost) servesHTTP() {}

func (h *fakeHost) addDrainer(d drainer) { h.drainers = append(h.drainers, d) }

// testServer is an HTTPServer that serves on a port of its own.
type testServer struct {
	*HTTPServer
	t      *testing.T
	addr   string
	served chan error // what Serve returned
}

// serveHTTP starts a server; change, which may be nil, is called before.
func serveHTTP(t *testing.T, handler http.Handler, change func(*HTTPServer)) *testServer {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	return serveHTTPOn(t, ln, &http.Server{Handler: handler}, change)
}

func serveHTTPOn(t *testing.T, ln net.Listener, srv *http.Server, change func(*HTTPServer)) *testServer {
	t.Helper()
	if srv.ErrorLog == nil {
		srv.ErrorLog = log.New(io.Discard, "", 0)
	}
	host := &fakeHost{}
	s := &testServer{HTTPServer: newHTTPServer(host, srv), t: t, addr: ln.Addr().String(), served: make(chan error, 1)}
	require.Equal(t, []drainer{s.drain}, host.drainers)
	if change != nil {
		change(s.HTTPServer)
	}
	go func() { s.served <- s.Serve(ln) }()
	t.Cleanup(func() {
		s.drain.mu.Lock()
		s.drain.grace = time.Millisecond
		s.drain.mu.Unlock()
		s.drain.cut()
		s.waitDrained()
	})
	return s
}

func (s *testServer) beginDrain(plain bool) {
	s.t.Helper()
	s.drain.beginDrain(0, plain)
	select {
	case err := <-s.served:
		require.NoError(s.t, err, "Serve must end with nil when the drain begins")
	case <-time.After(patience):
		s.t.Fatal("Serve did not end when the drain began")
	}
}

func (s *testServer) waitDrained() {
	s.t.Helper()
	select {
	case <-s.drain.drained():
	case <-time.After(patience):
		s.t.Fatalf("not drained; open: %v", s.drain.open())
	}
}

func (s *testServer) notDrained() {
	s.t.Helper()
	select {
	case <-s.drain.drained():
		s.t.Fatal("drained too early")
	default:
	}
}

// waitOpen waits until exactly the given connections are open.
func (s *testServer) waitOpen(want map[string]int) {
	s.t.Helper()
	var open map[string]int
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); time.Sleep(time.Millisecond) {
		if open = s.drain.open(); maps.Equal(want, open) {
			return
		}
	}
	require.Equal(s.t, want, open, "open connections")
}

// rawClient is a client that sends what it is told, once, and retries nothing.
type rawClient struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func dialRaw(t testing.TB, addr string) *rawClient {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return rawOver(t, c)
}

func rawOver(t testing.TB, c net.Conn) *rawClient {
	return &rawClient{Conn: c, t: t, r: bufio.NewReader(c)}
}

func (s *testServer) dial() *rawClient { s.t.Helper(); return dialRaw(s.t, s.addr) }

func (c *rawClient) send(text string) {
	c.t.Helper()
	_, err := io.WriteString(c, text)
	require.NoError(c.t, err)
}

func get(path string) string { return "GET " + path + " HTTP/1.1\r\nHost: test\r\n\r\n" }

// answer reads one answer and its body.
func (c *rawClient) answer() (*http.Response, string) {
	c.t.Helper()
	resp, err := http.ReadResponse(c.r, nil)
	require.NoError(c.t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(c.t, err)
	return resp, string(body)
}

// header reads the status line and header of an answer as they were sent.
func (c *rawClient) header() string {
	c.t.Helper()
	var b strings.Builder
	for {
		line, err := c.r.ReadString('\n')
		require.NoError(c.t, err, "after %q", b.String())
		if line == "\r\n" {
			return b.String()
		}
		b.WriteString(line)
	}
}

// get sends a request and expects the answer to be 200 and to say close or not.
func (c *rawClient) get(path string, wantClose bool) string {
	c.t.Helper()
	c.send(get(path))
	return c.ok(wantClose)
}

func (c *rawClient) ok(wantClose bool) string {
	c.t.Helper()
	resp, body := c.answer()
	require.Equal(c.t, http.StatusOK, resp.StatusCode)
	require.Equal(c.t, wantClose, resp.Close, "Connection: close")
	if wantClose {
		c.eof()
	}
	return body
}

// eof expects the server to have closed the connection, with nothing more to say.
func (c *rawClient) eof() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	require.NoError(c.t, err)
	require.Empty(c.t, string(rest))
}

// tell is a handler that answers with text.
func tell(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, text) }
}

// gate is a handler that tells when it was entered, and goes on when told.
type gate struct {
	entered, open chan struct{}
	then          http.HandlerFunc
}

func newGate(then http.HandlerFunc) *gate {
	return &gate{entered: make(chan struct{}), open: make(chan struct{}), then: then}
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	select {
	case g.entered <- struct{}{}:
	case <-time.After(patience):
	}
	<-g.open
	g.then(w, r)
}

func (g *gate) waitEntered(t testing.TB) {
	t.Helper()
	select {
	case <-g.entered:
	case <-time.After(patience):
		t.Fatal("the handler was not reached")
	}
}

func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	t.Cleanup(cancel)
	return ctx
}
