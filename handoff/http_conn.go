package handoff

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"sync"
	"time"
)

// trackedListener gives every connection it accepts to the drain before
// net/http sees it, so that no connection is ever open and not counted.
type trackedListener struct {
	onceListener
	drain *httpDrain
	tls   bool            // net/http puts TLS around what is accepted
	back  *returnListener // made when first needed; under drain.mu
}

func (l *trackedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return l.drain.track(nc, l), nil
}

// trackedConn is one connection of an HTTPServer: what net/http reads from
// and writes to, and what the drain knows about it. What was accepted is
// inside; NetConn returns it.
//
// Writing goes straight through. Reading notes three things, because
// net/http tells its ConnState hook that a connection is idle while it may
// hold bytes of the next request already (see atBoundary).
//
// The methods that net/http calls from its one goroutine for a connection
// may run while the drain looks at it or closes it.
type trackedConn struct {
	passConn
	drain  *httpDrain
	from   *trackedListener // nil where it does not matter
	notice *notice

	// came is true for one that came from another process, or came back. The other
	// one closes its copy as soon as it knows; where it hangs, the client would not see
	// that this one is closed.
	came bool

	// ready is true for a connection that arrived with TLS around it
	// already (a tls.Listener was given to Serve). net/http must be given
	// the *tls.Conn itself, so this one sees no reads: it is known by its
	// states alone, and Conn is the connection beneath the TLS.
	ready bool

	mu     sync.Mutex
	state  http.ConnState
	over   *tls.Conn // what net/http serves, where there is TLS above this connection
	h2     bool      // it speaks HTTP/2
	served bool      // a request of it has reached the handler
	since  time.Time // when it became new or idle, or said something by HTTP/2, where that was after the drain began
	closed bool
	forced bool // closed by the drain at its deadline
	gaveUp bool // a handler gave no answer, because of the deadline
	wasCut bool // closed, and had not ended by itself, since the deadline

	asked    int       // size of the last read
	reading  bool      // a read is under way
	deadline time.Time // for reads, as net/http set it
	taker    *carrier  // has interrupted the read that is under way, to take the connection; nil: nobody
	left     bool      // it is in other hands: what is closed here is this process's copy

	// The following begin anew when the connection becomes idle.
	spoke     bool // a byte was received
	ended     bool // a read ended with an error: the client left, or a time-out of the server's
	reads     int  // reads begun
	deadlines int  // read deadlines set

	// Set once, at the drain's deadline.
	kindAtDeadline string
	mayFinish      bool
}

func (c *trackedConn) Read(p []byte) (int, error) {
	c.mu.Lock()
	c.reads++
	c.asked = len(p)
	// net/http reads once more after the io.EOF with which a new connection has left,
	// where it looks for the preface of HTTP/2 first. The bytes are not its own then.
	if c.left || c.leaveLocked(nil) {
		c.mu.Unlock()
		return 0, io.EOF
	}
	c.reading = true
	c.mu.Unlock()

	n, err := c.Conn.Read(p)

	c.mu.Lock()
	defer c.mu.Unlock()
	for c.interruptedLocked(n, err) {
		if c.leaveLocked(c.taker) {
			return 0, io.EOF
		}
		c.ignoreTakerLocked()
		c.mu.Unlock()
		n, err = c.Conn.Read(p)
		c.mu.Lock()
	}
	c.ignoreTakerLocked()
	c.reading = false
	if n > 0 {
		c.spoke = true
		if c.h2 && c.drain.isDraining() {
			c.since = time.Now()
		}
	}
	c.ended = c.ended || err != nil && !c.closed // not by our closing it
	return n, err
}

// Write fails where the connection has left: net/http has nothing to write then.
func (c *trackedConn) Write(p []byte) (int, error) {
	if c.hasLeft() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// CloseWrite is passConn's; it would end a connection that has left for whoever has it.
func (c *trackedConn) CloseWrite() error {
	if c.hasLeft() {
		return net.ErrClosed
	}
	return c.passConn.CloseWrite()
}

func (c *trackedConn) hasLeft() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.left
}

// WriteTo is passConn's, after which the connection is not silent any more.
func (c *trackedConn) WriteTo(w io.Writer) (int64, error) {
	c.mu.Lock()
	c.spoke = true
	c.mu.Unlock()
	return c.passConn.WriteTo(w)
}

func (c *trackedConn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

func (c *trackedConn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadlines++
	c.deadline = t
	if c.taker != nil {
		return nil // ignoreTakerLocked sets it
	}
	return c.Conn.SetReadDeadline(t)
}

// Close closes the connection. From its return on the drain does not count it.
func (c *trackedConn) Close() error {
	c.mu.Lock()
	first := !c.closed
	if first {
		c.closed = true
		c.wasCut = !c.left && c.isCutLocked()
	}
	end := first && c.came && !c.left
	c.mu.Unlock()
	if end {
		_ = c.passConn.CloseWrite()
	}
	err := c.Conn.Close()
	if first {
		c.notice.end(context.Canceled)
		c.drain.forget(c)
	}
	return err
}

// setState follows net/http's ConnState hook.
func (c *trackedConn) setState(nc net.Conn, state http.ConnState) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.state = state
	switch state {
	case http.StateNew:
		c.over, _ = nc.(*tls.Conn)
	case http.StateIdle:
		// An HTTP/1 connection turns idle after a request; an HTTP/2 one
		// does so after its preface too (serverConn.serve in net/http).
		c.h2 = c.h2 || !c.served
		c.spoke, c.ended = false, false
		c.reads, c.deadlines = 0, 0
	default:
		return
	}
	if c.drain.isDraining() {
		c.since = time.Now()
	}
}

