package handoff

import (
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errDescriptorClosed is what a descriptor returns after Close.
var errDescriptorClosed = fmt.Errorf("descriptor: %w", os.ErrClosed)

// descriptor owns one file descriptor that is not in the runtime's poller: a
// descriptor that were merely left in epoll would wake this process for every
// connection that is meant for another. Raw numbers live only in here and in
// calls of control.
//
// All methods are safe for concurrent use. The number is closed when Close was
// called and the last running control returned, so it can't be reused by the
// kernel under somebody's feet.
type descriptor struct {
	mu     sync.Mutex
	n      int  // -1 once close(2) was called
	users  int  // running calls of control, and sends
	closed bool // Close was called
	held   bool // bound without SO_REUSEADDR: see hold
}

// newDescriptor takes ownership of n.
func newDescriptor(n int) *descriptor { return &descriptor{n: n} }

// acquire keeps the number open until release.
func (d *descriptor) acquire() (int, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return -1, errDescriptorClosed
	}
	d.users++
	return d.n, nil
}

func (d *descriptor) release() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.users--
	if d.closed && d.users == 0 {
		_ = d.closeLocked()
	}
}

// closeLocked does not repeat close(2) after EINTR: Linux has released the
// number by then.
func (d *descriptor) closeLocked() error {
	n := d.n
	d.n = -1
	if err := unix.Close(n); err != nil && err != unix.EINTR {
		return os.NewSyscallError("close", err)
	}
	return nil
}

// Close closes the descriptor, at the latest when the last user is done with
// it. It does not wait, and the second call does nothing.
func (d *descriptor) Close() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.closed {
		return nil
	}
	d.closed = true
	if d.users > 0 {
		return nil
	}
	return d.closeLocked()
}

// closeAll closes what a return path does not hand over.
func closeAll(fds []*descriptor) {
	for _, d := range fds {
		_ = d.Close()
	}
}

// control calls f with the number, which f must not keep or close.
func (d *descriptor) control(f func(fd int) error) error {
	n, err := d.acquire()
	if err != nil {
		return err
	}
	defer d.release()
	return f(n)
}

// dup makes a second descriptor for the same open file description,
// close-on-exec. The flags that belong to the description (O_NONBLOCK) are
// shared, and stay as they are.
func (d *descriptor) dup() (*descriptor, error) {
	n, err := d.dupRaw()
	if err != nil {
		return nil, err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	return &descriptor{n: n, held: d.held}, nil
}

func (d *descriptor) dupRaw() (n int, err error) {
	err = d.control(func(fd int) error {
		n, err = dupFD(fd)
		return err
	})
	return n, err
}

func dupFD(fd int) (int, error) {
	n, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
	return n, os.NewSyscallError("fcntl", err)
}

// dupConn duplicates the descriptor of a listener, connection or file that the
// runtime owns. It goes through SyscallConn: File().Fd() would clear
// O_NONBLOCK on the shared open file description, and with that in every
// process that holds the socket; an Accept there could no longer be
// interrupted (golang/go#24942).
func dupConn(c syscall.Conn) (*descriptor, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := -1
	cerr := raw.Control(func(fd uintptr) { n, err = dupFD(int(fd)) })
	if cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, err
	}
	return newDescriptor(n), nil
}

// file returns an *os.File over a duplicate, for the caller to close; d stays
// as it is. O_NONBLOCK is not touched. name is what File.Name reports.
func (d *descriptor) file(name string) (*os.File, error) {
	n, err := d.dupRaw()
	if err != nil {
		return nil, err
	}
	return os.NewFile(uintptr(n), name), nil
}

// disown turns d into an *os.File, for the caller to close; d is closed then, without
// close(2). Nobody else may use d meanwhile. The file is in the poller if the socket is
// non-blocking.
func (d *descriptor) disown(name string) *os.File {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := d.n
	d.n, d.closed = -1, true
	return os.NewFile(uintptr(n), name)
}

// listener returns a net.Listener over a duplicate, for the caller to close; d
// stays as it is. The socket becomes non-blocking if its sender left it
// otherwise. Closing the listener never unlinks the file of a Unix socket: by
// then a successor's may be at the path.
func (d *descriptor) listener() (net.Listener, error) {
	f, err := d.file("socket")
	if err != nil {
		return nil, err
	}
	ln, err := net.FileListener(f) // duplicates again, and sets O_NONBLOCK
	if cerr := f.Close(); err == nil && cerr != nil {
		_ = ln.Close()
		return nil, cerr
	}
	if u, ok := ln.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false) // as it is by default for one from a file
	}
	return ln, err
}

