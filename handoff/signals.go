package handoff

import (
	"fmt"
	"maps"
	"os"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// Signals says what signals mean to a Process that Config.Signals points to it
// from. They are handled from the beginning of Start until the Process has
// ended; then they mean again what they meant before. The zero value works.
//
//	SIGTERM, SIGINT   Stop; a second one is Hammer
//	SIGUSR2           Hammer
//	SIGHUP            Reload; nothing is restarted
//	SIGUSR1           Reopen
//	SIGTSTP           the hooks only; without any it is not handled
//
// A second one is either of SIGTERM and SIGINT after one that is still in force.
// One is in force until the process has ended, or until it is said in the log
// that the stop came to nothing, because the successor failed that the process
// handed over to: the process serves on until another successor is ready, and the next signal is a first again. A
// stop that came in another way, as by an operator, does not count: whoever asks
// a draining process for the first time to stop cuts nothing. In probation a
// second one also releases, as Stop does. SIGUSR2 does nothing to a process that is
// not on its way out, and a line of the log says so.
//
// Where Start still looks for the incumbent, or waits for its sockets, Stop makes
// it return ErrStopped.
//
// Hooks, Reload and Reopen run one after another, in the order in which the
// signals came, in a goroutine of their own: what takes long holds up those that
// follow, and the end of the Process, but not the meaning of a SIGTERM, SIGINT or
// SIGUSR2 that has no Before hooks. They must not call Wait or Close. What has come
// when the Process ends is seen through before Wait and Close return. A signal that
// comes again while it waits for its turn counts once, as the kernel has it too.
//
// Several Processes in one program get every signal each. No other signal is
// touched, SIGPIPE neither: a program whose log may lose its reader ignores it
// itself (signal.Ignore), or a log line may end it.
type Signals struct {
	// Reload reads again what may have changed, such as configuration and
	// certificates. An error is logged and ends nothing: keep what was in force.
	// nil ignores the signal, the hooks aside, with a line of the log.
	Reload func() error

	// Reopen opens log files anew, after they were moved away. Errors and nil are
	// as for Reload.
	Reopen func() error

	// Before and After are hooks that are called, in their order, before and
	// after what the signal means is done. Stop and Hammer only begin something:
	// Done and Wait tell when it has ended. The keys are SIGHUP, SIGUSR1, SIGUSR2,
	// SIGINT, SIGTERM and SIGTSTP; Start refuses any other, and a nil hook.
	Before, After map[os.Signal][]func()
}

// handled are the signals that hooks may be for. SIGTSTP is left alone without.
var handled = []os.Signal{syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGINT, syscall.SIGTERM, syscall.SIGTSTP}

// signalRoom is for signals that come before the goroutine that takes them runs;
// it takes them at once.
const signalRoom = 16

// clone is a copy that the program does not change any more, or says what can't
// be in it.
func (s *Signals) clone() (*Signals, error) {
	if s == nil {
		return nil, nil
	}
	c := *s
	c.Before, c.After = maps.Clone(s.Before), maps.Clone(s.After)
	for _, hooks := range []map[os.Signal][]func(){c.Before, c.After} {
		for sig, all := range hooks {
			if !slices.Contains(handled, sig) {
				return nil, fmt.Errorf("handoff: Config.Signals: no hook can be for %s: only for SIGHUP, SIGUSR1, SIGUSR2, SIGINT, SIGTERM and SIGTSTP", signalName(sig))
			}
			if slices.ContainsFunc(all, func(f func()) bool { return f == nil }) {
				return nil, fmt.Errorf("handoff: Config.Signals: a hook for %s is nil", signalName(sig))
			}
			hooks[sig] = slices.Clone(all)
		}
	}
	return &c, nil
}

func signalName(sig os.Signal) string {
	if n, ok := sig.(syscall.Signal); ok {
		if name := unix.SignalName(n); name != "" {
			return name
		}
	}
	return fmt.Sprint(sig)
}

// signalWork is what is left to do for a signal.
type signalWork struct {
	sig  os.Signal
	done bool // what it means is done; the After hooks are left
}

// handleSignals begins to handle signals, if the program wants that.
func (p *Process) handleSignals() {
	s := p.cfg.Signals
	if s == nil {
		return
	}
	all := handled
	if len(s.Before[syscall.SIGTSTP])+len(s.After[syscall.SIGTSTP]) == 0 {
		all = all[:len(all)-1] // handled, it would stop nothing any more
	}
	arrived := make(chan os.Signal, signalRoom)
	signal.Notify(arrived, all...)
	p.work.Go(func() { p.takeSignals(arrived) })
}

// takeSignals runs until the Process has ended. It never waits for a hook, so
// that no signal is lost, and none that ends the process is late.
func (p *Process) takeSignals(arrived chan os.Signal) {
	turn := make(chan signalWork)
	defer close(turn)
	p.work.Go(func() {
		for w := range turn {
			p.seeThrough(w)
		}
	})
	var waiting []signalWork
	for {
		var next chan<- signalWork
		var first signalWork
		if len(waiting) > 0 {
			next, first = turn, waiting[0]
		}
		select {
		case sig := <-arrived:
			waiting = p.takeSignal(waiting, sig)
		case next <- first:
			waiting = waiting[1:]
		case <-p.gone:
			signal.Stop(arrived)
			for len(arrived) > 0 {
				waiting = p.takeSignal(waiting, <-arrived)
			}
			for _, w := range waiting {
				turn <- w
			}
			return
		}
	}
}

// takeSignal does at once what can't wait, and puts the rest behind waiting.
func (p *Process) takeSignal(waiting []signalWork, sig os.Signal) []signalWork {
	s := p.cfg.Signals
	p.Logger().Info("signal", "signal", signalName(sig), "state", p.State().String())
	w := signalWork{sig: sig}
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR2:
		if len(s.Before[sig]) == 0 {
			p.obey(sig)
			w.done = true
		}
	}
	if w.done && len(s.After[sig]) == 0 || slices.Contains(waiting, w) {
		return waiting
	}
	return append(waiting, w)
}

