package handoff

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// leaker is a process that leaks its end of the link to a child, and dies when its
// parent says so. As init it is the first of a pid namespace, in which another
// process does both.
func leaker(t *testing.T, role string) {
	if strings.HasPrefix(role, "init ") {
		cmd := childCommand(t, strings.Replace(os.Getenv(roleVariable), "init ", "", 1))
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		require.NoError(t, cmd.Start())
		bufio.NewScanner(os.Stdin).Scan()
		require.NoError(t, cmd.Process.Kill())
		waitForEnd()
		return
	}
	c := newChain(t)
	cfg := c.config(role)
	cfg.Socket, cfg.Heartbeat, cfg.Probation = filepath.Join(os.Getenv(pathVariable), "s"), -1, 60e9
	cfg.Key = keyOfSibling()
	p, err := Start(c.ctx, cfg)
	require.NoError(t, err)
	greet(p, c.listen(p, "tcp", "127.0.0.1:0"))
	require.NoError(t, p.Ready(c.ctx))
	fmt.Println("serving now")
	end := func() *link { return p.elder }
	if role == "incumbent" {
		end = func() *link { return p.younger }
	}
	var leaked *descriptor
	c.until("the link", func() bool {
		p.ask(func() {
			if l := end(); l != nil && (p.m.younger == phaseReady || p.m.elder == phaseServing) {
				leaked, err = dupConn(l.c.c)
			}
		})
		return leaked != nil
	})
	f, err := leaked.file("link")
	require.NoError(t, err)
	heir := exec.Command("sleep", "100")
	heir.ExtraFiles = []*os.File{f}
	require.NoError(t, heir.Start())
	fmt.Println("leaked", heir.Process.Pid)
	waitForEnd()
	select {} // it is killed
}

// dies kills the process, or has it killed in its namespace, and makes sure that
// its child has the link still, once noticed says that its death was noticed.
func (c *child) dies(nested bool, noticed func()) {
	c.t.Helper()
	var heir int
	_, err := fmt.Sscan(c.expect("leaked"), &heir)
	require.NoError(c.t, err)
	if nested {
		_, err := fmt.Fprintln(c.in, "kill")
		require.NoError(c.t, err)
		noticed()
		require.NoError(c.t, c.cmd.Process.Kill()) // and with it, all that is in the namespace
		_ = c.cmd.Wait()
		return
	}
	require.NoError(c.t, c.cmd.Process.Kill())
	noticed()
	require.NoError(c.t, syscall.Kill(heir, syscall.SIGKILL), "the child that has the link lives")
	_ = c.cmd.Wait()
}

func startLeaker(t *testing.T, c *chain, role string, nested bool) *child {
	t.Helper()
	name := role
	if nested {
		name = "init " + role
	}
	cmd := childCommand(t, name, pathVariable+"="+filepath.Dir(c.socket))
	if nested {
		cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWPID}
	}
	return startChild(t, cmd)
}

// deathOfSuccessor, deathOfIncumbent: there are no heartbeats, and the link stays
// open, so that only the pidfd can tell.
func deathOfSuccessor(t *testing.T, nested bool) {
	c := newChain(t)
	one, ln := c.serve("one", probation, func(cfg *Config) { cfg.Heartbeat = -1 })
	two := startLeaker(t, c, "successor", nested)
	two.expect("serving")
	two.dies(nested, func() {
		c.reach(one, StateServing)
		require.Equal(t, "1", asked(t, ln.Addr()))
		require.Equal(t, "died", c.status().Last.Reason)
	})
}

func deathOfIncumbent(t *testing.T, nested bool) {
	c := newChain(t)
	one := startLeaker(t, c, "incumbent", nested)
	one.expect("serving")
	two := c.start("two", mode(Standby), func(cfg *Config) { cfg.Heartbeat = -1 })
	ln := c.listen(two, "tcp", "127.0.0.1:0")
	greet(two, ln)
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	one.dies(nested, func() {
		require.NoError(t, <-ready)
		require.Equal(t, "2", asked(t, ln.Addr()))
	})
	two.Stop()
	c.wait(two)
}

func TestDeathWithALeakedLink(t *testing.T) {
	if inChild(t, func(role string) { leaker(t, role) }) {
		return
	}
	deathOfSuccessor(t, false)
}

func TestDeathOfAnIncumbentWithALeakedLink(t *testing.T) {
	if inChild(t, func(role string) { leaker(t, role) }) {
		return
	}
	deathOfIncumbent(t, false)
}

// In another pid namespace the peer has no pid here, or another's.
func TestRootDeathAcrossPidNamespaces(t *testing.T) {
	if inChild(t, func(role string) { leaker(t, role) }) {
		return
	}
	needRoot(t)
	deathOfSuccessor(t, true)
}

func TestRootDeathOfAnIncumbentAcrossPidNamespaces(t *testing.T) {
	if inChild(t, func(role string) { leaker(t, role) }) {
		return
	}
	needRoot(t)
	deathOfIncumbent(t, true)
}

// A descriptor is taken for a pidfd only if it is one.
func TestWelcomeWithoutAPidfd(t *testing.T) {
	q := newSquatter(t)
	r, got := q.meet()
	probe := newProbe(t)
	q.welcome.Pidfd = true
	r.say(q.welcome, probe.descriptor)
	require.NoError(t, probe.Close())
	v := <-got
	require.ErrorIs(t, v.err, ErrProtocol)
	require.ErrorContains(t, v.err, "not a pidfd")
	probe.requireGone(t)
	require.Equal(t, whyProtocol, r.hear(msgAbort).Reason)
	q.unharmed()
}

// The incumbent's pidfd is the incumbent's word: with another process's in its
// place, nobody is killed.
func TestNobodyElseIsKilled(t *testing.T) {
	q := newSquatter(t)
	victim := exec.Command("sleep", "100")
	require.NoError(t, victim.Start())
	defer func() {
		require.NoError(t, victim.Process.Kill(), "it lives")
		_ = victim.Wait()
	}()
	n, err := unix.PidfdOpen(victim.Process.Pid, 0)
	require.NoError(t, err)
	q.welcome.Pidfd = true
	r, got := q.meet()
	q.welcome.Total = len(q.batch.Sockets)
	d := newDescriptor(n)
	r.say(q.welcome, d)
	require.NoError(t, d.Close())
	r.say(q.batch, q.fds...)
	r.hear(msgGot)
	v := <-got
	require.NoError(t, v.err)
	v.p.ask(func() { err = v.p.elder.kill() })
	require.ErrorContains(t, err, fmt.Sprintf("it calls itself pid %d, and the connection was made to pid %d", victim.Process.Pid, os.Getpid()))
	require.NoError(t, v.p.Close())
}

// The peer's pidfd says what its pid can't.
func TestPeerPidfd(t *testing.T) {
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: filepath.Join(t.TempDir(), "s")})
	require.NoError(t, err)
	defer ln.Close()
	dialled, err := net.Dial("unixpacket", ln.Addr().String())
	require.NoError(t, err)
	c := newConn(dialled.(*net.UnixConn))
	defer c.Close()
	pid, err := c.peerPID()
	require.NoError(t, err)
	require.Equal(t, os.Getpid(), pid)
	d, err := c.pidfd()
	require.NoError(t, err)
	v, err := newLifeline(d)
	require.NoError(t, err)
	ended := make(chan bool)
	go func() { ended <- v.ended() }()
	require.NoError(t, v.Close())
	require.False(t, <-ended, "this process lives")
}
