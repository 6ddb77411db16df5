package handoff

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"golang.org/x/sys/unix"
)

const (
	pathVariable = "HANDOFF_TEST_PATH"
	overflowUID  = 65534
)

// socketDir is a new directory with mode 0700 and a short name.
func socketDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "handoff")
	require.NoError(t, err)
	t.Cleanup(func() { require.NoError(t, os.RemoveAll(dir)) })
	return dir
}

// mustMeet is the first at path.
func mustMeet(t testing.TB, path string) (*net.UnixListener, fileID) {
	t.Helper()
	ln, id, c, err := meet(t.Context(), path, allow{})
	require.NoError(t, err)
	require.Nil(t, c)
	t.Cleanup(func() { _ = ln.Close() })
	return ln, id
}

// leaveStale makes the socket file of a process that is gone.
func leaveStale(t testing.TB, path, network string) fileID {
	t.Helper()
	d, id, err := listenUnix(t.Context(), network, path, unixOptions{})
	require.NoError(t, err)
	require.NoError(t, d.Close())
	return id
}

func accept(t testing.TB, ln *net.UnixListener) *conn {
	t.Helper()
	uc, err := ln.AcceptUnix()
	require.NoError(t, err)
	c := newConn(uc)
	t.Cleanup(func() { _ = c.Close() })
	return c
}

func TestMeetThenDial(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	_, err := dial(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrNobody)

	ln, id := mustMeet(t, path)
	now, isSocket, err := identify(path)
	require.NoError(t, err)
	require.True(t, isSocket)
	require.Equal(t, now, id)

	for _, come := range []func() (*conn, error){
		func() (*conn, error) { return dial(t.Context(), path, allow{}) },
		func() (*conn, error) {
			ln, id, c, err := meet(t.Context(), path, allow{})
			require.Nil(t, ln)
			require.Zero(t, id)
			return c, err
		},
	} {
		c, err := come()
		require.NoError(t, err)
		s := accept(t, ln)
		for _, end := range []*conn{c, s} {
			p, err := end.peer()
			require.NoError(t, err)
			require.Equal(t, peer{PID: os.Getpid(), UID: uint32(os.Geteuid()), GID: uint32(os.Getegid())}, p)
		}
		require.NoError(t, c.send([]byte("hello")))
		frame, _, err := s.receive()
		require.NoError(t, err)
		require.Equal(t, "hello", string(frame))
		require.NoError(t, c.Close())
		require.NoError(t, s.Close())
	}

	require.NoError(t, ln.Close())
	_, err = os.Lstat(path)
	require.NoError(t, err, "closing a listener leaves the file")
	_, err = dial(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrNobody)
}

func TestEverythingOfMeetIsCloseOnExec(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	before := leak.Descriptors(t)
	ln, _ := mustMeet(t, path)
	c, err := dial(t.Context(), path, allow{})
	require.NoError(t, err)
	defer c.Close()
	accept(t, ln)
	made := 0
	for n := range leak.Descriptors(t) {
		if _, old := before[n]; old {
			continue
		}
		made++
		flags, err := unix.FcntlInt(uintptr(n), unix.F_GETFD, 0)
		require.NoError(t, err)
		require.NotZero(t, flags&unix.FD_CLOEXEC, "descriptor %d", n)
	}
	require.Equal(t, 3, made, "the lock is closed")
}

// Whoever comes at the same time: one binds, and the other finds that one.
func TestTwoMeetAtOnce(t *testing.T) {
	leak.CheckExact(t)
	dir := socketDir(t)
	for round := range 300 {
		path := filepath.Join(dir, fmt.Sprint(round))
		if round%2 == 1 {
			leaveStale(t, path, "unixpacket")
		}
		const n = 3
		var lns [n]*net.UnixListener
		var conns [n]*conn
		var errs [n]error
		var wg sync.WaitGroup
		for i := range n {
			wg.Go(func() { lns[i], _, conns[i], errs[i] = meet(t.Context(), path, allow{}) })
		}
		wg.Wait()
		binders := 0
		for i := range n {
			require.NoError(t, errs[i])
			require.NotEqual(t, lns[i] == nil, conns[i] == nil, "one or the other")
			if lns[i] != nil {
				binders++
				require.NoError(t, lns[i].Close())
			} else {
				require.NoError(t, conns[i].Close())
			}
		}
		require.Equal(t, 1, binders)
	}
}

