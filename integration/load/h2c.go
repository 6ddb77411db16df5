package load

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// h2cClient is one HTTP/2 client without TLS. Its transport shares one connection between all requests and opens
// another after a GOAWAY. A request is a POST whose body cannot be rewound, so the transport cannot send it twice: it
// may choose another connection only before the first byte was written.
type h2cClient struct {
	*worker
	transport  *http.Transport
	generation atomic.Uint64 // requests share the client
}

func newH2C(w *worker) *h2cClient {
	c := &h2cClient{worker: w}
	c.transport = &http.Transport{
		Protocols:   new(http.Protocols),
		DialContext: w.dialContext,
	}
	c.transport.Protocols.SetUnencryptedHTTP2(true)
	return c
}

// connect opens the connection with a request, since the transport dials only for one.
func (c *h2cClient) connect(ctx context.Context) { c.post(ctx, time.Now(), c.body()) }

func (c *h2cClient) run(ctx context.Context, s schedule) {
	var outstanding sync.WaitGroup
	defer c.transport.CloseIdleConnections()
	defer outstanding.Wait()
	for k := 0; ; k++ {
		due := s.due(k)
		if !sleepUntil(ctx, due) {
			return
		}
		body := c.body()
		outstanding.Go(func() { c.post(ctx, due, body) })
	}
}

// post sends one request. The end of the run does not cancel it.
func (c *h2cClient) post(ctx context.Context, due time.Time, body []byte) {
	c.rec.sent(c.stream.Kind)
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), c.cfg.timeout())
	defer cancel()
	generation, err := c.exchange(ctx, body)
	switch {
	case err == nil:
		c.rec.answered(c.stream.Kind, due, generation)
	case unprocessed(err):
		c.rec.refused(c.stream.Kind)
	default:
		cause := causeOf(err)
		if errors.Is(err, context.DeadlineExceeded) {
			cause = CauseTimeout
		}
		c.rec.loss(Loss{Kind: c.stream.Kind, Due: due, Cause: cause, Error: textOf(err), Generation: c.generation.Load()})
	}
}

func (c *h2cClient) exchange(ctx context.Context, body []byte) (uint64, error) {
	// Hidden behind io.MultiReader, the reader does not give the request a GetBody.
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://load/echo", io.MultiReader(bytes.NewReader(body)))
	if err != nil {
		return 0, err
	}
	req.ContentLength = int64(len(body))
	resp, err := c.transport.RoundTrip(req)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	generation := generationOf(resp.Header)
	c.generation.Store(generation)
	return generation, checkEcho(resp, body)
}

// unprocessed reports whether the server said that it did not look at the request: its stream is above the last one
// named in a GOAWAY (RFC 9113, 6.8), or was reset with REFUSED_STREAM (8.7). The transport has no error values for
// the two, but these texts have no other origin in it: the first is given to the streams above the last one alone.
//
// A third text says that no byte of the request was sent: every connection that was there for it had had its GOAWAY,
// and the transport had closed the body before it could dial. For a POST that can't be replayed it has no other cause
// (shouldRetryRequest in net/http).
func unprocessed(err error) bool {
	return strings.Contains(err.Error(), "cannot rewind body after connection loss") ||
		strings.Contains(err.Error(), "Transport received Server's graceful shutdown GOAWAY") ||
		strings.Contains(err.Error(), "REFUSED_STREAM; received from peer")
}
