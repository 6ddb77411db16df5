package handoff

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Whether the rule of atBoundary, which goes by what net/http does and need not do,
// holds for the Go release that this program was built with: real connections of a
// real http.Server are brought into each state that matters, and the rule must tell
// the two that may move from the eleven that may not. A check of good cases alone
// would miss the one change that is not safe (see atBoundary). Where it fails, nothing
// moves, and connections are told to close instead.

// boundaryCases are the states: what the client has sent, and whether a connection may
// move then.
var boundaryCases = []struct {
	name    string
	before  string // sent at once
	during  string // sent while the first request is in its handler
	after   string // sent after the answer to it
	movable bool
}{
	{name: "new, nothing sent", movable: true},
	{name: "new, one byte", before: "G"},
	{name: "new, half a header", before: "GET /next HTTP/1.1\r\nHo"},
	{name: "idle", before: checkRequest, movable: true},
	{name: "idle, one byte", before: checkRequest, after: "G"},
	{name: "idle, three bytes", before: checkRequest, after: "GET"},
	{name: "idle, a request line", before: checkRequest, after: "GET /next HTTP/1.1\r\n"},
	{name: "one pipelined byte", before: checkRequest + "G"},
	{name: "three pipelined bytes", before: checkRequest + "GET"},
	{name: "a pipelined request line", before: checkRequest + "GET /next HTTP/1.1\r\n"},
	{name: "half a pipelined line", before: checkRequest + "GET /next HT"},
	{name: "one early byte", before: checkRequest, during: "G"},
	{name: "several early bytes", before: checkRequest, during: "GET /n"},
}

const checkRequest = "GET / HTTP/1.1\r\nHost: self-check\r\n\r\n"

// checkPatience bounds one case, which takes a small part of a millisecond.
const checkPatience = 5 * time.Second

// selfCheck is made once in a program.
var selfCheck = sync.OnceValue(func() error {
	for _, h2c := range []bool{false, true} { // which has a look at the first bytes of a connection
		if err := checkBoundaries(h2c); err != nil {
			return fmt.Errorf("self-check: net/http of %s: %w", runtime.Version(), err)
		}
	}
	return nil
})

// checkMoving sees to it that idle connections can be told from others.
func (p *Process) checkMoving() {
	if p.moveOff() != "" || lacks(ruleSelfCheck) {
		return
	}
	err := selfCheck()
	if err == nil {
		return
	}
	p.mu.Lock()
	p.noMoves = err.Error()
	p.mu.Unlock()
	p.Logger().Warn("idle connections do not move; they are told to close at a handoff instead", "reason", err)
}

// checkServer serves one connection after the other, and tells of each read.
type checkServer struct {
	conns   chan net.Conn
	closed  chan struct{}
	inside  chan struct{} // the handler was entered
	proceed chan struct{} // and may go on
}

// checkedRead is a read that begins or has ended: how much was read so far, and what
// the rule says.
type checkedRead struct {
	ended   bool
	total   int
	state   http.ConnState
	movable bool
}

// checkedConn is what a trackedConn reads from. It tells of each read.
type checkedConn struct {
	net.Conn
	tracked *trackedConn
	total   int
	reads   chan checkedRead
}

func (c *checkedConn) Read(p []byte) (int, error) {
	c.tell(false)
	n, err := c.Conn.Read(p)
	c.total += n
	c.tell(true)
	return n, err
}

func (c *checkedConn) tell(ended bool) {
	c.tracked.mu.Lock()
	r := checkedRead{ended, c.total, c.tracked.state, c.tracked.mayLeave()}
	c.tracked.mu.Unlock()
	select {
	case c.reads <- r:
	default: // nobody waits for so many
	}
}

func (s *checkServer) Accept() (net.Conn, error) {
	select {
	case nc := <-s.conns:
		return nc, nil
	case <-s.closed:
		return nil, net.ErrClosed
	}
}

func (s *checkServer) Close() error { return nil }

func (s *checkServer) Addr() net.Addr { return &net.UnixAddr{Net: "unix"} }

func (s *checkServer) ServeHTTP(w http.ResponseWriter, _ *http.Request) {
	s.inside <- struct{}{}
	<-s.proceed
	io.WriteString(w, "ok")
}

// checkHost stands for a Process.
type checkHost struct{}