func TestMeetReplacesStaleFile(t *testing.T) {
	for _, network := range []string{"unixpacket", "unix", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			leak.CheckExact(t)
			path := filepath.Join(socketDir(t), "s")
			leaveStale(t, path, network)
			_, err := dial(t.Context(), path, allow{})
			if network == "unixpacket" {
				require.ErrorIs(t, err, ErrNobody)
			}
			ln, id := mustMeet(t, path)
			now, _, err := identify(path)
			require.NoError(t, err)
			require.Equal(t, now, id)
			c, err := dial(t.Context(), path, allow{})
			require.NoError(t, err)
			defer c.Close()
			accept(t, ln)
		})
	}
}

func TestWhatIsNoSocketStays(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, path string)
	}{
		{"regular file", func(t *testing.T, path string) {
			require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
		}},
		{"directory", func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o700)) }},
		{"named pipe", func(t *testing.T, path string) { require.NoError(t, unix.Mkfifo(path, 0o600)) }},
		{"symbolic link", func(t *testing.T, path string) { // dangling
			require.NoError(t, os.Symlink(path+".missing", path))
		}},
		{"symbolic link", func(t *testing.T, path string) { // to a stale socket
			leaveStale(t, path+".stale", "unixpacket")
			require.NoError(t, os.Symlink(path+".stale", path))
		}},
		{"symbolic link", func(t *testing.T, path string) { // to somebody alive
			mustMeet(t, path+".alive")
			require.NoError(t, os.Symlink(path+".alive", path))
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			leak.CheckExact(t)
			path := filepath.Join(socketDir(t), "s")
			test.make(t, path)
			before, err := os.Lstat(path)
			require.NoError(t, err)

			ln, _, c, err := meet(t.Context(), path, allow{})
			require.Nil(t, ln)
			require.Nil(t, c)
			require.ErrorIs(t, err, ErrNotSocket)
			require.ErrorContains(t, err, test.name)
			_, err = dial(t.Context(), path, allow{})
			require.ErrorIs(t, err, ErrNotSocket)
			_, _, err = listenUnix(t.Context(), "unix", path, unixOptions{})
			require.ErrorIs(t, err, ErrNotSocket)
			var o *OpError
			require.ErrorAs(t, err, &o)
			require.Equal(t, path, o.Path)

			after, err := os.Lstat(path)
			require.NoError(t, err)
			require.True(t, os.SameFile(before, after))
		})
	}
}

func TestLiveServerOfAnotherKind(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	other, err := net.Listen("unix", path)
	require.NoError(t, err)
	defer other.Close()
	_, _, _, err = meet(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrNotHandoff)
	_, err = dial(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrNotHandoff)

	c, err := net.Dial("unix", path)
	require.NoError(t, err, "its server was not disturbed")
	require.NoError(t, c.Close())
}

func TestFullBacklogIsAlive(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	ln, id := mustMeet(t, path)
	d, err := dupConn(ln)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.control(func(fd int) error { return unix.Listen(fd, 0) }))
	queued, err := dial(t.Context(), path, allow{})
	require.NoError(t, err)
	defer queued.Close()

	for name, come := range map[string]func(context.Context) error{
		"dial": func(ctx context.Context) error {
			_, err := dial(ctx, path, allow{})
			return err
		},
		"meet": func(ctx context.Context) error {
			_, _, _, err := meet(ctx, path, allow{})
			return err
		},
	} {
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		err := come(ctx)
		cancel()
		require.ErrorIs(t, err, context.DeadlineExceeded, name)
		require.ErrorContains(t, err, "backlog full")
	}
	now, _, err := identify(path)
	require.NoError(t, err)
	require.Equal(t, id, now)

	result := make(chan error, 1)
	go func() {
		c, err := dial(t.Context(), path, allow{})
		if err == nil {
			err = c.Close()
		}
		result <- err
	}()
	accept(t, ln)
	require.NoError(t, <-result)
	accept(t, ln)
}

