package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// maxSocketPath is the room in sockaddr_un less the terminating zero.
const maxSocketPath = 107

// errBusy: the socket is alive, but can't take a connection right now.
var errBusy = errors.New("alive, but does not accept (backlog full, or not listening yet)")

// peer is the process at the other end as the kernel reports it.
type peer struct {
	PID int // 0: it is outside of this process's pid namespace. Never an identity
	UID uint32
	GID uint32
}

// allow says which peers are trusted. The zero value means this process's own
// user and root, and those are trusted with any list; a peer on either list is,
// too. Ids are as this process's user namespace sees them: 65534 stands for
// every user that has no id here.
type allow struct {
	UIDs []uint32 // effective user ids
	GIDs []uint32 // effective group ids; supplementary groups do not count
}

// check returns nil, or an error that wraps ErrPermission and names p.
func (a allow) check(p peer) error {
	self := uint32(os.Geteuid())
	if p.UID == 0 || p.UID == self || slices.Contains(a.UIDs, p.UID) || slices.Contains(a.GIDs, p.GID) {
		return nil
	}
	return fmt.Errorf("%w: the peer runs as uid %d, gid %d (pid %d), which is neither root, nor uid %d, nor on the allow list",
		ErrPermission, p.UID, p.GID, p.PID, self)
}

// checkSocketPath refuses what no file can be at.
func checkSocketPath(path string) error {
	switch {
	case path == "":
		return errors.New("empty socket path")
	case len(path) > maxSocketPath:
		return fmt.Errorf("%w: it has %d", ErrPathTooLong, len(path))
	case path[0] == '@', path[0] == 0:
		// Anyone in the network namespace may connect to these, and nobody
		// outside of it (CVE-2020-15257).
		return errors.New("abstract socket names are not supported: they have no permissions (use a path)")
	case strings.IndexByte(path, 0) >= 0:
		return errors.New("zero byte in socket path")
	}
	return nil
}

// meet comes together with whoever is at path: it returns either c, a
// connection to the process that serves there, which a allows; or, if nobody
// does, ln with the identity of its file, and this process is the one that
// others meet. The caller closes what it gets. The listener's socket has mode
// 0600, takes no descriptors from clients where the kernel can refuse them
// (Linux 6.16), and its Close leaves the file: see removeSocketFile.
//
// A process that is alive but can't take the connection yet is waited for until
// ctx ends. Of several processes that meet at the same time exactly one binds.
// Errors are *OpError around ErrPathTooLong, ErrDirectory, ErrNotSocket,
// ErrNotHandoff, ErrPermission, the end of ctx, or a system call's.
func meet(ctx context.Context, path string, a allow) (ln *net.UnixListener, id fileID, c *conn, err error) {
	defer func() { err = opError("meet", path, err) }()
	if err := checkSocketPath(path); err != nil {
		return nil, fileID{}, nil, err
	}
	if err := checkDirectory(path, a.UIDs...); err != nil {
		return nil, fileID{}, nil, err
	}
	for wait := newBackoff(); ; {
		c, err = connect(ctx, path, a)
		if errors.Is(err, ErrNobody) {
			ln, id, err = listenControl(ctx, path, controlOptions)
			if errors.Is(err, unix.EADDRINUSE) {
				err = errBusy // somebody came first: connect to that one
			}
		}
		if !errors.Is(err, errBusy) {
			return ln, id, c, wait.outOfTime(err)
		}
		if err := wait.sleep(ctx, err); err != nil {
			return nil, fileID{}, nil, err
		}
	}
}

// controlOptions are those of the sockets that are answered by this protocol.
var controlOptions = unixOptions{mode: 0o600, refuseRights: true, listen: true}

// listenAlone is meet for a socket that is this process's only: it is an error if
// anybody alive is at the path.
func listenAlone(ctx context.Context, path string, a allow) (ln *net.UnixListener, id fileID, err error) {
	defer func() { err = opError("listen", path, err) }()
	if err := checkSocketPath(path); err != nil {
		return nil, fileID{}, err
	}
	if err := checkDirectory(path, a.UIDs...); err != nil {
		return nil, fileID{}, err
	}
	ln, id, err = listenControl(ctx, path, controlOptions)
	if errors.Is(err, unix.EADDRINUSE) {
		return nil, fileID{}, fmt.Errorf("another process is there, and each needs a self socket at a path of its own: %w", unix.EADDRINUSE)
	}
	return ln, id, err
}

