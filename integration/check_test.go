package integration

import (
	"os/exec"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// probe runs handoffctl check at one process's own socket.
func (s *service) probe(self string, code int, flags ...string) proc.Result {
	s.t.Helper()
	args := append([]string{"check", "--self-socket", self}, flags...)
	r, err := proc.Run(s.ctx(), exec.Command(programs.Handoffctl, args...))
	require.NoError(s.t, err)
	require.Equal(s.t, code, r.Code, "handoffctl %v: %s%s", args, r.Stdout, r.Stderr)
	return r
}

// Two generations live, and each probe is answered by the process that it is about, through a whole handoff.
func TestCheckOfTwoGenerations(t *testing.T) {
	s := newService(t)
	one, two := s.path("one"), s.path("two")
	s.probe(one, 3, "--state=alive")
	first := s.serving("v1", "--self-socket", one, "--probation", "5m")
	require.Regexp(t, `^ready: generation 1 \(pid \d+, v1\) is serving\n$`, s.probe(one, 0).Stdout)

	second := s.standby("v2", "--self-socket", two)
	s.probe(one, 0)
	require.Regexp(t, `not ready: generation 2 \(pid \d+, v2\) is standby\n`, s.probe(two, 1).Stderr)
	s.probe(two, 0, "--state=ready,standby")
	s.probe(one, 1, "--state=standby")
	s.must("check", "--state=standby") // the service has one

	s.must("handover", "--wait=committed")
	require.Regexp(t, "not ready: generation 1 .* is parked", s.probe(one, 1).Stderr)
	s.probe(one, 0, "--state=parked")
	s.probe(two, 0)
	s.must("check") // somebody serves, whoever answers

	under := s.requests(1, "tcp", s.address(web), "/slow?for=0s")
	under.all(t, 2)
	s.must("rollback")
	s.waitStatus("1 serves again", func(st proc.Status) bool { return st.Serving().Generation == 1 })
	s.probe(one, 0)
	s.exits(second, 7, "generation 2 was revoked")
	s.probe(two, 3, "--state=alive")

	// A process that hangs answers no probe, and none waits long for it.
	s.kill(first, syscall.SIGSTOP)
	s.stopped(first.PID())
	begin := time.Now()
	s.probe(one, 4, "--state=alive", "--timeout=500ms")
	require.Less(t, time.Since(begin), 20*time.Second)
	s.kill(first, syscall.SIGCONT)
	s.probe(one, 0, "--timeout=30s")
}

// A process that is being stopped is not ready any more, although it still serves; and then it drains.
func TestCheckOfAStop(t *testing.T) {
	s := newService(t)
	one := s.path("one")
	first := s.serving("v1", "--self-socket", one, "--stop-delay", "5s")
	addr := s.address(web)
	under := s.hold(addr, 1)
	s.kill(first, syscall.SIGTERM)
	own := func(what string, match func(proc.GenerationStatus) bool) {
		t.Helper()
		_, err := proc.WaitStatus(s.ctx(), one, func(st proc.Status) bool { return match(st.Of(1)) })
		require.NoError(t, err, what)
	}
	own("stopping", func(g proc.GenerationStatus) bool { return g.Stopping })
	require.Regexp(t, `not ready: generation 1 .* is serving \(stopping\)\n`, s.probe(one, 1).Stderr)
	s.probe(one, 0, "--state=serving")
	require.Regexp(t, `not ready: generation 1`, s.wantFailure(1, "check").Stderr)
	s.answeredBy(addr, 1)
	own("draining", func(g proc.GenerationStatus) bool { return g.State == "draining" })
	s.probe(one, 0, "--state=draining")
	s.wantFailure(3, "check", "--state=alive") // the service is out, the process is not
	under.finish(s)
	s.exits(first, 0, "a plain stop")
	s.probe(one, 3)
}

// What a version says of itself can be its precheck: it is asked by its own socket while it stands by.
func TestCheckAsPrecheck(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--self-socket", s.path("v1"))
	run := s.loaded(s.address(web))
	s.answers(run, 1, 20)
	t.Setenv("HANDOFFCTL", programs.Handoffctl)
	s.upgrade("v2", []string{"--precheck", `"$HANDOFFCTL" check --state standby`, "--precheck", `"$HANDOFFCTL" check --self-socket ` + s.path("v2") + ` --state standby`}, "--self-socket", s.path("v2"))
	s.answers(run, 2, 50)
	s.probe(s.path("v2"), 0)
	s.alone(2)
	s.noLoss(run)
}
