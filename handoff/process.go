package handoff

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// Process is one process's part in the chain of generations. It is made by
// Start and ended by Wait or Close. Its methods are safe for concurrent use,
// and several Processes may live in one program.
//
// One goroutine, run, owns the state machine and everything below it that is
// not guarded by mu; the others hand it functions.
type Process struct {
	cfg      Config
	instance string // tells one process from another where generations can't
	started  time.Time
	program  program
	sockets  socketSet
	drainers struct {
		sync.Mutex
		all    []drainer
		begun  bool
		ended  bool
		plain  bool
		spread time.Duration
	}
	holds    *holdSet
	adopters adopters

	strangers lineLimit     // what the log tells of them
	answered  atomic.Uint64 // HTTP requests
	moved     atomic.Uint64 // idle connections to another process
	adopted   atomic.Uint64 // and from another

	inbox   chan func()
	posting sync.RWMutex  // held while something is put into inbox
	closed  bool          // inbox takes no more
	stopped chan struct{} // holds a Stop that run has not seen yet
	serving chan struct{} // closed when it serves for the first time
	done    chan struct{} // closed when it no longer serves for good
	gone    chan struct{} // closed when run has ended
	joined  chan struct{} // closed when every goroutine has
	life    context.Context
	die     context.CancelFunc
	work    sync.WaitGroup // everything but run

	mu         sync.Mutex
	state      State
	generation uint64
	handoff    string // id of the handoff under way, or of the last one
	err        error
	unclaimed  []string
	complaint  string        // of ReportUnhealthy
	unready    string        // what Ready has returned last, if that was said before anything was told
	passed     bool          // Config.Checks
	noMoves    string        // why idle connections do not move; "" if they do
	coming     int           // connections that the incumbent had open when it welcomed this process
	httpServes chan struct{} // closed and replaced when a listener begins to be served by HTTP
	servesFrom time.Time     // when this process began to serve
	report     Report
	ending     bool

	// Owned by run.
	m         machine
	timers    [timerCount]*runningTimer
	beat      *runningTimer // of the next heartbeat; nil while nobody is watched
	elder     *link
	younger   *link
	asker     *link // whose hello is being answered
	retired   map[*link]bool
	control   controlSocket
	own       selfSocket
	attempt   chan attempt // where join waits; nil: nobody does
	offer     offer
	intake    intake
	ledger    ledger
	jobs      singletons
	living    living
	waiting   waiting
	next      uint64 // the last number that was given to a successor
	last      *HandoffStatus
	fault     error  // what a coming end is due to
	incumbent int    // pid of the process that was asked last; 0: it has none here
	busy      string // why the incumbent does not admit this process yet
	answer    reply  // to the operator's verb under way
	watchers  []chan struct{}
	revision  uint64
	waited    bool           // the program calls Wait: the drain may end by itself
	told      bool           // a signal said stop, and that is still in force
	delays    int            // how often a plain stop was delayed: another one may follow a take-back
	answers   bool           // this process is to answer the control socket
	mending   bool           // something is tried again
	watching  bool           // the networks of foreign sockets are looked at
	dark      map[uint64]int // at how many looks in a row no interface there had a carrier, by cookie
	deadline  time.Time      // of probation or drain
	began     time.Time      // of the drain
	shut      []*listener
	finished  bool          // everything that can drain has
	hammered  chan struct{} // closed at hammer time
}

func newProcess(cfg Config) *Process {
	p := &Process{
		cfg: cfg, instance: rand.Text()[:12], started: time.Now(),
		inbox: make(chan func(), 64), stopped: make(chan struct{}, 1), serving: make(chan struct{}), done: make(chan struct{}), gone: make(chan struct{}), joined: make(chan struct{}),
		holds: newHoldSet(), revision: 1, retired: map[*link]bool{}, hammered: make(chan struct{}),
		httpServes: make(chan struct{}),
	}
	p.life, p.die = context.WithCancel(context.Background())
	p.program = program{PID: os.Getpid(), Label: cfg.Label, Request: cfg.Request, Started: p.started}
	p.m.seeking = true
	p.m.mode, p.m.probation, p.m.delays = cfg.Takeover, cfg.Probation > 0, cfg.StopDelay > 0 || cfg.BeforeStop != nil
	p.m.kill = cfg.KillSilent > 0
	if cfg.MoveIdle == MoveIdleOff {
		p.noMoves = "turned off by its configuration"
	}
	return p
}

