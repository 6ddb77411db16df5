package handoff

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// Track makes ln's connections ones that p waits for when it drains: for TCP and
// Unix protocols other than HTTP, which has HTTPServer. They are counted as kind
// "conn" from Accept to their Close, are told of the drain, and are closed a second
// after its deadline where the program did not do so before; only those count as
// cut. When the drain begins the listener is closed too, also one that no handoff
// passes on. For TLS, give the TrackedListener to tls.NewListener, whose
// connections return the TrackedConn by NetConn.
//
// It may be called at any time, and for several listeners.
func (p *Process) Track(ln net.Listener) *TrackedListener { return track(p, ln) }

func track(host drainHost, ln net.Listener) *TrackedListener {
	l := &TrackedListener{
		onceListener: onceListener{Listener: ln},
		done:         make(chan struct{}), conns: map[*TrackedConn]struct{}{},
	}
	host.addDrainer((*trackDrain)(l))
	return l
}

// TrackedListener is a net.Listener whose Accept returns a *TrackedConn. It is
// made by Track. Its methods may be called by several goroutines.
type TrackedListener struct {
	onceListener
	done chan struct{} // closed when the drain has ended

	mu        sync.Mutex
	begun     time.Time // of the drain; zero before it
	spread    time.Duration
	overdue   bool // the drain's deadline has come
	ended     bool // done is closed
	accepting int  // calls of Accept, each of which may have a connection in its hands
	conns     map[*TrackedConn]struct{}
}

// Accept waits for a connection and returns it as a *TrackedConn. The error is
// the listener's; net.ErrClosed means that this process accepts nothing more, and
// that the connections go on being served.
func (l *TrackedListener) Accept() (net.Conn, error) {
	l.mu.Lock()
	l.accepting++
	l.mu.Unlock()
	nc, err := l.Listener.Accept()
	l.mu.Lock()
	defer l.mu.Unlock()
	l.accepting--
	defer l.checkDoneLocked()
	if err != nil {
		return nil, err
	}
	if l.ended {
		nc.Close()
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
	c := &TrackedConn{passConn: passConn{nc}, listener: l, notice: newNotice()}
	c.ctx = c.notice.context(context.Background())
	l.conns[c] = struct{}{}
	switch {
	case l.overdue:
		c.notice.deadline()
	case !l.begun.IsZero():
		c.notice.begin(l.spread - time.Since(l.begun))
	}
	return c, nil
}

// forget is called once for each connection that is closed.
func (l *TrackedListener) forget(c *TrackedConn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.conns, c)
	l.checkDoneLocked()
}

// checkDoneLocked ends the drain when nothing is open and nothing can come.
func (l *TrackedListener) checkDoneLocked() {
	if !l.begun.IsZero() && len(l.conns) == 0 && l.accepting == 0 {
		l.endLocked()
	}
}

func (l *TrackedListener) endLocked() {
	if !l.ended {
		l.ended = true
		close(l.done)
	}
}

// trackDrain is a TrackedListener as its Process drains it.
type trackDrain TrackedListener

func (d *trackDrain) drained() <-chan struct{} { return d.done }

func (d *trackDrain) open() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return connections(len(d.conns))
}

// connections is a count by kind.
func connections(n int) map[string]int {
	if n == 0 {
		return nil
	}
	return map[string]int{"conn": n}
}

func (d *trackDrain) beginDrain(spread time.Duration, _ bool) {
	l := (*TrackedListener)(d)
	l.mu.Lock()
	if l.begun.IsZero() {
		l.begun, l.spread = time.Now(), spread
		for c := range l.conns {
			c.notice.begin(spread)
		}
		l.checkDoneLocked()
	}
	l.mu.Unlock()
	l.Close()
}

// cut ends the contexts, and a second later what is open.
func (d *trackDrain) cut() map[string]int {
	d.beginDrain(0, false)
	d.mu.Lock()
	d.overdue = true
	for c := range d.conns {
		c.notice.deadline()
	}
	d.mu.Unlock()
	grace := time.NewTimer(cutGrace)
	defer grace.Stop()
	select {
	case <-d.done:
		return nil
	case <-grace.C:
	}
	return connections(d.forceAll())
}

func (d *trackDrain) end() {
	d.beginDrain(0, false)
	d.forceAll()
}

// forceAll ends the drain, and returns how many connections it closed.
func (d *trackDrain) forceAll() (cut int) {
	d.mu.Lock()
	(*TrackedListener)(d).endLocked()
	rest := make([]*TrackedConn, 0, len(d.conns))
	for c := range d.conns {
		rest = append(rest, c)
	}
	d.mu.Unlock()
	for _, c := range rest {
		if c.force() {
			cut++
		}
	}
	return cut
}

// TrackedConn is a connection that a TrackedListener accepted. It reads and writes
// as the bare one does, with its CloseWrite, ReadFrom, WriteTo and SyscallConn.
type TrackedConn struct {
	passConn
	listener *TrackedListener
	notice   *notice
	ctx      context.Context // of the connection, and no call's: it lives as long as that
	closing  sync.Once
}

// Draining returns a channel that is closed when it is the connection's turn to
// learn that this process drains: at a random moment within Config.DrainSpread, at
// once on a plain stop. Then end what is under way, say goodbye as the protocol
// has it, and close the connection; there is time until the drain's deadline.
func (c *TrackedConn) Draining() <-chan struct{} { return c.notice.draining }

// Context returns the connection's context. It ends with cause ErrDrainDeadline
// at the drain's deadline, a second before the connection is closed by force, and
// otherwise when the connection is closed.
func (c *TrackedConn) Context() context.Context { return c.ctx }

// Close closes the connection, which is not counted from then on.
func (c *TrackedConn) Close() error {
	_, err := c.closeBy(c.Conn)
	return err
}

// force closes the connection with no goodbye, and says whether it was open: one by
// TLS would wait for up to five seconds for a client that does not read.
func (c *TrackedConn) force() bool {
	under := c.Conn
	if tc, ok := under.(*tls.Conn); ok {
		under = tc.NetConn()
	}
	first, _ := c.closeBy(under)
	return first
}

func (c *TrackedConn) closeBy(nc net.Conn) (first bool, err error) {
	c.closing.Do(func() { first = true })
	err = nc.Close()
	if first {
		c.notice.end(context.Canceled)
		c.listener.forget(c)
	}
	return first, err
}
