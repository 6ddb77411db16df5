package handoff

import (
	"context"
	"log/slog"
	"slices"
	"sync"
	"time"
)

// The drain of a whole process: what it serves is told, waited for and, at the
// deadline, cut and counted. How HTTP does it is in http_drain.go.

// addDrainer makes the Process drain d before it ends. One that comes while it
// drains already begins at once, and one that comes after its end has ended.
func (p *Process) addDrainer(d drainer) {
	p.drainers.Lock()
	defer p.drainers.Unlock()
	p.drainers.all = append(p.drainers.all, d)
	switch {
	case p.drainers.ended:
		d.end()
	case p.drainers.begun:
		d.beginDrain(p.drainers.spread, p.drainers.plain)
	}
}

func (p *Process) countAnswer() { p.answered.Add(1) }

// servesHTTP wakes whoever waits for a listener to be served.
func (p *Process) servesHTTP() {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.httpServes)
	p.httpServes = make(chan struct{})
}

// drainer is the i-th of what drains. After the last come the holds: what the
// others finish may take some until it is finished.
func (p *Process) drainer(i int) (d drainer, last bool) {
	p.drainers.Lock()
	defer p.drainers.Unlock()
	if i < len(p.drainers.all) {
		return p.drainers.all[i], false
	}
	return p.holds, true
}

// httpDrains are those of all that are HTTP servers.
func httpDrains(all []drainer) (drains []*httpDrain) {
	for _, d := range all {
		if h, ok := d.(*httpDrain); ok {
			drains = append(drains, h)
		}
	}
	return drains
}

// openConnections counts what is open, by kind.
func (p *Process) openConnections() map[string]int {
	p.drainers.Lock()
	defer p.drainers.Unlock()
	sum := map[string]int{}
	for _, d := range p.drainers.all {
		add(sum, d.open())
	}
	return sum
}

// add adds counts by kind to sum.
func add(sum, counts map[string]int) {
	for kind, n := range counts {
		if n > 0 {
			sum[kind] += n
		}
	}
}

// drainRun is one drain, of which a process has one at most.
type drainRun struct {
	began    time.Time
	clock    *drainClock
	plain    bool            // nobody succeeds
	hammered <-chan struct{} // closed when the deadline is now
	shut     []*listener     // what is queued on them is accepted first
	open     map[string]int  // when it began
}

// beginDrain starts the lame duck of whatever drains, and waits for it elsewhere.
func (p *Process) beginDrain(plain bool) {
	p.adopters.end()
	p.setDrainTime() // anew: since its state changed, this process may have been stopped
	run := drainRun{began: p.began, clock: newDrainClock(p.deadline), plain: plain, hammered: p.hammered, shut: p.shut, open: p.openConnections()}
	add(run.open, p.holds.open())
	p.work.Go(func() {
		defer run.clock.stop()
		for _, l := range run.shut {
			for open := true; open; {
				select {
				case <-l.done:
					open = false
				case <-run.clock.tick.C:
					p.isOver(run.clock)
				}
			}
		}
		p.post(p.control.removeIfOwned)
		if r, ok := p.drain(run); ok {
			p.post(func() { p.drained(r) })
		}
	})
	p.reportDraining()
}

// drain runs beside run: it blocks. false means that the process was closed.
func (p *Process) drain(run drainRun) (Report, bool) {
	spread := p.cfg.DrainSpread
	if run.plain {
		spread = 0 // there is nobody to come back to all at once
	}
	p.drainers.Lock()
	p.drainers.begun, p.drainers.plain, p.drainers.spread = true, run.plain, spread
	all := slices.Clone(p.drainers.all)
	p.drainers.Unlock()
	r := Report{Open: run.open}
	m := p.startMoving(run, all)
	for _, d := range all {
		d.beginDrain(spread, run.plain)
	}
	ended, ok := p.allDrained(run)
	m.halt()
	if !ok {
		return r, false
	}
	if !ended {
		r.Cut = p.cutAll()
		r.Holds = p.holds.leftAtDeadline()
	}
	r.Answered, r.Moved, r.Duration = p.answered.Load(), p.moved.Load(), time.Since(run.began)
	if run.plain && p.cfg.AfterDrain != nil {
		r.Reason = string(whyStopped)
		p.callHook("AfterDrain", run.hammered, func(ctx context.Context) error { return p.cfg.AfterDrain(ctx, r) })
	}
	return r, true
}

// allDrained waits until all have ended by themselves; ended is false at the
// deadline, ok at the process's own end.
func (p *Process) allDrained(run drainRun) (ended, ok bool) {
	for i, last := 0, false; !last; i++ {
		var d drainer
		if d, last = p.drainer(i); last {
			d.beginDrain(0, run.plain)
		}
		for open := true; open; {
			select {
			case <-d.drained():
				open = false
			case <-run.clock.tick.C:
				if p.isOver(run.clock) {
					return false, true
				}
			case <-run.clock.due.C:
				if p.isOver(run.clock) {
					return false, true
				}
			case <-run.hammered:
				return false, true
			case <-p.life.Done():
				return false, false
			}
		}
	}
	return true, true
}

// setDrainTime begins the time of the drain.
func (p *Process) setDrainTime() {
	p.began = time.Now()
	p.deadline = p.began.Add(p.cfg.DrainTimeout)
	if p.isHammered() {
		p.deadline = p.began
	}
}

// isOver looks at the clock of the drain.
func (p *Process) isOver(clock *drainClock) bool {
	over, moved := clock.look(time.Now())
	if until := clock.until; moved {
		p.post(func() { p.deadline = until; p.changed() })
	}
	return over
}

// endDrainers closes what is open still: nothing, but after Close.
func (p *Process) endDrainers() {
	p.drainers.Lock()
	p.drainers.ended = true
	p.drainers.Unlock()
	for _, d := range p.everyDrainer() {
		d.end()
	}
}

// everyDrainer lists what drains, the holds last.
func (p *Process) everyDrainer() []drainer {
	p.drainers.Lock()
	defer p.drainers.Unlock()
	return append(slices.Clone(p.drainers.all), p.holds)
}

// cutAll cuts everything at the same time, since each may take a second for it.
func (p *Process) cutAll() map[string]int {
	var cutting sync.WaitGroup
	var mu sync.Mutex
	sum := map[string]int{}
	for _, d := range p.everyDrainer() {
		cutting.Go(func() {
			cut := d.cut()
			mu.Lock()
			defer mu.Unlock()
			add(sum, cut)
		})
	}
	cutting.Wait()
	return sum
}

// drained: everything has ended or was cut.
func (p *Process) drained(r Report) {
	p.mu.Lock()
	p.report = r
	p.mu.Unlock()
	level := slog.LevelInfo
	if len(r.Cut) > 0 {
		level = slog.LevelWarn
	}
	p.Logger().Log(context.Background(), level, "drained", "open", r.Open, "cut", r.Cut,
		"holds", clipCounts(r.Holds), "answered", r.Answered, "moved", r.Moved, "duration", r.Duration)
	p.finished = true
	p.drainedIfDone()
}

// drainedIfDone ends the drain once the program waits for it too: one that has
// connections of its own calls Close when they are finished.
func (p *Process) drainedIfDone() {
	if p.finished && p.waited {
		p.feed(event{kind: evDrained})
	}
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
