package integration

import (
	"fmt"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// everyKind is load of every kind on a TCP and a Unix listener.
func everyKind(addr, path string) []load.Stream {
	return []load.Stream{
		{Kind: load.KeepAlive, Address: addr, Conns: 50, Rate: 500},
		{Kind: load.NewConn, Address: addr, Rate: 100},
		{Kind: load.H2C, Address: addr, Conns: 4, Rate: 100},
		{Kind: load.Events, Address: addr, Conns: 4},
		{Kind: load.KeepAlive, Network: "unix", Address: path, Conns: 10, Rate: 100},
		{Kind: load.NewConn, Network: "unix", Address: path, Rate: 50},
	}
}

func TestFiftyHandoffsUnderLoad(t *testing.T) {
	const handoffs = 50
	s := newService(t)
	sockets := []string{"--http", web, "--http", "unix:" + s.path("web")}
	first := s.serving("v1", sockets...)
	_, second := s.upgrade("v2", nil, sockets...)
	s.exits(first, 0, "generation 1")
	quiet, err := proc.Descriptors(s.alone(2).PID) // that it took over, and no client is there
	require.NoError(t, err)
	addr := s.address(web)
	run := s.load(everyKind(addr, s.path("web"))...)
	s.answers(run, 2, 100)

	chain := []*proc.Adopted{second}
	var took []time.Duration
	for g := uint64(3); g < 3+handoffs; g++ {
		r, successor := s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=committed"}, sockets...)
		took = append(took, r.Took)
		require.Equal(t, g, s.status().Serving().Generation)
		s.answers(run, g, 1)
		chain = append(chain, successor)
	}
	s.answers(run, 2+handoffs, 100)
	for i, old := range chain[:handoffs] {
		s.exits(old, 0, fmt.Sprintf("generation %d, when its connections are done", i+2))
	}
	rep := s.noLoss(run)
	slices.Sort(took)
	t.Logf("%d handoffs, upgrade --wait=committed took %s in the median, %s at most\n%s",
		handoffs, took[len(took)/2].Round(time.Millisecond), took[len(took)-1].Round(time.Millisecond), rep)
	for g := uint64(2); g <= 2+handoffs; g++ {
		require.NotZero(t, rep.Generations[g], "answers by generation %d", g)
	}
	require.NotZero(t, rep.ByKind[load.Events].Drained, "event streams that were told of a drain")
	require.Less(t, took[len(took)/2], time.Second)

	st := s.alone(2 + handoffs)
	require.Equal(t, addr, s.address(web), "the port of generation 1")
	s.noMoreDescriptors(st.PID, quiet+1) // an epoll instance, in which the connections rested that came
}

// noMoreDescriptors waits until a process has no more descriptors open than some process had before: connections of a
// run that has ended are closed by the server in its own time.
func (s *service) noMoreDescriptors(pid, before int) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		got, err := proc.Descriptors(pid)
		return err == nil && got <= before
	}, patience, waitTick, "descriptors of pid %d: more than %d", pid, before)
}

// Two older generations still have requests under way while ten more handoffs happen.
func TestHandoffsWhileOlderGenerationsDrain(t *testing.T) {
	s := newService(t)
	drain := []string{"--drain-timeout", "1h", "--drain-spread", "1s"} // the test says when its requests end
	first := s.serving("v1", drain...)
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 200},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 50},
		load.Stream{Kind: load.Events, Address: addr, Conns: 4},
	)
	s.answers(run, 1, 10)

	hold := func(generation uint64) (all []*held) {
		t.Helper()
		for range 5 {
			all = append(all, s.hold(addr, generation))
		}
		return all
	}
	slowFirst := hold(1)
	_, second := s.upgrade("v2", nil, drain...)
	slowSecond := hold(2)
	s.upgrade("v3", nil)

	for g := uint64(4); g <= 13; g++ {
		s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=released"})
		s.answers(run, g, 5)
	}
	st := s.waitStatus("13 serves, 1 and 2 drain", func(st proc.Status) bool {
		return st.Serving().Generation == 13 && st.Of(1).State == "draining" && st.Of(2).State == "draining"
	})
	require.NotZero(t, st.Of(1).PID)
	for _, h := range append(slowFirst, slowSecond...) {
		h.finish(s)
	}
	s.exits(first, 0, "generation 1")
	s.exits(second, 0, "generation 2")
	s.alone(13)
	s.noLoss(run)
}

// One grep for a handoff's id shows it whole: every line of both processes carries the generation.
func TestLogsNameTheGeneration(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	second := s.serving("v2")
	s.exits(first, 0, "generation 1")
	for i, p := range []*proc.Process{first, second} {
		_, err := p.WaitLog(s.ctx(), func(l proc.Line) bool { return l.Field("generation") == fmt.Sprint(i+1) })
		require.NoError(t, err, "no line of %s names generation %d", p.Name, i+1)
		for _, l := range p.Lines() {
			require.NotNil(t, l.Fields, "not a JSON log line: %s", l.Text)
		}
	}
}
