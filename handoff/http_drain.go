package handoff

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"
)

// drainer is something with connections that a process finishes before it
// ends. All methods may be called at any time, by several goroutines.
type drainer interface {
	// beginDrain begins the drain. It does not block; calls after the first
	// do nothing. Connections are told of it within spread, each at a random
	// moment. plain tells that nobody succeeds this process, so that there is
	// no use in waiting for clients that say nothing.
	beginDrain(spread time.Duration, plain bool)

	// drained is closed when, after beginDrain, nothing is open any more.
	drained() <-chan struct{}

	// open counts what is open, by kind. Kinds with none are left out.
	open() map[string]int

	// cut ends the contexts of what is open, with cause ErrDrainDeadline,
	// closes it within a second, and returns by kind how many were cut off
	// that had not ended by themselves. It takes that second at most, and a
	// bit. Afterwards drained is closed.
	cut() map[string]int

	// end closes at once what is still open. Afterwards drained is closed.
	end()
}

const (
	// silenceBeforeClose is for how long a client of a process that nobody
	// succeeds must have been silent for its connection to be closed.
	silenceBeforeClose = time.Second

	// cutGrace is how long after the deadline what is cut has to end by itself.
	// It bounds Shutdown, which may wait for ever: for an HTTP/2 connection that
	// finished its handshake after the one sweep (golang/go#81153), or outside
	// its context for a listener.
	cutGrace = time.Second
)

// httpDrain knows every connection of one HTTPServer and drains them.
//
// It never calls Shutdown or SetKeepAlivesEnabled(false) before the deadline:
// both close idle connections at once, and Shutdown also drops a request
// whose header is completed after it (golang/go#75591). Each loses requests
// of clients that did nothing wrong.
type httpDrain struct {
	srv            *http.Server
	silence, grace time.Duration

	draining chan struct{} // closed when the drain begins
	done     chan struct{} // closed when it has ended

	carrier    atomic.Pointer[carrier] // where idle connections go; nil: they stay
	travelling atomic.Int64            // connections that have left, or are expected, and have not arrived
	serves     func()                  // called when a listener begins to be served

	mu        sync.Mutex
	begun     time.Time // zero before the drain
	spread    time.Duration
	ended     bool // done is closed
	cutting   bool
	unsettled int           // connections that may still finish by themselves while cutting
	settled   chan struct{} // closed when there are none
	cuts      map[string]int
	listeners map[*trackedListener]struct{}
	returns   []*returnListener
	conns     map[*trackedConn]struct{}
	idle      *idleConns                 // those that came from another process, and have not been asked anything since; nil: none ever
	ready     map[*tls.Conn]*trackedConn // those that arrived with TLS around them
}

func newHTTPDrain(srv *http.Server) *httpDrain {
	return &httpDrain{
		srv:       srv,
		silence:   silenceBeforeClose,
		grace:     cutGrace,
		draining:  make(chan struct{}),
		done:      make(chan struct{}),
		settled:   make(chan struct{}),
		cuts:      make(map[string]int),
		listeners: make(map[*trackedListener]struct{}),
		conns:     make(map[*trackedConn]struct{}),
		ready:     make(map[*tls.Conn]*trackedConn),
	}
}

func (d *httpDrain) isDraining() bool { return isClosed(d.draining) }

func (d *httpDrain) drained() <-chan struct{} { return d.done }

func (d *httpDrain) beginDrain(spread time.Duration, plain bool) {
	d.mu.Lock()
	if !d.begun.IsZero() {
		d.mu.Unlock()
		return
	}
	d.begun, d.spread = time.Now(), spread
	close(d.draining)
	for c := range d.conns {
		c.notice.begin(spread)
	}
	listeners := make([]net.Listener, 0, len(d.listeners))
	for l := range d.listeners {
		listeners = append(listeners, l)
	}
	d.checkDoneLocked()
	d.mu.Unlock()

	// A process that drains accepts nothing more, be it from a listener that
	// it handed over, and has closed its copy of, or from one of its own.
	for _, l := range listeners {
		l.Close()
	}
	if plain {
		go d.closeSilent()
	}
}