// A socket that is bound, but not listened on, refuses connections as a stale
// file does; its owner lives all the same.
func TestBoundIsAlive(t *testing.T) {
	for _, network := range []string{"unix", "unixgram", "unixpacket"} {
		t.Run(network, func(t *testing.T) {
			leak.CheckExact(t)
			path := filepath.Join(socketDir(t), "s")
			d, id, err := listenUnix(t.Context(), network, path, unixOptions{})
			require.NoError(t, err)
			defer d.Close()
			for _, again := range []string{"unix", "unixgram", "unixpacket"} {
				_, _, err = listenUnix(t.Context(), again, path, unixOptions{})
				require.ErrorIs(t, err, unix.EADDRINUSE)
			}
			now, _, err := identify(path)
			require.NoError(t, err)
			require.Equal(t, id, now)
			if network != "unixpacket" {
				return
			}
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Millisecond)
			defer cancel()
			_, _, _, err = meet(ctx, path, allow{})
			require.ErrorIs(t, err, context.DeadlineExceeded)
			require.ErrorContains(t, err, "not listening yet")

			require.NoError(t, d.listen())
			_, _, c, err := meet(t.Context(), path, allow{})
			require.NoError(t, err)
			require.NoError(t, c.Close())
		})
	}
}

func TestLongestPath(t *testing.T) {
	leak.CheckExact(t)
	dir := socketDir(t)
	path := filepath.Join(dir, strings.Repeat("x", maxSocketPath-len(dir)-1))
	require.Len(t, path, 107)
	ln, id := mustMeet(t, path)
	c, err := dial(t.Context(), path, allow{})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	require.NoError(t, removeSocketFile(path, id))
	require.NoError(t, ln.Close())

	path += "x"
	_, _, _, err = meet(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrPathTooLong)
	_, err = dial(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrPathTooLong)
	_, _, err = listenUnix(t.Context(), "unix", path, unixOptions{})
	require.ErrorIs(t, err, ErrPathTooLong)
}

func TestImpossiblePaths(t *testing.T) {
	leak.CheckExact(t)
	for path, want := range map[string]string{
		"":                      "empty",
		"@name":                 "abstract",
		"\x00name":              "abstract",
		"/tmp/handoff\x00other": "zero byte",
	} {
		_, _, _, err := meet(t.Context(), path, allow{})
		require.ErrorContains(t, err, want)
		_, err = dial(t.Context(), path, allow{})
		require.ErrorContains(t, err, want)
	}
}

// With the mode changed after bind there would be an instant at which anybody
// can connect. Seen from outside: the file appears, and its mode never changes.
func TestModeHasNoWindow(t *testing.T) {
	if inChild(t, func(string) { watchMode(t) }) {
		return
	}
	leak.CheckExact(t)
	out, err := childCommand(t, "umask 0").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS")
}

func watchMode(t *testing.T) {
	unix.Umask(0)
	dir := socketDir(t)
	open, err := net.Listen("unix", filepath.Join(dir, "open"))
	require.NoError(t, err)
	defer open.Close()
	info, err := os.Lstat(filepath.Join(dir, "open"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o777), info.Mode().Perm(), "this umask hides nothing")

	n, err := unix.InotifyInit1(unix.IN_CLOEXEC | unix.IN_NONBLOCK)
	require.NoError(t, err)
	defer unix.Close(n)
	_, err = unix.InotifyAddWatch(n, dir, unix.IN_CREATE|unix.IN_ATTRIB|unix.IN_MOVED_TO)
	require.NoError(t, err)
	ln, _ := mustMeet(t, filepath.Join(dir, "s"))
	defer ln.Close()
	info, err = os.Lstat(filepath.Join(dir, "s"))
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	require.Equal(t, []string{"create s.lock", "create s"}, events(t, n))

	require.NoError(t, os.Chmod(filepath.Join(dir, "s"), 0o600))
	require.Equal(t, []string{"change s"}, events(t, n), "a change would have been seen")
}

