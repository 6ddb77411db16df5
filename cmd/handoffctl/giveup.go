package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// How an upgrade ends that comes to nothing.

// giveUp ends the attempt if it can be ended. The exit code follows from the
// state that is found then.
func (u *upgrade) giveUp(ctx context.Context, why *failure, commandFailed bool) error {
	u.endPrecheck()
	if done, err := u.decided(ctx, why, commandFailed); done {
		return err
	}
	err := u.withdraw(ctx)
	var no *handoff.RemoteError
	refused := errors.As(err, &no)
	switch {
	case err == nil:
		f := &failure{code: exitRefused, text: why.text + "; the request is withdrawn", hint: cmp.Or(why.hint, u.blocked())}
		u.r.Outcome = handoff.OutcomeWithdrawn
		if n := u.strangers(); n != 0 {
			f.code = exitUnknown
			f.hint = fmt.Sprintf("generation %d took over meanwhile without this request's id: if that is CMD, HANDOFF_REQUEST did not reach it", n)
		}
		return u.endChild(u.serving(ctx, f))
	case !refused && !errors.Is(err, handoff.ErrNobody):
		f := &failure{code: exitUnknown, text: fmt.Sprintf("%s; the request could not be withdrawn: %s", why.text, explain(err).text), err: err}
		return u.leftRunning(f, "it may serve")
	}
	if done, err := u.decideSoon(ctx, why, commandFailed, no); done {
		return err // it was committed in the meantime
	}
	// There is no incumbent that could refuse CMD: it is certain not to come only
	// once it has ended.
	f := &failure{code: exitRefused, text: why.text, hint: cmp.Or(why.hint, silenceRemedy(u.f.last))}
	if u.child == nil || !u.child.running() && u.child.err == nil {
		f.code, f.hint = exitUnknown, "what CMD started elsewhere may still come"
	}
	f = u.serving(ctx, u.endChild(f))
	if u.before != 0 && u.f.last == nil && !u.f.mute {
		f.code, f.hint = exitNobody, "the service is down: start a version"
	}
	return f
}

// decideSoon is decided for a request that could not be withdrawn. Where the
// incumbent refused because it is just being committed, that is waited for.
func (u *upgrade) decideSoon(ctx context.Context, why *failure, commandFailed bool, no *handoff.RemoteError) (bool, error) {
	bounded, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	for {
		done, err := u.decided(ctx, why, commandFailed)
		if done || no == nil || no.Code != handoff.CodeNotNow || !pause(bounded, nobodyPause) {
			return done, err
		}
	}
}

// decided looks whether the request got to where it can't be withdrawn.
func (u *upgrade) decided(ctx context.Context, why *failure, commandFailed bool) (bool, error) {
	st := u.f.look(ctx)
	if st == nil && u.checks.pending() && u.r.Outcome == handoff.OutcomeCommitted {
		return true, u.takeBack(ctx, why)
	}
	if st == nil {
		// Who committed and is silent now may serve.
		if ranks[u.r.Outcome] < ranks[handoff.OutcomeCommitted] || commandFailed {
			return false, nil
		}
		return true, u.leftRunning(&failure{code: exitUnknown, text: why.text + "; " + u.f.who()}, "it may serve")
	}
	if p := u.t.in(st); commandFailed && p.rank() >= ranks[handoff.OutcomeCommitted] && !p.reached(u.wait) {
		st = u.settle(ctx)
	}
	if st == nil {
		return false, nil
	}
	p := u.t.in(st)
	if p.outcome != "" {
		u.r.Outcome, u.r.Generation, u.r.Reason = p.outcome, p.generation, p.reason
	}
	switch {
	case p.failed():
		f := explain(ended(u.r, p, st))
		f.text = why.text + "; " + f.text
		return true, u.conclude(ctx, f)
	case u.prechecks.pending() && p.rank() >= ranks[handoff.OutcomeCommitted]:
		f := u.tooEarly(ctx, p)
		f.text = why.text + "; " + f.text
		return true, f
	case u.checks.pending() && p.outcome == handoff.OutcomeCommitted:
		return true, u.takeBack(ctx, why)
	case u.checks.pending() && p.rank() >= ranks[handoff.OutcomeReleased] && u.before != 0:
		f := u.releasedUnchecked(ctx, p)
		f.text = why.text + "; " + f.text
		return true, f
	case p.reached(u.wait) && !u.prechecks.pending():
		return true, succeeded(u.r, st, u.wait)
	case p.rank() >= ranks[handoff.OutcomeCommitted]:
		return true, &failure{
			code: exitUnknown, text: fmt.Sprintf("%s, but %s: %s", why.text, p.outcome, whoServes(st)),
			hint: "it goes on; handoffctl rollback takes back until it is released",
		}
	}
	return false, nil
}

