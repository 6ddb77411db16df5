package handoff

import (
	"context"
	"time"
)

// singletonGrace is how long a process that must not serve any more waits for
// its singletons to end, before it lets the next one begin.
const singletonGrace = time.Second

// Singleton has run called whenever this process begins to be the one that
// serves: when it serves first, and again after it has taken back. It is for a job
// of which one generation at a time may run, such as a scheduler. run's ctx ends
// with cause ErrNotServing when this process hands over, stops or is revoked, and
// the next one is told to serve only when run has returned: nothing else runs the
// job meanwhile, so it must return at once, and must not wait for methods of the
// Process. After a second it is waited for no more, which is logged; from then on
// the program answers for two that run, and what still runs keeps the process
// while it drains, as a Hold does.
//
// run is called in a goroutine of its own, never twice at a time. One that
// returns by itself is not called again until the next time. Call Singleton before
// Ready; later it begins at once if this process serves, but the incumbent does
// not know then that it must wait for its end before it admits another successor.
// It does nothing after this process's part. Names are as for Hold; they need not
// differ.
func (p *Process) Singleton(name string, run func(ctx context.Context)) {
	p.post(func() { p.addSingleton(&singleton{name: printable(name), run: run}) })
}

// singletons are the jobs that only the process that serves may run. The zero
// value has none. It is owned by run.
type singletons struct {
	all    []*singleton
	active bool // this process is the one that serves
}

type singleton struct {
	name    string
	run     func(context.Context)
	cancel  context.CancelCauseFunc // of the run under way
	ended   chan struct{}           // closed when that has returned; nil: none is under way
	again   bool                    // begin anew when it has
	release func()                  // of the hold that it has become; nil: it is none
}

func (p *Process) addSingleton(j *singleton) {
	p.jobs.all = append(p.jobs.all, j)
	p.m.exclusive = true
	if p.jobs.active {
		p.beginSingleton(j)
	}
}

// resumeSingletons: this process is the one that serves.
func (p *Process) resumeSingletons() {
	if p.jobs.active {
		return
	}
	p.jobs.active = true
	for _, j := range p.jobs.all {
		p.beginSingleton(j)
	}
}

func (p *Process) beginSingleton(j *singleton) {
	if j.ended != nil { // it did not heed the end of its context
		j.again = true
		return
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	ended := make(chan struct{})
	j.cancel, j.ended, j.again = cancel, ended, false
	go func() { // not joined: it may not heed its context
		defer p.post(func() { p.singletonEnded(j) })
		defer close(ended)
		defer cancel(nil)
		j.run(ctx)
	}()
}

func (p *Process) singletonEnded(j *singleton) {
	j.ended = nil
	if j.release != nil {
		j.release()
		j.release = nil
	}
	if j.again {
		p.beginSingleton(j)
	}
}

// pauseSingletons ends the jobs, before another process is told to serve, or
// that this one does not. The service is not interrupted by the wait.
func (p *Process) pauseSingletons() {
	if !p.jobs.active {
		return
	}
	p.jobs.active = false
	for _, j := range p.jobs.all {
		j.again = false
		if j.ended != nil {
			j.cancel(ErrNotServing)
		}
	}
	begun := time.Now()
	grace := time.NewTimer(singletonGrace)
	defer grace.Stop()
	for _, j := range p.jobs.all {
		if j.ended == nil {
			continue
		}
		select {
		case <-j.ended:
		case <-grace.C:
			if time.Since(begun) > singletonGrace+lateAfter {
				// This process was stopped itself, and so was the job.
				waitFor(j.ended, singletonGrace)
			}
			grace.Reset(0) // for the others
		}
		if isClosed(j.ended) {
			continue
		}
		p.Logger().Warn("a singleton does not end, and is waited for no more: two may run now", "singleton", j.name, "waited", singletonGrace)
		if j.release == nil {
			_, j.release = p.Hold(context.Background(), j.name)
		}
	}
}

// revokedSingletons says that a revoked successor, which has not confirmed yet,
// may still run one.
func (p *Process) revokedSingletons() bool {
	for l := range p.retired {
		if l.singletons {
			return true
		}
	}
	return false
}

// waitFor waits until ended is closed, for a while.
func waitFor(ended <-chan struct{}, most time.Duration) {
	t := time.NewTimer(most)
	defer t.Stop()
	select {
	case <-ended:
	case <-t.C:
	}
}
