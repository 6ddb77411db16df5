package integration

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// standby starts a standby and waits until it is ready.
func (s *service) standby(label string, extra ...string) *proc.Process {
	s.t.Helper()
	p := s.server(label, append([]string{"--takeover", "standby"}, extra...)...)
	s.waitStatus(label+" stands by", func(st proc.Status) bool { return st.In("standby").PID == p.PID() })
	return p
}

func TestStandbyThenHandover(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 300},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 100},
	)
	second := s.standby("v2")
	s.must("wait", "--for=standby", "--timeout=10s")
	require.NoError(t, run.Wait(s.ctx(), run.More(50)))
	require.Zero(t, run.Counts().Generations[2], "a standby does not serve")
	s.must("handover")
	s.answers(run, 2, 50)
	require.Equal(t, second.PID(), s.status().Serving().PID)
	s.exits(first, 0, "generation 1")
	s.noLoss(run)
}

func TestHandoverWithoutStandby(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	s.wantFailure(1, "handover")
	s.answeredBy(s.address(web), 1)
}

// upgrade --wait=standby leaves the commit to somebody else.
func TestUpgradeToStandby(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	s.must(s.upgradeArgs("v2", []string{"--wait=standby"}, "--takeover", "standby")...)
	st := s.status()
	require.EqualValues(t, 1, st.Serving().Generation)
	require.EqualValues(t, 2, st.In("standby").Generation)
	s.must("handover")
	s.must("wait", "--for=drained", "--timeout=20s")
	s.alone(2)
}

// The incumbent dies with connections in the kernel's queue that it never accepted: the standby answers them.
func TestIncumbentKilledWithConnectionsQueued(t *testing.T) {
	const queued = 100
	s := newService(t)
	first := s.serving("v1")
	addr := s.address(web)
	second := s.standby("v2")

	// A stopped process accepts nothing, so that what connects now is queued for certain when it is killed.
	s.kill(first, syscall.SIGSTOP)
	s.stopped(first.PID())
	conns := s.asked(addr, queued)
	s.kill(first, syscall.SIGKILL)
	s.answer(conns, 2)
	for _, c := range conns {
		c.Close() // an idle connection would be kept to the end of generation 2's drain
	}
	s.exits(first, -1, "generation 1")
	st := s.alone(2)
	require.Equal(t, second.PID(), st.Serving().PID)

	// The chain goes on, and so does the numbering.
	s.upgrade("v3", nil)
	s.alone(3)
	s.answeredBy(addr, 3)
}

// A spare never blocks a deploy, follows it to the next incumbent, and is there when that one dies.
func TestSpareThenDeployThenDeath(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 10, Rate: 100},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 50},
	)
	spare := s.server("spare", "--takeover", "spare")
	isSpare := func(st proc.Status) bool {
		g := st.In("standby")
		return g.PID == spare.PID() && g.Takeover == "spare"
	}
	s.waitStatus("the spare stands by", isSpare)

	_, deployed := s.upgrade("v2", nil)
	s.exits(first, 0, "generation 1")
	s.waitStatus("the spare stands by at the next incumbent", func(st proc.Status) bool {
		return isSpare(st) && st.Serving().PID == deployed.PID
	})
	s.answers(run, s.status().Serving().Generation, 20)
	s.noLoss(run)

	s.kill(deployed, syscall.SIGKILL)
	st := s.waitStatus("the spare serves", func(st proc.Status) bool { return st.Serving().PID == spare.PID() })
	s.answeredBy(addr, st.Serving().Generation)
}

// SIGTERM at an incumbent with a standby is a handover.
func TestSigtermWithStandby(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 300},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 100},
	)
	s.standby("v2")
	s.answers(run, 1, 20)
	s.kill(first, syscall.SIGTERM)
	s.exits(first, 0, "generation 1")
	s.answers(run, 2, 20)
	s.noLoss(run)
}

// A committed successor is taken back by an operator, and the next one is not hindered by it.
func TestRollbackInProbation(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--probation", "5m")
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 300},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 100},
	)
	_, second := s.upgrade("v2", []string{"--wait=committed"})
	st := s.status()
	require.Equal(t, "parked", st.Of(1).State)
	require.Equal(t, "serving", st.Of(2).State)
	s.answers(run, 2, 20)

	s.must("rollback")
	s.waitStatus("1 serves again", func(st proc.Status) bool { return st.Serving().Generation == 1 })
	s.exits(second, 7, "generation 2 was revoked")
	require.NoError(t, run.Wait(s.ctx(), run.More(50)))
	s.answeredBy(addr, 1)

	s.upgrade("v3", []string{"--wait=committed"})
	require.EqualValues(t, 3, s.status().Serving().Generation, "a number is not used twice")
	s.answers(run, 3, 20)
	s.noLoss(run)
}

// A successor in probation that dies costs its own accepted connections and nothing else: the incumbent resumes.
func TestSuccessorDiesInProbation(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--probation", "5m")
	addr := s.address(web)
	_, second := s.upgrade("v2", []string{"--wait=committed"})
	s.answeredBy(addr, 2)
	s.kill(second, syscall.SIGKILL)
	s.waitStatus("1 serves again", func(st proc.Status) bool { return st.Serving().Generation == 1 })
	s.answeredBy(addr, 1)
	s.upgrade("v3", []string{"--wait=committed"})
	s.answeredBy(addr, 3)
}

// A standby that is stopped does not answer the commit: the incumbent takes everything back and the operator is told.
func TestStandbyHangsAtCommit(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	addr := s.address(web)
	second := s.standby("v2")
	s.kill(second, syscall.SIGSTOP)
	s.stopped(second.PID())
	begin := time.Now()
	s.wantFailure(1, "handover")
	require.Less(t, time.Since(begin), 30*time.Second)
	s.answeredBy(addr, 1)
	s.kill(second, syscall.SIGCONT)
	s.exits(second, 7, "generation 2 was revoked")
	s.upgrade("v3", nil)
	s.answeredBy(addr, 3)
}