// packetConn returns a net.PacketConn over a duplicate, for the caller to
// close; d stays as it is. The socket becomes non-blocking, as with listener.
func (d *descriptor) packetConn() (net.PacketConn, error) {
	f, err := d.file("socket")
	if err != nil {
		return nil, err
	}
	pc, err := net.FilePacketConn(f) // duplicates again, and sets O_NONBLOCK
	if cerr := f.Close(); err == nil && cerr != nil {
		_ = pc.Close()
		return nil, cerr
	}
	return pc, err
}

// polled is file for a socket of which the caller waits to become readable. The
// socket becomes non-blocking, without which it would not go into the poller.
func (d *descriptor) polled(name string) (*os.File, error) {
	if err := d.control(func(fd int) error { return unix.SetNonblock(fd, true) }); err != nil {
		return nil, err
	}
	return d.file(name)
}

// waitToRead blocks until something can be read from c, or accepted; false means
// that c was closed. (A net.Listener can't be waited for without accepting.)
func waitToRead(c *os.File) bool {
	raw, err := c.SyscallConn()
	return err == nil && raw.Read(canRead) == nil
}

// canRead says whether something can be read from fd now: for RawConn.Read, which
// waits until it can be.
func canRead(fd uintptr) bool {
	n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, 0)
	return err == nil && n == 1
}

// unread says whether bytes wait in the kernel that nobody has read from c yet, as
// they do where this process was stopped or has no time; false where c does not tell.
func unread(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	waits := false
	return raw.Control(func(fd uintptr) { waits = hasBytes(int(fd)) }) == nil && waits
}

func hasBytes(fd int) bool {
	n, _, err := unix.Recvfrom(fd, make([]byte, 1), unix.MSG_PEEK|unix.MSG_DONTWAIT)
	return err == nil && n > 0
}

// streamOptions are the options of a TCP connection that net.FileConn sets to Go's
// defaults (newTCPConn in net/tcpsock.go), whatever they were.
var streamOptions = [...]struct{ level, name int }{
	{unix.IPPROTO_TCP, unix.TCP_NODELAY},
	{unix.SOL_SOCKET, unix.SO_KEEPALIVE},
	{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
	{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
	{unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
}

// streamConn makes of f, a connected socket, what the net package would have accepted:
// a duplicate, for the caller to close. The socket's options stay as they are.
func streamConn(f *os.File) (net.Conn, error) {
	options, err := readStreamOptions(f)
	if err != nil {
		return nil, err
	}
	nc, err := net.FileConn(f)
	if tcp, ok := nc.(*net.TCPConn); ok {
		setStreamOptions(tcp, options)
	}
	return nc, err
}

// readStreamOptions returns the value of each; -1 where the socket has none, since
// it is not TCP's.
func readStreamOptions(c syscall.Conn) (values [len(streamOptions)]int, err error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return values, err
	}
	err = raw.Control(func(fd uintptr) {
		for i, o := range streamOptions {
			v, err := unix.GetsockoptInt(int(fd), o.level, o.name)
			if err != nil {
				v = -1
			}
			values[i] = v
		}
	})
	return values, err
}

// setStreamOptions does what can be done: a connection that is about to end may
// refuse.
func setStreamOptions(c syscall.Conn, values [len(streamOptions)]int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	_ = raw.Control(func(fd uintptr) {
		for i, o := range streamOptions {
			if values[i] >= 0 {
				_ = unix.SetsockoptInt(int(fd), o.level, o.name, values[i])
			}
		}
	})
}

// acceptNow accepts a connection that is in the queue of the listener c, also
// while c's deadline has passed, and never waits: an error that wraps EAGAIN
// means that the queue is empty.
func acceptNow(c syscall.Conn) (net.Conn, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := -1
	cerr := raw.Control(func(fd uintptr) {
		err = unix.EINTR
		for err == unix.EINTR {
			n, _, err = unix.Accept4(int(fd), unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK)
		}
	})
	if cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("accept4", err)
	}
	f := os.NewFile(uintptr(n), "connection")
	defer f.Close()
	return net.FileConn(f) // a duplicate
}
