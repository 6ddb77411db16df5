//go:build containers

package containers

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// pair begins two containers, a and b, with a restart policy and a way to take over, under load.
func pair(t *testing.T, name, short, policy, takeover string) (r *recipe, a, b *container, run *load.Run) {
	t.Helper()
	r = newRecipe(t, name, short)
	volume, port := r.newVolume(), freePort(t)
	start := func(label string) *container {
		return r.run(label, hardened("--network", "host", "--volume", volume+":/run/handoff", "--restart", policy),
			"--http", local(port), "--label", label, "--probation", "0s", "--takeover", takeover)
	}
	a = start("a")
	r.alone("a")
	run = r.load(local(port))
	r.answers(run, 1, 200)
	return r, a, start("b"), run
}

// The trap: a container that takes over as soon as it is ready, and that the engine starts again after it has handed
// over, takes over again. Nothing is lost by it, and it never ends.
func TestRestartAlwaysWithAutoNeverEnds(t *testing.T) {
	r, _, _, run := pair(t, "the trap: restart always, takeover auto", "trap", "always", "auto")
	const enough = 6
	st := r.waitStatus("generations come and go with nobody deploying", func(st proc.Status) bool {
		return st.Serving().Generation >= enough
	})
	r.noLoss(run, int(st.Serving().Generation)-1)
}

// After a clean exit on-failure starts nothing, so it goes with auto.
func TestRestartOnFailureWithAutoEnds(t *testing.T) {
	r, a, b, run := pair(t, "restart on-failure, takeover auto", "onfail", "on-failure", "auto")
	r.alone("b")
	a.exits(0)
	s, ok := a.state()
	require.True(t, ok)
	require.Equal(t, "exited", s.Status)

	// It is started again, though, when it fails; it is the first generation then.
	r.answers(run, 2, 200)
	r.noLoss(run, 1)
	b.killProcess()
	st := r.waitStatus("b is back", func(st proc.Status) bool { return st.Serving().Generation == 1 && len(st.Generations) == 1 })
	require.Equal(t, "b", st.Serving().Label)
}

// A standby waits to be told, so it goes with any policy: one handover for each time that somebody asks for one, and
// what the engine starts again waits in turn.
func TestRestartAlwaysWithStandbyEnds(t *testing.T) {
	r, a, b, run := pair(t, "restart always, takeover standby", "standby", "always", "standby")
	standby := func(label string, generation uint64) {
		t.Helper()
		r.waitStatus(label+" is the standby", func(st proc.Status) bool {
			return st.In("standby").Label == label && st.In("standby").Generation == generation && len(st.Generations) == 2
		})
	}
	standby("b", 2)
	res := b.ctl("handover")
	require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
	standby("a", 3)
	res = a.ctl("handover")
	require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
	standby("b", 4)

	// The engine's own way: docker stop says SIGTERM to the incumbent, which hands over to the standby, and the engine
	// does not start again what it was told to stop.
	a.stop(patience)
	st := r.alone("b")
	require.EqualValues(t, 4, st.Serving().Generation)
	s, ok := a.state()
	require.True(t, ok)
	require.Equal(t, "exited", s.Status)
	require.Zero(t, s.ExitCode)
	r.answers(run, 4, 200)
	r.noLoss(run, 3)
}
