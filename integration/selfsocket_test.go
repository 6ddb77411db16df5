package integration

import (
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// While two processes live, each answers its own socket: the question whether
// this one is well is never answered by the other.
func TestSelfSocketsOfTwoGenerations(t *testing.T) {
	s := newService(t)
	own := func(path string) proc.GenerationStatus {
		t.Helper()
		st, err := proc.WaitStatus(s.ctx(), path, func(proc.Status) bool { return true })
		require.NoError(t, err)
		for _, g := range st.Generations {
			if g.Generation == st.Generation {
				return g
			}
		}
		t.Fatalf("it does not tell of itself: %+v", st)
		return proc.GenerationStatus{}
	}
	one, two := s.path("one"), s.path("two")
	first := s.serving("v1", "--self-socket", one)
	under := s.hold(s.address(web), 1)
	second := s.server("v2", "--takeover", "standby", "--self-socket", two)
	s.waitStatus("a standby", func(st proc.Status) bool { return st.In("standby").PID == second.PID() })
	require.Equal(t, first.PID(), own(one).PID)
	require.Equal(t, "serving", own(one).State)
	require.Equal(t, second.PID(), own(two).PID)
	require.Equal(t, "standby", own(two).State)
	s.must("handover")
	s.waitStatus("released", func(st proc.Status) bool { return st.Of(1).State == "draining" && st.Of(2).State == "serving" })
	require.Equal(t, first.PID(), own(one).PID)
	require.Equal(t, "draining", own(one).State, "the one that goes answers to its end")
	require.Equal(t, second.PID(), own(two).PID)
	require.Equal(t, "serving", own(two).State)
	under.finish(s)
	s.exits(first, 0, "handed over")
	require.NoFileExists(t, one)
	s.kill(second, syscall.SIGTERM)
	s.exits(second, 0, "a plain stop")
	require.NoFileExists(t, two)
}
