package integration

import (
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// inProbation is an incumbent with a probation, under load.
func inProbation(t *testing.T, probation string) (s *service, first *proc.Process, run *load.Run) {
	t.Helper()
	s = newService(t)
	first = s.serving("v1", "--probation", probation)
	run = s.loaded(s.address(web))
	s.answers(run, 1, 20)
	return s, first, run
}

// upgrading begins an upgrade, and returns when generation 2 serves in probation. log is what that one writes: it is
// handoffctl that waits for it, while it runs.
func (s *service) upgrading(flags ...string) (ctl *proc.Process, log string) {
	s.t.Helper()
	args := s.upgradeArgs("v2", flags)
	log = args[2]
	ctl = s.run("handoffctl", programs.Handoffctl, append([]string{"--socket", s.socket}, args...)...)
	s.waitStatus("2 in probation", func(st proc.Status) bool { return st.Of(1).State == "parked" && st.Of(2).State == "serving" })
	return ctl, log
}

// revoked wants that the server that writes log has ended as one that was taken back from.
func (s *service) revoked(log string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		b, err := os.ReadFile(log)
		return err == nil && strings.Contains(string(b), `"msg":"ended"`)
	}, patience, waitTick)
	b, err := os.ReadFile(log)
	require.NoError(s.t, err)
	require.Contains(s.t, string(b), `"exit_code":7,`)
}

// wrote waits until a process has written a line that has text in it.
func (s *service) wrote(p *proc.Process, text string) {
	s.t.Helper()
	_, err := p.WaitLog(s.ctx(), func(l proc.Line) bool { return strings.Contains(l.Text, text) })
	require.NoError(s.t, err)
}

// backAt wants that generation 1 serves again with nothing lost, that the version that was taken back has ended by
// itself, and that the next one can be deployed.
func (s *service) backAt(run *load.Run, first *proc.Process, log string) {
	s.t.Helper()
	s.revoked(log)
	require.Equal(s.t, first.PID(), s.alone(1).Serving().PID)
	require.NoError(s.t, run.Wait(s.ctx(), run.More(50)))
	s.answeredBy(s.address(web), 1)
	s.noLoss(run)
	r := s.must(s.upgradeArgs("v3", []string{"--wait=drained", "--check", "true"}, "--probation", "0s")...)
	require.Contains(s.t, r.Stdout, "drained: generation 3 ")
	s.exits(first, 0, "handed over")
	s.adopt(s.alone(3).Serving().PID)
}

// A version whose check fails in the second round is taken back from, and no client notices that it was there.
func TestCheckFailsInSecondRound(t *testing.T) {
	s, first, run := inProbation(t, "8s")
	told := s.path("told")
	ctl, log := s.upgrading("--request-id", "bad", "--check-interval", "300ms",
		"--check", "echo $HANDOFF_GENERATION $HANDOFF_REQUEST >>"+told,
		"--check", `handoffctl="`+programs.Handoffctl+`"; $handoffctl status; test $(wc -l <`+told+`) -lt 2`)
	s.wrote(ctl, "check 2 of 2")
	s.exits(ctl, 1, "a check failed")
	s.wrote(ctl, "did not pass in round 2: exit status 1; generation 2 was rolled back; generation 1 ")
	s.wrote(ctl, "| 1           parked ")
	b, err := os.ReadFile(told)
	require.NoError(t, err)
	require.Equal(t, "2 bad\n2 bad\n", string(b))
	require.NotZero(t, run.Counts().Generations[2], "it has served meanwhile")
	require.Equal(t, "rolled_back", s.status().Last.Outcome)
	s.backAt(run, first, log)
}

// A version that passes is released.
func TestCheckPasses(t *testing.T) {
	s, first, run := inProbation(t, "3s")
	rounds := s.path("rounds")
	r, _ := s.upgrade("v2", []string{"--wait=drained", "--check-interval", "100ms", "--check", "echo >>" + rounds})
	require.Contains(t, r.Stderr, "check 1 of 1")
	require.Contains(t, r.Stdout, "drained: generation 2 ")
	s.exits(first, 0, "handed over")
	b, err := os.ReadFile(rounds)
	require.NoError(t, err)
	require.Greater(t, strings.Count(string(b), "\n"), 1, "again and again: %s took %v", r.Stderr, r.Took)
	s.answers(run, 2, 50)
	s.noLoss(run)
}

// A check that never ends does not let the version through: it is taken back from before it could be released.
func TestSlowCheck(t *testing.T) {
	s, first, run := inProbation(t, "4s")
	ctl, log := s.upgrading("--check", "echo slow; exec sleep 600")
	s.exits(ctl, 1, "it has not passed")
	s.wrote(ctl, "has not passed when the probation was nearly over; generation 2 was rolled back")
	s.wrote(ctl, "| slow")
	s.backAt(run, first, log)
}

