package handoff

import (
	"cmp"
	"context"
	"net/http"
)

// ListenAndServe is net/http's ListenAndServe for a server that is replaced
// without its clients noticing. It takes over from the incumbent at cfg.Socket,
// or is the first; listens on srv.Addr (":http" if empty), inherited or fresh;
// serves; and returns when this process has ended its part: nil after it handed
// over or was stopped, and its connections were finished or cut at the
// deadline. When ctx ends, that means Stop; before it serves the error is ctx's.
// Where cfg.Signals is set signals mean Stop too, and more: ctx need not end on any
// then. Stopped by a signal before it serves, the error is ErrStopped.
//
// It takes over srv as NewHTTPServer does. Errors are those of Start, Listen,
// Ready and Wait.
func ListenAndServe(ctx context.Context, cfg Config, srv *http.Server) error {
	p, err := Start(ctx, cfg)
	if err != nil {
		return err
	}
	defer p.Close()
	ln, err := p.Listen(ctx, "tcp", cmp.Or(srv.Addr, ":http"))
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, p.Stop)()
	served := make(chan error, 1)
	h := NewHTTPServer(p, srv)
	go func() { served <- h.Serve(ln) }()
	if err := p.Ready(context.WithoutCancel(ctx)); err != nil {
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		return err
	}
	select {
	case err := <-served: // before the end only if accepting has failed
		if err != nil {
			return err
		}
	case <-p.Done():
	}
	_, err = p.Wait(context.WithoutCancel(ctx))
	return err
}
