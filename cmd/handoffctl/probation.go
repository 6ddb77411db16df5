package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

// checks are commands that try the next version while it serves in probation,
// one round after the other. The first that fails takes the service back, and so
// does one that has not passed once when the probation is nearly over: only a
// version that passed all of them is released.
type checks struct {
	commands []string
	interval time.Duration // between two rounds

	round   int    // the one that is under way, from 1; 0 is none yet
	next    int    // which command runs or is next, in its round
	running *child // the one that runs, or nil
	wrote   *tail  // what it wrote; nil before the first
	again   *time.Timer
	late    *time.Timer // the probation is nearly over
	over    bool        // there is nothing to check, or no more
}

const (
	// The time that a rollback is given before the end of the probation is a
	// tenth of that, within these bounds.
	minMargin = 200 * time.Millisecond
	maxMargin = 2 * time.Second
)

// margin is how long before the end of a probation a check that has not passed
// counts as failed.
func margin(probation time.Duration) time.Duration {
	return min(maxMargin, max(minMargin, probation/10))
}

// usage refuses what does not go together.
func (c *checks) usage(cmd *cobra.Command, wait string) error {
	switch {
	case len(c.commands) == 0:
		return nil
	case ranks[wait] < ranks[handoff.OutcomeReleased]:
		return &failure{code: exitUsage, text: "--check is run until the release, so it goes with --wait=released or drained only", hint: helpHint(cmd)}
	case c.interval <= 0:
		return &failure{code: exitUsage, text: "--check-interval must be positive", hint: helpHint(cmd)}
	}
	return nil
}

// pending says that CMD must not be released yet.
func (c *checks) pending() bool { return len(c.commands) > 0 && !c.over && c.round <= 1 }

// watching says that checks are to be run, or run.
func (c *checks) watching() bool { return len(c.commands) > 0 && !c.over }

// label names the check that is next or runs.
func (c *checks) label() string {
	return fmt.Sprintf("check %d of %d (%s)", c.next+1, len(c.commands), c.commands[c.next])
}

// ended is closed when the check that runs has ended; nil if none runs.
func (c *checks) ended() <-chan struct{} {
	if c.running == nil {
		return nil
	}
	return c.running.done
}

// due is when the next round begins; nil if that is not waited for.
func (c *checks) due() <-chan time.Time { return fired(c.again) }

// nearlyOver is when those that are pending have failed; nil where nobody waits.
func (c *checks) nearlyOver() <-chan time.Time {
	if !c.pending() {
		return nil
	}
	return fired(c.late)
}

func fired(t *time.Timer) <-chan time.Time {
	if t == nil {
		return nil
	}
	return t.C
}

// stop ends the check that runs; none is run after it. That may take as long as
// the check pleases, within endTime, so a rollback comes first.
func (c *checks) stop() {
	for _, t := range []*time.Timer{c.again, c.late} {
		if t != nil {
			t.Stop()
		}
	}
	c.again, c.late = nil, nil
	if c.running != nil {
		c.running.end(endTime)
		c.running = nil
	}
}

// tail keeps the last lines of what is added, by whom and when ever.
type tail struct {
	mu    sync.Mutex
	lines []string
}

func (t *tail) add(line string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.lines = append(t.lines, line); len(t.lines) > tailLines {
		t.lines = t.lines[1:]
	}
}

func (t *tail) read() []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return slices.Clone(t.lines)
}

// elder is the generation that can take back from number; nil if there is none.
func elder(st *handoff.Status, number uint64) (found *handoff.GenerationStatus) {
	for i, g := range st.Generations {
		if g.Generation < number && isState("parked", "releasing")(g) {
			found = &st.Generations[i]
		}
	}
	return found
}

// needProbation refuses an incumbent that could not take back. Of a generation
// that does not answer itself the probation is not known.
func (u *upgrade) needProbation(st *handoff.Status) error {
	if !u.checks.watching() || st == nil {
		return nil
	}
	for _, g := range st.Generations {
		d := time.Duration(g.ProbationSeconds * float64(time.Second))
		if g.State != "serving" || g.Generation != st.Generation || g.PID != st.PID || d > margin(d) {
			continue
		}
		f := &failure{
			code: exitRefused, text: name(g) + " has no probation, in which checks could be run",
			hint: "start the service with --probation, or do without --check",
		}
		if d > 0 {
			f.text = fmt.Sprintf("the probation of %s is too short for checks: %v", name(g), d)
			f.hint = "start the service with a longer --probation, or do without --check"
		}
		return f
	}
	return nil
}

// inProbation does what is due at p while checks are run.
func (u *upgrade) inProbation(ctx context.Context, st *handoff.Status, p progress) error {
	c := &u.checks
	switch {
	case p.outcome == handoff.OutcomeServing && u.before == 0:
		u.a.say("note", "nobody served, so no check was run")
		c.over = true
	case p.rank() >= ranks[handoff.OutcomeReleased]:
		c.stop()
		if c.pending() {
			return u.releasedUnchecked(ctx, p)
		}
		c.over = true
	case p.rank() < ranks[handoff.OutcomeCommitted]:
		return u.needProbation(st)
	default:
		old := elder(st, p.generation)
		switch {
		case old == nil || old.State == "releasing":
			return nil // it is gone, or gives up just now, as when it is told to stop: the next status tells
		case isSilent(*old):
			// Its time stands still, and another process answers, which does not know
			// how much is left.
			if c.late != nil {
				c.late.Stop()
			}
			return nil
		}
		left := time.Duration(old.LeftSeconds * float64(time.Second))
		left -= margin(time.Duration(old.ProbationSeconds * float64(time.Second)))
		if c.late == nil {
			c.late = time.NewTimer(left)
		} else {
			c.late.Reset(left)
		}
		if c.round == 0 {
			c.round = 1
			return u.startCheck(p.generation)
		}
	}
	return nil
}

