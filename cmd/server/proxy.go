package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

const (
	backendDialTimeout = 10 * time.Second // for the connection, and again for its TLS

	// backendIdle is for how long a connection to the backend is kept unused.
	// It is shorter than what backends do (5 s is the least that is common): a
	// POST that meets a backend's closing of the connection can't be sent again.
	backendIdle = 4 * time.Second

	// backendIdleConns bounds the unused connections. It is large, because a
	// connection for which there is no room is closed, and a new one dialled
	// for the next request.
	backendIdleConns = 4096

	// statusClientGone is for the access log only: nobody is there to read it.
	statusClientGone = 499
)

// parseBackend reads the URL of --proxy: http://host:port, https://host:port,
// both with a path if need be, or unix:/path.
func parseBackend(text string) (*url.URL, error) {
	u, err := url.Parse(text)
	switch {
	case err != nil:
	case u.User != nil || u.RawQuery != "" || u.Fragment != "":
		return nil, errors.New("a backend's URL has no user, query or fragment")
	case u.Scheme == "unix" && u.Host == "" && filepath.IsAbs(u.Path):
		return u, nil
	case (u.Scheme == "http" || u.Scheme == "https") && u.Hostname() != "":
		return u, nil
	}
	return nil, errors.New("a backend is http://host:port, https://host:port or unix:/path")
}

// proxy passes every request to one backend, and its answer back.
//
//   - Nothing is buffered: bodies, events and trailers go through as they come,
//     both ways at once, and so does what follows a 101 (WebSocket).
//   - The backend sees the Host that the client sent. X-Forwarded-For, -Host and
//     -Proto say what is known here; what a client says in them is not believed.
//   - It never sends a request twice that may have had an effect.
//   - There is no limit to how long an answer may take.
//
// When the process drains, a browser's stream of events ends between two of
// them, and the browser asks the next generation for the rest. A WebSocket
// can't be told: what is passed on are bytes. It runs until one of its ends
// closes it, or until the drain's deadline.
type proxy struct {
	reverse  httputil.ReverseProxy
	backend  *url.URL
	id       identity
	draining func(context.Context) <-chan struct{}
	log      *slog.Logger
}

func newProxy(backend *url.URL, id identity, log *slog.Logger) *proxy {
	p := &proxy{backend: backend, id: id, draining: handoff.Draining, log: log}
	p.reverse = httputil.ReverseProxy{
		Transport:      newBackendTransport(backend),
		Rewrite:        p.rewrite,
		ModifyResponse: p.modify,
		ErrorHandler:   p.fail,
		FlushInterval:  -1, // at once
		BufferPool:     &bufferPool{},
		ErrorLog:       slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
	return p
}

func newBackendTransport(backend *url.URL) *http.Transport {
	dialer := &net.Dialer{Timeout: backendDialTimeout}
	dial := dialer.DialContext
	if backend.Scheme == "unix" {
		dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
			return dialer.DialContext(ctx, "unix", backend.Path)
		}
	}
	return &http.Transport{
		DialContext:           dial,
		ForceAttemptHTTP2:     true, // over TLS, where the backend speaks it
		DisableCompression:    true, // what the client asks for is what it gets
		TLSHandshakeTimeout:   backendDialTimeout,
		ExpectContinueTimeout: time.Second,
		IdleConnTimeout:       backendIdle,
		MaxIdleConns:          backendIdleConns,
		MaxIdleConnsPerHost:   backendIdleConns,
	}
}

func (p *proxy) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch {
	case isServerOptions(r):
		p.id.state(w.Header())
		return
	case r.Method == http.MethodConnect:
		p.id.state(w.Header())
		http.Error(w, "CONNECT is not for this server", http.StatusMethodNotAllowed)
		return
	}
	ctx, x, end := newExchange(r.Context())
	defer end()
	r = r.WithContext(ctx)
	if r.Body == nil || r.Body == http.NoBody {
		x.asked.Store(true)
	} else {
		r.Body = clientBody{r.Body, x}
	}
	p.reverse.ServeHTTP(w, r)
}

// rewrite makes the backend's request of the client's.
func (p *proxy) rewrite(r *httputil.ProxyRequest) {
	target := p.backend
	if target.Scheme == "unix" {
		target = &url.URL{Scheme: "http", Host: "localhost"}
	}
	r.SetURL(target)
	r.Out.Host = r.In.Host
	r.Out.URL.RawQuery = r.In.URL.RawQuery // nothing here depends on how it is understood
	for name := range r.Out.Header {
		if strings.HasPrefix(name, "X-Forwarded-") {
			r.Out.Header.Del(name)
		}
	}
	r.SetXForwarded()
	if len(r.In.Trailer) > 0 {
		// net/http puts the values into the map of the inbound request when the
		// body has ended; and only an unknown length goes with trailers.
		r.Out.Trailer, r.Out.ContentLength = r.In.Trailer, -1
	}
}

