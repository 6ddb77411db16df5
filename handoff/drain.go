package handoff

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// The drain of a whole process: what it serves is told, waited for and, at the
// deadline, cut and counted. How HTTP does it is in http_drain.go.

// addDrainer makes the Process drain d before it ends. One that comes while it
// drains already begins at once.
func (p *Process) addDrainer(d drainer) {
	p.drainers.Lock()
	defer p.drainers.Unlock()
	p.drainers.all = append(p.drainers.all, d)
	if p.drainers.begun {
		d.beginDrain(p.drainers.until, p.drainers.plain)
	}
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
	began, until time.Time
	plain        bool            // nobody succeeds
	hammered     <-chan struct{} // closed when the deadline is now
	shut         []*listener     // what is queued on them is accepted first
}

// beginDrain starts the lame duck of whatever drains, and waits for it elsewhere.
func (p *Process) beginDrain(plain bool) {
	run := drainRun{began: p.began, until: p.deadline, plain: plain, hammered: p.hammered, shut: p.shut}
	p.work.Go(func() {
		for _, l := range run.shut {
			<-l.done
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
	p.drainers.Lock()
	p.drainers.begun, p.drainers.plain, p.drainers.until = true, run.plain, run.until
	all := append([]drainer(nil), p.drainers.all...)
	p.drainers.Unlock()
	r := Report{Open: p.openConnections()}
	for _, d := range all {
		d.beginDrain(run.until, run.plain)
	}
	ended, ok := p.allDrained(run, all)
	if !ok {
		return r, false
	}
	if !ended {
		r.Cut = cutAll(all)
	}
	r.Duration = time.Since(run.began)
	if run.plain && p.cfg.AfterDrain != nil {
		r.Reason = string(whyStopped)
		p.callHook("AfterDrain", run.hammered, func(ctx context.Context) error { return p.cfg.AfterDrain(ctx, r) })
	}
	return r, true
}

// allDrained waits until all have ended by themselves; ended is false at the
// deadline, ok at the process's own end.
func (p *Process) allDrained(run drainRun, all []drainer) (ended, ok bool) {
	deadline := time.NewTimer(time.Until(run.until))
	defer deadline.Stop()
	for _, d := range all {
		select {
		case <-d.drained():
		case <-deadline.C:
			return false, true
		case <-run.hammered:
			return false, true
		case <-p.life.Done():
			return false, false
		}
	}
	return true, true
}

// cutAll cuts everything at the same time, since each may take a second for it.
func cutAll(all []drainer) map[string]int {
	var cutting sync.WaitGroup
	var mu sync.Mutex
	sum := map[string]int{}
	for _, d := range all {
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
	p.Logger().Log(context.Background(), level, "drained", "open", r.Open, "cut", r.Cut, "duration", r.Duration)
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
