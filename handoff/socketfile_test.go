package handoff

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"golang.org/x/sys/unix"
)

func TestCheckDirectory(t *testing.T) {
	tests := []struct {
		name string
		mode os.FileMode
		ok   bool
	}{
		{"private", 0o700, true},
		{"readable", 0o755, true},
		{"group may write", 0o770, false},
		{"others may write", 0o707, false},
		{"group may write, sticky", 0o770 | os.ModeSticky, true},
		{"others may write, sticky", 0o777 | os.ModeSticky, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			leak.CheckExact(t)
			dir := socketDir(t)
			path := filepath.Join(dir, "s")
			require.NoError(t, os.Chmod(dir, test.mode))
			ln, id, c, err := meet(t.Context(), path, allow{})
			require.Nil(t, c)
			if !test.ok {
				require.ErrorIs(t, err, ErrDirectory)
				require.ErrorContains(t, err, "chmod 0700")
				require.ErrorContains(t, err, dir)
				return
			}
			require.NoError(t, err)
			require.NoError(t, removeSocketFile(path, id))
			require.NoError(t, ln.Close())
		})
	}
}

func TestDirectoryOfAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		// Without root there is no directory of another user at hand but
		// root's, which is trusted.
		require.NoError(t, checkDirectory("/s"))
		return
	}
	dir := socketDir(t)
	path := filepath.Join(dir, "s")
	require.NoError(t, os.Chown(dir, 4711, 0))
	err := checkDirectory(path)
	require.ErrorIs(t, err, ErrDirectory)
	require.ErrorContains(t, err, "uid 4711")
	require.NoError(t, checkDirectory(path, 4711))
	_, _, _, err = meet(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrDirectory)
}

// What a container's volume may have wrong. In a user namespace of its own an
// ordinary process may mount, too.
func TestVolumes(t *testing.T) {
	if inChild(t, func(string) {
		dir := os.Getenv(pathVariable)
		at := func(name string) string { return filepath.Join(dir, name) }
		c := newChain(t).moveTo(at("run"))
		one, ln := c.serve("one")
		for _, volume := range []struct {
			name, from, to string
			flags          uintptr
			want           string
		}{
			{"the file alone", c.socket, at("file/s"), 0, at("file/s") + " is itself a mount"},
			{"read-only", at("run"), at("ro"), unix.MS_RDONLY, at("ro") + " is on a read-only mount"},
			{"as it must be", at("run"), at("rw"), 0, ""},
		} {
			require.NoError(t, unix.Mount(volume.from, volume.to, "", unix.MS_BIND, ""), volume.name)
			if volume.flags != 0 {
				require.NoError(t, unix.Mount("", volume.to, "", unix.MS_BIND|unix.MS_REMOUNT|volume.flags, ""), volume.name)
			}
			cfg := c.config("two")
			if cfg.Socket = filepath.Join(volume.to, "s"); volume.to == at("file/s") {
				cfg.Socket = volume.to
			}
			status, err := (&Client{Socket: cfg.Socket}).Status(c.ctx)
			require.NoError(t, err, "%s: who only asks need not write", volume.name)
			require.Len(t, status.Generations, 1)
			two, err := Start(c.ctx, cfg)
			if volume.want != "" {
				require.ErrorIs(t, err, ErrDirectory, volume.name)
				require.ErrorContains(t, err, volume.want)
				cfg.Socket, cfg.SelfSocket = c.socket, filepath.Join(filepath.Dir(cfg.Socket), "own")
				if volume.flags != 0 {
					_, err = Start(c.ctx, cfg)
					require.ErrorIs(t, err, ErrDirectory, volume.name)
					require.ErrorContains(t, err, "a tmpfs for a self socket")
				}
				continue
			}
			require.NoError(t, err)
			greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
			c.ready(two)
			require.Equal(t, "handed_over", c.wait(one).Reason)
			require.Equal(t, "2", asked(t, ln.Addr()))
			require.NoError(t, two.Close())
		}
		fmt.Println("done it")
	}) {
		return
	}
	leak.CheckExact(t)
	dir := socketDir(t)
	for _, name := range []string{"run", "ro", "rw", "file"} {
		require.NoError(t, os.Mkdir(filepath.Join(dir, name), 0o700))
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "file/s"), nil, 0o600))
	otherProcess(t, dir, ownUserNamespace(syscall.CLONE_NEWNS))
}

// ownUserNamespace has a child live in a user namespace of its own, as its root,
// where it may make other namespaces.
func ownUserNamespace(flags uintptr) func(*syscall.SysProcAttr) {
	return func(a *syscall.SysProcAttr) {
		a.Cloneflags = syscall.CLONE_NEWUSER | flags
		a.UidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Geteuid(), Size: 1}}
		a.GidMappings = []syscall.SysProcIDMap{{ContainerID: 0, HostID: os.Getegid(), Size: 1}}
	}
}

func TestMissingDirectory(t *testing.T) {
	leak.CheckExact(t)
	dir := filepath.Join(socketDir(t), "missing")
	path := filepath.Join(dir, "s")
	_, _, _, err := meet(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrDirectory)
	require.ErrorContains(t, err, "create it with mode 0700")
	_, _, err = bindSocket(t.Context(), "unix", path, false, nil)
	require.ErrorIs(t, err, ErrDirectory)
	require.ErrorContains(t, err, "create it with mode 0700")
	_, err = dial(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrNobody)
	require.NoError(t, removeSocketFile(path, fileID{1, 2}))

	require.NoError(t, os.WriteFile(dir, nil, 0o600))
	_, _, _, err = meet(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrDirectory)
	require.ErrorContains(t, err, "not a directory")
}

