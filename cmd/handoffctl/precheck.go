package main

import (
	"context"
	"fmt"

	"github.com/fdhandoff/handoff/handoff"
)

// prechecks are commands that try the next version while it stands by. Only one
// that passed all of them is committed.
type prechecks struct {
	commands []string
	passed   int    // how many did, in their order
	running  *child // the one that runs, or nil
	// over says that there is nothing more to check: all passed, an earlier run of
	// the request committed, or nobody served.
	over bool
}

// done is closed when the check that runs has ended; nil if none runs.
func (p *prechecks) done() <-chan struct{} {
	if p.running == nil {
		return nil
	}
	return p.running.done
}

// label names the check that is next or runs.
func (p *prechecks) label() string {
	return fmt.Sprintf("precheck %d of %d (%s)", p.passed+1, len(p.commands), p.commands[p.passed])
}

// pending says that CMD must not serve yet.
func (p *prechecks) pending() bool { return !p.over && p.passed < len(p.commands) }

// beforeCommit does what is due at p while checks are still to pass.
func (u *upgrade) beforeCommit(ctx context.Context, p progress) error {
	g := p.successor
	switch {
	case p.outcome == handoff.OutcomeServing:
		// Nobody served, so there is nothing between standby and commit.
		u.a.say("note", "nobody served, so no precheck was run")
		u.prechecks.over = true
	case p.rank() >= ranks[handoff.OutcomeCommitted]:
		return u.tooEarly(ctx, p)
	case g == nil:
	case g.Takeover == "auto":
		return &failure{code: exitRefused, text: "CMD takes over as auto, which leaves no time for prechecks", hint: standbyHint}
	case isSpare(*g):
		return startedSpare()
	case g.State == "standby" && u.prechecks.running == nil:
		return u.startPrecheck(g.Generation)
	}
	return nil
}

const standbyHint = "start it with --takeover standby: HANDOFF_TAKEOVER=standby did not reach it, or it does not heed that"

// startPrecheck starts the one that is next.
func (u *upgrade) startPrecheck(generation uint64) error {
	u.a.say("precheck", u.prechecks.label())
	var err error
	u.prechecks.running, err = u.tryCMD(u.prechecks.commands[u.prechecks.passed], generation, u.a.showLine)
	if err != nil {
		return &failure{code: exitRefused, text: fmt.Sprintf("%s can't be run: %v", u.prechecks.label(), err), err: err}
	}
	return nil
}

// prechecked judges the one that has just ended.
func (u *upgrade) prechecked() error {
	err := u.prechecks.running.err
	u.prechecks.running = nil
	if err == nil {
		u.prechecks.passed++
		return nil
	}
	f := &failure{code: exitRefused, text: fmt.Sprintf("%s did not pass: %v", u.prechecks.label(), err), err: err}
	return u.atPrecheck(f)
}

// atPrecheck makes f a failure of the one that is next or ran.
func (u *upgrade) atPrecheck(f *failure) *failure {
	u.r.Precheck = u.prechecks.commands[u.prechecks.passed]
	if u.child != nil {
		f.hint = "what CMD wrote is in " + u.child.log
	}
	return f
}

// endPrecheck ends the one that runs, and says whether one did.
func (u *upgrade) endPrecheck() bool {
	if u.prechecks.running == nil {
		return false
	}
	u.prechecks.running.end(endTime)
	u.prechecks.running = nil
	return true
}

// tooEarly is the failure for a CMD that has the service although not all checks
// have passed. One that took it by itself is taken back from; what an operator
// did, or the incumbent's end, stays. Nothing is left to be given up then.
func (u *upgrade) tooEarly(ctx context.Context, p progress) *failure {
	u.endPrecheck()
	u.final = true
	f := &failure{
		code: exitUnknown, text: fmt.Sprintf("generation %d serves although the prechecks have not passed", p.generation),
		hint: "somebody else handed over to it, or its incumbent ended; handoffctl rollback takes back until it is released",
	}
	if p.successor != nil && p.successor.Takeover == "auto" {
		f.hint = standbyHint
		if p.outcome == handoff.OutcomeCommitted {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
			defer cancel()
			if _, err := u.f.c.Rollback(ctx); err == nil {
				f.code, u.r.Outcome = exitRefused, handoff.OutcomeRolledBack
				f.text = fmt.Sprintf("generation %d took over before the prechecks had passed, and was rolled back", p.generation)
			}
		}
	}
	return u.leftRunning(u.serving(ctx, f), "it ends by itself, or serves")
}
