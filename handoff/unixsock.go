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

// where says which process it is, for people.
func (p peer) where() string { return pidText(p.PID) }

// pidText is a pid as the kernel tells it of a peer, for people.
func pidText(pid int) string {
	if pid == 0 {
		return "outside of this process's pid namespace"
	}
	return fmt.Sprintf("pid %d", pid)
}

// allow says which peers are trusted. The zero value means this process's own
// user and root, and those are trusted with any list; a peer on either list is,
// too. Ids are as this process's user namespace sees them; one that stands for
// everybody without a number here trusts nobody, also where it is this process's.
type allow struct {
	UIDs []uint32 // effective user ids
	GIDs []uint32 // effective group ids; supplementary groups do not count

	Key      sharedKey     // whoever proves it is trusted too; nil: nobody
	Patience time.Duration // how long a proof is waited for; 0: until the caller's context ends
}

// check returns nil, or an error that wraps ErrPermission and names p.
func (a allow) check(p peer) error {
	return a.checkAs(uint32(os.Geteuid()), p, userIDs(), groupIDs())
}

// checkAs is check for a process of user self.
func (a allow) checkAs(self uint32, p peer, users, groups idSpace) error {
	trusted := p.UID == 0 || p.UID == self || slices.Contains(a.UIDs, p.UID)
	switch {
	case trusted && users.names(p.UID), slices.Contains(a.GIDs, p.GID) && groups.names(p.GID):
		return nil
	case !users.names(p.UID):
		return fmt.Errorf("%w: the peer runs as uid %d (%s), which stands for everybody without a number in this user namespace (give both sides the same shared key)",
			ErrPermission, p.UID, p.where())
	}
	return fmt.Errorf("%w: the peer runs as uid %d, gid %d (%s), which is neither root, nor uid %d, nor on the allow list",
		ErrPermission, p.UID, p.GID, p.where(), self)
}

// checkLists refuses what check would never go by.
func (a allow) checkLists() error {
	return errors.Join(userIDs().checkNames("AllowUIDs", a.UIDs), groupIDs().checkNames("AllowGIDs", a.GIDs))
}

// owners are the users whose directories are fit for a socket. With a key that may
// be somebody without a number here, the host's root mostly: whoever is met there
// has to prove the key.
func (a allow) owners() []uint32 {
	users := userIDs()
	if a.Key == nil || users.full {
		return a.UIDs
	}
	return append(slices.Clip(a.UIDs), users.overflow)
}

// options are those of the sockets that are answered by this protocol. With a key
// everybody may connect whom the directory lets, since the numbers of those who
// have it differ.
func (a allow) options() unixOptions {
	o := unixOptions{mode: 0o600, refuseRights: true, listen: true}
	if a.Key != nil {
		o.mode = 0o666
	}
	return o
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
// 0600, or 0666 with a key, takes no descriptors from clients where the kernel can refuse them
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
	if err := checkDirectory(path, a.owners()...); err != nil {
		return nil, fileID{}, nil, err
	}
	for wait := newBackoff(); ; {
		c, err = connect(ctx, path, a)
		if errors.Is(err, ErrNobody) {
			ln, id, err = listenControl(ctx, path, a.options())
			if errors.Is(err, unix.EADDRINUSE) {
				err = errBusy // somebody came first: connect to that one
			}
		}
		if !passes(err) {
			return ln, id, c, wait.outOfTime(err)
		}
		if err := wait.sleep(ctx, err); err != nil {
			return nil, fileID{}, nil, err
		}
	}
}

// listenAlone is meet for a socket that is this process's only: it is an error if
// anybody alive is at the path.
func listenAlone(ctx context.Context, path string, a allow) (ln *net.UnixListener, id fileID, err error) {
	defer func() { err = opError("listen", path, err) }()
	if err := checkSocketPath(path); err != nil {
		return nil, fileID{}, err
	}
	if err := checkDirectory(path, a.owners()...); err != nil {
		return nil, fileID{}, err
	}
	ln, id, err = listenControl(ctx, path, a.options())
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
		if !passes(err) {
			return c, wait.outOfTime(err)
		}
		if err := wait.sleep(ctx, err); err != nil {
			return nil, err
		}
	}
}

// passes says whether it is worth trying again at once.
func passes(err error) bool { return errors.Is(err, errBusy) || errors.Is(err, errUnproven) }

// connect tries once, and says what is at path where nobody answers. With a key it
// returns when that was proven, both ways, or need not be.
func connect(ctx context.Context, path string, a allow) (*conn, error) {
	if err := checkSocketFile(path); err != nil {
		return nil, err
	}
	var before fileID
	if a.Key != nil {
		var err error
		if before, _, err = identify(path); err != nil {
			return nil, errUnproven // removed just now
		}
	}
	var dialer net.Dialer
	uc, err := dialer.DialContext(ctx, "unixpacket", path)
	if err != nil {
		return nil, connectError(err)
	}
	c := newConn(uc.(*net.UnixConn))
	if err := a.admit(ctx, c, path, before); err != nil {
		_ = c.Close()
		return nil, err
	}
	return c, nil
}

// admit says whether the process at the other end of c is trusted. before is what
// was at path before c was made.
func (a allow) admit(ctx context.Context, c *conn, path string, before fileID) error {
	p, err := c.peer()
	if err != nil {
		return err
	}
	byIDs := a.check(p)
	if a.Key == nil {
		return byIDs
	}
	after, isSocket, err := identify(path)
	if err != nil || !isSocket || after != before {
		return errUnproven // which one c leads to is not known
	}
	return a.prove(ctx, c, before, byIDs)
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
		return fmt.Errorf("%w: %w (run as root or as the user that serves there; between user namespaces both need the same shared key)", ErrPermission, errnoOf(err))
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

// outOfTime says that err is the end of ctx's time.
func outOfTime(ctx context.Context, err error) bool {
	return errors.Is(err, context.DeadlineExceeded) && timeIsUp(ctx)
}

// timeIsUp says that ctx's deadline is over by the clock, by which the dialer goes, and
// which may be ahead of ctx: that has ended on return.
func timeIsUp(ctx context.Context) bool {
	end, ok := ctx.Deadline()
	if !ok || time.Now().Before(end) {
		return false
	}
	<-ctx.Done()
	return true
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