func (u *upgrade) startCheck(generation uint64) error {
	c := &u.checks
	c.wrote = &tail{}
	var err error
	if c.running, err = u.tryCMD(c.commands[c.next], generation, c.wrote.add); err != nil {
		return u.atCheck(&failure{text: fmt.Sprintf("%s can't be run: %v", c.label(), err), err: err})
	}
	return nil
}

// checked judges the check that has just ended, and starts the next one.
func (u *upgrade) checked() error {
	c := &u.checks
	err := c.running.err
	c.running = nil
	if err != nil {
		text := fmt.Sprintf("%s did not pass: %v", c.label(), err)
		if c.round > 1 {
			text = fmt.Sprintf("%s did not pass in round %d: %v", c.label(), c.round, err)
		}
		return u.atCheck(&failure{text: text, err: err})
	}
	if c.round == 1 {
		u.a.say("check", c.label()+" passed")
	}
	if c.next++; c.next < len(c.commands) {
		return u.startCheck(u.r.Generation)
	}
	c.round, c.next = c.round+1, 0
	c.again = time.NewTimer(c.interval)
	return nil
}

// nextRound begins with the first check anew.
func (u *upgrade) nextRound() error {
	u.checks.again = nil
	return u.startCheck(u.r.Generation)
}

// tooSlow is the failure for a check that did not pass before it was too late.
func (u *upgrade) tooSlow() *failure {
	f := u.atCheck(&failure{text: u.checks.label() + " has not passed when the probation was nearly over"})
	f.hint = "a longer --probation of the version that runs leaves more time"
	return f
}

// atCheck makes f a failure of the check that is next or ran, and shows what that
// wrote.
func (u *upgrade) atCheck(f *failure) *failure {
	c := &u.checks
	u.r.Check = c.commands[c.next]
	for i, line := range c.wrote.read() {
		if i == 0 {
			u.a.say("check", c.label()+" wrote:")
		}
		u.a.showLine(line)
	}
	if u.child != nil {
		f.hint = "what CMD wrote is in " + u.child.log
	}
	return f
}

// releasedUnchecked is the failure for a CMD that serves for good although not
// all checks have passed once.
func (u *upgrade) releasedUnchecked(ctx context.Context, p progress) *failure {
	u.final = true
	f := &failure{
		code: exitUnknown, text: fmt.Sprintf("generation %d was released before the checks had passed", p.generation),
		hint: "its incumbent was stopped, or died: look at the new version, and deploy the older one again if it is bad",
	}
	return u.leftRunning(u.serving(ctx, f), "it serves")
}

// takeBack has the incumbent take back from CMD, whose checks have not passed.
// What becomes of it decides the exit code, and nothing is left to be given up.
func (u *upgrade) takeBack(ctx context.Context, why *failure) *failure {
	u.final = true
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	var err error
	for {
		if st := u.f.look(ctx); st != nil {
			p := u.t.in(st)
			u.r.Outcome, u.r.Generation, u.r.Reason = p.outcome, p.generation, p.reason
			switch {
			case p.failed():
				return u.tookBack(ctx, why)
			case p.rank() >= ranks[handoff.OutcomeReleased]:
				f := &failure{
					code: exitUnknown, text: fmt.Sprintf("%s; generation %d was released before it could be rolled back", why.text, p.generation), err: why.err,
					hint: "deploy the older version again",
				}
				return u.leftRunning(u.serving(ctx, f), "it serves")
			}
		}
		if _, err = u.f.c.RollbackBecause(ctx, why.text); err == nil {
			u.r.Outcome, u.r.Reason = handoff.OutcomeRolledBack, "rollback"
			return u.tookBack(ctx, why)
		}
		// The answer was lost, or a step of the handoff was under way, or the incumbent
		// is silent and may answer again.
		var no *handoff.RemoteError
		again := errors.Is(err, handoff.ErrNoAnswer) || errors.As(err, &no) && no.Code != handoff.CodePermission
		if !again || !pause(ctx, nobodyPause) {
			break
		}
	}
	f := explain(err)
	f = &failure{
		code: f.code, text: fmt.Sprintf("%s; it could not be rolled back: %s", why.text, f.text), err: err,
		hint: cmp.Or(silenceRemedy(u.f.last), "handoffctl rollback takes back until it is released"),
	}
	if f.code == exitRefused || f.code == exitNobody {
		f.code = exitUnknown // the new version may serve
	}
	return u.leftRunning(u.serving(ctx, f), "it may serve")
}

func (u *upgrade) tookBack(ctx context.Context, why *failure) *failure {
	f := &failure{
		code: exitRefused, text: fmt.Sprintf("%s; generation %d was rolled back", why.text, u.r.Generation), hint: why.hint, err: why.err,
	}
	return u.leftRunning(u.serving(ctx, f), "it was told to end")
}