// events reads what inotify has.
func events(t *testing.T, n int) []string {
	buf := make([]byte, 64<<10)
	got, err := unix.Read(n, buf)
	require.NoError(t, err)
	var list []string
	for buf = buf[:got]; len(buf) > 0; {
		mask := uint32(buf[4]) | uint32(buf[5])<<8 | uint32(buf[6])<<16 | uint32(buf[7])<<24
		size := unix.SizeofInotifyEvent + (int(buf[12]) | int(buf[13])<<8)
		name := strings.TrimRight(string(buf[unix.SizeofInotifyEvent:size]), "\x00")
		switch {
		case mask&unix.IN_CREATE != 0:
			list = append(list, "create "+name)
		case mask&unix.IN_ATTRIB != 0:
			list = append(list, "change "+name)
		default:
			list = append(list, fmt.Sprintf("%#x %s", mask, name))
		}
		buf = buf[size:]
	}
	return list
}

func TestAllow(t *testing.T) {
	self := uint32(os.Geteuid())
	stranger := peer{PID: 7, UID: self + 1, GID: 4711}
	tests := []struct {
		name  string
		allow allow
		peer  peer
		ok    bool
	}{
		{"oneself", allow{}, peer{UID: self}, true},
		{"root", allow{}, peer{UID: 0, GID: 0}, true},
		{"oneself with a list", allow{UIDs: []uint32{self + 2}}, peer{UID: self}, true},
		{"root with a list", allow{UIDs: []uint32{self + 2}}, peer{}, true},
		{"stranger", allow{}, stranger, false},
		{"not on the list", allow{UIDs: []uint32{self + 2}, GIDs: []uint32{4712}}, stranger, false},
		{"uid listed", allow{UIDs: []uint32{self + 2, self + 1}}, stranger, true},
		{"gid listed", allow{GIDs: []uint32{4711}}, stranger, true},
		{"gid listed as uid", allow{UIDs: []uint32{4711}}, stranger, false},
		{"root's group only", allow{}, peer{UID: self + 1, GID: 0}, false},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			err := test.allow.check(test.peer)
			if test.ok {
				require.NoError(t, err)
				return
			}
			require.ErrorIs(t, err, ErrPermission)
			require.ErrorContains(t, err, fmt.Sprintf("uid %d", test.peer.UID))
		})
	}
}

// child is a process that runs a role of the test and talks in lines.
type child struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *bufio.Scanner
}

func startChild(t *testing.T, cmd *exec.Cmd) *child {
	t.Helper()
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	cmd.Stderr = os.Stderr
	require.NoError(t, cmd.Start())
	c := &child{t: t, cmd: cmd, in: in, out: bufio.NewScanner(out)}
	t.Cleanup(func() { c.end() })
	return c
}

// expect reads lines up to one that starts with say, and returns the rest of it.
func (c *child) expect(say string) string {
	c.t.Helper()
	var seen []string
	for c.out.Scan() {
		if rest, ok := strings.CutPrefix(c.out.Text(), say+" "); ok {
			return rest
		}
		seen = append(seen, c.out.Text())
	}
	c.t.Fatalf("child never said %q:\n%s", say, strings.Join(seen, "\n"))
	return ""
}

// end closes the child's input, which it waits for, and the child ends.
func (c *child) end() {
	if c.cmd.ProcessState != nil {
		return
	}
	_ = c.in.Close()
	for c.out.Scan() {
		c.t.Log(c.out.Text())
	}
	if err := c.cmd.Wait(); err != nil {
		c.t.Errorf("child: %v", err)
	}
}

