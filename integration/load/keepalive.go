package load

import (
	"bufio"
	"context"
	"errors"
	"net"
	"sync"
	"syscall"
	"time"
)

// keepAlive is one HTTP/1.1 client with one connection at a time. Between requests it watches the connection, so that
// a close that reached this host before the next request was due costs a new connection and no request.
type keepAlive struct {
	*worker
	conn rawConn // nil: to be dialled when a request is due
	raw  syscall.RawConn
	br   *bufio.Reader
	buf  []byte // of the last request
	// fresh until the first answer on the connection
	fresh  bool
	dialed time.Time

	mu      sync.Mutex // orders idle deadlines against the end of the run
	idle    bool
	stopped bool
}

// run sends at the scheduled times until ctx ends.
func (c *keepAlive) run(ctx context.Context, s schedule) {
	defer c.close()
	stop := context.AfterFunc(ctx, c.interrupt)
	defer stop()
	for k := 0; ; k++ {
		due := s.due(k)
		if !c.waitIdle(ctx, due) {
			return
		}
		c.post(due)
	}
}

// waitIdle waits until due, watching the connection. It reports false when ctx ended first.
func (c *keepAlive) waitIdle(ctx context.Context, due time.Time) bool {
	if c.conn == nil {
		return sleepUntil(ctx, due)
	}
	if !c.setIdle(due) {
		return false
	}
	err := watch(c.raw)
	c.setBusy()
	if ctx.Err() != nil {
		return false
	}
	if err == nil {
		// What came between the deadline and now counts as well: a client that looks before it sends would see it.
		err = peek(c.raw)
	}
	if err == nil {
		return true
	}
	c.broke(err)
	return sleepUntil(ctx, due)
}

// broke gives up a connection that the server ended, or spoke on, while nothing was outstanding.
func (c *keepAlive) broke(err error) {
	c.rec.brokenConn(Loss{Kind: c.stream.Kind, Dialed: c.dialed, Cause: causeOf(err), Error: textOf(err), Generation: c.generation, Fresh: c.fresh})
	c.close()
}

// post sends one request and reads its answer. Whatever happens is recorded.
func (c *keepAlive) post(due time.Time) {
	c.rec.sent(c.stream.Kind)
	if err := c.exchange(due); err != nil {
		c.rec.loss(Loss{Kind: c.stream.Kind, Due: due, Dialed: c.dialed, Cause: causeOf(err), Error: textOf(err), Generation: c.generation, Fresh: c.fresh})
		c.close()
	}
}

func (c *keepAlive) exchange(due time.Time) error {
	wire, body := c.request(c.buf, c.cfg.body(c.stream), "")
	c.buf = wire
	if c.conn == nil {
		if err := c.dial(); err != nil {
			return &failure{CauseDial, err}
		}
	}
	if err := c.conn.SetDeadline(time.Now().Add(c.cfg.timeout())); err != nil {
		return err
	}
	if _, err := c.conn.Write(wire); err != nil {
		return err
	}
	resp, err := readAnswer(c.br, body)
	if resp != nil {
		c.generation = generationOf(resp.Header)
	}
	if err != nil {
		return err
	}
	c.fresh = false
	c.rec.answered(c.stream.Kind, due, c.generation)
	switch {
	case resp.Close:
		c.rec.announced(c.stream.Kind)
		c.close()
	case c.br.Buffered() > 0:
		c.broke(errSurplus)
	}
	return nil
}

// connect dials before the run begins. A failure is a lost request: the one for which a client opens a connection.
func (c *keepAlive) connect() {
	if err := c.dial(); err != nil {
		now := time.Now()
		c.rec.sent(c.stream.Kind)
		c.rec.loss(Loss{Kind: c.stream.Kind, Due: now, Dialed: c.dialed, Cause: CauseDial, Error: textOf(err), Fresh: true})
	}
}

func (c *keepAlive) dial() error {
	c.dialed, c.fresh = time.Now(), true
	conn, err := c.worker.dial()
	if err != nil {
		return err
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	c.conn, c.raw = conn, raw
	c.br = bufio.NewReaderSize(conn, 1024)
	return nil
}

// dialContext is dial for an http.Transport, whatever address that means.
func (w *worker) dialContext(ctx context.Context, _, _ string) (net.Conn, error) {
	w.rec.dialed(w.stream.Kind)
	conn, err := (&net.Dialer{Timeout: w.cfg.timeout()}).DialContext(ctx, w.stream.network(), w.stream.Address)
	if err != nil {
		return nil, &failure{CauseDial, err}
	}
	return conn, nil
}

// dial opens a connection to the stream's address.
func (w *worker) dial() (rawConn, error) {
	w.rec.dialed(w.stream.Kind)
	conn, err := (&net.Dialer{Timeout: w.cfg.timeout()}).Dial(w.stream.network(), w.stream.Address)
	if err != nil {
		return nil, err
	}
	return conn.(rawConn), nil
}

func (c *keepAlive) close() {
	if c.conn == nil {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conn.Close()
	c.conn = nil
	c.idle = false
}

// setIdle lets watch return at due, or at once when the run has ended: then it reports false.
func (c *keepAlive) setIdle(due time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.stopped {
		return false
	}
	c.idle = true
	// A deadline on a connection that is open does not fail.
	return c.conn.SetReadDeadline(due) == nil
}

func (c *keepAlive) setBusy() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.idle = false
}

// interrupt ends a wait for the next request, never one for an answer.
func (c *keepAlive) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.stopped = true
	if c.idle {
		c.conn.SetReadDeadline(time.Unix(1, 0))
	}
}
