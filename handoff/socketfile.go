package handoff

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// lockTimeout bounds removeSocketFile; everybody else holds the lock for a few
// system calls.
const lockTimeout = time.Second

var errLocked = errors.New("another process holds the lock")

// fileID tells the file of a Unix socket from another one that has taken its
// place. It is recorded at bind and goes from process to process with the
// socket. The zero value is no file.
type fileID struct {
	Dev uint64 `json:"dev"`
	Ino uint64 `json:"ino"`
}

// unixOptions are what may differ between Unix sockets.
type unixOptions struct {
	mode         os.FileMode // 0: as the umask leaves it; where others may connect, they may take the lock too
	refuseRights bool        // clients can't send descriptors, since Linux 6.16
	listen       bool        // a stream socket that is not listened on refuses connections
}

// listenUnix binds a new socket for network "unix", "unixgram" or "unixpacket"
// at path, and returns it with the identity of its file. The caller owns it. A
// file that a dead process left is replaced; one whose socket somebody alive
// holds is not: EADDRINUSE, whether that socket is listened on or not.
func listenUnix(ctx context.Context, network, path string, o unixOptions) (d *descriptor, id fileID, err error) {
	defer func() { err = opError("listen", path, err) }()
	if err := checkSocketPath(path); err != nil {
		return nil, fileID{}, err
	}
	sotype, err := unixType(network)
	if err != nil {
		return nil, fileID{}, err
	}
	lock, err := lockSocketFile(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fileID{}, missingDirectory(path)
	}
	if err != nil {
		return nil, fileID{}, err
	}
	defer lock.Close()
	if o.forOthers() {
		// To take it they must read it. It may be another user's, who has done it then.
		_ = lock.control(func(fd int) error { return unix.Fchmod(fd, 0o644) })
	}
	if err := removeStale(path); err != nil {
		return nil, fileID{}, err
	}
	if d, err = openSocket(unix.AF_UNIX, sotype, 0); err != nil {
		return nil, fileID{}, err
	}
	if id, err = bindUnix(d, path, o); err != nil {
		_ = d.Close()
		return nil, fileID{}, err
	}
	return d, id, nil
}

// forOthers says whether other users may connect.
func (o unixOptions) forOthers() bool { return o.mode&0o066 != 0 }

func unixType(network string) (int, error) {
	switch network {
	case "unix":
		return unix.SOCK_STREAM, nil
	case "unixgram":
		return unix.SOCK_DGRAM, nil
	case "unixpacket":
		return unix.SOCK_SEQPACKET, nil
	}
	return 0, fmt.Errorf("unknown network %q", network)
}

// bindUnix is called with the lock held.
func bindUnix(d *descriptor, path string, o unixOptions) (id fileID, err error) {
	err = d.control(func(fd int) error {
		if o.mode != 0 {
			// The file gets the mode of the socket's own inode less the
			// umask (unix_bind_bsd), so there is no instant at which it has
			// another. A chmod of the path would come too late, and the
			// umask belongs to the whole program.
			if err := unix.Fchmod(fd, uint32(o.mode.Perm())); err != nil {
				return os.NewSyscallError("fchmod", err)
			}
		}
		if o.refuseRights {
			err := rightsRefusal.try(func() error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 0) })
			if err != nil && err != unix.ENOPROTOOPT {
				return os.NewSyscallError("setsockopt", err)
			}
		}
		if err := unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err != nil {
			return os.NewSyscallError("bind", err)
		}
		return nil
	})
	if err != nil {
		return fileID{}, err
	}
	id, isSocket, err := identify(path)
	if err == nil && !isSocket {
		err = ErrNotSocket
	}
	if err != nil {
		return fileID{}, err
	}
	if o.forOthers() {
		if err := widen(path, id, o.mode); err != nil {
			return fileID{}, errors.Join(err, os.Remove(path))
		}
	}
	if o.listen {
		if err := d.listen(); err != nil {
			return fileID{}, errors.Join(err, os.Remove(path))
		}
	}
	return id, nil
}