// waitForEnd returns when the parent closed this process's input.
func waitForEnd() { _, _ = io.Copy(io.Discard, os.Stdin) }

// SO_PEERCRED names who called listen(2) last, not who accepts.
func TestRelistenNamesTheNewOwner(t *testing.T) {
	if inChild(t, func(string) { takeListener(t) }) {
		return
	}
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	ln, _ := mustMeet(t, path)
	c := startChild(t, childCommand(t, "successor", pathVariable+"="+path))
	link := accept(t, ln)
	d, err := dupConn(ln)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, link.send([]byte("take"), d))

	c.expect("received")
	queued, err := dial(t.Context(), path, allow{})
	require.NoError(t, err)
	defer queued.Close()
	p, err := queued.peer()
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), p.PID)

	require.NoError(t, link.send([]byte("answer")))
	c.expect("listening")
	fresh, err := dial(t.Context(), path, allow{})
	require.NoError(t, err)
	defer fresh.Close()
	p, err = fresh.peer()
	require.NoError(t, err)
	require.Equal(t, c.cmd.Process.Pid, p.PID)
	for _, conn := range []*conn{queued, fresh} {
		frame, _, err := conn.receive()
		require.NoError(t, err, "what was queued before stays queued")
		require.Equal(t, "hi", string(frame))
	}
	c.end()
}

func takeListener(t *testing.T) {
	link, err := dial(t.Context(), os.Getenv(pathVariable), allow{})
	require.NoError(t, err)
	defer link.Close()
	_, fds, err := link.receive()
	require.NoError(t, err)
	require.Len(t, fds, 1)
	defer closeAll(fds)
	fmt.Println("received it")
	_, _, err = link.receive()
	require.NoError(t, err)
	require.NoError(t, relisten(fds[0]))
	fmt.Println("listening now")
	ln, err := fds[0].listener()
	require.NoError(t, err)
	defer ln.Close()
	for range 2 {
		c := accept(t, ln.(*net.UnixListener))
		require.NoError(t, c.send([]byte("hi")))
	}
	waitForEnd()
}

// A user who is not on the allow list is refused whichever side he is on.
func TestWrongUser(t *testing.T) {
	if inChild(t, func(role string) {
		switch role {
		case "squatter":
			squat(t)
		case "intruder":
			intrude(t)
		}
	}) {
		return
	}
	if os.Geteuid() != 0 {
		t.Skip("needs root, to start a process of another user")
	}
	leak.CheckExact(t)
	// Everybody may enter it, and nobody may replace what is another's.
	dir := socketDir(t)
	require.NoError(t, os.Chmod(dir, 0o777|os.ModeSticky))
	exe := filepath.Join(dir, "test")
	copyExecutable(t, exe)
	start := func(role, path string) *child {
		cmd := childCommand(t, role, pathVariable+"="+path)
		cmd.Path, cmd.Dir = exe, "/"
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: overflowUID, Gid: overflowUID}}
		return startChild(t, cmd)
	}

	squatted := filepath.Join(dir, "squatted")
	squatter := start("squatter", squatted)
	squatter.expect("squatting")
	_, err := dial(t.Context(), squatted, allow{})
	require.ErrorIs(t, err, ErrPermission)
	require.ErrorContains(t, err, "uid 65534")
	_, _, _, err = meet(t.Context(), squatted, allow{})
	require.ErrorIs(t, err, ErrPermission)
	c, err := dial(t.Context(), squatted, allow{UIDs: []uint32{overflowUID}})
	require.NoError(t, err)
	require.NoError(t, c.Close())
	squatter.end()

	path := filepath.Join(dir, "s")
	ln, id := mustMeet(t, path)
	intruder := start("intruder", path)
	require.Contains(t, intruder.expect("dialled"), "permission denied")
	require.Contains(t, intruder.expect("met"), "permission denied")
	require.Contains(t, intruder.expect("removed"), "permission denied")
	require.NoError(t, os.Chmod(path, 0o666)) // by an operator's mistake
	_, err = io.WriteString(intruder.in, "again\n")
	require.NoError(t, err)
	s := accept(t, ln)
	p, err := s.peer()
	require.NoError(t, err)
	require.Equal(t, peer{PID: intruder.cmd.Process.Pid, UID: overflowUID, GID: overflowUID}, p)
	require.ErrorIs(t, allow{}.check(p), ErrPermission)
	require.NoError(t, s.Close())
	intruder.end()
	require.NoError(t, removeSocketFile(path, id))
}

