package handoff

import (
	"net"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// acceptNow takes a connection that is queued on the listener c; it never
// waits. An error (EAGAIN) says that none is.
func acceptNow(c syscall.Conn) (net.Conn, error) {
	rc, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := -1
	cerr := rc.Control(func(fd uintptr) {
		n, _, err = unix.Accept4(int(fd), unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	})
	switch {
	case cerr != nil:
		return nil, cerr
	case err != nil:
		return nil, os.NewSyscallError("accept4", err)
	}
	f := os.NewFile(uintptr(n), "accepted")
	defer f.Close()
	return net.FileConn(f)
}