// widen gives the file id at path the mode that the umask kept from it, and touches
// no other file, whatever has come to path meanwhile: chmod(2) by path would follow
// a link.
func widen(path string, id fileID, mode os.FileMode) error {
	n, err := unix.Open(path, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return &fs.PathError{Op: "open", Path: path, Err: err}
	}
	d := newDescriptor(n)
	defer d.Close()
	return d.control(func(fd int) error {
		var st unix.Stat_t
		if err := unix.Fstat(fd, &st); err != nil {
			return os.NewSyscallError("fstat", err)
		}
		if (fileID{Dev: st.Dev, Ino: st.Ino}) != id {
			return fmt.Errorf("%w: it was replaced just now", ErrNotSocket)
		}
		if os.FileMode(st.Mode).Perm() == mode {
			return nil
		}
		// fchmod(2) does not take such a descriptor, and fchmodat2(2) is of Linux 6.6.
		return os.Chmod(fmt.Sprintf("/proc/self/fd/%d", fd), mode)
	})
}

// removeStale makes room at path, under the lock, if all that is there is the
// file of a socket that nobody holds any more.
func removeStale(path string) error {
	err := checkSocketFile(path)
	if errors.Is(err, ErrNobody) {
		return nil
	}
	if err != nil {
		return err
	}
	alive, err := socketAlive(path)
	if err != nil {
		return err
	}
	if alive {
		return fmt.Errorf("a process that is alive holds the socket: %w", unix.EADDRINUSE)
	}
	switch err := os.Remove(path); {
	case errors.Is(err, unix.EPERM): // a sticky directory
		return fmt.Errorf("%w (nobody holds that socket any more, and its file is another user's: remove it as that user, or as root)", permission(err))
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return permission(err)
	}
	return nil
}

// socketAlive tells whether any process holds the socket whose file is at path,
// without a connection that somebody would have to accept. A datagram socket
// that connects to a socket of another type gets EPROTOTYPE if that exists, also
// when nobody listens on it, and ECONNREFUSED if only its file does
// (unix_find_other).
func socketAlive(path string) (alive bool, err error) {
	d, err := openSocket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return false, err
	}
	defer d.Close()
	err = d.control(func(fd int) error { return unix.Connect(fd, &unix.SockaddrUnix{Name: path}) })
	switch {
	case err == nil, errors.Is(err, unix.EPROTOTYPE), errors.Is(err, unix.EPERM):
		return true, nil // EPERM: it talks to one peer only
	case errors.Is(err, unix.ECONNREFUSED), errors.Is(err, unix.ENOENT):
		return false, nil
	}
	return false, permission(os.NewSyscallError("connect", err))
}

// checkSocketFile returns ErrNobody if nothing is at path and ErrNotSocket if
// what is there is no socket. A symbolic link is none, wherever it points: bind
// and unlink do not follow it, so its owner would decide whom clients reach.
func checkSocketFile(path string) error {
	info, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrNobody
	case err != nil:
		return permission(err)
	case info.Mode().Type() == fs.ModeSocket:
		return nil
	}
	return fmt.Errorf("%w: it is a %s", ErrNotSocket, kindOf(info.Mode()))
}

func kindOf(m fs.FileMode) string {
	switch m.Type() {
	case 0:
		return "regular file"
	case fs.ModeDir:
		return "directory"
	case fs.ModeSymlink:
		return "symbolic link"
	case fs.ModeNamedPipe:
		return "named pipe"
	}
	return "device"
}

// identify returns what lstat says about path.
func identify(path string) (id fileID, isSocket bool, err error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return fileID{}, false, &fs.PathError{Op: "lstat", Path: path, Err: err}
	}
	return fileID{Dev: st.Dev, Ino: st.Ino}, st.Mode&unix.S_IFMT == unix.S_IFSOCK, nil
}

