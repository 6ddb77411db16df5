package integration

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/integration/proc"
)

// What docs/protocol.md says in "Who wins", with real processes under load.

// busyLine is the line in which a process says that it waits, and why.
func busyLine(p *proc.Process) (reason string) {
	for _, l := range p.Lines() {
		if l.Field("msg") == "the incumbent is busy, asking again" {
			return l.Field("reason")
		}
	}
	return ""
}

// Two successors are started at the same instant, again and again: both serve in turn.
func TestTwoSuccessorsAtOnce(t *testing.T) {
	const rounds = 20
	s := newService(t)
	// Short, but longer than two processes that are started together are apart.
	probation := []string{"--probation", "300ms"}
	before := []*proc.Process{s.serving("v1", probation...)}
	addr := s.address(web)
	run := s.loaded(addr)
	waited := 0
	for round := range rounds {
		pair := []*proc.Process{s.server("a", probation...), s.server("b", probation...)}
		last := uint64(2*round + 3)
		st := s.alone(last)
		winner, second := pair[0], pair[1]
		if winner.PID() == st.Serving().PID {
			winner, second = second, winner
		}
		require.Equal(t, second.PID(), st.Serving().PID)
		s.exits(before[0], 0, "who served before")
		s.exits(winner, 0, "who was first of the two has served and handed over")
		require.NotZero(t, run.Counts().Generations[last-1]+run.Counts().Generations[last])
		if why := busyLine(second); why != "" {
			require.Contains(t, []string{"handoff", "probation", "released"}, why)
			waited++
		}
		before = []*proc.Process{second}
	}
	s.answers(run, 2*rounds+1, 20)
	s.noLoss(run)
	require.NotZero(t, waited, "in no round two met")
	t.Logf("in %d of %d rounds one had to wait for the other", waited, rounds)
}

// Another successor comes in probation: it waits, says so, is seen to wait, and serves after release.
func TestSuccessorInProbation(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--probation", "1h")
	addr := s.address(web)
	run := s.loaded(addr)
	_, second := s.upgrade("v2", []string{"--wait=committed"})
	third := s.server("v3")
	line, err := third.WaitLog(s.ctx(), func(l proc.Line) bool { return l.Field("reason") == "probation" })
	require.NoError(t, err)
	require.Equal(t, "the last handoff is in probation", line.Field("text"))
	st := s.waitStatus("it is seen to wait", func(st proc.Status) bool { return len(st.Waiting) == 1 })
	require.Equal(t, third.PID(), st.Waiting[0].PID)
	require.Equal(t, "probation", st.Waiting[0].Reason)
	require.Regexp(t, `(?m)^a successor labelled v3 .*: probation: the last handoff is in probation$`, s.must("status").Stdout)
	s.answers(run, 2, 20)
	require.Zero(t, run.Counts().Generations[3])
	s.kill(first, syscall.SIGTERM) // ends the probation
	s.exits(first, 0, "generation 1")
	s.exits(second, 0, "generation 2")
	require.Equal(t, third.PID(), s.alone(3).Serving().PID)
	s.answers(run, 3, 20)
	s.noLoss(run)
}

// changed is whether a command says with --json that it changed anything.
func changed(t *testing.T, r proc.Result) (yes bool) {
	t.Helper()
	var out struct {
		Changed    *bool  `json:"changed"`
		Generation uint64 `json:"generation"`
	}
	require.NoError(t, json.Unmarshal([]byte(r.Stdout), &out), "%s", r.Stdout)
	require.NotNil(t, out.Changed, "%s", r.Stdout)
	require.EqualValues(t, 2, out.Generation)
	return *out.Changed
}

// Several operators ask for the same handover: with ids of their own, with the same id, with none. It is done once, all
// are told that it was done, and one that it was he.
func TestHandoverByTwoTools(t *testing.T) {
	for _, tc := range []struct {
		name string
		ids  []string
	}{
		{"two ids", []string{"op-1", "op-2", "op-3", "op-4"}},
		{"the same id", []string{"op", "op", "op", "op"}},
		{"no ids", []string{"", "", "", ""}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService(t)
			first := s.serving("v1", "--probation", "3s") // in which the last of them must have asked
			run := s.loaded(s.address(web))
			s.standby("v2")
			results := make([]proc.Result, len(tc.ids))
			var wg sync.WaitGroup
			for i, id := range tc.ids {
				wg.Go(func() {
					args := []string{"handover", "--json", "--timeout", "60s"}
					if id != "" {
						args = append(args, "--request-id", id)
					}
					results[i] = s.ctl(args...)
				})
			}
			wg.Wait()
			began := 0
			for i, r := range results {
				require.Zero(t, r.Code, "%d: %s%s", i, r.Stdout, r.Stderr)
				if changed(t, r) {
					began++
				}
			}
			require.Equal(t, 1, began, "%+v", results)
			s.exits(first, 0, "generation 1")
			s.alone(2)
			s.answers(run, 2, 20)
			s.noLoss(run)
			if id := tc.ids[0]; id != "" {
				// An id of an earlier outcome begins nothing, although there is a standby.
				s.standby("v3")
				require.Contains(t, s.must("handover", "--request-id", id).Stdout, "already released")
				require.EqualValues(t, 2, s.status().Serving().Generation)
			}
		})
	}
}

// remoteCode is the code of a no; it fails where there was none at all.
func remoteCode(t *testing.T, err error) string {
	t.Helper()
	if err == nil {
		return ""
	}
	var no *handoff.RemoteError
	require.True(t, errors.As(err, &no), "%v", err)
	return no.Code
}