// post hands f to run; after the end f is dropped and post says false.
func (p *Process) post(f func()) bool {
	p.posting.RLock()
	defer p.posting.RUnlock()
	if p.closed {
		return false
	}
	select {
	case p.inbox <- f:
		return true
	case <-p.gone:
		return false
	}
}

// ask is post, and waits until f is done.
func (p *Process) ask(f func()) bool {
	done := make(chan struct{})
	if !p.post(func() { defer close(done); f() }) {
		return false
	}
	<-done // what post has taken is run, if only by emptyInbox
	return true
}

// run obeys the machine until it is gone, then closes what is left.
func (p *Process) run() {
	for p.m.state != StateGone {
		select {
		case f := <-p.inbox:
			f()
		case <-p.stopped:
			p.feed(event{kind: evStop})
		}
	}
	p.die()
	for _, t := range p.timers {
		t.stop()
	}
	p.beat.stop()
	for l := range p.retired {
		l.close()
	}
	p.elder.close()
	p.younger.close()
	for _, l := range p.shut {
		l.end()
	}
	p.sockets.stop()
	p.endDrainers()
	p.control.removeIfOwned()
	p.control.close()
	p.own.remove()
	p.changed()
	close(p.gone)
	p.emptyInbox()
	p.control.sayBye(p.report.Cut)
	p.control.closeConns()
	p.own.closeConns()
	p.work.Wait()
	close(p.joined)
}

// emptyInbox runs what was still put into the inbox: some of it owns descriptors.
func (p *Process) emptyInbox() {
	p.posting.Lock()
	p.closed = true
	p.posting.Unlock()
	for {
		select {
		case f := <-p.inbox:
			f()
		default:
			return
		}
	}
}

// feed gives the machine an event and does what it says. Actions may raise
// further events, which are fed after them.
func (p *Process) feed(ev event) {
	before := p.m.state
	acts := step(&p.m, ev)
	if p.m.state != before {
		p.stateChanged(before, p.m.state)
	}
	for _, a := range acts {
		if a.kind == actAccept && !p.beginServing() {
			// Not another word: `serving` would not be true. A successor gives
			// back, since its incumbent still can.
			p.feed(event{kind: evClose})
			return
		}
		p.perform(a)
	}
	p.watchPulses()
	if p.m.state == StateDraining || p.m.state == StateRevoked {
		p.closeDone() // it has stopped accepting
	}
	if p.attempt != nil && p.m.got && p.m.elder != phaseOffer {
		// Everything is here, or the incumbent died and what is here must do.
		p.noteForeign()
		p.endAttempt(attempt{})
	}
	p.changed()
}

func (p *Process) stateChanged(from, to State) {
	p.mu.Lock()
	p.state = to
	p.mu.Unlock()
	level := slog.LevelInfo
	if to == StateGone {
		level = slog.LevelDebug // the line with the reason follows
	}
	p.Logger().Log(context.Background(), level, "state", "from", from.String(), "to", to.String())
	if p.cfg.OnState != nil {
		p.cfg.OnState(from, to)
	}
	switch {
	case to == StateRevoked && p.m.unwell:
		p.setErr(p.unhealthy())
	case to == StateRevoked && !p.m.aborted:
		p.setErr(ErrRevoked)
	}
	if to == StateDraining || to == StateRevoked {
		p.setDrainTime()
	}
}

// closeDone is called when Err has its value: whoever waits for Done asks next.
func (p *Process) closeDone() {
	select {
	case <-p.done:
	default:
		close(p.done)
	}
}

