package handoff

import (
	"context"
	"io"
	"net"
	"net/http"
)

// HTTPServer serves HTTP for a Process so that no request is lost when
// another process succeeds it. It is made by NewHTTPServer.
//
// When its process has handed over for good, or stops, it drains:
//
//   - It accepts nothing more, and serves the connections that it has.
//   - Connections of plain HTTP/1 that are idle, on a listener that is handed over and
//     that the program has not wrapped, move with their sockets to whoever serves then;
//     busy ones as soon as their answer is out (Config.MoveIdle). Their ConnContext and
//     ConnState begin anew there, and their IdleTimeout goes on.
//   - On those that can't, and where nobody takes them, every answer whose header the
//     handler had not given yet carries "Connection: close", by HTTP/2 a GOAWAY, so
//     that clients go on with new connections, which the successor accepts.
//   - Nothing that might be about to carry a request is closed before the
//     drain's deadline: not a new or idle connection, not one with half a
//     request. Where nobody succeeds the process, connections that are
//     silent for one second are closed.
//   - At the deadline the contexts of requests end, with cause
//     ErrDrainDeadline, and Shutdown gets one second; then the rest is closed.
//     A handler that returns then without having answered has its connection
//     closed (HTTP/2: its stream reset), since an empty 200 would be a lie; that
//     is cut too, and so is what ends by a panic then.
//     Only those count as cut that had not ended by themselves.
//
// Its methods may be called at any time by several goroutines.
type HTTPServer struct {
	srv   *http.Server
	drain *httpDrain
}

// drainHost is what an HTTPServer needs of its Process.
type drainHost interface {
	// addDrainer makes the process drain d when it ends. Where the process
	// drains already, it calls beginDrain at once.
	addDrainer(d drainer)
	// countAnswer is called for each request that was answered.
	countAnswer()
	// servesHTTP is called when a listener begins to be served.
	servesHTTP()
}

// NewHTTPServer makes srv serve for p. It is called once for a srv, before
// anything is served, and takes over srv's Handler, ConnState, ConnContext,
// BaseContext and DisableGeneralOptionsHandler, which must not be changed
// afterwards; the values that they had are honoured. It panics when called
// again for the same srv. srv must not be used to serve directly, and need
// not be shut down: when p drains, the HTTPServer does that.
//
// Hooks and handlers that look at connections (ConnState, ConnContext,
// Hijack) find one with a NetConn method, which returns the connection that
// was accepted, for use by those who must set an option on it.
func NewHTTPServer(p *Process, srv *http.Server) *HTTPServer {
	p.checkMoving()
	return newHTTPServer(p, srv)
}

func newHTTPServer(host drainHost, srv *http.Server) *HTTPServer {
	if _, again := srv.Handler.(*drainHandler); again {
		panic("handoff: NewHTTPServer was called twice for one http.Server")
	}
	h := &HTTPServer{srv: srv, drain: newHTTPDrain(srv)}
	h.hook(host.countAnswer)
	h.drain.serves = host.servesHTTP
	host.addDrainer(h.drain)
	return h
}

// hook puts the drain's hooks in front of the program's own.
func (h *HTTPServer) hook(answered func()) {
	srv, drain := h.srv, h.drain
	srv.Handler = &drainHandler{
		drain: drain, answered: answered,
		next: srv.Handler, options: !srv.DisableGeneralOptionsHandler,
	}
	// net/http would answer OPTIONS * past the handler.
	srv.DisableGeneralOptionsHandler = true

	connState := srv.ConnState
	srv.ConnState = func(nc net.Conn, state http.ConnState) {
		drain.connState(nc, state)
		if connState != nil {
			connState(nc, state)
		}
	}
	connContext := srv.ConnContext
	srv.ConnContext = func(ctx context.Context, nc net.Conn) context.Context {
		if c := drain.find(nc); c != nil {
			ctx = context.WithValue(c.notice.context(ctx), trackedConnKey{}, c)
		}
		if connContext != nil {
			ctx = connContext(ctx, nc)
		}
		return ctx
	}
	if baseContext := srv.BaseContext; baseContext != nil {
		srv.BaseContext = func(ln net.Listener) context.Context {
			switch l := ln.(type) {
			case *trackedListener:
				ln = l.Listener
			case *returnListener:
				ln = l.of.Listener
			}
			return baseContext(ln)
		}
	}
}

