package integration

import (
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// An incumbent that is stopped beside its standby: handoffctl says so, with the remedy, and changes nothing. When it
// continues, all is as it was.
func TestToolBesideASilentIncumbent(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--heartbeat", "100ms")
	addr := s.address(web)
	run := s.loaded(addr)
	s.answers(run, 1, 20)
	second := s.server("v2", "--takeover", "standby", "--heartbeat", "100ms")
	s.waitStatus("2 stands by", func(st proc.Status) bool { return st.In("standby").Generation == 2 })
	watch := s.run("watch", programs.Handoffctl, "--socket", s.socket, "status", "--watch")
	s.wrote(watch, "1 serving")
	s.kill(first, syscall.SIGSTOP)
	s.stopped(first.PID())
	s.waitStatus("2 answers in its stead", func(st proc.Status) bool { return st.Generation == 2 })

	r := s.must("status")
	require.Regexp(t, `(?m)^1 +serving \(silent .*\n2 +standby `, r.Stdout)
	require.Regexp(t, `generation 1 \(pid \d+, v1\) is silent for .*: look at pid \d+: let it continue \(SIGCONT\); or end it: what it has accepted is lost then, and generation 2 serves`, r.Stdout)
	for _, tc := range []struct {
		args string
		code int
		says string
	}{
		{"check", 1, "not ready: generation 1 "},
		{"wait --for=serving --timeout 1s", 4, "is silent for "},
		{"handover", 1, "is alive but silent"},
		{"rollback", 1, "is alive but silent"},
		{"drain", 1, "is alive but silent"},
		{"stop", 1, "is alive but silent"},
		{"upgrade -- false", 4, "is silent for "},
	} {
		r := s.wantFailure(tc.code, strings.Fields(tc.args)...)
		require.Contains(t, r.Stderr, tc.says, tc.args)
		require.Contains(t, r.Stderr, "(SIGCONT)", tc.args)
	}
	s.wrote(watch, "1 is silent")

	s.kill(first, syscall.SIGCONT)
	s.waitStatus("1 answers again", func(st proc.Status) bool { return st.Generation == 1 })
	s.wrote(watch, "1 answers again")
	s.must("handover", "--wait=drained")
	s.exits(first, 0, "handed over")
	require.Equal(t, second.PID(), s.alone(2).Serving().PID)
	s.answers(run, 2, 20)
	s.noLoss(run)
}

// A successor that falls silent in probation is taken back from, whatever its checks say, and upgrade tells why.
func TestUpgradeOfASilentSuccessor(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--probation", "5m", "--heartbeat", "500ms")
	addr := s.address(web)
	s.answeredBy(addr, 1)
	ctl, log := s.upgrading("--check", "true")
	s.wrote(ctl, "check 1 of 1")
	pid := s.status().Of(2).PID
	require.NotZero(t, pid)
	require.NoError(t, syscall.Kill(pid, syscall.SIGSTOP))
	s.exits(ctl, 1, "it was taken back from")
	s.wrote(ctl, "rolled back (silent: it did not answer heartbeats); generation 1 ")
	s.answeredBy(addr, 1)
	require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
	s.revoked(log)
	require.Equal(t, first.PID(), s.alone(1).Serving().PID)
}

// A successor that is on its own, and is killed while the older one drains still, leaves nobody: upgrade says that.
func TestUpgradeWhoseVersionDiesAlone(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--probation", "0s")
	addr := s.address(web)
	slow := s.hold(addr, 1)
	ctl := s.run("handoffctl", programs.Handoffctl, append([]string{"--socket", s.socket}, s.upgradeArgs("v2", []string{"--wait=drained"})...)...)
	st := s.waitStatus("2 is on its own", func(st proc.Status) bool { return st.Of(2).State == "serving" && st.Of(1).State == "draining" })
	require.NoError(t, syscall.Kill(st.Of(2).PID, syscall.SIGKILL))
	s.exits(ctl, 3, "nobody serves")
	s.wrote(ctl, "the service is down: start a version")
	slow.finish(s)
}
