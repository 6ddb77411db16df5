package main

import (
	"context"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"time"
)

// preview is where a successor serves before it takes over, so that it can be
// tried out; the zero value is nowhere. The address is this process's own: it
// is never handed over.
type preview struct{ network, address string }

const (
	previewHeader = "X-Handoff-Preview"

	// previewGrace is how long answers under way may take when a preview ends.
	previewGrace = 5 * time.Second
)

// previewServer serves the preview.
type previewServer struct {
	srv      *http.Server
	forget   context.CancelFunc // ends the requests' contexts
	addr     net.Addr
	log      *slog.Logger
	serving  sync.WaitGroup
	grace    time.Duration
	closing  sync.Once
	hijacked sync.Map // net.Conn: Shutdown and Close do not know them
}

// open binds the address and serves srv's handler there.
func (v preview) open(srv *http.Server, log *slog.Logger) (*previewServer, error) {
	ln, err := net.Listen(v.network, v.address)
	if err != nil {
		return nil, err
	}
	s := &previewServer{srv: srv, addr: ln.Addr(), log: log, grace: previewGrace}
	next := srv.Handler
	srv.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set(previewHeader, "1")
		next.ServeHTTP(w, r)
	})
	srv.ConnState = func(c net.Conn, state http.ConnState) {
		if state == http.StateHijacked {
			s.hijacked.Store(c, nil)
		}
	}
	var life context.Context
	life, s.forget = context.WithCancel(context.Background())
	srv.BaseContext = func(net.Listener) context.Context { return life }
	log.Info("preview", "address", ln.Addr().String())
	s.serving.Go(func() { srv.Serve(ln) }) // it ends when it is closed
	return s, nil
}

// close ends the preview: it accepts no more, and what is under way has a
// moment to finish. Closing it twice does nothing.
func (s *previewServer) close() {
	s.closing.Do(func() {
		ctx, cancel := context.WithTimeout(context.Background(), s.grace)
		defer cancel()
		if s.srv.Shutdown(ctx) != nil {
			s.log.Info("preview: requests under way were cut", "grace", s.grace)
		}
		s.forget()
		s.hijacked.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		s.srv.Close()
		s.serving.Wait()
		s.log.Info("preview closed")
	})
}