func (p *Process) setErr(err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err == nil {
		p.err = err
	}
}

// perform does one action.
func (p *Process) perform(a action) {
	switch a.kind {
	case actSend:
		p.sendFrame(a)
	case actCloseLink:
		p.closeLink(a.side)
	case actAdmit:
		p.admit()
	case actOffer:
		p.offerNext()
	case actRetire:
		p.retired[p.younger], p.younger.side, p.younger = true, sideRetired, nil
	case actPark:
		p.pauseSingletons()
		p.sockets.setServing(false, true)
		p.markUnoffered() // a standby may have waited for long
		p.sockets.park()
	case actResume:
		p.resume(false)
	case actResumeExclusive:
		p.resume(true)
		p.resumeSingletons()
	case actStopAccepting:
		p.adopters.end()
		// Somebody else has the sockets; the singletons' end may take a moment.
		p.sockets.stopAccepting(p.younger != nil)
		p.control.close()
		p.pauseSingletons()
	case actDropSockets:
		if p.m.state == StateGone {
			p.sockets.stop()
		} else {
			p.sockets.detach() // to be filled by the next incumbent
		}
		p.control.close()
	case actRelease:
		p.adopters.end() // before nothing is served here, which a giver would take for a rejection
		p.shut = p.sockets.release()
	case actDelayStop:
		p.delayStop()
	case actShut:
		p.setEnding(true)
		p.adopters.end()
		p.pauseSingletons()
		// The path goes last: who comes meanwhile is told busy, and finds the
		// addresses free when it comes again.
		p.control.owned = true
		p.shut = p.sockets.shutDown()
	case actAnswer:
		p.beginAnswering()
	case actStopAnswering:
		p.answers = false
		p.control.close()
	case actDrain:
		p.beginDrain(a.plain)
		if p.m.state == StateRevoked {
			p.work.Go(p.register) // its link has ended
		}
	case actStartTimer:
		p.startTimer(a.timer)
	case actStopTimer:
		p.timers[a.timer].stop()
	case actPoll:
		if l := p.link(a.side); l != nil {
			l.poll()
		}
	case actRetry:
		p.retry()
	case actReportUnstopped:
		p.reportUnstopped(a.why)
	case actReportStopWaits:
		p.Logger().Warn("told to stop, but the incumbent that would serve then is silent: this process serves until that one answers or ends", "hint", "end the incumbent first, or let it continue; a second SIGTERM ends this one")
	case actReportUnhealthy:
		p.Logger().Error("unhealthy, and nobody can take back now: this process goes on", "error", p.complaint, "hint", "start another version")
	case actReportSilent:
		p.reportSilent(a.side)
	case actReportHeard:
		p.reportHeard(a.side)
	case actStandIn:
		p.standIn()
	case actStandAside:
		p.standAside()
	case actKill:
		p.killElder()
	case actReply:
		p.answer = a.reply
	case actOutcome:
		p.recordOutcome(a.outcome, a.why)
	case actEnd:
		p.ended(a.why)
	}
}

func (p *Process) link(s side) *link {
	switch s {
	case sideElder:
		return p.elder
	case sideAsker:
		return p.asker
	}
	return p.younger
}

// beginServing accepts on everything, and closes what nobody asked for.
func (p *Process) beginServing() bool {
	err := p.refill() // of a spare whose next incumbent died while it sent
	p.dropUnclaimed()
	if err == nil {
		err = p.sockets.accept()
	}
	if err != nil {
		p.Logger().Error("can't serve", "error", err)
		if p.m.elder != phaseNone || p.intake.total == 0 {
			p.setErr(err)
			return false
		}
		// The incumbent is dead: what can be served is, and the rest is tried again.
		p.mendLater()
	}
	select {
	case <-p.serving:
	default:
		p.mu.Lock()
		p.servesFrom = time.Now()
		p.mu.Unlock()
		close(p.serving)
	}
	p.resumeSingletons()
	return true
}

