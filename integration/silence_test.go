package integration

import (
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// A standby with --kill-silent ends an incumbent that has been stopped for so long, and answers what waited in the
// queues.
func TestKillSilent(t *testing.T) {
	const queued = 50
	s := newService(t)
	first := s.serving("v1", "--heartbeat", "100ms")
	addr := s.address(web)
	second := s.standby("v2", "--heartbeat", "100ms", "--kill-silent", "2s")
	began := time.Now()
	s.kill(first, syscall.SIGSTOP)
	s.stopped(first.PID())
	conns := s.asked(addr, queued)
	s.exits(first, -1, "generation 1 is killed")
	// Its time counts from what it said last, a heartbeat before, or more on a busy machine.
	require.Greater(t, time.Since(began), 1500*time.Millisecond, "not before its time")
	s.answer(conns, 2)
	for _, c := range conns {
		c.Close() // an idle connection would be kept to the end of generation 2's drain
	}
	_, err := second.WaitLog(s.ctx(), func(l proc.Line) bool { return l.Field("msg") == "ended the silent incumbent (SIGKILL)" })
	require.NoError(t, err)
	require.Equal(t, second.PID(), s.alone(2).Serving().PID)
}

// Without it the standby waits, however long that lasts: nothing is lost, and nobody is killed.
func TestStoppedIncumbentIsWaitedFor(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--heartbeat", "100ms")
	addr := s.address(web)
	second := s.standby("v2", "--heartbeat", "100ms")
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 10, Rate: 100},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 50},
	)
	s.answers(run, 1, 20)
	s.kill(first, syscall.SIGSTOP)
	_, err := second.WaitLog(s.ctx(), func(l proc.Line) bool {
		return l.Field("msg") == "the incumbent is alive but silent; nothing is lost, its connections wait"
	})
	require.NoError(t, err)
	s.waitStatus("it is silent for ten heartbeats", func(st proc.Status) bool { return st.Of(1).SilentSeconds > 1 })
	s.kill(first, syscall.SIGCONT)
	require.NoError(t, run.Wait(s.ctx(), run.More(50)))
	rep := s.noLoss(run)
	require.Zero(t, rep.Generations[2], "the standby never served")
}

// With nothing but the defaults, a successor that is stopped in probation is taken back from within three heartbeats
// and a second, and never serves again when it continues. The connections of generation 1 notice nothing.
func TestStoppedSuccessorWithDefaults(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--probation", "5m")
	addr := s.address(web)
	old := s.load(load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 10, Rate: 100})
	s.answers(old, 1, 20)
	second := s.serving("v2", "--probation", "5m")
	s.answeredBy(addr, 2)
	s.kill(second, syscall.SIGSTOP)
	s.stopped(second.PID())
	began := time.Now()
	s.answeredBy(addr, 1) // waits in the queue until somebody accepts again
	took := time.Since(began)
	t.Logf("generation 1 answered %v after generation 2 was stopped", took)
	require.Less(t, took, 15*time.Second, "on the slowest machine")
	require.Equal(t, first.PID(), s.status().Serving().PID)

	s.kill(second, syscall.SIGCONT)
	s.exits(second, 7, "generation 2 was revoked")
	for range 20 {
		s.answeredBy(addr, 1)
	}
	rep := s.noLoss(old)
	require.Zero(t, rep.Generations[2], "they never left generation 1")
}

// A generation that is stopped while it drains, and continues right after its deadline would have been, answers what
// clients sent meanwhile: that time does not count.
func TestStoppedWhileItDrains(t *testing.T) {
	const drain = 4 * time.Second
	s := newService(t)
	first := s.serving("v1", "--drain-timeout", drain.String(), "--move-idle=false")
	addr := s.address(web)
	conns := s.asked(addr, 10)
	s.answer(conns, 1)
	s.serving("v2")
	s.waitStatus("1 drains", func(st proc.Status) bool { return st.Of(1).State == "draining" })
	over := time.After(drain + 300*time.Millisecond) // within the second that a timer may be late
	s.kill(first, syscall.SIGSTOP)
	s.stopped(first.PID())
	for _, c := range conns {
		require.NoError(t, ask(c, "/")) // again
	}
	<-over
	s.kill(first, syscall.SIGCONT)
	s.answer(conns, 1)
	s.exits(first, 0, "nothing was cut")
}

// A process that is stopped in a plain stop, and continues, answers what came meanwhile on connections that had been
// silent: they are not taken for silent any more.
func TestStoppedInAPlainStop(t *testing.T) {
	s := newService(t)
	server := s.serving("v1", "--drain-timeout", "20s")
	addr := s.address(web)
	under := s.requests(1, "tcp", addr, "/slow?for=4s") // so that the drain goes on
	s.waitStatus("a request is under way", func(st proc.Status) bool { return st.Of(1).Open["active"] == 1 })
	conns := s.asked(addr, 100)
	s.answer(conns, 1)
	s.kill(server, syscall.SIGTERM)
	_, err := server.WaitLog(s.ctx(), func(l proc.Line) bool { return l.Field("to") == "draining" })
	require.NoError(t, err)
	silent := time.After(1500 * time.Millisecond) // longer than a connection must be silent to be closed
	s.kill(server, syscall.SIGSTOP)
	s.stopped(server.PID())
	for _, c := range conns {
		require.NoError(t, ask(c, "/")) // again
	}
	<-silent
	s.kill(server, syscall.SIGCONT)
	s.answer(conns, 1)
	under.all(t, 1)
	s.exits(server, 0, "nothing was cut")
}