// An interrupt before everything has passed takes back.
func TestCheckInterrupted(t *testing.T) {
	s, first, run := inProbation(t, "5m")
	at := s.path("at")
	ctl, log := s.upgrading("--check", "echo x >"+at+"; exec sleep 600")
	s.appears(at)
	s.kill(ctl, syscall.SIGINT)
	s.exits(ctl, 1, "interrupted")
	s.wrote(ctl, "before the checks had passed; generation 2 was rolled back")
	s.revoked(log)
	require.Equal(t, first.PID(), s.alone(1).Serving().PID)
	s.noLoss(run)
}

// appears waits until a file is there and is not empty.
func (s *service) appears(path string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		st, err := os.Stat(path)
		return err == nil && st.Size() > 0
	}, patience, waitTick)
}

// The incumbent is stopped while the version is checked: it releases, and the tool says that nobody knows yet.
func TestReleasedUnderCheck(t *testing.T) {
	s, first, run := inProbation(t, "5m")
	at := s.path("at")
	ctl, _ := s.upgrading("--check", "echo x >"+at+"; exec sleep 600")
	s.appears(at)
	s.kill(first, syscall.SIGTERM)
	s.exits(first, 0, "handed over")
	s.exits(ctl, 4, "released unchecked")
	s.wrote(ctl, "generation 2 was released before the checks had passed")
	s.adopt(s.alone(2).Serving().PID)
	s.answers(run, 2, 50)
	s.noLoss(run)
}

// A deploy that is repeated while its version is in probation checks it again.
func TestCheckRepeated(t *testing.T) {
	s, first, run := inProbation(t, "5m")
	passed := s.path("passed")
	ctl, log := s.upgrading("--request-id", "r1", "--check", "echo x >>"+passed)
	s.wrote(ctl, "check 1 of 1")
	s.kill(ctl, syscall.SIGKILL)
	s.exits(ctl, -1, "handoffctl")
	require.EqualValues(t, 2, s.status().Serving().Generation, "killing the tool changes nothing")
	r := s.wantFailure(1, s.upgradeArgs("v2", []string{"--request-id", "r1", "--check", "false"})...)
	require.Contains(t, r.Stderr, "check 1 of 1 (false) did not pass: exit status 1; generation 2 was rolled back")
	s.revoked(log)
	require.Equal(t, first.PID(), s.alone(1).Serving().PID)
	s.noLoss(run)
}

// The tool is killed while a check runs: the check goes with it, and the version is released by itself.
func TestCheckDiesWithTheTool(t *testing.T) {
	s, first, run := inProbation(t, "4s")
	at := s.path("at")
	ctl, _ := s.upgrading("--check", "echo $$ >"+at+"; while sleep 0.1; do :; done")
	s.appears(at)
	s.kill(ctl, syscall.SIGKILL)
	s.exits(ctl, -1, "handoffctl")
	b, err := os.ReadFile(at)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	check, err := proc.Adopt(pid)
	if err == nil { // otherwise it is gone already
		s.exits(check, -1, "the check")
	}
	s.exits(first, 0, "handed over")
	s.adopt(s.alone(2).Serving().PID)
	s.noLoss(run)
}

// A service without a probation can't be checked in it, and nothing is started.
func TestCheckWithoutProbation(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	mark := s.path("mark")
	r := s.wantFailure(1, "upgrade", "--check", "true", "--", "touch", mark)
	require.Contains(t, r.Stderr, "has no probation, in which checks could be run; CMD was not started")
	require.NoFileExists(t, mark)
	s.alone(1)
}

// An upgrade whose version is not let in, because as many generations drain as may, says so when its time runs out.
func TestUpgradeWhileTooManyDrain(t *testing.T) {
	s := newService(t)
	extra := []string{"--drain-timeout", "1h", "--max-draining", "1"}
	first := s.serving("v1", extra...)
	one := s.hold(s.address(web), 1)
	s.upgrade("v2", nil, extra...)
	r := s.wantFailure(1, s.upgradeArgs("v3", []string{"--timeout=5s"}, extra...)...)
	require.Contains(t, r.Stderr, "not released yet: CMD waits to be let in (max draining); the request is withdrawn; generation 2 ")
	require.Contains(t, r.Stderr, "hint: CMD was not let in: 1 older generation still drains, and at most 1 may: wait, or handoffctl stop --generation 1\n")
	one.finish(s)
	s.exits(first, 0, "generation 1 has drained")
	s.upgrade("v4", []string{"--wait=drained"}, extra...)
}

// A version that does not take what the old one serves is told of while there is still a way back, and why a check took
// back is in the log of the one that serves again.
func TestUpgradeThatForgetsAnAddress(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--http", "web="+web, "--http", "api="+web, "--probation", "5m")
	ctl := s.run("handoffctl", programs.Handoffctl, append([]string{"--socket", s.socket},
		s.upgradeArgs("v2", []string{"--check", "sleep 0.3; echo no backend; exit 1"}, "--http", "web="+web)...)...)
	s.wrote(ctl, "note: CMD does not take tcp api (127.0.0.1:")
	s.wrote(ctl, "closed at release")
	s.exits(ctl, 1, "the check failed")
	s.logged("check 1 of 1 (sleep 0.3; echo no backend; exit 1) did not pass: exit status 1")
}
