package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	maxFrame = 60 << 10
	maxBatch = 128
)

type fileID struct{ Dev, Ino uint64 }
type allow struct{ UIDs, GIDs []uint32 }
type peer struct {
	PID      int
	UID, GID uint32
}

func (a allow) check(p peer) error { return nil }

type OpError struct {
	Op, Path string
	Err      error
}

func (e *OpError) Error() string { return "handoff: " + e.Op + " " + e.Path + ": " + e.Err.Error() }
func (e *OpError) Unwrap() error { return e.Err }

var (
	ErrTruncated   = errors.New("truncated")
	ErrNobody      = errors.New("nobody")
	ErrPathTooLong = errors.New("long")
	ErrNotSocket   = errors.New("notsock")
	ErrNotHandoff  = errors.New("nothandoff")
	ErrPermission  = errors.New("perm")

	errReset       = errors.New("reset")
	errEmptyFrame  = errors.New("empty")
	errInterrupted = errors.New("interrupted")
)

type descriptor struct {
	mu sync.Mutex
	n  int
}

func newDescriptor(n int) *descriptor { return &descriptor{n: n} }
func (d *descriptor) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n >= 0 {
		unix.Close(d.n)
		d.n = -1
	}
	return nil
}
func (d *descriptor) control(f func(int) error) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.n < 0 {
		return net.ErrClosed
	}
	return f(d.n)
}
func (d *descriptor) dup() (e *descriptor, err error) {
	err = d.control(func(fd int) error {
		n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		e = newDescriptor(n)
		return err
	})
	return e, err
}
func (d *descriptor) file(name string) (*os.File, error) {
	e, err := d.dup()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(e.n), name), nil
}
func (d *descriptor) listener() (net.Listener, error) {
	f, err := d.file("l")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	ln, err := net.FileListener(f)
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	return ln, err
}
func (d *descriptor) packetConn() (net.PacketConn, error) {
	f, err := d.file("l")
	if err != nil {
		return nil, err
	}
	defer f.Close()
	return net.FilePacketConn(f)
}
func (d *descriptor) listen() error {
	return d.control(func(fd int) error { return unix.Listen(fd, 4096) })
}
func relisten(d *descriptor) error { return d.listen() }
func dupConn(c syscall.Conn) (d *descriptor, err error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	cerr := rc.Control(func(fd uintptr) {
		var n int
		n, err = unix.FcntlInt(fd, unix.F_DUPFD_CLOEXEC, 0)
		d = newDescriptor(n)
	})
	return d, errors.Join(cerr, err)
}
func acceptNow(c syscall.Conn) (net.Conn, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	var n int
	rc.Control(func(fd uintptr) { n, _, err = unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC) })
	if err != nil {
		return nil, err
	}
	f := os.NewFile(uintptr(n), "c")
	defer f.Close()
	return net.FileConn(f)
}

type socketFacts struct {
	isSocket, accepting, nonblock bool
	domain, typ, protocol         int
	local                         string
	addr                          net.Addr
	cookie, inode                 uint64
}

func (d *descriptor) facts() (f socketFacts, err error) {
	err = d.control(func(fd int) error {
		f.domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN)
		f.isSocket = err == nil
		if err != nil {
			return nil
		}
		f.typ, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
		f.protocol, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PROTOCOL)
		a, _ := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ACCEPTCONN)
		f.accepting = a == 1
		f.cookie, _ = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		fl, _ := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		f.nonblock = fl&unix.O_NONBLOCK != 0
		sa, _ := unix.Getsockname(fd)
		switch sa := sa.(type) {
		case *unix.SockaddrInet4:
			if f.typ == unix.SOCK_STREAM {
				f.addr = &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
			} else {
				f.addr = &net.UDPAddr{IP: sa.Addr[:], Port: sa.Port}
			}
		case *unix.SockaddrInet6:
			if f.typ == unix.SOCK_STREAM {
				f.addr = &net.TCPAddr{IP: sa.Addr[:], Port: sa.Port}
			} else {
				f.addr = &net.UDPAddr{IP: sa.Addr[:], Port: sa.Port}
			}
		case *unix.SockaddrUnix:
			f.addr = &net.UnixAddr{Name: sa.Name, Net: "unix"}
		}
		if f.addr != nil {
			f.local = f.addr.String()
		}
		return nil
	})
	return f, err
}