// seeThrough runs a signal's hooks and what they stand around.
func (p *Process) seeThrough(w signalWork) {
	s := p.cfg.Signals
	if !w.done {
		for _, f := range s.Before[w.sig] {
			f()
		}
		p.obey(w.sig)
	}
	for _, f := range s.After[w.sig] {
		f()
	}
}

// obey does what the signal means.
func (p *Process) obey(sig os.Signal) {
	s := p.cfg.Signals
	switch sig {
	case syscall.SIGTERM, syscall.SIGINT:
		p.stopOrHammer()
	case syscall.SIGUSR2:
		p.ask(p.hammer)
	case syscall.SIGHUP:
		p.callback(sig, s.Reload)
	case syscall.SIGUSR1:
		p.callback(sig, s.Reopen)
	}
}

// callback calls what the program has the signal mean.
func (p *Process) callback(sig os.Signal, f func() error) {
	if f == nil {
		p.Logger().Warn("beside hooks this program gives the signal no meaning: ignored", "signal", signalName(sig), "hint", "to hand over, start the next version")
		return
	}
	if err := f(); err != nil {
		p.Logger().Error("what the signal asked for ended with an error; the process goes on", "signal", signalName(sig), "error", err)
		return
	}
	p.Logger().Info("done what the signal asked for", "signal", signalName(sig))
}

// stopOrHammer: whether this is a second one is decided where the state is, so
// that a take-back comes before or after it and not between.
func (p *Process) stopOrHammer() {
	p.ask(func() {
		second := p.told
		p.told = true
		if !second || p.m.state == StateParked {
			p.feed(event{kind: evStop})
		}
		if second {
			p.hammer()
		}
	})
}
