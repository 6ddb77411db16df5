package integration

import (
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// loaded puts load on the service: connections that stay, and new ones.
func (s *service) loaded(addr string) *load.Run {
	s.t.Helper()
	return s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 300},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 100},
	)
}

// A version that does not pass its precheck never serves a request, and the incumbent does not notice. The next one
// is tried while it stands by, and then serves.
func TestPrecheckUnderLoad(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	addr := s.address(web)
	run := s.loaded(addr)
	s.answers(run, 1, 20)

	tell := `echo "$HANDOFF_GENERATION $HANDOFF_REQUEST" >` + s.path("told") + `; "$HANDOFFCTL" status | grep "^$HANDOFF_GENERATION  *standby"; `
	t.Setenv("HANDOFFCTL", programs.Handoffctl)
	r := s.wantFailure(1, s.upgradeArgs("v2", []string{"--request-id", "bad", "--precheck", tell + "exit 3"})...)
	require.Regexp(t, `precheck 1 of 1 \(.*\) did not pass: exit status 3; the request is withdrawn; generation 1 .*v1\) serves`, r.Stderr)
	require.Regexp(t, `  \| 2 +standby `, r.Stderr, "it stood by while it was tried")
	b, err := os.ReadFile(s.path("told"))
	require.NoError(t, err)
	require.Equal(t, "2 bad\n", string(b))
	s.waitStatus("1 alone", func(st proc.Status) bool { return len(st.Generations) == 1 && st.Serving().PID == first.PID() })
	require.NoError(t, run.Wait(s.ctx(), run.More(50)))
	require.Zero(t, run.Counts().Generations[2], "what did not pass has served")

	r, _ = s.upgrade("v3", []string{"--precheck", tell + "true", "--precheck", "echo second"})
	require.Contains(t, r.Stderr, "  | second\n")
	st := s.status()
	s.answers(run, st.Serving().Generation, 50)
	s.exits(first, 0, "generation 1")
	require.Zero(t, run.Counts().Generations[2])
	s.noLoss(run)
}

// A server whose command line says that it takes over at once leaves no time for prechecks: it is seen in time, or
// taken back from.
func TestPrecheckOfAServerThatDoesNotWait(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--probation", "5m")
	addr := s.address(web)
	run := s.loaded(addr)
	mark := s.path("ran")
	// env unsets what upgrade tells it, as a service manager would.
	args := append([]string{"upgrade", "--log", s.newLog("v2"), "--precheck", "touch " + mark, "--", "env", "-u", "HANDOFF_TAKEOVER", programs.Server}, s.args("v2")...)
	r := s.wantFailure(1, args...)
	require.Regexp(t, "CMD takes over as auto, which leaves no time for prechecks|took over before the prechecks had passed, and was rolled back", r.Stderr)
	require.Contains(t, r.Stderr, "hint: start it with --takeover standby")
	require.NoFileExists(t, mark)
	s.waitStatus("1 serves alone", func(st proc.Status) bool { return len(st.Generations) == 1 && st.Serving().Generation == 1 })
	require.NoError(t, run.Wait(s.ctx(), run.More(20)))
	s.answeredBy(addr, 1)
	s.noLoss(run)
}

// Ctrl-C while a version is tried: it is gone, and the next deploy finds the way free.
func TestPrecheckInterrupted(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	args := append([]string{"--socket", s.socket}, s.upgradeArgs("v2", []string{"--precheck", "echo trying; sleep 60"})...)
	ctl := s.run("handoffctl", programs.Handoffctl, args...)
	_, err := ctl.WaitLog(s.ctx(), func(l proc.Line) bool { return strings.Contains(l.Text, "| trying") })
	require.NoError(t, err)
	require.EqualValues(t, 2, s.status().In("standby").Generation)
	s.kill(ctl, syscall.SIGINT)
	s.exits(ctl, 1, "nothing has changed")
	s.alone(1)
	s.upgrade("v3", []string{"--precheck", "true"})
	s.alone(3)
}
