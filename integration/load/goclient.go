package load

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// goClient is one http.Client of Go, as a program has it. Its requests are POSTs whose body can't be rewound, so that it
// can't send one twice: whatever it can't do is an error of Do.
type goClient struct {
	*worker
	client     *http.Client
	transport  *http.Transport
	generation atomic.Uint64 // requests share the client
}

func newGoClient(w *worker) *goClient {
	c := &goClient{worker: w}
	conns := cmp.Or(w.stream.Conns, 1)
	c.transport = &http.Transport{
		Protocols:           new(http.Protocols),
		MaxConnsPerHost:     conns,
		MaxIdleConnsPerHost: conns,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			conn, err := w.dialContext(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			return &readConn{Conn: conn}, nil
		},
	}
	c.transport.Protocols.SetHTTP1(true)
	c.client = &http.Client{Transport: c.transport}
	return c
}

// readConn notes whether a read has failed: then the server had ended the connection.
type readConn struct {
	net.Conn
	failed atomic.Bool
}

func (c *readConn) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.failed.Store(true)
	}
	return n, err
}

func (c *readConn) readFailed() bool { return c.failed.Load() }

// connect opens every connection, each with a request whose body begins when all have one: the client dials only for
// requests that find none.
func (c *goClient) connect(ctx context.Context) {
	var opened, outstanding sync.WaitGroup
	opened.Add(c.transport.MaxConnsPerHost)
	for range c.transport.MaxConnsPerHost {
		once := sync.OnceFunc(opened.Done)
		trace := httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{GotConn: func(httptrace.GotConnInfo) { once() }})
		body := c.body()
		outstanding.Go(func() {
			defer once() // also without a connection
			c.post(trace, time.Now(), body, func(r io.Reader) io.Reader { return &after{&opened, r} })
		})
	}
	outstanding.Wait()
}

// after is a reader that begins when all is done.
type after struct {
	all *sync.WaitGroup
	io.Reader
}

func (a *after) Read(p []byte) (int, error) {
	a.all.Wait()
	return a.Reader.Read(p)
}

// run sends at the scheduled times, however many are outstanding; the client queues those for which there is no
// connection.
func (c *goClient) run(ctx context.Context, s schedule) {
	var outstanding sync.WaitGroup
	defer c.transport.CloseIdleConnections()
	defer outstanding.Wait()
	for k := 0; ; k++ {
		due := s.due(k)
		if !sleepUntil(ctx, due) {
			return
		}
		body := c.body()
		// io.MultiReader hides what the reader is: the request gets no GetBody.
		outstanding.Go(func() { c.post(ctx, due, body, func(r io.Reader) io.Reader { return io.MultiReader(r) }) })
	}
}

// post sends one request. The end of the run does not cancel it.
func (c *goClient) post(ctx context.Context, due time.Time, body []byte, hide func(io.Reader) io.Reader) {
	c.rec.sent(c.stream.Kind)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.timeout())
	defer cancel()
	if err := c.exchange(ctx, due, body, hide(bytes.NewReader(body))); err != nil {
		cause := causeOf(err)
		switch {
		case errors.Is(err, context.DeadlineExceeded):
			cause = CauseTimeout
		case strings.Contains(err.Error(), "server closed idle connection"): // a text, no error value
			cause = CauseClosed
		}
		c.rec.loss(Loss{Kind: c.stream.Kind, Due: due, Cause: cause, Error: textOf(err), Generation: c.generation.Load()})
	}
}

func (c *goClient) exchange(ctx context.Context, due time.Time, body []byte, r io.Reader) error {
	var ended func() bool
	var kept atomic.Bool
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:     func(info httptrace.GotConnInfo) { ended = info.Conn.(interface{ readFailed() bool }).readFailed },
		PutIdleConn: func(error) { kept.Store(true) },
	})
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://load/echo", r)
	if err != nil {
		return err
	}
	req.ContentLength = int64(len(body))
	resp, err := c.client.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	generation := generationOf(resp.Header)
	c.generation.Store(generation)
	if err := checkEcho(resp, body); err != nil {
		return err
	}
	c.rec.answered(c.stream.Kind, due, generation)
	switch {
	case resp.Close:
		c.rec.announced(c.stream.Kind)
	case !kept.Load() && !ended():
		// The answer was there, but its own goroutine had not said for 50 ms that the request was written
		// (wroteRequest in net/http): on a machine that stands still, or has a lot to do, that happens.
		c.rec.update(c.stream.Kind, func(n *Counts) { n.GivenUp++ })
	}
	return nil
}