// settle watches a committed request whose command failed until it is decided.
func (u *upgrade) settle(ctx context.Context) *handoff.Status {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	_ = u.f.until(ctx, func(st *handoff.Status) (bool, error) {
		if st == nil {
			return false, nil
		}
		p := u.t.in(st)
		return p.failed() || p.reached(u.wait), nil
	})
	return u.f.last
}

func (u *upgrade) withdraw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	_, err := u.f.c.Withdraw(ctx, u.t.request)
	return err
}

// strangers looks for a generation that came by another request while this one
// was waited for, and has the service; 0 is none.
func (u *upgrade) strangers() uint64 {
	st := u.f.last
	if st == nil || u.before == 0 {
		return 0
	}
	for _, g := range st.Generations {
		if g.State == "serving" && g.Generation > u.before && g.Request != u.t.request {
			return g.Generation
		}
	}
	return 0
}

// serving adds who serves after all of it.
func (u *upgrade) serving(ctx context.Context, f *failure) *failure {
	u.f.look(ctx)
	f.text += "; " + u.f.who()
	return f
}

// held is what the service says of a CMD that it has told busy; nil if it has not.
func (u *upgrade) held() *handoff.WaitingStatus {
	if u.f.last == nil {
		return nil
	}
	for i, w := range u.f.last.Waiting {
		if w.Request == u.t.request {
			return &u.f.last.Waiting[i]
		}
	}
	return nil
}

// blocked is the remedy where something was in the way of CMD: another standby,
// or whatever it was told.
func (u *upgrade) blocked() string {
	if u.f.last == nil {
		return ""
	}
	for _, g := range u.f.last.Generations {
		if g.State == "standby" && !isSpare(g) && g.Request != u.t.request {
			return fmt.Sprintf("%s waits as a standby, and only one successor is let in: hand over to it, or end it", name(g))
		}
	}
	if w := u.held(); w != nil {
		return "CMD was not let in: " + w.Text
	}
	return ""
}

// endChild ends a CMD that came to nothing: never one that has clients.
func (u *upgrade) endChild(f *failure) *failure {
	if u.child != nil && u.serves(u.f.look(context.Background())) {
		return u.leftRunning(f, "it has clients")
	}
	if u.child != nil && u.child.end(endTime) {
		f.text += fmt.Sprintf("; CMD (pid %d) was ended", u.child.pid)
	}
	return f
}

// serves says whether CMD, or what came with its request, accepts or drains.
func (u *upgrade) serves(st *handoff.Status) bool {
	return st != nil && len(inState(st, func(g handoff.GenerationStatus) bool {
		return (g.PID == u.child.pid || g.Request == u.t.request) && g.State != "starting" && g.State != "standby"
	})) > 0
}

// hasIncumbent says whether somebody else than CMD is there to commit it.
func (u *upgrade) hasIncumbent() bool {
	if u.f.last == nil {
		return u.f.mute
	}
	own := u.t.in(u.f.last).generation
	return len(inState(u.f.last, func(g handoff.GenerationStatus) bool { return g.Generation != own })) > 0
}

func (u *upgrade) leftRunning(f *failure, why string) *failure {
	if u.child != nil && u.r.Reason == "died" {
		// Its link has ended, and it is waited for: its exit is noticed in an instant.
		select {
		case <-u.child.done:
		case <-time.After(lookTime):
		}
	}
	if u.child != nil && u.child.running() {
		f.text += fmt.Sprintf("; CMD (pid %d) still runs: %s", u.child.pid, why)
	}
	return f
}

// pending names what CMD has to pass yet, or is "".
func (u *upgrade) pending() string {
	switch {
	case u.prechecks.pending():
		return "prechecks"
	case u.checks.pending():
		return "checks"
	}
	return ""
}

// interrupted: a signal ends the waiting, and nothing else. Only where something
// was still to pass it ends the attempt: nobody would commit CMD then, so that it
// would stand in the way of the next deploy, or nobody would check it.
func (u *upgrade) interrupted(ctx context.Context) error {
	u.f.look(ctx)
	if what := u.pending(); what != "" && u.hasIncumbent() {
		text := fmt.Sprintf("stopped waiting (%v) before the %s had passed", context.Cause(ctx), what)
		return u.giveUp(ctx, &failure{text: text}, false)
	}
	f := u.f.stopped(ctx, u.a.timeout, "not "+u.wait+" yet")
	f.text = fmt.Sprintf("%s; request %s goes on", f.text, u.t.request)
	f.hint = "the same command with --request-id " + u.t.request + " waits for it again"
	return u.leftRunning(f, "it is on its own")
}