func (p *Process) resume(exclusive bool) {
	if err := p.sockets.resume(exclusive); err != nil {
		p.Logger().Error("a socket can't be resumed yet, it is tried again", "error", err)
		p.mendLater()
	}
}

// mendEvery is how often what could not be opened is tried again.
const mendEvery = 200 * time.Millisecond

// mendLater tries again what failed for want of descriptors, where nobody else
// could do it instead: to accept, and to answer the control socket.
func (p *Process) mendLater() {
	if p.mending {
		return
	}
	p.mending = true
	p.later(mendEvery, func() {
		p.mending = false
		if p.m.state == StateServing && p.sockets.acceptMissing(p.m.held) != nil {
			p.mendLater()
		}
		if p.answers {
			p.beginAnswering()
		}
	})
}

// ended is the machine's last action.
func (p *Process) ended(why reason) {
	switch {
	case p.fault != nil:
		p.setErr(p.fault)
	case why == whyRevoked:
		p.setErr(ErrRevoked)
	case why == whyUnhealthy:
		p.setErr(p.unhealthy())
	case why == whyRefused:
		p.setErr(ErrRefused)
	case why == whySilent:
		p.setErr(fmt.Errorf("%w (%s)", ErrSilent, pidText(p.incumbent)))
	case why == whyProtocol:
		p.setErr(ErrProtocol)
	case why == whyTimeout, why == whyDisplaced, why == whyWithdrawn, why == whyRollback:
		p.setErr(fmt.Errorf("%w: %s", ErrRevoked, why))
	}
	p.closeDone()
	p.mu.Lock()
	p.report.Reason, p.report.Answered, p.report.Moved = string(why), p.answered.Load(), p.moved.Load()
	err := p.err
	p.mu.Unlock()
	if p.attempt != nil {
		if err == nil {
			err = ErrStopped
		}
		p.endAttempt(attempt{err: err})
	}
	switch {
	case p.Generation() == 0: // Start returns what went wrong
	case err != nil:
		p.Logger().Error("gone", "reason", string(why), "error", err)
	default:
		p.Logger().Info("gone", "reason", string(why))
	}
}

// runningTimer is a timer of the machine.
type runningTimer struct {
	t   *time.Timer
	due time.Time
}

func (r *runningTimer) stop() {
	if r != nil {
		r.t.Stop()
	}
}

// lateAfter is how much later than due a timer may come before it is taken for
// one that ran while this process was itself stopped (the monotonic clock goes
// on under SIGSTOP).
const lateAfter = time.Second

func (p *Process) startTimer(kind timerKind) {
	p.timers[kind].stop()
	d := p.cfg.StepTimeout
	switch kind {
	case timerReady, timerOwed:
		d = p.cfg.ReadyTimeout
	case timerProbation:
		d = p.cfg.Probation
		p.deadline = time.Now().Add(d)
	}
	r := &runningTimer{due: time.Now().Add(d)}
	p.timers[kind] = r
	r.t = time.AfterFunc(d, func() {
		p.post(func() {
			if p.timers[kind] == r { // not one that was stopped, or started anew, meanwhile
				p.feed(event{kind: evTimer, timer: kind, late: time.Since(r.due) > lateAfter})
			}
		})
	})
}

// endAttempt tells join, which waits, how its attempt went.
func (p *Process) endAttempt(a attempt) {
	p.attempt <- a
	p.attempt = nil
}

// retry: what was tried did not work out for a reason that passes.
func (p *Process) retry() {
	if p.attempt != nil {
		p.endAttempt(attempt{again: true, why: p.busy})
		return
	}
	// A spare that gave way registers with the next incumbent by itself.
	p.work.Go(func() {
		if err := p.join(p.life); err != nil && !errors.Is(err, context.Canceled) {
			p.post(func() { p.fault = err; p.feed(event{kind: evClose}) })
		}
	})
}
