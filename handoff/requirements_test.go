package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"unsafe"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/fdhandoff/handoff/internal/leak"
)

// What docs/requirements.md says about systems that are not this test's own.

// moveTo makes the chain meet in another directory, which must be empty.
func (c *chain) moveTo(dir string) *chain {
	c.socket = filepath.Join(dir, "s")
	return c
}

// otherProcess runs the test again as another process that play says what to
// change about, and waits for its end.
func otherProcess(t *testing.T, dir string, change func(*syscall.SysProcAttr)) {
	t.Helper()
	exe := filepath.Join(dir, "test")
	copyExecutable(t, exe)
	cmd := childCommand(t, "child", pathVariable+"="+dir)
	cmd.Path, cmd.Dir, cmd.SysProcAttr = exe, "/", &syscall.SysProcAttr{}
	change(cmd.SysProcAttr)
	child := startChild(t, cmd)
	child.expect("done")
	child.end()
}

// Neither root nor any capability is needed.
func TestRootHandoffWithoutPrivileges(t *testing.T) {
	if inChild(t, func(string) {
		require.Equal(t, overflowUID, os.Geteuid())
		b, err := os.ReadFile("/proc/self/status")
		require.NoError(t, err)
		for _, set := range []string{"CapPrm", "CapEff", "CapAmb"} {
			require.Contains(t, string(b), set+":\t0000000000000000\n")
		}
		newChain(t).moveTo(filepath.Join(os.Getenv(pathVariable), "run")).handOver(t, "tcp", "127.0.0.1:0", nil)
		fmt.Println("done it")
	}) {
		return
	}
	needRoot(t)
	dir := socketDir(t)
	require.NoError(t, os.Chmod(dir, 0o755))
	run := filepath.Join(dir, "run")
	require.NoError(t, os.Mkdir(run, 0o700))
	require.NoError(t, os.Chown(run, overflowUID, overflowUID))
	otherProcess(t, dir, func(a *syscall.SysProcAttr) {
		a.Credential = &syscall.Credential{Uid: overflowUID, Gid: overflowUID}
	})
}

// A successor without privileges inherits a port that it could not open.
func TestRootInheritedPortNeedsNoPrivilege(t *testing.T) {
	if inChild(t, func(string) {
		// In a network namespace of its own, where every port is free.
		d, err := openSocket(unix.AF_INET, unix.SOCK_DGRAM, 0)
		require.NoError(t, err)
		lo, err := unix.NewIfreq("lo")
		require.NoError(t, err)
		lo.SetUint16(unix.IFF_UP)
		require.NoError(t, d.control(func(fd int) error { return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, lo) }))
		require.NoError(t, d.Close())

		dir := os.Getenv(pathVariable)
		c := newChain(t).moveTo(dir)
		one, err := Start(c.ctx, c.config("one"))
		require.NoError(t, err)
		defer one.Close()
		c.listen(one, "tcp", "127.0.0.1:80")
		c.ready(one)
		for _, path := range []string{dir, c.socket, c.socket + ".lock"} {
			require.NoError(t, os.Chown(path, overflowUID, overflowUID))
		}
		require.NoError(t, syscall.Setgid(overflowUID))
		require.NoError(t, syscall.Setuid(overflowUID))
		require.NoError(t, unix.Prctl(unix.PR_SET_DUMPABLE, 1, 0, 0, 0)) // or /proc/self can't be read
		_, _, err = bindSocket(c.ctx, "tcp", "127.0.0.1:81", false, nil)
		require.ErrorIs(t, err, unix.EACCES)
		two := c.start("two")
		ln := c.listen(two, "tcp", "127.0.0.1:80")
		greet(two, ln)
		c.ready(two)
		require.Equal(t, "2", asked(t, ln.Addr()))
		c.wait(one)
		fmt.Println("done it")
	}) {
		return
	}
	needRoot(t)
	otherProcess(t, socketDir(t), func(a *syscall.SysProcAttr) { a.Unshareflags = syscall.CLONE_NEWNET })
}

