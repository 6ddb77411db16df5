package handoff

import (
	"context"
	"log/slog"
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

// beginDrain starts the lame duck of whatever drains, and waits for it elsewhere.
func (p *Process) beginDrain(plain bool) {
	until, shut := p.deadline, p.shut
	p.work.Go(func() {
		// What was queued on a listener that is shut is accepted first.
		for _, l := range shut {
			<-l.done
		}
		p.post(p.control.removeIfOwned)
		p.drain(until, plain)
	})
	p.reportDraining()
}

// drain runs beside run: it blocks.
func (p *Process) drain(until time.Time, plain bool) {
	p.drainers.Lock()
	p.drainers.begun, p.drainers.plain, p.drainers.until = true, plain, until
	all := append([]drainer(nil), p.drainers.all...)
	p.drainers.Unlock()
	opened := p.openConnections()
	for _, d := range all {
		d.beginDrain(until, plain)
	}
	cut := map[string]int{}
	deadline := time.NewTimer(time.Until(until))
	defer deadline.Stop()
	for _, d := range all {
		select {
		case <-d.drained():
			continue
		case <-deadline.C:
			deadline.Reset(0)
		case <-p.life.Done():
			return
		}
		add(cut, d.cut())
	}
	p.post(func() { p.drained(opened, cut) })
}

// drained: everything has ended or was cut.
func (p *Process) drained(opened, cut map[string]int) {
	p.mu.Lock()
	p.report.Open, p.report.Cut, p.report.Duration = opened, cut, time.Since(p.began)
	took := p.report.Duration
	p.mu.Unlock()
	level := slog.LevelInfo
	if len(cut) > 0 {
		level = slog.LevelWarn
	}
	p.Logger().Log(context.Background(), level, "drained", "open", opened, "cut", cut, "duration", took)
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