// Serve accepts connections on ln and serves them, until ln is closed. It
// returns nil when that happened, because the process handed over or stopped,
// or the program closed ln: the connections go on being served then, and
// Process.Wait tells when they are done. Any other error of ln's Accept is
// returned as it is, and so is http.ErrServerClosed where the program shut
// srv down. Serve closes ln. It may be called for several listeners.
//
// When the drain begins every ln is closed, also one that no handoff passes on.
func (h *HTTPServer) Serve(ln net.Listener) error { return h.serve(ln, false, h.srv.Serve) }

// ServeTLS is like Serve for TLS, with the certificate as for
// http.Server.ServeTLS. Prefer it to giving Serve a tls.Listener: what
// arrives by that is drained too, but none of its silent connections are
// closed before the deadline.
func (h *HTTPServer) ServeTLS(ln net.Listener, certFile, keyFile string) error {
	return h.serve(ln, true, func(ln net.Listener) error { return h.srv.ServeTLS(ln, certFile, keyFile) })
}

func (h *HTTPServer) serve(ln net.Listener, tls bool, serve func(net.Listener) error) error {
	tracked := &trackedListener{onceListener: onceListener{Listener: ln}, drain: h.drain, tls: tls}
	defer tracked.Close()
	if !h.drain.addListener(tracked) {
		return nil
	}
	defer h.drain.removeListener(tracked)
	return h.drain.serveResult(serve(tracked))
}

// trackedConnKey is the key of a connection's *trackedConn in its context.
type trackedConnKey struct{}

// Draining returns, for the context of a request that an HTTPServer serves, a
// channel that is closed when it is the connection's turn to learn that the
// server drains: at a random moment within Config.DrainSpread, at once on a plain
// stop. A handler whose answer has no end by itself, like a WebSocket or a stream
// of events, should end it then; it has until the drain's deadline, when the
// context ends with cause ErrDrainDeadline. For other contexts the channel is nil,
// and receiving from it blocks for ever.
func Draining(ctx context.Context) <-chan struct{} {
	c, ok := ctx.Value(trackedConnKey{}).(*trackedConn)
	if !ok {
		return nil
	}
	return c.notice.draining
}

// drainHandler is the handler that net/http calls: it has the program's
// handler answer, and sees to the answer's header during the drain.
type drainHandler struct {
	drain    *httpDrain
	answered func()       // counts
	next     http.Handler // nil means http.DefaultServeMux
	options  bool         // answer OPTIONS * here
}

func (h *drainHandler) ServeHTTP(rw http.ResponseWriter, r *http.Request) {
	c, _ := r.Context().Value(trackedConnKey{}).(*trackedConn)
	if c != nil {
		c.noteRequest(r.ProtoMajor)
	}
	w, announce := wrapResponse(rw, c, h.drain)
	overdue := func() bool { return context.Cause(r.Context()) == ErrDrainDeadline }
	answered := false
	defer func() {
		if !answered && c != nil && overdue() {
			c.abandon()
		}
	}()
	h.handler(r).ServeHTTP(w, r)
	if !announce.given && overdue() {
		// It gave up because its time was up. Of no answer net/http would make
		// an empty 200, and the client would take that for success.
		panic(http.ErrAbortHandler)
	}
	answered = true
	announce.before(rw, http.StatusOK) // net/http answers 200 for a handler that gave no answer
	h.answered()
}

// handler is chosen as net/http would (serverHandler.ServeHTTP).
func (h *drainHandler) handler(r *http.Request) http.Handler {
	switch {
	case h.options && r.Method == http.MethodOptions && r.RequestURI == "*":
		return http.HandlerFunc(answerOptions)
	case h.next == nil:
		return http.DefaultServeMux
	default:
		return h.next
	}
}

// answerOptions answers OPTIONS *, which asks whether the server is there.
func answerOptions(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Content-Length", "0")
	// A body has no meaning here, and only a small one is worth reading.
	io.Copy(io.Discard, http.MaxBytesReader(w, r.Body, 4<<10))
}