// modify sees the backend's answer before the client does. Where the backend
// is a server of this kind too, the generation is the nearer one's.
func (p *proxy) modify(resp *http.Response) error {
	if resp.StatusCode < 100 {
		return fmt.Errorf("the backend's status is %d", resp.StatusCode) // net/http panics at it
	}
	p.id.state(resp.Header)
	x := exchangeOf(resp.Request)
	x.answered.Store(true)
	x.lastIfEarly(resp.Header, resp.Request)
	if isEventSource(resp) {
		resp.Body = newEventStream(resp.Body, p.draining(resp.Request.Context()))
	}
	return nil
}

// fail answers where the backend did not. What is the client's doing is not logged.
func (p *proxy) fail(w http.ResponseWriter, r *http.Request, err error) {
	p.id.state(w.Header())
	x := exchangeOf(r)
	x.lastIfEarly(w.Header(), r)
	status, text := http.StatusBadGateway, "the backend did not answer\n"
	var timeout net.Error
	switch cause := context.Cause(r.Context()); {
	case errors.Is(cause, handoff.ErrDrainDeadline):
		// It may have had its effect at the backend; no more can be said.
		status, text, err = http.StatusServiceUnavailable, "this server is going away, and the backend has not answered yet\n", cause
	case x.failed.Load():
		http.Error(w, "the request's body broke off", http.StatusBadRequest)
		return
	case cause != nil:
		w.WriteHeader(statusClientGone)
		return
	case errors.As(err, &timeout) && timeout.Timeout():
		status, text = http.StatusGatewayTimeout, "the backend did not answer in time\n"
	}
	generation, _ := p.id()
	p.log.Warn("proxy: no answer from the backend", "generation", generation, "status", status, "method", r.Method, "path", shorten(r.URL.Path, maxLoggedPath),
		"backend", p.backend.String(), "request_id", saneID(r.Header.Get(requestIDHeader)), "error", err)
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(status)
	io.WriteString(w, text)
}

// exchange is what is known of one request and its answer. It is in the context
// of the request that goes to the backend.
type exchange struct {
	asked    atomic.Bool // the request has come in, to its end
	failed   atomic.Bool // its body broke off
	answered atomic.Bool // the backend's answer has begun
}

type exchangeKey struct{}

// newExchange returns the context for a request to the backend, which must be
// ended. It ends with ctx, with one exception: once the answer has begun the
// drain's deadline does not end it. Nothing could be said to the client then,
// and a connection that is left to the drain is cut and counted.
func newExchange(ctx context.Context) (context.Context, *exchange, func()) {
	x := &exchange{}
	to, cancel := context.WithCancelCause(context.WithValue(context.WithoutCancel(ctx), exchangeKey{}, x))
	stop := context.AfterFunc(ctx, func() {
		cause := context.Cause(ctx)
		if !errors.Is(cause, handoff.ErrDrainDeadline) || !x.answered.Load() {
			cancel(cause)
		}
	})
	return to, x, func() { stop(); cancel(nil) }
}

func exchangeOf(r *http.Request) *exchange { return r.Context().Value(exchangeKey{}).(*exchange) }

// lastIfEarly makes an answer by HTTP/1 that begins before the request has come in
// the last one of its connection. net/http would read the rest of the body itself
// then, to be ready for the next request, and take it away from the backend.
// (EnableFullDuplex is no way out: where the end of the body is met after the
// handler, net/http 1.26 panics, and the client's next request is lost.)
func (x *exchange) lastIfEarly(h http.Header, r *http.Request) {
	if !x.asked.Load() && r.ProtoMajor == 1 {
		h.Set("Connection", "close")
	}
}

// clientBody is a request's body, and notes how far it was read.
type clientBody struct {
	io.ReadCloser
	x *exchange
}

func (b clientBody) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch err {
	case nil:
	case io.EOF:
		b.x.asked.Store(true)
	default:
		b.x.failed.Store(true)
	}
	return n, err
}

// bufferPool saves an allocation of 32 KiB for each answer.
type bufferPool struct{ pool sync.Pool }

func (b *bufferPool) Get() []byte {
	if buf, ok := b.pool.Get().(*[]byte); ok {
		return *buf
	}
	return make([]byte, 32<<10)
}

func (b *bufferPool) Put(buf []byte) { b.pool.Put(&buf) }
