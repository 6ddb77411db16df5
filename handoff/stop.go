package handoff

import (
	"context"
	"time"
)

// How a process leaves when it is told to: a plain stop's delay and hooks, and
// hammer time, which cuts short whatever a stop or a drain waits for.

// hookTimeout is how long BeforeStop and AfterDrain may take.
const hookTimeout = 10 * time.Second

// outDelay is how long a process that is taken out goes on at least: whoever was
// told busy asks again meanwhile, and learns that there is nothing to succeed.
const outDelay = 5 * busyRetryMS * time.Millisecond

// setEnding turns readiness false, or true again.
func (p *Process) setEnding(yes bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ending = yes
}

// delayStop tells the world that this process stops, and gives it the time to
// turn away, while everything is still accepted.
func (p *Process) delayStop() {
	p.setEnding(true)
	delay := p.cfg.StopDelay
	if p.m.out {
		delay = max(delay, outDelay)
	}
	p.Logger().Info("stopping: not ready any more, but still accepting", "delay", delay)
	hammered := p.hammered
	p.delays++
	nth := p.delays
	still := func(f func()) {
		p.post(func() {
			if p.m.leaving && p.delays == nth { // it has not been handed over meanwhile
				f()
			}
		})
	}
	p.work.Go(func() {
		if p.cfg.BeforeStop != nil {
			p.callHook("BeforeStop", hammered, p.cfg.BeforeStop)
		}
		still(func() { p.deadline = time.Now().Add(delay); p.changed() })
		over := time.NewTimer(delay)
		defer over.Stop()
		select {
		case <-over.C:
		case <-hammered: // the machine knows already
		case <-p.life.Done():
		}
		still(func() { p.feed(event{kind: evDelayed}) })
	})
}

// callHook runs one of the program's hooks, for a while.
func (p *Process) callHook(name string, hammered <-chan struct{}, hook func(context.Context) error) {
	ctx, cancel := context.WithTimeout(p.life, hookTimeout)
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- hook(ctx) }() // not joined: it may ignore its context
	var err error
	select {
	case err = <-result:
	case <-ctx.Done():
		err = ctx.Err()
	case <-hammered:
		err = context.Canceled
	}
	if err != nil {
		p.Logger().Warn("a hook did not do its work; the stop goes on", "hook", name, "error", err)
	}
}

// reportUnstopped: the stop came to nothing, and the next signal is a first again.
func (p *Process) reportUnstopped(why reason) {
	p.told = false
	p.setEnding(false) // a delayed stop may have set it
	if p.isHammered() {
		p.hammered = make(chan struct{})
	}
	if why == whyRollback {
		p.Logger().Warn("told to stop, but an operator took back: this process serves on", "hint", "stop it again to end the service, or to hand over to a standby")
		return
	}
	if why == whyStopped {
		p.Logger().Warn("told to stop, and so was the successor: this process serves on, hands over to the next one that is ready, and stops if none comes", "within", p.cfg.ReadyTimeout)
		return
	}
	p.Logger().Warn("told to stop, but the successor failed: this process serves on, and hands over to the next one that is ready", "reason", string(why), "hint", "start another successor, of any mode; to end the service, stop this process again")
}

// hammer is hammer time, in the run loop.
func (p *Process) hammer() {
	switch m := &p.m; {
	case p.isHammered():
		return
	case m.state == StateDraining, m.state == StateRevoked, m.leaving, m.stopping, m.hurry, m.asked:
	default:
		p.Logger().Warn("hammer time was asked for, but this process is not on its way out", "state", m.state.String(), "hint", "stop it first")
		return
	}
	p.Logger().Warn("hammer time: what is open is cut", "open", p.openConnections())
	if p.cfg.OnHammer != nil {
		p.cfg.OnHammer()
	}
	close(p.hammered)
	if p.m.state == StateDraining || p.m.state == StateRevoked {
		p.deadline = time.Now()
	}
	p.feed(event{kind: evHammer})
}

func (p *Process) isHammered() bool { return isClosed(p.hammered) }