// The sockets may be on whatever file system a directory of run-time files is on.
func TestRootFileSystems(t *testing.T) {
	kinds := map[string]int64{"tmpfs": unix.TMPFS_MAGIC, "overlay": unix.OVERLAYFS_SUPER_MAGIC}
	if inChild(t, func(string) {
		// In a mount namespace of its own, so nothing has to be unmounted.
		base := os.Getenv(pathVariable)
		at := func(name string) string { return filepath.Join(base, "tmpfs", name) }
		require.NoError(t, unix.Mount("tmpfs", filepath.Join(base, "tmpfs"), "tmpfs", 0, "mode=0700"))
		for _, name := range []string{"run", "lower", "upper", "work", "overlay"} {
			require.NoError(t, os.Mkdir(at(name), 0o700))
		}
		require.NoError(t, os.Mkdir(at("lower/run"), 0o700))
		require.NoError(t, unix.Mount("overlay", at("overlay"), "overlay", 0,
			fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", at("lower"), at("upper"), at("work"))))
		for kind, dir := range map[string]string{"tmpfs": at("run"), "overlay": at("overlay/run")} {
			var fs unix.Statfs_t
			require.NoError(t, unix.Statfs(dir, &fs))
			require.EqualValues(t, kinds[kind], fs.Type)
			newChain(t).moveTo(dir).handOver(t, "tcp", "127.0.0.1:0", nil)

			// The proof of a shared key names the socket's file: it is the same for both.
			c := newChain(t).moveTo(dir)
			c.key = testKey
			c.serve("one")
			require.NoError(t, allow{Key: testKey}.prove(c.ctx, strange(t, c.socket).c, idOf(t, c.socket), errors.New("a stranger")))
		}
		fmt.Println("done it")
	}) {
		return
	}
	needRoot(t)
	dir := socketDir(t)
	require.NoError(t, os.Mkdir(filepath.Join(dir, "tmpfs"), 0o700))
	otherProcess(t, dir, func(a *syscall.SysProcAttr) { a.Unshareflags = syscall.CLONE_NEWNS })
}

// AF_UNIX and the families of the service's addresses are all that is needed,
// as under RestrictAddressFamilies= of systemd, which refuses others by seccomp.
func TestRestrictedAddressFamilies(t *testing.T) {
	if inChild(t, func(role string) {
		family, refused := uint32(unix.AF_INET), unix.AF_INET6
		network, address := "tcp", ":0" // a wildcard is IPv4's then
		if role == "AF_INET6" {
			family, refused = unix.AF_INET6, unix.AF_INET
			network, address = "tcp6", "[::1]:0"
		}
		restrictFamilies(t, unix.AF_UNIX, family)
		_, err := openSocket(refused, unix.SOCK_STREAM, 0)
		require.ErrorIs(t, err, unix.EAFNOSUPPORT)
		newChain(t).handOver(t, network, address, nil)
		fmt.Println("done it")
	}) {
		return
	}
	leak.CheckExact(t)
	for i, address := range loopbacks(t) {
		t.Run(address, func(t *testing.T) {
			cmd := childCommand(t, []string{"AF_INET", "AF_INET6"}[i])
			cmd.Args[1] = "-test.run=^TestRestrictedAddressFamilies$"
			child := startChild(t, cmd)
			child.expect("done")
			child.end()
		})
	}
}

// restrictFamilies has socket(2) refuse every family but two, in all threads and
// for good.
func restrictFamilies(t *testing.T, a, b uint32) {
	t.Helper()
	low := uint32(16) // of the first argument in struct seccomp_data
	if [2]byte{1}[0] != *(*byte)(unsafe.Pointer(&[]uint16{1}[0])) {
		low += 4
	}
	load, equal, ret := uint16(unix.BPF_LD|unix.BPF_W|unix.BPF_ABS), uint16(unix.BPF_JMP|unix.BPF_JEQ|unix.BPF_K), uint16(unix.BPF_RET|unix.BPF_K)
	filter := []unix.SockFilter{
		{Code: load, K: 0},
		{Code: equal, K: unix.SYS_SOCKET, Jf: 4},
		{Code: load, K: low},
		{Code: equal, K: a, Jt: 2},
		{Code: equal, K: b, Jt: 1},
		{Code: ret, K: unix.SECCOMP_RET_ERRNO | uint32(unix.EAFNOSUPPORT)},
		{Code: ret, K: unix.SECCOMP_RET_ALLOW},
	}
	prog := unix.SockFprog{Len: uint16(len(filter)), Filter: &filter[0]}
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	require.NoError(t, unix.Prctl(unix.PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))
	_, _, errno := unix.Syscall(unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, unix.SECCOMP_FILTER_FLAG_TSYNC, uintptr(unsafe.Pointer(&prog)))
	require.Zero(t, errno)
}

// How many descriptors a socket costs in each phase, of all the generations that
// are there together.
func TestDescriptorsPerSocket(t *testing.T) {
	const n = 50 // more than what does not grow with the number of sockets
	for _, network := range []string{"tcp", "udp"} {
		t.Run(network, func(t *testing.T) {
			c := newChain(t)
			raiseLimit(t, 1024)
			count := func() (all int) {
				for _, to := range leak.Descriptors(t) {
					if strings.HasPrefix(to, "socket:") {
						all++
					}
				}
				return all
			}
			before := count()
			cost := func(phase string, want int) {
				t.Helper()
				c.until(fmt.Sprintf("%s: %d each", phase, want), func() bool { return (count()-before)/n == want })
			}
			one := c.start("one", probation)
			c.openMany(one, network, n)
			cost("opened", 1)
			c.ready(one)
			cost("serves", 2)
			two := c.start("two", mode(Standby))
			c.openMany(two, network, n)
			ready := make(chan error, 1)
			go func() { ready <- two.Ready(c.ctx) }()
			c.reach(two, StateStandby)
			cost("serves, with a standby", 2+1)
			_, err := c.client().Handover(c.ctx, "")
			require.NoError(t, err)
			require.NoError(t, <-ready)
			cost("parked, with a successor", 1+2)
			one.Stop()
			c.wait(one)
			cost("released", 2)
			require.NoError(t, two.Close())
		})
	}
}

// openMany asks for n sockets by name.
func (c *chain) openMany(p *Process, network string, n int) {
	c.t.Helper()
	for i := range n {
		s := Socket{Name: fmt.Sprint(i), Network: network, Address: "127.0.0.1:0"}
		var err error
		if network == "tcp" {
			_, err = p.ListenSocket(c.ctx, s)
		} else {
			_, err = p.ListenPacketSocket(c.ctx, s)
		}
		require.NoError(c.t, err)
	}
}

// A connection costs its process one descriptor.
func TestDescriptorsPerConnection(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	ln := c.listen(one, "tcp", "127.0.0.1:0")
	c.ready(one)
	before := len(leak.Descriptors(t))
	for range 20 {
		client, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		defer client.Close()
		server, err := ln.Accept()
		require.NoError(t, err)
		defer server.Close()
	}
	require.Equal(t, 2*20, len(leak.Descriptors(t))-before, "with the clients' own")
}

// The runtime raises the soft limit to the hard one, or one less, when a program starts.
func TestSoftLimitIsRaised(t *testing.T) {
	if inChild(t, func(string) {
		b, err := os.ReadFile("/proc/self/limits")
		require.NoError(t, err)
		for line := range strings.Lines(string(b)) {
			if f := strings.Fields(line); strings.HasPrefix(line, "Max open files") {
				fmt.Println("limits", f[3], f[4])
			}
		}
	}) {
		return
	}
	cmd := childCommand(t, "child")
	cmd.Args = append([]string{"sh", "-c", `ulimit -Sn 128 && ulimit -Hn 512 && exec "$0" "$@"`, cmd.Path}, cmd.Args[1:]...)
	cmd.Path = "/bin/sh"
	child := startChild(t, cmd)
	var soft, hard int
	_, err := fmt.Sscan(child.expect("limits"), &soft, &hard)
	child.end()
	require.NoError(t, err)
	require.Equal(t, 512, hard)
	require.GreaterOrEqual(t, soft, hard-1)
}
