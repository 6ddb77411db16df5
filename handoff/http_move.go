package handoff

import (
	"errors"
	"net"
	"net/http"
	"os"
	"syscall"
	"time"
)

// How an idle HTTP/1 connection leaves net/http with its socket open. It must be at
// a message boundary (atBoundary). Then the read that net/http waits in, or is about
// to begin, ends with io.EOF, as if the client had gone, and net/http closes the
// connection: this process's copy, of which the carrier has got a duplicate before.
// (In StateNew any other error would be answered with 400 Bad Request.)
//
// A read that must be interrupted for it is by a deadline in the past. It returns
// either bytes or the time-out, never both (internal/poll), so one that timed out has
// consumed nothing. What the client has sent since waits in the socket, and moves
// with it, as does what it has not read yet.

// rule is one that a build with -tags faults can do without, to show what it is for.
type rule string

const (
	ruleBoundary  rule = "boundary-rule" // only what is at a message boundary moves
	ruleSelfCheck rule = "self-check"    // nothing moves where the self-check fails
)

// canMove says whether the connections of l can move: plain HTTP on a listener that is
// handed over. One that the program has wrapped may stand for more than the socket.
func (l *trackedListener) canMove() bool {
	_, ours := l.Listener.(*listener)
	return ours && !l.tls
}

// netns is the cookie of the network namespace that l's connections live in.
func (l *trackedListener) netns() uint64 {
	ours := l.Listener.(*listener)
	ours.mu.Lock()
	defer ours.mu.Unlock()
	return ours.netns
}

// movable says whether the connection can move once it is at a boundary.
func (c *trackedConn) movable() bool {
	if c.from == nil || !c.from.canMove() || c.ready || c.over != nil || c.h2 || c.state == http.StateHijacked {
		return false
	}
	switch c.Conn.(type) {
	case *net.TCPConn, *net.UnixConn:
		return true
	}
	return false
}

// canMove counts the connections that can move once they are at a boundary.
func (d *httpDrain) canMove() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.idle.len()
	for c := range d.conns {
		c.mu.Lock()
		if c.movable() {
			n++
		}
		c.mu.Unlock()
	}
	return n
}

// cannotMove counts the connections that stay, by why.
func (d *httpDrain) cannotMove() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	stay := map[string]int{}
	for c := range d.conns {
		c.mu.Lock()
		switch {
		case c.left || c.movable():
		case c.state == http.StateHijacked:
			stay["hijacked"]++
		case c.ready || c.over != nil:
			stay["tls"]++
		case c.h2:
			stay["h2c"]++
		default:
			stay["wrapped"]++ // the listener, by the program
		}
		c.mu.Unlock()
	}
	return stay
}

// mayMove says whether the connection, on which an answer is given, may count on
// moving afterwards.
func (c *trackedConn) mayMove(k *carrier) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.movable() && k.hopes(c.from)
}

// leaveLocked gives the connection to the carrier, if it is at a boundary, in the
// read that is under way or about to begin. taker is whoever has reserved room for
// it; nil: it is done here. On false nothing has changed.
func (c *trackedConn) leaveLocked(taker *carrier) bool {
	k := taker
	if k == nil {
		k = c.drain.carrier.Load()
	}
	if k == nil || c.closed || c.left || !c.movable() || !c.mayLeave() {
		return false
	}
	if taker == nil && !k.reserve(c.from) {
		return false
	}
	d, err := dupConn(c.Conn.(syscall.Conn))
	if err == nil {
		c.drain.travelling.Add(1) // while it is among the open ones still
		if k.put(&movedConn{from: c.from, fresh: c.state == http.StateNew, since: c.idleSince(), d: d}) {
			c.left, c.taker = true, nil
			return true
		}
		c.drain.travelling.Add(-1)
		d.Close()
	}
	if taker == nil {
		k.decline()
	}
	return false
}

// mayLeave is atBoundary, in a build that has the rule.
func (c *trackedConn) mayLeave() bool {
	if lacks(ruleBoundary) {
		return (c.state == http.StateIdle || c.state == http.StateNew) && !c.spoke
	}
	return c.atBoundary()
}

// interrupt has the read under way end for the carrier k, if the connection is at a
// boundary. There must be an error of the read for each that says true.
func (c *trackedConn) interrupt(k *carrier) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || c.left || c.taker != nil || !c.reading || !c.movable() || !c.mayLeave() || !k.reserve(c.from) {
		return false
	}
	c.taker = k
	_ = c.Conn.SetReadDeadline(longAgo())
	return true
}

// interruptedLocked says whether a read ended so because of interrupt, and for no
// reason of net/http's own.
func (c *trackedConn) interruptedLocked(n int, err error) bool {
	return c.taker != nil && n == 0 && errors.Is(err, os.ErrDeadlineExceeded) &&
		(c.deadline.IsZero() || time.Now().Before(c.deadline))
}

// ignoreTakerLocked undoes interrupt.
func (c *trackedConn) ignoreTakerLocked() {
	if c.taker == nil {
		return
	}
	_ = c.Conn.SetReadDeadline(c.deadline)
	c.taker.decline()
	c.taker = nil
}

// idleSince tells it from the deadline that net/http has set. Where it has set none,
// the connection may be idle for ever, and it does not matter.
func (c *trackedConn) idleSince() time.Time {
	if c.deadline.IsZero() {
		return time.Now()
	}
	return c.deadline.Add(-c.drain.patience(c.state == http.StateNew))
}

// patience is for how long the server lets a connection be silent, as net/http has
// it: a fresh one, on which nothing was asked yet, or an idle one. 0 is for ever.
func (d *httpDrain) patience(fresh bool) time.Duration {
	t := d.srv.IdleTimeout
	if fresh {
		t = d.srv.ReadHeaderTimeout
	}
	if t == 0 {
		t = d.srv.ReadTimeout
	}
	return max(t, 0)
}

// moveBy has what is idle, and what will be, go to the carrier once that has room.
// It comes before beginDrain, so that no answer says close that need not.
func (d *httpDrain) moveBy(k *carrier) { d.carrier.Store(k) }

// sweep interrupts what waits for a request, as far as there is room.
func (d *httpDrain) sweep(k *carrier) {
	d.rests().sweep(k)
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if k.isFull() {
			return
		}
		c.interrupt(k)
	}
}

// expect has the drain, which may begin meanwhile, wait for a connection that is
// about to be adopted; then arrived follows. false: it has ended.
func (d *httpDrain) expect() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.ended {
		d.travelling.Add(1)
	}
	return !d.ended
}

// arrived says that a connection that had left is another process's, or open here
// again, or closed; or that one which was expected has come, or does not come.
func (d *httpDrain) arrived() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.travelling.Add(-1)
	d.checkDoneLocked()
}

// announces says whether an answer on c is to carry "Connection: close".
func (d *httpDrain) announces(c *trackedConn) bool {
	if !d.isDraining() {
		return false
	}
	k := d.carrier.Load()
	return k == nil || c == nil || !c.mayMove(k)
}