// closeSilent closes, until the drain has ended, each connection on which
// nothing was asked for the time of silence.
func (d *httpDrain) closeSilent() {
	timer := time.NewTimer(d.silence)
	defer timer.Stop()
	for {
		select {
		case <-d.done:
			return
		case <-timer.C:
		}
		silent, next := d.silent(time.Now())
		for _, c := range silent {
			c.closeSilent()
		}
		for _, c := range d.rests().takeAll() {
			c.awake() // it has been silent since before the drain
		}
		timer.Reset(next)
	}
}

// silent returns the connections that have been silent for long enough, and
// when to look again: no other one can have been so before.
func (d *httpDrain) silent(now time.Time) (silent []*trackedConn, next time.Duration) {
	d.mu.Lock()
	defer d.mu.Unlock()
	next = d.silence
	for c := range d.conns {
		since, certain := c.silentSince()
		if !certain {
			continue
		}
		if since.Before(d.begun) {
			since = d.begun
		}
		if left := since.Add(d.silence).Sub(now); left > 0 {
			next = min(next, left)
		} else {
			silent = append(silent, c)
		}
	}
	return silent, next
}

// rests is what has room for idle connections; nil if there is none.
func (d *httpDrain) rests() *idleConns {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.idle
}

func (d *httpDrain) open() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	open := make(map[string]int)
	for c := range d.conns {
		if !c.hasLeft() {
			open[c.kind()]++
		}
	}
	d.countIdleLocked(open)
	return open
}

// cut lets Shutdown try for a moment, then closes the rest. Connections that
// end by themselves meanwhile, answered in full, were not cut.
func (d *httpDrain) cut() map[string]int {
	d.beginDrain(0, false)
	d.mu.Lock()
	if d.cutting || d.ended {
		d.mu.Unlock()
		<-d.done
		return d.cutCounts()
	}
	d.cutting = true
	for c := range d.conns {
		if c.atDeadline() {
			d.unsettled++
		}
	}
	for c := range d.conns { // now that each is counted for what it was
		c.notice.deadline()
	}
	idle := d.idle.takeAll()
	for _, c := range idle {
		d.cuts[c.kind()]++
	}
	if d.unsettled == 0 {
		close(d.settled)
	}
	d.mu.Unlock()
	for _, c := range idle {
		c.close()
	}

	ctx, cancel := context.WithTimeout(context.Background(), d.grace)
	defer cancel()
	forced, shut := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(shut)
		d.srv.Shutdown(ctx)
		<-forced // or those that Close closes would seem to have ended by themselves
		d.srv.Close()
	}()
	select {
	case <-d.settled:
	case <-ctx.Done():
	}
	d.forceAll()
	close(forced)
	cancel()
	select {
	case <-shut:
	case <-time.After(d.grace): // a listener whose Close does not end its Accept
	}

	d.mu.Lock()
	d.endLocked()
	d.mu.Unlock()
	return d.cutCounts()
}

func (d *httpDrain) end() {
	d.beginDrain(0, false)
	d.mu.Lock()
	d.endLocked()
	d.mu.Unlock()
	d.forceAll()
	d.srv.Close()
}

func (d *httpDrain) forceAll() {
	d.mu.Lock()
	rest := make([]*trackedConn, 0, len(d.conns))
	for c := range d.conns {
		rest = append(rest, c)
	}
	idle := d.idle.takeAll()
	d.mu.Unlock()
	for _, c := range idle {
		c.close()
	}
	for _, c := range rest {
		c.force()
	}
}

func (d *httpDrain) cutCounts() map[string]int {
	d.mu.Lock()
	defer d.mu.Unlock()
	cuts := make(map[string]int, len(d.cuts))
	for kind, n := range d.cuts {
		cuts[kind] = n
	}
	return cuts
}

// addListener reports whether the listener may be served.
func (d *httpDrain) addListener(l *trackedListener) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.begun.IsZero() {
		return false
	}
	d.listeners[l] = struct{}{}
	if d.serves != nil {
		d.serves()
	}
	return true
}