// noteRequest is called for each request that reaches the handler.
func (c *trackedConn) noteRequest(protoMajor int) {
	c.mu.Lock()
	c.served = true
	c.h2 = c.h2 || protoMajor == 2
	c.mu.Unlock()
}

// kind is the word by which the connection is counted.
func (c *trackedConn) kind() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.kindLocked()
}

func (c *trackedConn) kindLocked() string {
	switch {
	case c.state == http.StateHijacked:
		return "hijacked"
	case c.h2:
		return "h2"
	case c.state == http.StateActive:
		return "active"
	case c.state == http.StateNew && c.spoke && c.over == nil: // with TLS it may be the handshake
		return "active" // half a request is here
	case c.state == http.StateNew:
		return "new"
	case c.reads > 0 && !c.atBoundary():
		return "active" // likewise
	default:
		return "idle"
	}
}

// silentSince tells since when nothing was asked on this connection, and
// whether it is certain that nothing is being asked now. Before the drain
// began nobody notes the time, and it is the zero Time.
func (c *trackedConn) silentSince() (time.Time, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.since, !c.closed && !c.left && c.atBoundary() && !unread(c.Conn)
}

const (
	// netHTTPReadSize is what net/http asks for when it reads by HTTP/1 and
	// its buffer is empty: the size of bufio.NewReader's buffer.
	netHTTPReadSize = 4096

	// frameHeaderSize is what it asks for at the beginning of an HTTP/2 frame.
	frameHeaderSize = 9
)

// atBoundary tells whether the connection is between requests: no byte of the
// next one was received.
//
// That net/http called it idle is not enough. It may hold bytes that it
// received before: one byte that its background read took while the handler
// ran, or what a client sent on in one go with the request before. It reads
// as follows after StateIdle (conn.serve and connReader in net/http/server.go,
// Go 1.26): SetReadDeadline, Peek(4), SetReadDeadline, then the header. So
// where it waits in the first read since, of a whole buffer, and has set one
// deadline, its buffer is empty. Were these internals to change, a
// connection would stay for longer, unless the second deadline went away;
// TestSilentOnlyAtBoundary would tell.
//
// Bytes by HTTP/2 need not be a request, so they begin the time of silence
// anew instead. Beneath TLS the size says nothing. Thus two are not
// recognised, where they stall for the whole time of silence: an HTTP/2
// client between two frames of one header, or by TLS within one; and by
// HTTP/1 a TLS client that sent a part of a record, but not the rest, before
// it had the answer to its last request.
func (c *trackedConn) atBoundary() bool {
	switch {
	case c.ready:
		return false
	case c.h2:
		return c.betweenFrames()
	case c.spoke:
		return false
	case c.state == http.StateNew:
		return true
	case c.state != http.StateIdle:
		return false
	case c.over != nil:
		return c.reads == 1 && c.deadlines == 1
	default:
		return c.reads == 1 && c.deadlines == 1 && c.asked == netHTTPReadSize
	}
}

// betweenFrames tells whether an HTTP/2 connection has no requests under way,
// nor, as far as can be known, one coming in.
func (c *trackedConn) betweenFrames() bool {
	return c.state == http.StateIdle && (c.over != nil || c.asked == frameHeaderSize)
}

// atDeadline notes what the connection is when its time is up, and whether
// Shutdown lets it finish: it does so for requests in a handler, and tells
// HTTP/2 clients by GOAWAY; it closes the others, and drops a request whose
// header is completed from then on.
func (c *trackedConn) atDeadline() (mayFinish bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.left {
		return false
	}
	c.kindAtDeadline = c.kindLocked()
	c.mayFinish = c.h2 || c.state == http.StateActive || c.state == http.StateHijacked
	return c.mayFinish
}

// isCutLocked tells, of a connection that is being closed, whether the
// deadline cuts it off. An HTTP/2 client that has all its answers was told by
// GOAWAY, and knows that what it sends after that was not processed.
func (c *trackedConn) isCutLocked() bool {
	switch {
	case c.kindAtDeadline == "":
		return false
	case c.gaveUp:
		return true
	case c.h2:
		return !c.ended && !c.betweenFrames()
	case c.mayFinish:
		return c.forced // also where it sends no more: it waits for an answer
	default:
		return !c.ended
	}
}

// abandon notes that a request gets no answer.
func (c *trackedConn) abandon() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gaveUp = true
}

// closeSilent closes a connection between requests; one by TLS with a goodbye.
func (c *trackedConn) closeSilent() {
	c.mu.Lock()
	over := c.over
	c.mu.Unlock()
	if over != nil {
		over.Close()
	}
	c.Close()
}

// force closes the connection as it is, with no goodbye: one by TLS would
// wait for up to five seconds for a client that does not read.
func (c *trackedConn) force() {
	c.mu.Lock()
	c.forced = true
	c.mu.Unlock()
	c.Close()
	c.drain.forget(c) // for whoever was closing it just now, and has not come to that
}

// hijacked returns what the handler is given that takes the connection over.
func (c *trackedConn) hijacked(nc net.Conn) net.Conn {
	if tc, ok := nc.(*tls.Conn); ok && c.ready {
		return &hijackedTLS{Conn: tc, tracked: c}
	}
	return nc
}

// hijackedTLS is a hijacked connection that arrived with TLS around it, of
// which nothing else would tell when it is closed.
type hijackedTLS struct {
	*tls.Conn
	tracked *trackedConn
}

func (c *hijackedTLS) Close() error {
	err := c.Conn.Close()
	c.tracked.Close()
	return err
}
