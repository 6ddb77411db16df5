package integration

import (
	"fmt"
	"regexp"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// Taking the service out: the standby is sent away, what is under way is answered, and nothing is lost but what comes
// too late to be accepted.
func TestDrainUnderLoad(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	addr := s.address(web)
	second := s.standby("v2")
	under := s.requests(5, "tcp", addr, "/slow?for=4s")
	s.waitStatus("5 slow requests under way", func(st proc.Status) bool { return st.Of(1).Open["active"] >= 5 })
	run := s.load(load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 50, Rate: 500})
	s.answers(run, 1, 100)

	r := s.must("drain")
	require.Contains(t, r.Stdout, "generation 1 is gone: nobody answers at the socket now")
	require.Regexp(t, `(?m)^handoffctl: progress: generation 1 .* is draining, open: .*\d+ active.* left$`, r.Stderr)
	under.all(t, 1)
	s.exits(first, 0, "everything was finished")
	s.exits(second, 7, "the standby was sent away")
	rep := run.Stop()
	onlyNewcomers(t, rep)
	require.Zero(t, rep.Broken, "%s", rep)
	require.Zero(t, rep.Generations[2])
	require.NoFileExists(t, s.socket)
	s.wantFailure(3, "drain")
}

// What is cut at the deadline is an exit code of its own.
func TestDrainThatCuts(t *testing.T) {
	s := newService(t)
	server := s.serving("v1", "--drain-timeout", "500ms")
	under := s.requests(2, "tcp", s.address(web), "/slow?for=1h")
	s.waitStatus("2 requests under way", func(st proc.Status) bool { return st.Of(1).Open["active"] >= 2 })
	r := s.wantFailure(6, "drain")
	require.Contains(t, r.Stderr, "connections were cut at the drain deadline: 2 active")
	require.Contains(t, r.Stdout, "generation 1 is gone")
	s.exits(server, 6, "2 connections were cut")
	under.wg.Wait()
}

func TestDrainInProbation(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--probation", "5m")
	addr := s.address(web)
	s.upgrade("v2", []string{"--wait=committed"})
	s.wantFailure(1, "drain")
	s.answeredBy(addr, 2)
	s.must("rollback")
	s.waitStatus("1 alone", func(st proc.Status) bool { return len(st.Generations) == 1 && st.Serving().Generation == 1 })
	s.must("drain", "--wait=accepted")
}

// A generation that drains for ever, because of one request, is hurried: straight, and by way of the process that it
// registered with after its successor had gone, too.
func TestStopOfAStuckGeneration(t *testing.T) {
	for between := range 2 {
		t.Run(fmt.Sprintf("%d generations between", between), func(t *testing.T) {
			s := newService(t)
			first := s.serving("v1", "--drain-timeout", "1h")
			addr := s.address(web)
			under := s.requests(1, "tcp", addr, "/slow?for=1h")
			s.waitStatus("a request under way", func(st proc.Status) bool { return st.Of(1).Open["active"] >= 1 })
			last := uint64(2 + between)
			for g := uint64(2); g <= last; g++ {
				s.upgrade(fmt.Sprintf("v%d", g), nil)
			}
			s.waitStatus("only 1 drains", func(st proc.Status) bool {
				return len(st.Generations) == 2 && st.Of(1).State == "draining" && st.Serving().Generation == last
			})
			run := s.loaded(addr)
			s.answers(run, last, 20)

			r := s.wantFailure(1, "stop", "--generation", "99")
			require.Regexp(t, fmt.Sprintf(`no generation 99 lives: generation %d .* serves; generation 1 .* drains`, last), r.Stderr)
			r = s.must("stop", "--generation", "1", "--timeout", "30s")
			require.Regexp(t, fmt.Sprintf(`^generation 1 is gone: generation %d .* serves`, last), r.Stdout)
			s.exits(first, 6, "a connection was cut")
			under.wg.Wait()
			require.Error(t, under.answers[0].err)
			s.alone(last)
			s.answers(run, last, 50)
			s.noLoss(run)
		})
	}
}

// A standby is sent away by its number; the one that answers is stopped by its own.
func TestStopByNumber(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	second := s.standby("v2")
	s.must("stop", "--generation", "2")
	s.exits(second, 7, "generation 2 was sent away")
	s.alone(1)
	r := s.must("stop", "--generation", "1")
	require.Contains(t, r.Stdout, "generation 1 is gone: nobody answers at the socket now")
	s.exits(first, 0, "a plain stop")
}

// A watch sees a whole handoff, although another process answers after it, and the end.
func TestWatchThroughAHandoff(t *testing.T) {
	s := newService(t)
	watch := s.run("watch", programs.Handoffctl, "--socket", s.socket, "status", "--watch")
	sees := func(pattern string) {
		t.Helper()
		re := regexp.MustCompile(pattern)
		_, err := watch.WaitLog(s.ctx(), func(l proc.Line) bool { return re.MatchString(l.Text) })
		require.NoError(t, err, pattern)
	}
	sees(`  nobody answers at the socket$`)
	s.serving("v1", "--probation", "3s") // in which the watch must ask once
	sees(`  1 serving.* \| (generation 1 .*v1\) answers|1: starting to serving)$`)
	s.upgrade("v2", nil)
	sees(` \| .*generation 2 .*v2\) came`)
	sees(`  1 parked.* \| .*1: serving to parked`)
	sees(`; 2 serving.* \| .*(2: (starting|standby) to serving|generation 2 .*v2\) came)`)
	sees(` \| .*generation 2 .*v2\) answers`)
	sees(`  2 serving.* \| .*1 is gone`)
	s.must("stop")
	s.kill(watch, syscall.SIGINT)
	s.exits(watch, 0, "a watch ends by a signal")
}