// served finds a listener whose connections can move.
func (d *httpDrain) served(match func(*manifestItem) bool) *trackedListener {
	d.mu.Lock()
	defer d.mu.Unlock()
	for l := range d.listeners {
		if !l.canMove() {
			continue
		}
		if it := l.Listener.(*listener).item(); match(&it) {
			return l
		}
	}
	return nil
}

func (d *httpDrain) removeListener(l *trackedListener) {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.listeners, l)
	d.checkDoneLocked()
}

// track begins to count a connection that was just accepted, and returns
// what net/http is to serve.
func (d *httpDrain) track(nc net.Conn, from *trackedListener) net.Conn {
	c := &trackedConn{passConn: passConn{nc}, drain: d, from: from, notice: newNotice()}
	served := net.Conn(c)
	tc, ready := nc.(*tls.Conn)
	if ready {
		c.Conn, c.ready, c.over = tc.NetConn(), true, tc
		served = tc
	}
	d.mu.Lock()
	d.conns[c] = struct{}{}
	if ready {
		d.ready[tc] = c
	}
	if !d.begun.IsZero() {
		c.notice.begin(d.spread - time.Since(d.begun))
	}
	late := d.ended
	d.mu.Unlock()
	if late {
		c.Close()
	}
	return served
}

// forget is called when a connection is closed. Calls after the first do nothing.
func (d *httpDrain) forget(c *trackedConn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if _, ok := d.conns[c]; !ok {
		return
	}
	delete(d.conns, c)
	if c.ready {
		delete(d.ready, c.over)
	}
	if c.kindAtDeadline != "" {
		if c.wasCut {
			d.cuts[c.kindAtDeadline]++
		}
		if c.mayFinish {
			if d.unsettled--; d.unsettled == 0 {
				close(d.settled)
			}
		}
	}
	d.checkDoneLocked()
}

// find returns what is known of a connection that net/http names.
func (d *httpDrain) find(nc net.Conn) *trackedConn {
	switch nc := nc.(type) {
	case *trackedConn:
		return nc
	case *tls.Conn:
		if c, ok := nc.NetConn().(*trackedConn); ok {
			return c
		}
		d.mu.Lock()
		defer d.mu.Unlock()
		return d.ready[nc]
	}
	return nil
}

// connState is the server's ConnState hook.
func (d *httpDrain) connState(nc net.Conn, state http.ConnState) {
	c := d.find(nc)
	if c == nil {
		return
	}
	c.setState(nc, state)
	if state == http.StateClosed {
		c.Close() // does nothing but where TLS arrived with it
	}
}

// countIdleLocked adds what rests, or is on its way. Both are looked at while nothing
// goes from the one to the other: what does would be missed, or counted twice.
func (d *httpDrain) countIdleLocked(open map[string]int) {
	defer d.idle.holdStill()()
	d.idle.countLocked(open)
	if n := int(d.travelling.Load()); n > 0 {
		open["idle"] += n
	}
}

// noneRestsLocked says that nothing rests, nor is on its way.
func (d *httpDrain) noneRestsLocked() bool {
	defer d.idle.holdStill()()
	return (d.idle == nil || len(d.idle.all) == 0) && d.travelling.Load() == 0
}

// checkDoneLocked ends the drain when no connection is open and none can
// come: an accept loop that still runs may have one in its hands.
func (d *httpDrain) checkDoneLocked() {
	if !d.begun.IsZero() && len(d.conns) == 0 && len(d.listeners) == 0 &&
		d.noneRestsLocked() {
		d.endLocked()
	}
}

func (d *httpDrain) endLocked() {
	if !d.ended {
		d.ended = true
		close(d.done)
		for _, l := range d.returns {
			l.Close()
		}
		if d.idle != nil {
			d.idle.f.Close()
			for _, c := range d.idle.takeAll() { // came since those were cut; now none can rest
				c.d.Close()
				d.travelling.Add(-1)
			}
		}
	}
}

// serveResult is what Serve returns for what net/http's returned.
func (d *httpDrain) serveResult(err error) error {
	if errors.Is(err, net.ErrClosed) || errors.Is(err, http.ErrServerClosed) && d.isDraining() {
		return nil
	}
	return err
}