func (checkHost) addDrainer(drainer) {}
func (checkHost) countAnswer()       {}
func (checkHost) servesHTTP()        {}

func checkBoundaries(h2c bool) error {
	s := &checkServer{conns: make(chan net.Conn), closed: make(chan struct{}), inside: make(chan struct{}, 1), proceed: make(chan struct{}, 1)}
	srv := &http.Server{Handler: s, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(h2c)
	drain := newHTTPServer(checkHost{}, srv).drain
	served := make(chan struct{})
	go func() {
		defer close(served)
		srv.Serve(s)
	}()
	defer func() {
		close(s.proceed)
		close(s.closed)
		<-served
		srv.Close()
	}()
	for _, tc := range boundaryCases {
		ours, theirs, err := connectedPair()
		if err != nil {
			return err
		}
		c := &checkedConn{Conn: ours, reads: make(chan checkedRead, 64)}
		c.tracked = drain.track(c, nil).(*trackedConn)
		s.conns <- c.tracked
		err = s.check(c, theirs, tc.before, tc.during, tc.after, tc.movable)
		theirs.Close()
		if err != nil {
			return fmt.Errorf("%s: %w", tc.name, err)
		}
	}
	return nil
}

var errNotAsExpected = errors.New("it does not read as expected")

// check brings the connection into the state, and asks the rule.
func (s *checkServer) check(c *checkedConn, client *net.UnixConn, before, during, after string, movable bool) error {
	if err := client.SetDeadline(time.Now().Add(checkPatience)); err != nil {
		return err
	}
	if _, err := io.WriteString(client, before); err != nil {
		return err
	}
	state := http.StateNew
	answer := bufio.NewReader(client)
	if len(before) >= len(checkRequest) {
		state = http.StateIdle
		if err := s.answered(c, client, answer, before, during); err != nil {
			return err
		}
	}
	if _, err := io.WriteString(client, after); err != nil {
		return err
	}
	// The read in which it waits: all that was sent was read before.
	r, err := c.until(func(r checkedRead) bool {
		return !r.ended && r.total == len(before)+len(during)+len(after) && r.state == state
	})
	switch {
	case err != nil:
		return err
	case r.movable && !movable:
		return errors.New("a part of a request is not noticed")
	case !r.movable && movable:
		return errors.New("an idle connection is not recognised")
	case !movable:
		return nil
	}
	// The end of its input, as a connection sees it that moves, must not be answered.
	if err := client.CloseWrite(); err != nil {
		return err
	}
	if rest, err := io.ReadAll(answer); err != nil || len(rest) > 0 {
		return fmt.Errorf("it answers the end of a connection with %q", rest)
	}
	return nil
}

// answered has the first request answered, once net/http has read, in the
// background, what it does of during.
func (s *checkServer) answered(c *checkedConn, client io.Writer, answer *bufio.Reader, before, during string) error {
	timeout := time.NewTimer(checkPatience)
	defer timeout.Stop()
	select {
	case <-s.inside:
	case <-timeout.C:
		return errNotAsExpected
	}
	if _, err := io.WriteString(client, during); err != nil {
		return err
	}
	if during != "" {
		if _, err := c.until(func(r checkedRead) bool { return r.ended && r.total > len(before) }); err != nil {
			return err
		}
	}
	s.proceed <- struct{}{}
	resp, err := http.ReadResponse(answer, nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, resp.Body)
	return errors.Join(err, resp.Body.Close())
}

// until returns the first read that is meant.
func (c *checkedConn) until(meant func(checkedRead) bool) (checkedRead, error) {
	timeout := time.NewTimer(checkPatience)
	defer timeout.Stop()
	for {
		select {
		case r := <-c.reads:
			if meant(r) {
				return r, nil
			}
		case <-timeout.C:
			return checkedRead{}, errNotAsExpected
		}
	}
}

// connectedPair is two ends of a connection.
func connectedPair() (a, b *net.UnixConn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var ends [2]net.Conn
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "self-check")
		c, cerr := net.FileConn(f)
		f.Close()
		ends[i], err = c, errors.Join(err, cerr)
	}
	if err != nil {
		for _, c := range ends {
			if c != nil {
				c.Close()
			}
		}
		return nil, nil, err
	}
	return ends[0].(*net.UnixConn), ends[1].(*net.UnixConn), nil
}
