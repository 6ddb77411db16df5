package handoff

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// How the death of the process at the other end of a link is noticed where its
// end of the link lives on, in a child that it leaked it to, for instance: by its
// pidfd, which becomes readable. It works across pid namespaces (pidfd_open(2),
// SO_PEERPIDFD in Linux 6.5), where a pid would be 0 or another's.

// lifeline is the pidfd of a process, in the runtime's poller. The zero value is
// that of nobody.
type lifeline struct{ f *os.File }

// newLifeline takes ownership of d, which must be a pidfd.
func newLifeline(d *descriptor) (lifeline, error) {
	defer d.Close()
	if err := d.control(func(fd int) error { _, err := pidOf(fd); return err }); err != nil {
		return lifeline{}, err
	}
	f, err := d.polled("pidfd")
	return lifeline{f}, err
}

var errNoPidfd = errors.New("not a pidfd")

// pidOf is the pid of a pidfd's process in this pid namespace: 0 where it has none
// here, -1 once it is gone. (proc_pid_fdinfo(5))
func pidOf(fd int) (int, error) {
	f, err := os.Open(fmt.Sprintf("/proc/self/fdinfo/%d", fd))
	if err != nil {
		return 0, err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if text, ok := strings.CutPrefix(lines.Text(), "Pid:"); ok {
			return strconv.Atoi(strings.TrimSpace(text))
		}
	}
	return 0, errNoPidfd
}

// ownPidfd is a pidfd of this process, for a peer to keep. The error may be that the
// system has none, or allows none.
func ownPidfd() (*descriptor, error) {
	n := -1
	err := pidfds.try(func() (err error) {
		n, err = unix.PidfdOpen(os.Getpid(), 0)
		return err
	})
	if err != nil {
		return nil, os.NewSyscallError("pidfd_open", err)
	}
	return newDescriptor(n), nil
}

// pidfd is that of the process at the other end of c: who called connect(2) or,
// seen from there, who called listen(2) last before.
func (c *conn) pidfd() (*descriptor, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return nil, err
	}
	n := -1
	cerr := raw.Control(func(fd uintptr) {
		err = peerPidfds.try(func() (err error) {
			n, err = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD)
			return err
		})
	})
	if cerr != nil {
		return nil, cerr
	}
	if err != nil {
		return nil, os.NewSyscallError("getsockopt", err)
	}
	return newDescriptor(n), nil
}

// peerPID is the pid of the process that pidfd stands for; where the system has
// none, that of a process which may be gone, and its number another's.
func (c *conn) peerPID() (int, error) {
	d, err := c.pidfd()
	if err != nil {
		who, err := c.peer()
		return who.PID, err
	}
	defer d.Close()
	pid := 0
	err = d.control(func(fd int) (err error) {
		pid, err = pidOf(fd)
		return err
	})
	return pid, err
}

// ended blocks until the process has ended; false means that Close came first.
func (v lifeline) ended() bool {
	return waitToRead(v.f)
}

func (v lifeline) pid() (pid int, err error) {
	raw, err := v.f.SyscallConn()
	if err != nil {
		return 0, err
	}
	if cerr := raw.Control(func(fd uintptr) { pid, err = pidOf(int(fd)) }); cerr != nil {
		return 0, cerr
	}
	return pid, err
}

func (v lifeline) Close() error {
	if v.f == nil {
		return nil
	}
	return v.f.Close()
}

// watchLife notices the death of the process at the other end of l, whose pidfd
// is d, until l is closed. It takes ownership of d.
func (l *link) watchLife(d *descriptor) error {
	v, err := newLifeline(d)
	if err != nil {
		return err
	}
	if l.closed || l.life.f != nil {
		return v.Close()
	}
	l.life = v
	l.p.work.Go(func() {
		if v.ended() {
			l.dead.Store(true)
			l.c.interrupt() // its last words come first
		}
	})
	return nil
}

// kill ends the process at the other end of l. Its pidfd came from that process,
// which might name another: so the kernel must say that it is the one that l is
// connected to.
func (l *link) kill() error {
	if l.life.f == nil {
		return errors.New("it has no pidfd here (Linux 5.3, and not hidden by a sandbox)")
	}
	pid, err := l.life.pid()
	if err != nil {
		return err
	}
	met, err := l.c.peerPID()
	if err != nil {
		return err
	}
	// The numbers are of the pid namespace that /proc was mounted in, which may be
	// one around this process's.
	who, err := l.c.peer()
	switch {
	case err != nil:
		return err
	case pid == 0 || met == 0 || who.PID == 0:
		return errors.New("it runs in another pid namespace, in which this process may not signal")
	case pid != met:
		return fmt.Errorf("it calls itself pid %d, and the connection was made to pid %d", pid, met)
	case pid == os.Getpid():
		return errors.New("it is this very process")
	}
	raw, err := l.life.f.SyscallConn()
	if err != nil {
		return err
	}
	if cerr := raw.Control(func(fd uintptr) {
		err = os.NewSyscallError("pidfd_send_signal", unix.PidfdSendSignal(int(fd), syscall.SIGKILL, nil, 0))
	}); cerr != nil {
		return cerr
	}
	return err
}