func listenControl(ctx context.Context, path string, o unixOptions) (*net.UnixListener, fileID, error) {
	d, id, err := listenUnix(ctx, "unixpacket", path, o)
	if err != nil {
		return nil, fileID{}, err
	}
	defer d.Close()
	ln, err := d.listener()
	if err != nil {
		return nil, fileID{}, errors.Join(err, removeSocketFile(path, id))
	}
	return ln.(*net.UnixListener), id, nil
}

// dial connects to the process that serves at path and that a allows. The
// caller closes the connection. A process that is alive but has a full backlog
// is waited for until ctx ends. Errors are as meet's, and ErrNobody where there
// is no socket or a stale one.
func dial(ctx context.Context, path string, a allow) (c *conn, err error) {
	defer func() { err = opError("dial", path, err) }()
	if err := checkSocketPath(path); err != nil {
		return nil, err
	}
	for wait := newBackoff(); ; {
		c, err = connect(ctx, path, a)
		if !errors.Is(err, errBusy) {
			return c, wait.outOfTime(err)
		}
		if err := wait.sleep(ctx, err); err != nil {
			return nil, err
		}
	}
}

// connect tries once, and says what is at path where nobody answers.
func connect(ctx context.Context, path string, a allow) (*conn, error) {
	if err := checkSocketFile(path); err != nil {
		return nil, err
	}
	var dialer net.Dialer
	uc, err := dialer.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, connectError(err)
	}
	c := newConn(uc.(*net.UnixConn))
	p, err := c.peer()
	if err == nil {
		err = a.check(p)
	}
	if err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// connectError translates what connect(2) says; checkSocketFile has seen a
// socket at the path.
func connectError(err error) error {
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ECONNREFUSED):
		return ErrNobody
	case errors.Is(err, unix.EAGAIN):
		// The kernel waits only for blocking sockets, and then not for a
		// context: so the backlog is tried again.
		return errBusy
	case errors.Is(err, unix.EPROTOTYPE):
		return ErrNotHandoff
	case errors.Is(err, unix.EACCES), errors.Is(err, unix.EPERM):
		return fmt.Errorf("%w: %w (run as root or as the user that serves there)", ErrPermission, errnoOf(err))
	}
	return err
}

// errnoOf drops what net puts before a system call's error: the OpError around
// it says that better.
func errnoOf(err error) error {
	var errno syscall.Errno
	if errors.As(err, &errno) {
		return errno
	}
	return err
}

// relisten calls listen(2) again on a listener that is served already, for the
// process that begins to answer. Connections in its queue stay; from now on
// SO_PEERCRED and SO_PEERPIDFD of new connections name this process instead of
// the one that listened before.
func relisten(d *descriptor) error { return d.listen() }

// opError wraps err once.
func opError(op, path string, err error) error {
	var o *OpError
	if err == nil || errors.As(err, &o) && o.Path == path {
		return err
	}
	return &OpError{Op: op, Path: path, Err: err}
}

// backoff waits between tries for something that can't be waited for.
type backoff struct {
	next, most time.Duration
	what       error // what was waited for last
}

func newBackoff() *backoff {
	return &backoff{next: time.Millisecond, most: 50 * time.Millisecond}
}

// sleep returns an error that wraps ctx's and says what was waited for when ctx
// ends.
func (b *backoff) sleep(ctx context.Context, what error) error {
	timer := time.NewTimer(b.next)
	defer timer.Stop()
	b.next, b.what = min(2*b.next, b.most), what
	select {
	case <-timer.C:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("%w: %w", what, context.Cause(ctx))
	}
}

// outOfTime adds what was waited for to the error of a try during which the time
// ended.
func (b *backoff) outOfTime(err error) error {
	if b.what == nil || !errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return fmt.Errorf("%w: %w", b.what, err)
}