func TestRemoveSocketFile(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	ln, id := mustMeet(t, path)
	for _, other := range []fileID{{}, {Dev: id.Dev, Ino: id.Ino + 1}, {Dev: id.Dev + 1, Ino: id.Ino}} {
		require.NoError(t, removeSocketFile(path, other))
		now, _, err := identify(path)
		require.NoError(t, err)
		require.Equal(t, id, now)
	}
	require.NoError(t, removeSocketFile(path, id))
	_, err := os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.NoError(t, removeSocketFile(path, id), "gone already")
	_, err = os.Lstat(path + ".lock")
	require.NoError(t, err, "the lock file stays")

	// Another file has come to the path, and even has the inode number.
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	file, isSocket, err := identify(path)
	require.NoError(t, err)
	require.False(t, isSocket)
	require.NoError(t, removeSocketFile(path, file))
	_, err = os.Lstat(path)
	require.NoError(t, err)
	require.NoError(t, ln.Close())
}

func TestRemoveWaitsForTheLock(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	_, id := mustMeet(t, path)
	lock, err := lockSocketFile(t.Context(), path)
	require.NoError(t, err)
	var wg sync.WaitGroup
	removed := make(chan struct{})
	wg.Go(func() {
		if err := removeSocketFile(path, id); err != nil {
			t.Error(err)
		}
		close(removed)
	})
	// Who holds the lock can rely on what is at the path.
	for range 1000 {
		select {
		case <-removed:
			t.Error("removed without the lock")
		default:
		}
		_, err := os.Lstat(path)
		require.NoError(t, err)
	}
	require.NoError(t, lock.Close())
	wg.Wait()
	_, err = os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestLockFileMustBeAFile(t *testing.T) {
	tests := []struct {
		name string
		make func(path string) error
	}{
		{"directory", func(path string) error { return os.Mkdir(path, 0o700) }},
		{"named pipe", func(path string) error { return unix.Mkfifo(path, 0o600) }},
		{"symbolic link", func(path string) error {
			if err := os.WriteFile(path+".target", nil, 0o600); err != nil {
				return err
			}
			return os.Symlink(path+".target", path)
		}},
		{"dangling symbolic link", func(path string) error { return os.Symlink(path+".target", path) }},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			leak.CheckExact(t)
			path := filepath.Join(socketDir(t), "s")
			require.NoError(t, test.make(path+".lock"))
			_, _, _, err := meet(t.Context(), path, allow{})
			require.ErrorContains(t, err, path+".lock")
			_, err = os.Lstat(path)
			require.ErrorIs(t, err, os.ErrNotExist)
		})
	}
}

func TestRelativePath(t *testing.T) {
	leak.CheckExact(t)
	t.Chdir(socketDir(t))
	ln, id := mustMeet(t, "s")
	c, err := dial(t.Context(), "./s", allow{})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, removeSocketFile("s", id))
	require.NoError(t, ln.Close())
}

// A Unix socket of the program: as net.Listen would make it, but for what
// happens to its file.
func TestApplicationUnixSocket(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "app")
	stale := leaveStale(t, path, "unix")
	d, id, err := bindSocket(t.Context(), "unix", path, false, nil)
	require.NoError(t, err)
	defer d.Close()
	require.NotZero(t, id)
	require.Equal(t, stale.Dev, id.Dev)
	_, err = net.Dial("unix", path)
	require.ErrorIs(t, err, unix.ECONNREFUSED)

	require.NoError(t, d.listen())
	ln, err := d.listener()
	require.NoError(t, err)
	c, err := net.Dial("unix", path)
	require.NoError(t, err)
	defer c.Close()
	s, err := ln.Accept()
	require.NoError(t, err)
	require.NoError(t, s.Close())
	require.NoError(t, ln.Close())
	now, _, err := identify(path)
	require.NoError(t, err)
	require.Equal(t, id, now)

	want, err := net.Listen("unix", path+".net")
	require.NoError(t, err)
	defer want.Close()
	a, err := os.Lstat(path)
	require.NoError(t, err)
	b, err := os.Lstat(path + ".net")
	require.NoError(t, err)
	require.Equal(t, b.Mode(), a.Mode(), "the mode is the umask's")

	_, _, err = bindSocket(t.Context(), "unixgram", path, false, nil)
	require.ErrorIs(t, err, unix.EADDRINUSE)
}

func TestApplicationDatagramSocket(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "app")
	leaveStale(t, path, "unixgram")
	d, id, err := bindSocket(t.Context(), "unixgram", path, false, nil)
	require.NoError(t, err)
	defer d.Close()
	pc, err := d.packetConn()
	require.NoError(t, err)
	client, err := net.Dial("unixgram", path)
	require.NoError(t, err)
	defer client.Close()
	_, err = client.Write([]byte("datagram"))
	require.NoError(t, err)
	buf := make([]byte, 20)
	n, _, err := pc.ReadFrom(buf)
	require.NoError(t, err)
	require.Equal(t, "datagram", string(buf[:n]))
	require.NoError(t, pc.Close())
	now, _, err := identify(path)
	require.NoError(t, err)
	require.Equal(t, id, now)
	require.NoError(t, removeSocketFile(path, id))
}

func TestUnknownUnixNetwork(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	_, _, err := listenUnix(t.Context(), "tcp", path, unixOptions{})
	require.ErrorContains(t, err, "unknown network")
}
