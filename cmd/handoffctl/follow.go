package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// nobodyPause is how often a socket is looked for at which nobody answers.
const nobodyPause = 50 * time.Millisecond

// lookTime bounds the last look at a service after the time ran out. Tests have more of it.
var lookTime = time.Second

// follower watches a service through the ends and changes of the processes that
// answer for it.
type follower struct {
	c    *handoff.Client
	last *handoff.Status // nil while nobody answers
	seen bool            // somebody was there at some time
	mute bool            // somebody was there at the last look, and did not answer
}

// next returns the next status that differs from the last one. It waits for
// somebody to come where nobody answers, and reports that once, by nil, nil.
func (f *follower) next(ctx context.Context) (*handoff.Status, error) {
	for {
		st, err := f.c.Watch(ctx, f.last)
		switch {
		case err == nil:
			f.last, f.seen = st, true
			return st, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case !errors.Is(err, handoff.ErrNobody):
			return nil, err
		case f.last != nil:
			f.last = nil
			return nil, nil
		}
		pause(ctx, nobodyPause)
	}
}

// pause waits for d; false means that ctx ended first.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// until waits until done says true of a status, the one known already included.
// done is asked about nil where nobody answers.
func (f *follower) until(ctx context.Context, done func(*handoff.Status) (bool, error)) error {
	if f.last != nil {
		if ok, err := done(f.last); ok || err != nil {
			return err
		}
	}
	for {
		st, err := f.next(ctx)
		if ctx.Err() != nil {
			if st = f.look(ctx); st == nil {
				return ctx.Err()
			}
			if ok, err := done(st); ok || err != nil {
				return err
			}
			return ctx.Err()
		}
		if err != nil {
			return err
		}
		if ok, err := done(st); ok || err != nil {
			return err
		}
	}
}

// look takes a last look, also when ctx has ended: exit codes follow from the
// state at the end. It returns nil where nobody answers.
func (f *follower) look(ctx context.Context) *handoff.Status {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), lookTime)
	defer cancel()
	st, err := f.c.Status(ctx)
	f.last = st
	// Whoever is silent or refuses is there all the same.
	f.mute = err != nil && !errors.Is(err, handoff.ErrNobody)
	f.seen = f.seen || f.mute || st != nil
	return st
}

// stopped is the failure for a wait that ended before its aim, by its deadline
// or by a signal.
func (f *follower) stopped(ctx context.Context, timeout time.Duration, aim string) *failure {
	if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
		return &failure{
			code: exitUnknown,
			text: fmt.Sprintf("stopped waiting (%v), %s: %s", context.Cause(ctx), aim, f.who()),
			hint: cmp.Or(silenceRemedy(f.last), "what was asked for goes on; handoffctl status shows it"),
			err:  ctx.Err(),
		}
	}
	if !f.seen {
		return &failure{
			code: exitNobody,
			text: fmt.Sprintf("nobody came to %s within %v", f.c.Socket, timeout),
			hint: "start the service, or name its socket with --socket or HANDOFF_SOCKET",
			err:  handoff.ErrNobody,
		}
	}
	return &failure{
		code: exitUnknown,
		text: fmt.Sprintf("time ran out after %v, %s: %s", timeout, aim, f.who()),
		hint: cmp.Or(silenceRemedy(f.last), "what was asked for goes on; handoffctl status shows it, and --timeout gives it longer"),
		err:  ctx.Err(),
	}
}

func (f *follower) who() string {
	if f.last == nil && f.mute {
		return "the process at the socket does not answer"
	}
	return whoServes(f.last)
}