// Handover and rollback at once: whichever is read first is done first, and the other is answered by what is then.
func TestHandoverAndRollbackAtOnce(t *testing.T) {
	const rounds = 20
	s := newService(t)
	first := s.serving("v1", "--probation", "1h")
	addr := s.address(web)
	run := s.loaded(addr)
	c := &handoff.Client{Socket: s.socket}
	back, kept := 0, 0
	for round := range rounds {
		next := s.standby("next")
		number := s.status().In("standby").Generation
		require.EqualValues(t, round+2, number, "no number comes twice")
		var handover, rollback error
		var wg sync.WaitGroup
		wg.Go(func() { _, handover = c.Handover(s.ctx(), fmt.Sprint("round-", round)) })
		wg.Go(func() { _, rollback = c.Rollback(s.ctx()) })
		wg.Wait()
		require.NoError(t, handover, "round %d: nothing keeps it from being accepted", round)
		switch code := remoteCode(t, rollback); code {
		case "":
			back++ // the handover was first, and was taken back
		case handoff.CodeNotNow:
			kept++ // there was nothing to roll back yet, and the handover came after it
			require.ErrorContains(t, rollback, "the successor does not serve yet: there is nothing to roll back")
			s.waitStatus("the successor serves", func(st proc.Status) bool { return st.Of(number).State == "serving" && st.Of(1).State == "parked" })
			_, err := c.Rollback(s.ctx())
			require.NoError(t, err)
		default:
			require.Fail(t, "an unexpected no", "%v", rollback)
		}
		s.exits(next, 7, "it was revoked")
		require.Equal(t, first.PID(), s.alone(1).Serving().PID)
		// The id of it tells what became of it.
		answer, err := c.Status(s.ctx())
		require.NoError(t, err)
		last := answer.Requests[len(answer.Requests)-1]
		require.Equal(t, fmt.Sprint("round-", round), last.ID)
		require.Equal(t, handoff.OutcomeRolledBack, last.Outcome)
		require.Equal(t, "rollback", last.Reason)
	}
	s.noLoss(run)
	t.Logf("the rollback came second, and took back, in %d rounds, and was refused in %d", back, kept)

	// The same in either order, by handoffctl: what the loser is told.
	next := s.standby("next")
	r := s.wantFailure(1, "rollback")
	require.Contains(t, r.Stderr, "the successor does not serve yet: there is nothing to roll back")
	handover := s.run("handover", programs.Handoffctl, "--socket", s.socket, "handover", "--request-id", "last", "--timeout", "60s")
	s.waitStatus("in probation", func(st proc.Status) bool { return st.Of(1).State == "parked" && st.Serving().PID == next.PID() })
	s.must("rollback")
	s.exits(handover, 1, "what it waited for was taken back")
	_, err := handover.WaitLog(s.ctx(), func(l proc.Line) bool {
		return strings.HasPrefix(l.Text, fmt.Sprintf("handoffctl: error: request last: rolled back (rollback); generation 1 (pid %d, v1) serves", first.PID()))
	})
	require.NoError(t, err, "%+v", handover.Lines())
	require.Contains(t, s.must("rollback").Stdout, "rolled back: ", "twice is once")
	r = s.wantFailure(1, "handover")
	require.Contains(t, r.Stderr, "no successor is there")
}

// A rollback at about the moment of release: before the incumbent has read `released` it takes back, after it there is
// nothing to roll back. Never both, and nothing is lost.
func TestRollbackAtRelease(t *testing.T) {
	const rounds = 20
	s := newService(t)
	const probation = 60 * time.Millisecond
	extra := []string{"--probation", probation.String()}
	old := s.serving("v1", extra...)
	addr := s.address(web)
	run := s.loaded(addr)
	c := &handoff.Client{Socket: s.socket}
	back := 0
	for round := range rounds {
		next := s.server("next", extra...)
		s.waitStatus("it serves", func(st proc.Status) bool { return st.Serving().PID == next.PID() })
		// From well before the end of the probation to after it; a spread, not a wait for it.
		time.Sleep(probation/2 + probation*time.Duration(round)/rounds)
		_, err := c.Rollback(s.ctx())
		switch code := remoteCode(t, err); code {
		case "":
			back++
			s.exits(next, 7, "it was revoked")
			s.waitStatus("the old one serves", func(st proc.Status) bool { return st.Serving().PID == old.PID() })
		case handoff.CodeNotNow:
			require.ErrorContains(t, err, "nothing to roll back: no handoff is in probation")
			s.exits(old, 0, "it had handed over")
			s.waitStatus("the new one serves", func(st proc.Status) bool { return st.Serving().PID == next.PID() })
			old = next
		default:
			require.Fail(t, "an unexpected no", "%v", err)
		}
		require.NoError(t, run.Wait(s.ctx(), run.More(10)))
	}
	st := s.waitStatus("one alone", func(st proc.Status) bool { return len(st.Generations) == 1 })
	require.Equal(t, old.PID(), st.Serving().PID)
	s.noLoss(run)
	t.Logf("%d of %d rollbacks came in time", back, rounds)
}

// A rollback between `release` and `released`: the successor does not answer yet, and what it says later comes too late.
func TestRollbackWhileReleasing(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--probation", "1h")
	addr := s.address(web)
	_, second := s.upgrade("v2", []string{"--wait=committed"})
	s.kill(second, syscall.SIGSTOP)
	s.stopped(second.PID)
	s.kill(first, syscall.SIGTERM) // ends the probation
	s.waitStatus("releasing", func(st proc.Status) bool { return st.Of(1).State == "releasing" })
	s.must("rollback")
	s.answeredBy(addr, 1)
	s.kill(second, syscall.SIGCONT)
	s.exits(second, 7, "it says released, and then reads that it was revoked")
	s.alone(1)
	s.upgrade("v3", []string{"--wait=committed"})
	s.answeredBy(addr, 3)
}