func copyExecutable(t *testing.T, to string) {
	t.Helper()
	b, err := os.ReadFile("/proc/self/exe")
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(to, b, 0o755))
}

func squat(t *testing.T) {
	ln, _ := mustMeet(t, os.Getenv(pathVariable))
	require.NoError(t, os.Chmod(os.Getenv(pathVariable), 0o666)) // come in
	fmt.Println("squatting here")
	waitForEnd()
	require.NoError(t, ln.Close())
}

func intrude(t *testing.T) {
	path := os.Getenv(pathVariable)
	_, err := dial(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrPermission)
	fmt.Println("dialled", err)
	_, _, _, err = meet(t.Context(), path, allow{})
	require.ErrorIs(t, err, ErrPermission)
	fmt.Println("met", err)
	id, _, err := identify(path)
	require.NoError(t, err)
	err = removeSocketFile(path, id)
	require.ErrorIs(t, err, ErrPermission)
	fmt.Println("removed", err)
	_, err = bufio.NewReader(os.Stdin).ReadString('\n')
	require.NoError(t, err)
	c, err := dial(t.Context(), path, allow{})
	require.NoError(t, err)
	_, _, err = c.receive()
	require.Equal(t, io.EOF, err)
	require.NoError(t, c.Close())
}

// Since Linux 6.16 the kernel refuses what clients send; before, it arrives and
// is closed.
func TestClientsCannotSendDescriptors(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	ln, _ := mustMeet(t, path)
	c, err := dial(t.Context(), path, allow{})
	require.NoError(t, err)
	defer c.Close()
	p := newProbe(t)
	err = c.send([]byte("before accept"), p.descriptor)
	s := accept(t, ln)
	if kernelRefusesRights(t) {
		require.ErrorIs(t, err, unix.EPERM)
		require.ErrorIs(t, c.send([]byte("after accept"), p.descriptor), unix.EPERM)
	} else {
		require.NoError(t, err)
		_, fds, err := s.receive()
		require.NoError(t, err)
		closeAll(fds)
	}
	require.NoError(t, c.send([]byte("bytes")))
	frame, fds, err := s.receive()
	require.NoError(t, err)
	require.Equal(t, "bytes", string(frame))
	require.Empty(t, fds)

	// The other direction is the one that is needed.
	require.NoError(t, s.send([]byte("take"), p.descriptor))
	_, fds, err = c.receive()
	require.NoError(t, err)
	require.Len(t, fds, 1)
	closeAll(fds)
	p.requireGone(t)
}

func kernelRefusesRights(t *testing.T) bool {
	d, err := openSocket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	require.NoError(t, err)
	defer d.Close()
	err = d.control(func(fd int) error {
		_, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS)
		return err
	})
	if err != nil {
		require.ErrorIs(t, err, unix.ENOPROTOOPT)
	}
	return err == nil
}

func TestDialEndsWithItsContext(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(socketDir(t), "s")
	ctx, cancel := context.WithCancelCause(t.Context())
	why := errors.New("no longer wanted")
	cancel(why)
	lock, err := lockSocketFile(t.Context(), path)
	require.NoError(t, err)
	defer lock.Close()
	_, _, err = listenUnix(ctx, "unix", path, unixOptions{})
	require.ErrorIs(t, err, why)
	require.ErrorIs(t, err, errLocked)
	_, _, _, err = meet(ctx, path, allow{})
	require.ErrorIs(t, err, why)
	_, err = os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}