func bindSocket(ctx context.Context, network, address string, reuse bool) (*descriptor, fileID, error) {
	var id fileID
	switch family(network) {
	case "tcp":
		a, err := net.ResolveTCPAddr(network, address)
		if err != nil {
			return nil, id, err
		}
		n, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return nil, id, err
		}
		unix.SetsockoptInt(n, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
		sa := &unix.SockaddrInet4{Port: a.Port}
		copy(sa.Addr[:], a.IP.To4())
		return newDescriptor(n), id, unix.Bind(n, sa)
	}
	return nil, id, fmt.Errorf("standin: %s", network)
}
func removeSocketFile(path string, id fileID) error { return os.Remove(path) }

type conn struct {
	c  *net.UnixConn
	in chan bool
}

func newConn(c *net.UnixConn) *conn { return &conn{c: c} }
func (c *conn) send(b []byte, fds ...*descriptor) error {
	var ns []int
	for _, d := range fds {
		ns = append(ns, d.n)
	}
	var oob []byte
	if len(ns) > 0 {
		oob = unix.UnixRights(ns...)
	}
	c.c.SetWriteDeadline(time.Now().Add(time.Second))
	_, _, err := c.c.WriteMsgUnix(b, oob, nil)
	return err
}
func (c *conn) recv(wait bool) (b []byte, fds []*descriptor, ok bool, err error) {
	rc, err := c.c.SyscallConn()
	if err != nil {
		return nil, nil, false, err
	}
	b = make([]byte, maxFrame+1)
	oob := make([]byte, unix.CmsgSpace(253*4))
	var n, oobn int
	var rerr error
	err = rc.Read(func(fd uintptr) bool {
		n, oobn, _, _, rerr = unix.Recvmsg(int(fd), b, oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
		return !(wait && rerr == unix.EAGAIN)
	})
	if err != nil {
		return nil, nil, false, err
	}
	if rerr == unix.EAGAIN {
		return nil, nil, false, nil
	}
	if rerr == unix.ECONNRESET {
		return nil, nil, false, errReset
	}
	if rerr != nil {
		return nil, nil, false, rerr
	}
	if n == 0 {
		return nil, nil, false, io.EOF
	}
	ms, _ := unix.ParseSocketControlMessage(oob[:oobn])
	for _, m := range ms {
		ns, _ := unix.ParseUnixRights(&m)
		for _, n := range ns {
			fds = append(fds, newDescriptor(n))
		}
	}
	return b[:n], fds, true, nil
}
func (c *conn) receive() ([]byte, []*descriptor, error) {
	b, fds, _, err := c.recv(true)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		c.c.SetReadDeadline(time.Time{})
		return nil, nil, errInterrupted
	}
	return b, fds, err
}
func (c *conn) receiveNow() ([]byte, []*descriptor, bool, error) { return c.recv(false) }
func (c *conn) interrupt()                                       { c.c.SetReadDeadline(time.Unix(1, 0)) }
func (c *conn) setReadDeadline(t time.Time) error                { return c.c.SetReadDeadline(t) }
func (c *conn) Close() error                                     { return c.c.Close() }
func (c *conn) peer() (peer, error)                              { return peer{}, nil }

func dial(ctx context.Context, path string, a allow) (*conn, error) {
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	return newConn(c), nil
}
func meet(ctx context.Context, path string, a allow) (*net.UnixListener, fileID, *conn, error) {
	c, err := dial(ctx, path, a)
	if err == nil {
		return nil, fileID{}, c, nil
	}
	os.Remove(path)
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err == nil {
		ln.SetUnlinkOnClose(false)
	}
	return ln, fileID{1, 1}, nil, err
}
