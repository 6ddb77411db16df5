package handoff

import (
	"net"
	"os"
	"sync"
	"time"
)

// packetConn is what a program reads datagrams from: the same for a packet socket
// as listener is for a stream socket.
type packetConn struct {
	mu       sync.Mutex
	inner    net.PacketConn // nil: does not read
	held     *descriptor    // the Process's duplicate, for writing while inner is nil; nil once that can't be
	addr     net.Addr
	ended    bool
	deadline struct{ read, write time.Time }
	changed  chan struct{}
	giveUp   func()
}

func newPacketConn(giveUp func()) *packetConn {
	return &packetConn{changed: make(chan struct{}), giveUp: giveUp}
}

func (c *packetConn) change(f func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	f()
	close(c.changed)
	c.changed = make(chan struct{})
}

func (c *packetConn) accept(inner net.PacketConn) {
	c.change(func() {
		if c.ended {
			inner.Close()
			return
		}
		inner.SetReadDeadline(c.deadline.read)
		inner.SetWriteDeadline(c.deadline.write)
		c.inner = inner
	})
}

func (c *packetConn) accepts() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.inner != nil || c.ended
}

func (c *packetConn) park() {
	c.change(func() {
		if c.inner != nil {
			c.inner.Close()
			c.inner = nil
		}
	})
}

func (c *packetConn) end() {
	c.stopReading()
	c.change(func() { c.held = nil })
}

// stopReading ends reading for good.
func (c *packetConn) stopReading() {
	c.change(func() {
		c.ended = true
		if c.inner != nil {
			c.inner.Close()
			c.inner = nil
		}
	})
}

// ReadFrom implements net.PacketConn. It waits while this process does not
// serve, and reads nothing then: what arrives is the other process's.
func (c *packetConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		c.mu.Lock()
		inner, ended, changed, deadline := c.inner, c.ended, c.changed, c.deadline.read
		c.mu.Unlock()
		switch {
		case ended:
			return 0, nil, c.opError("read", net.ErrClosed)
		case inner == nil:
			if !waitUntil(changed, deadline) {
				return 0, nil, c.opError("read", os.ErrDeadlineExceeded)
			}
			continue
		}
		n, from, err := inner.ReadFrom(b)
		if err == nil {
			return n, from, nil
		}
		c.mu.Lock()
		same := c.inner == inner
		c.mu.Unlock()
		if same {
			return n, from, err
		}
	}
}

// waitUntil waits for changed; false means that the deadline (zero: none) came first.
func waitUntil(changed <-chan struct{}, deadline time.Time) bool {
	if deadline.IsZero() {
		<-changed
		return true
	}
	t := time.NewTimer(time.Until(deadline))
	defer t.Stop()
	select {
	case <-changed:
		return true
	case <-t.C:
		return false
	}
}

// WriteTo implements net.PacketConn. Answers to what was read before this
// process was parked still go out: the socket is put into the poller for the
// length of that write only.
func (c *packetConn) WriteTo(b []byte, to net.Addr) (int, error) {
	c.mu.Lock()
	inner, held, deadline := c.inner, c.held, c.deadline.write
	c.mu.Unlock()
	if inner != nil {
		n, err := inner.WriteTo(b, to)
		c.mu.Lock()
		parked := c.inner != inner
		held = c.held
		c.mu.Unlock()
		if err == nil || !parked {
			return n, err
		}
	}
	if held == nil {
		return 0, c.opError("write", net.ErrClosed)
	}
	brief, err := held.packetConn()
	if err != nil {
		return 0, c.opError("write", err)
	}
	defer brief.Close()
	brief.SetWriteDeadline(deadline)
	return brief.WriteTo(b, to)
}

func (c *packetConn) opError(op string, err error) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Addr: c.LocalAddr(), Err: err}
}

// Close implements net.PacketConn: the program gives the socket up.
func (c *packetConn) Close() error {
	c.mu.Lock()
	ended := c.ended && c.held == nil
	c.mu.Unlock()
	if ended {
		return net.ErrClosed
	}
	c.end()
	c.giveUp()
	return nil
}

// LocalAddr implements net.PacketConn.
func (c *packetConn) LocalAddr() net.Addr {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.addr
}

// SetDeadline implements net.PacketConn.
func (c *packetConn) SetDeadline(t time.Time) error {
	c.change(func() {
		c.deadline.read, c.deadline.write = t, t
		if c.inner != nil {
			c.inner.SetDeadline(t)
		}
	})
	return nil
}

// SetReadDeadline implements net.PacketConn.
func (c *packetConn) SetReadDeadline(t time.Time) error {
	c.change(func() {
		c.deadline.read = t
		if c.inner != nil {
			c.inner.SetReadDeadline(t)
		}
	})
	return nil
}

// SetWriteDeadline implements net.PacketConn.
func (c *packetConn) SetWriteDeadline(t time.Time) error {
	c.change(func() {
		c.deadline.write = t
		if c.inner != nil {
			c.inner.SetWriteDeadline(t)
		}
	})
	return nil
}