// removeSocketFile removes the file of a Unix socket that this process served
// last. It returns nil without removing anything if the file is gone, or another
// one is in its place. Call it while the socket is still open: as long as it is,
// nobody takes its file for a stale one, so that the inode number can't come back
// as that of somebody else's.
func removeSocketFile(path string, id fileID) (err error) {
	defer func() { err = opError("remove", path, err) }()
	ctx, cancel := context.WithTimeout(context.Background(), lockTimeout)
	defer cancel()
	lock, err := lockSocketFile(ctx, path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // so is the directory
	}
	if err != nil {
		return err
	}
	defer lock.Close()
	now, isSocket, err := identify(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil || !isSocket || now != id {
		return err
	}
	return os.Remove(path)
}

// lockSocketFile takes the lock that whoever binds or removes path has to hold.
// Closing the descriptor releases it. The lock file is never removed: a second
// one in its place would be a second lock.
func lockSocketFile(ctx context.Context, path string) (*descriptor, error) {
	d, err := openLock(path + ".lock")
	if err != nil {
		return nil, permission(err)
	}
	for wait := newBackoff(); ; {
		err = d.control(func(fd int) error { return unix.Flock(fd, unix.LOCK_EX|unix.LOCK_NB) })
		switch err {
		case nil:
			return d, nil
		case unix.EINTR:
			continue
		case unix.EWOULDBLOCK:
			err = wait.sleep(ctx, errLocked)
		default:
			err = os.NewSyscallError("flock", err)
		}
		if err != nil {
			_ = d.Close()
			return nil, fmt.Errorf("%s.lock: %w", path, err)
		}
	}
}

// openLock creates the file only where it is missing: with
// fs.protected_regular, O_CREAT on somebody else's file in a sticky directory
// fails, also for root. Links are not followed, and a named pipe does not block.
func openLock(path string) (*descriptor, error) {
	const flags = unix.O_RDONLY | unix.O_CLOEXEC | unix.O_NOFOLLOW | unix.O_NONBLOCK
	n, err := unix.Open(path, flags, 0)
	if err == unix.ENOENT {
		n, err = unix.Open(path, flags|unix.O_CREAT, 0o600)
	}
	if err != nil {
		return nil, &fs.PathError{Op: "open", Path: path, Err: err}
	}
	d := newDescriptor(n)
	var st unix.Stat_t
	if err := d.control(func(fd int) error { return unix.Fstat(fd, &st) }); err != nil {
		_ = d.Close()
		return nil, &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG {
		_ = d.Close()
		return nil, fmt.Errorf("lock file %s is not a regular file (move it away)", path)
	}
	return d, nil
}

// checkDirectory refuses a directory in which somebody other than root, this
// process's user and owners could put a socket of their own in the place of the
// one at path. A sticky one will do: there only the owner of a file can replace
// it, and a squatter is found by its uid.
func checkDirectory(path string, owners ...uint32) error {
	dir := filepath.Dir(path)
	var st unix.Stat_t
	err := unix.Stat(dir, &st)
	switch {
	case err == unix.ENOENT:
		return missingDirectory(path)
	case err != nil:
		return permission(&fs.PathError{Op: "stat", Path: dir, Err: err})
	case st.Mode&unix.S_IFMT != unix.S_IFDIR:
		return fmt.Errorf("%w: %s is not a directory", ErrDirectory, dir)
	}
	if st.Uid != 0 && st.Uid != uint32(os.Geteuid()) && !slices.Contains(owners, st.Uid) {
		if !userIDs().names(st.Uid) {
			return fmt.Errorf("%w: %s belongs to a user without a number in this user namespace, who could replace the socket (use one of your own, mode 0700, or give both sides the same shared key)",
				ErrDirectory, dir)
		}
		return fmt.Errorf("%w: %s belongs to uid %d, who could replace the socket (run as that user, or use a directory of your own, mode 0700)",
			ErrDirectory, dir, st.Uid)
	}
	if st.Mode&0o022 != 0 && st.Mode&unix.S_ISVTX == 0 {
		return fmt.Errorf("%w: others may write to %s, mode %04o (chmod 0700, or use another)",
			ErrDirectory, dir, st.Mode&0o7777)
	}
	return checkMounts(path, dir)
}

// checkMounts refuses what a container's volume may have wrong: the socket's file
// mounted instead of its directory, which goes on to name a dead socket when
// another one is bound at the path; and a directory that is mounted read-only,
// where a successor could neither take the lock nor remove the file once it is
// the last. A kernel that doesn't tell mounts (statx, Linux 5.8) is believed.
func checkMounts(path, dir string) error {
	var x unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW, 0, &x)
	if err == nil && x.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0 {
		return fmt.Errorf("%w: %s is itself a mount (mount the directory that it is in, not the file)", ErrDirectory, path)
	}
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err == nil && fs.Flags&unix.ST_RDONLY != 0 {
		return fmt.Errorf("%w: %s is on a read-only mount (mount a volume there that can be written, or a tmpfs for a self socket)", ErrDirectory, dir)
	}
	return nil
}

func missingDirectory(path string) error {
	return fmt.Errorf("%w: %s does not exist (create it with mode 0700)", ErrDirectory, filepath.Dir(path))
}

// permission adds ErrPermission to an error of the kernel that says the same.
func permission(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}
