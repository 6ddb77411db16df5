package integration

import (
	"errors"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// underLoad starts a service with an impatient incumbent and puts load on it.
func underLoad(t *testing.T) (*service, *load.Run) {
	t.Helper()
	s := newService(t)
	s.serving("v1", "--ready-timeout", "5s") // the good one at the end has to keep to it too
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 200},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 50},
	)
	s.answers(run, 1, 10)
	return s, run
}

// unharmed wants that the incumbent serves, that it can hand over, and that no client noticed anything.
func (s *service) unharmed(run *load.Run) {
	s.t.Helper()
	require.EqualValues(s.t, 1, s.status().Serving().Generation)
	s.answeredBy(s.address(web), 1)
	s.upgrade("good", nil)
	st := s.status()
	require.Greater(s.t, st.Serving().Generation, uint64(1))
	s.answers(run, st.Serving().Generation, 20)
	s.noLoss(run)
}

func TestSuccessorThatFailsToStart(t *testing.T) {
	s, run := underLoad(t)
	bin := t.TempDir()
	notRunnable := filepath.Join(bin, "text")
	require.NoError(t, os.WriteFile(notRunnable, []byte("no program"), 0o600))
	for _, tc := range []struct {
		name string
		cmd  []string
		code int
	}{
		{"a flag that it does not know", append([]string{programs.Server}, s.args("bad", "--no-such-flag")...), 1},
		{"an address that it can't have", append([]string{programs.Server}, s.args("bad", "--http", "192.0.2.1:80")...), 1},
		{"a command that fails", []string{"/bin/false"}, 1},
		{"a command that dies", []string{"/bin/sh", "-c", "kill -9 $$"}, 1},
		{"a command that is not there", []string{filepath.Join(bin, "nothing")}, 127},
		{"a command that can't be run", []string{notRunnable}, 126},
	} {
		s.sub(tc.name, func() {
			args := append([]string{"upgrade", "--timeout=20s", "--log", s.newLog("bad"), "--"}, tc.cmd...)
			r := s.wantFailure(tc.code, args...)
			require.Less(s.t, r.Took, 10*time.Second, "a command that ended is not waited for")
		})
	}
	s.unharmed(run)
}

// The reason is in what the command wrote: the tail of it is shown.
func TestFailedUpgradeShowsTheReason(t *testing.T) {
	s, run := underLoad(t)
	r := s.wantFailure(1, "upgrade", "--timeout=20s", "--", "/bin/sh", "-c", "echo the disk is full >&2; exit 3")
	require.Contains(t, r.Stderr, "the disk is full")
	s.unharmed(run)
}

// A command that ends with 0 may have started the server elsewhere: its successor is waited for, until the time-out.
func TestSuccessorThatNeverComes(t *testing.T) {
	s, run := underLoad(t)
	s.wantFailure(1, "upgrade", "--timeout=1s", "--log", s.newLog("true"), "--", "/bin/true")
	s.unharmed(run)
}

// A command that hangs is ended at the time-out.
func TestSuccessorThatHangsBeforeHello(t *testing.T) {
	s, run := underLoad(t)
	mark := s.path("hanging")
	r := s.wantFailure(1, "upgrade", "--timeout=3s", "--log", s.newLog("hang"), "--",
		"/bin/sh", "-c", "echo $$ >"+mark+"; exec sleep 600")
	require.Less(t, r.Took, 20*time.Second)
	b, err := os.ReadFile(mark)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	require.ErrorIs(t, syscall.Kill(pid, 0), syscall.ESRCH, "handoffctl has ended and reaped it")
	s.unharmed(run)
}

// A successor that has the sockets but does not become ready: it waits for a lock that this test holds on a Unix
// socket which it has to open itself.
func TestSuccessorThatHangsBeforeReady(t *testing.T) {
	s, run := underLoad(t)
	path := s.path("locked")
	// A socket file that nobody listens on is replaced under its lock.
	stale, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	require.NoError(t, err)
	stale.SetUnlinkOnClose(false)
	require.NoError(t, stale.Close())
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|unix.O_CLOEXEC, 0o600)
	require.NoError(t, err)
	defer lock.Close()
	require.NoError(t, unix.Flock(int(lock.Fd()), unix.LOCK_EX))

	begin := time.Now()
	s.wantFailure(1, s.upgradeArgs("hangs", []string{"--timeout=30s"}, "--http", web, "--http", "unix:"+path)...)
	require.Less(t, time.Since(begin), 20*time.Second, "the incumbent's --ready-timeout is 5s")
	s.unharmed(run)
}

// A request that its deploy gave up is refused, however late its successor comes.
func TestWithdrawnRequestIsRefused(t *testing.T) {
	s, run := underLoad(t)
	s.wantFailure(1, "upgrade", "--timeout=500ms", "--request-id", "r1", "--log", s.newLog("true"), "--", "/bin/true")
	late, err := proc.Start(proc.Spec{
		Name: "late", Path: programs.Server, Args: s.args("late"),
		Env: []string{"HANDOFF_REQUEST=r1"}, Log: s.newLog("late"),
	})
	require.NoError(t, err)
	t.Cleanup(late.End)
	s.exits(late, 1, "a withdrawn request")
	s.unharmed(run)
}

// A deploy that is repeated after it finished says so and changes nothing.
func TestFinishedRequestRepeated(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	s.upgrade("v2", []string{"--request-id", "r1"})
	s.exits(first, 0, "generation 1")
	before := s.alone(2)
	s.must(s.upgradeArgs("v2", []string{"--request-id", "r1"})...)
	require.Equal(t, before.Serving().PID, s.alone(2).Serving().PID)
}

// Killing the tool never changes what it asked for.
func TestUpgradeToolKilled(t *testing.T) {
	s, run := underLoad(t)
	tool := s.run("tool", programs.Handoffctl,
		append([]string{"--socket", s.socket}, s.upgradeArgs("v2", nil, "--takeover", "standby")...)...)
	s.waitStatus("the successor has come", func(st proc.Status) bool { return st.Of(2).PID != 0 })
	if err := tool.Signal(syscall.SIGKILL); err == nil || !errors.Is(err, os.ErrProcessDone) {
		require.NoError(t, err)
	}
	code, err := tool.Wait(s.ctx())
	require.NoError(t, err)
	require.Contains(t, []int{-1, 0}, code, "handoffctl was killed, or was quicker")
	// The handover may have been asked for already.
	s.waitStatus("a standby, or the new one serving", func(st proc.Status) bool {
		return st.In("standby").Generation == 2 || st.Serving().Generation == 2
	})
	if st := s.status(); st.Serving().Generation == 1 {
		s.must("handover")
	}
	s.alone(2)
	s.answers(run, 2, 20)
	s.noLoss(run)
}
