package handoff

import (
	"errors"
	"net"
	"os"
	"sync"
	"time"
)

// Idle HTTP connections that came from another process, or came back: each waits in
// the poller until its client says something, and only then has net/http. If that had
// it before, the times for a request would begin to run at once, and it would be
// cut; a connection that says nothing may also move on.

// idleConn is such a connection. Its goroutine is wait.
type idleConn struct {
	drain *httpDrain
	from  *trackedListener
	fresh bool      // nothing was asked on it yet
	since time.Time // when it was accepted, or became idle
	until time.Time // the end of the server's patience; zero: there is none
	f     *os.File

	mu     sync.Mutex
	taker  *carrier // has interrupted the waiting, to take the connection; nil: nobody
	closed bool
}

// adopt keeps the connection fd, which is non-blocking and which it takes ownership of, until its client says
// something, and serves it then as one of l's. false means that it was closed, since
// nothing is served here any more.
func (d *httpDrain) adopt(l *trackedListener, fd *descriptor, fresh bool, since time.Time) bool {
	c := &idleConn{drain: d, from: l, fresh: fresh, since: since, f: fd.disown("connection")}
	if t := d.patience(fresh); t > 0 {
		c.until = since.Add(t)
	}
	d.mu.Lock()
	ended := d.ended
	if !ended {
		d.idle[c] = struct{}{}
	}
	d.mu.Unlock()
	if ended {
		c.f.Close()
		return false
	}
	if k := d.carrier.Load(); k != nil {
		c.interrupt(k)
	}
	go c.wait()
	return true
}

// wait ends when the connection is net/http's, or the carrier's, or closed.
func (c *idleConn) wait() {
	for {
		c.setDeadline()
		err := awaitBytes(c.f)
		c.mu.Lock()
		taker, closed := c.taker, c.closed
		c.taker = nil
		c.mu.Unlock()
		late := !c.until.IsZero() && !time.Now().Before(c.until)
		if taker != nil {
			if !closed && !late && errors.Is(err, os.ErrDeadlineExceeded) && c.leave(taker) {
				return
			}
			taker.decline()
		}
		switch {
		case closed:
			return
		case err == nil:
			c.serve()
			return
		case !late && errors.Is(err, os.ErrDeadlineExceeded): // it could not leave
		default:
			c.close() // the client has gone, or the server's patience
			return
		}
	}
}

func (c *idleConn) setDeadline() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.taker == nil { // otherwise interrupt has set one
		_ = c.f.SetReadDeadline(c.until)
	}
}

// interrupt has the waiting end for the carrier k.
func (c *idleConn) interrupt(k *carrier) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.taker != nil || !k.reserve(c.from) {
		return
	}
	c.taker = k
	_ = c.f.SetReadDeadline(longAgo())
}

// leave gives the connection to the carrier, with whatever its client has said
// meanwhile unread.
func (c *idleConn) leave(k *carrier) bool {
	d, err := dupConn(c.f)
	if err != nil {
		return false
	}
	c.drain.travelling.Add(1)
	if !k.put(&movedConn{drain: c.drain, from: c.from, fresh: c.fresh, since: c.since, d: d}) {
		c.drain.travelling.Add(-1)
		d.Close()
		return false
	}
	c.close()
	return true
}

// close closes this process's copy.
func (c *idleConn) close() {
	c.mu.Lock()
	first := !c.closed
	c.closed = true
	c.mu.Unlock()
	if first {
		c.f.Close()
		c.drain.forgetIdle(c)
	}
}

// serve gives the connection to net/http.
func (c *idleConn) serve() {
	nc, err := streamConn(c.f)
	if err != nil {
		c.close()
		return
	}
	served := c.drain.wake(c, nc)
	if !c.from.returned(c.drain).deliver(served) {
		served.Close()
	}
}

// wake counts nc, which is made of c, in its place.
func (d *httpDrain) wake(c *idleConn, nc net.Conn) net.Conn {
	served := d.track(nc, c.from)
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	d.forgetIdle(c)
	return served
}

func (d *httpDrain) forgetIdle(c *idleConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.idle, c)
	d.checkDoneLocked()
}

// silentSince is as a trackedConn's.
func (c *idleConn) silentSince() (time.Time, bool) { return time.Time{}, !unread(c.f) }

func (c *idleConn) closeSilent() { c.close() }

// kind is the word by which the connection is counted.
func (c *idleConn) kind() string {
	if c.fresh {
		return "new"
	}
	return "idle"
}

// returnListener gives net/http the connections of a listener that do not come out of
// its queue. It is a listener of its own, since that one may be closed by then.
type returnListener struct {
	of    *trackedListener
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// returned is the returnListener of l, which the server begins to serve with the
// first call.
func (l *trackedListener) returned(d *httpDrain) *returnListener {
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.back == nil {
		l.back = &returnListener{of: l, conns: make(chan net.Conn), done: make(chan struct{})}
		if d.ended {
			l.back.Close()
			return l.back
		}
		d.returns = append(d.returns, l.back)
		go func() {
			defer l.back.Close()
			d.srv.Serve(l.back)
		}()
	}
	return l.back
}

// deliver blocks for as long as the server's accept loop is busy.
func (l *returnListener) deliver(nc net.Conn) bool {
	select {
	case l.conns <- nc:
		return true
	case <-l.done:
		return false
	}
}

func (l *returnListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
}

func (l *returnListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *returnListener) Addr() net.Addr { return l.of.Addr() }
