package handoff

import (
	"errors"
	"io"
	"net"
	"sync"
	"syscall"
)

// passConn is a connection that is counted, with what the bare one can do
// beyond net.Conn: whoever looks for that by type assertion finds it, and gets
// errors.ErrUnsupported where the bare one can't.
type passConn struct{ net.Conn }

// NetConn returns the connection that was accepted, for options to be set on it.
// It must not be read from, written to or closed while the one around it is used.
func (c passConn) NetConn() net.Conn { return c.Conn }

// WriteTo lets io.Copy from the connection splice as it would from the bare one.
func (c passConn) WriteTo(w io.Writer) (int64, error) { return io.Copy(w, c.Conn) }

// ReadFrom lets files be sent by sendfile(2), by net/http too: its response hands
// what it reads from to the connection, where the connection has this method.
func (c passConn) ReadFrom(r io.Reader) (int64, error) {
	if rf, ok := c.Conn.(io.ReaderFrom); ok {
		return rf.ReadFrom(r)
	}
	return io.Copy(struct{ io.Writer }{c.Conn}, r)
}

// CloseWrite is what net/http ends a connection with when it has not read
// all that the client sent: an answer followed by a reset may be lost.
func (c passConn) CloseWrite() error {
	if cw, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return cw.CloseWrite()
	}
	return c.unsupported("close")
}

// SyscallConn implements syscall.Conn.
func (c passConn) SyscallConn() (syscall.RawConn, error) {
	if sc, ok := c.Conn.(syscall.Conn); ok {
		return sc.SyscallConn()
	}
	return nil, c.unsupported("raw-control")
}

func (c passConn) unsupported(op string) error {
	return &net.OpError{Op: op, Net: c.LocalAddr().Network(), Addr: c.LocalAddr(), Err: errors.ErrUnsupported}
}

// onceListener closes the listener once, however often the program, net/http and
// the drain do.
type onceListener struct {
	net.Listener
	closing sync.Once
	err     error // of closing
}

func (l *onceListener) Close() error {
	l.closing.Do(func() { l.err = l.Listener.Close() })
	return l.err
}
