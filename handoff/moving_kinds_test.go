package handoff

import (
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// web is one version of a service that answers each HTTP request with its label.
type web struct {
	c     *chain
	label string
	p     *Process
	h     *HTTPServer
	ln    net.Listener
}

// web makes a version that serves on 127.0.0.1:0.
func (c *chain) web(label string, change ...func(*Config)) *web {
	c.t.Helper()
	w := c.webOn(label, Socket{Network: "tcp", Address: "127.0.0.1:0"}, &http.Server{}, change...)
	c.ready(w.p)
	return w
}

// webOn makes a version that is not ready yet. A nil Handler tells the label.
func (c *chain) webOn(label string, s Socket, srv *http.Server, change ...func(*Config)) *web {
	c.t.Helper()
	w := c.webUnserved(label, s, srv, change...)
	w.serve(w.ln)
	return w
}

// webUnserved makes a version that has its listener, and does not serve it.
func (c *chain) webUnserved(label string, s Socket, srv *http.Server, change ...func(*Config)) *web {
	c.t.Helper()
	if srv.Handler == nil {
		srv.Handler = tell(label)
	}
	srv.ErrorLog = log.New(io.Discard, "", 0)
	w := &web{c: c, label: label, p: c.start(label, change...)}
	var err error
	w.ln, err = w.p.ListenSocket(c.ctx, s)
	require.NoError(c.t, err)
	w.h = NewHTTPServer(w.p, srv)
	return w
}

// serve has ln served until the Process closes it.
func (w *web) serve(ln net.Listener) {
	go func() {
		if err := w.h.Serve(ln); err != nil {
			w.c.t.Errorf("%s: Serve: %v", w.label, err)
		}
	}()
}

// dial connects a client.
func (w *web) dial() *rawClient { w.c.t.Helper(); return dialAt(w.c.t, w.ln.Addr()) }

func dialAt(t testing.TB, a net.Addr) *rawClient {
	t.Helper()
	c, err := net.Dial(a.Network(), a.String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return rawOver(t, c)
}

// idle connects a client that has had one answer.
func (w *web) idle() *rawClient {
	w.c.t.Helper()
	c := w.dial()
	require.Equal(w.c.t, w.label, c.get("/", false))
	return c
}

// answers expects the next answer to be this version's, and the connection to stay.
func (w *web) answers(c *rawClient) {
	w.c.t.Helper()
	require.Equal(w.c.t, w.label, c.get("/", false))
}

// open waits until exactly these connections are open.
func (w *web) open(want map[string]int) {
	w.c.t.Helper()
	var open map[string]int
	w.c.until("open are "+counts(want), func() bool {
		open = w.p.openConnections()
		return counts(open) == counts(want)
	})
}

func counts(m map[string]int) string { return fmt.Sprint(m) }

// self is what the version's status says of it.
func (w *web) self() *GenerationStatus {
	w.c.t.Helper()
	var g *GenerationStatus
	require.True(w.c.t, w.p.ask(func() { g = w.p.self() }))
	return g
}

// adopted waits until so many came; a client may have its answer before they are counted.
func (w *web) adopted(want uint64) {
	w.c.t.Helper()
	w.c.until(fmt.Sprintf("%d came", want), func() bool { return w.self().Adopted == want })
}

// moved waits for the end of a version and says how many of its connections moved.
func (w *web) moved(want uint64) Report {
	w.c.t.Helper()
	r := w.c.wait(w.p)
	require.Equal(w.c.t, want, r.Moved, "moved")
	require.Empty(w.c.t, r.Cut)
	return r
}
