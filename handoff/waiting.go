package handoff

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"
)

// Who can't be admitted yet, and why: the successors that were told busy, which
// come again, and the older generations that still drain, of which there may be
// only so many.

// waiting is the successors that were told busy. The zero value is none. It is
// owned by run.
type waiting struct {
	all     []waiter
	looking bool // somebody looks after those that do not come again
}

type waiter struct {
	who   waiterID
	shown WaitingStatus
	asked time.Time // the last time
}

// waiterID tells one successor from another. A pid alone does not: in two
// containers both have number 1.
type waiterID struct {
	pid            int
	started        int64
	label, request string
}

// waitingFor is how long a successor that was told busy is taken for one that
// waits, without asking again: ten times what it pauses.
const waitingFor = 10 * busyRetryMS * time.Millisecond

func (l *link) waiterID() waiterID {
	return waiterID{l.peer.PID, l.peer.Started.UnixNano(), l.peer.Label, l.peer.Request}
}

// admitted forgets a successor that waits no more.
func (v *waiting) admitted(l *link) {
	who := l.waiterID()
	v.all = slices.DeleteFunc(v.all, func(w waiter) bool { return w.who == who })
}

// gone forgets those that do not come any more.
func (v *waiting) gone(now time.Time) {
	v.all = slices.DeleteFunc(v.all, func(w waiter) bool { return now.Sub(w.asked) > waitingFor })
}

// list is for the status. Where a frame does not take all, the first in the queue
// are in it.
func (v *waiting) list() (list []WaitingStatus) {
	room := maxWaitingSize
	for _, w := range v.all {
		b, err := json.Marshal(w.shown)
		if room -= len(b) + 1; err != nil || room < 0 {
			break
		}
		list = append(list, w.shown)
	}
	return list
}

// noteWaiting keeps account of a successor that is told busy.
func (p *Process) noteWaiting(l *link, why reason, text string) {
	v, now, who := &p.waiting, time.Now(), l.waiterID()
	v.gone(now)
	i := slices.IndexFunc(v.all, func(w waiter) bool { return w.who == who })
	switch {
	case i < 0 && len(v.all) == maxWaiting:
		return // it waits all the same
	case i < 0:
		i = len(v.all)
		v.all = append(v.all, waiter{who: who, shown: WaitingStatus{
			PID: l.peer.PID, Label: l.peer.Label, Request: l.peer.Request, Takeover: l.mode.String(), Since: now,
		}})
		p.Logger().Info("a successor waits", "successor_pid", l.peer.PID, "successor_label", l.peer.Label,
			"mode", l.mode.String(), "request", l.peer.Request, "reason", string(why), "text", text)
	}
	w := &v.all[i]
	w.asked, w.shown.Reason, w.shown.Text = now, string(why), text
	p.lookAfterWaiting()
}

// lookAfterWaiting has those that came no more leave the status, with one timer
// for all of them.
func (p *Process) lookAfterWaiting() {
	if p.waiting.looking {
		return
	}
	p.waiting.looking = true
	p.later(waitingFor, func() {
		v := &p.waiting
		before := len(v.all)
		if v.gone(time.Now()); len(v.all) < before {
			p.changed()
		}
		if v.looking = false; len(v.all) > 0 {
			p.lookAfterWaiting()
		}
	})
}

// later has run do f after d, if it still runs.
func (p *Process) later(d time.Duration, f func()) {
	time.AfterFunc(d, func() { p.post(f) })
}

// draining lists the older generations that drain, oldest first: those that
// report, and those that were revoked and have not said so yet.
func (p *Process) draining() (numbers []uint64) {
	for _, g := range p.living.known() {
		numbers = append(numbers, g.Generation)
	}
	for l := range p.retired {
		if !slices.Contains(numbers, l.number) {
			numbers = append(numbers, l.number)
		}
	}
	slices.Sort(numbers)
	return numbers
}

// tooManyDrain says whether a successor must wait for one of them to end.
func (p *Process) tooManyDrain() bool {
	return p.cfg.MaxDraining > 0 && len(p.draining()) >= p.cfg.MaxDraining
}

// busyText explains busy to people: why, and what they may do about it.
func (p *Process) busyText(why reason) string {
	if why != whyMaxDraining {
		return busyText(why)
	}
	numbers := p.draining()
	if len(numbers) == 0 {
		return busyText(why)
	}
	still := "1 older generation still drains"
	if n := len(numbers); n > 1 {
		still = fmt.Sprintf("%d older generations still drain", n)
	}
	return fmt.Sprintf("%s, and at most %d may: wait, or handoffctl stop --generation %d", still, p.cfg.MaxDraining, numbers[0])
}

// reported keeps what a draining process tells. Where it is about others than
// before, the successor is told at once: of a dozen that drain, each tells the
// next one only.
func (p *Process) reported(from any, f *frame) {
	if p.living.report(from, f) {
		p.passOn()
	}
}

// reporterGone: a process that told of draining ones has gone, or is reached no
// more.
func (p *Process) reporterGone(from any) {
	p.living.lost(from)
	p.lookAfterOrphans()
	p.passOn()
}

// expectRevoked: a successor that served, and says that it stops, drains without a
// link until it registers.
func (p *Process) expectRevoked(l *link, f *frame) {
	served := l.side == sideRetired || l.side == sideYounger && p.m.younger >= phaseServing
	if served && (f.Type == msgRevoked || f.Type == msgAbort && f.Reason != whyClosed) {
		who := l.peer
		who.Generation = l.number
		p.living.expect(p.describe(who, StateRevoked))
		p.lookAfterOrphans()
		p.forgetAtDeath(l)
	}
}

// forgetAtDeath: an orphan that had nothing to finish has ended before it could
// register. Where the kernel tells of its death, it is not waited for.
func (p *Process) forgetAtDeath(l *link) {
	d, err := l.c.pidfd()
	if err != nil {
		return
	}
	v, err := newLifeline(d)
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(p.life, orphanGrace)
	p.work.Go(func() {
		defer cancel()
		defer v.Close()
		defer context.AfterFunc(ctx, func() { v.Close() })()
		if v.ended() {
			p.post(func() { p.living.forget(l.number); p.changed() })
		}
	})
}

// lookAfterOrphans has generations that did not register leave the status.
func (p *Process) lookAfterOrphans() {
	if len(p.living.orphans) > 0 {
		p.later(orphanGrace+time.Millisecond, p.changed)
	}
}

// passOn tells the successor of a draining process how the drain goes.
func (p *Process) passOn() {
	if p.younger != nil && p.m.younger == phaseDraining {
		p.younger.send(&frame{Type: msgDraining, Self: p.self(), Older: p.living.older()})
	}
}
