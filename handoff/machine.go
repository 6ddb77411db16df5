package handoff

import "fmt"

// The state machine of one process: events in, actions out. It has no clock,
// no socket and no goroutine, so that a test can walk all of it
// (machine_walk_test.go). Process.run feeds it and obeys it; nothing else
// decides who serves.
//
// A process has at most two links: one up to its elder (the incumbent it takes
// over from) and one down to its younger (its successor). A link whose younger
// was revoked is retired: the machine only waits to hear that it ended.

// State is what one process is doing in the chain of generations.
type State uint8

// The states in the order of a life without incident. Parked and releasing lead
// back to serving when the incumbent takes back; standby leads to serving also
// when the incumbent dies.
const (
	StateStarting  State = iota // sockets are on their way, or being opened
	StateStandby                // ready; waits to be told, or for the incumbent's death
	StateServing                // accepts
	StateParked                 // probation: has handed over, and can take back
	StateReleasing              // asked the successor to confirm that it is on its own
	StateDraining               // finishes what is open; can't be undone
	StateRevoked                // was told to stop; finishes what it had accepted
	StateGone
)

var stateNames = [...]string{"starting", "standby", "serving", "parked", "releasing", "draining", "revoked", "gone"}

func (s State) String() string {
	if int(s) < len(stateNames) {
		return stateNames[s]
	}
	return fmt.Sprintf("State(%d)", uint8(s))
}

// phase is how far a link has come, the same words on both ends.
type phase uint8

const (
	phaseNone     phase = iota // no link
	phaseHello                 // hello is out, nothing is promised
	phaseOffer                 // welcome; sockets are being sent
	phaseHeld                  // every batch arrived and was acknowledged
	phaseReady                 // ready: the successor is a standby
	phaseServe                 // serve is out, `serving` has not come back (the incumbent's end only)
	phaseServing               // serving: committed, probation
	phaseRelease               // release is out (the incumbent's end only)
	phaseReleased              // released is out, `draining` has not come; at the incumbent's end it was read, and what is behind it is looked at
	phaseDraining              // the incumbent drains; it can't take back any more
)

// side names the link an event came from or an action goes to.
type side uint8

const (
	sideElder   side = iota // up: to the incumbent
	sideYounger             // down: to the successor
	sideRetired             // down: to a successor that was revoked after it had been told to serve
	sideAsker               // the connection that the present hello came on
)

type eventKind uint8

const (
	evHello     eventKind = iota // somebody asks to become the successor (mode)
	evFrame                      // a frame was read from a link (side, msg)
	evReset                      // ECONNRESET or EPIPE on a link: not the end, its last words may still be unread
	evEOF                        // a link was read to its end, or its peer is dead
	evBad                        // a frame that has no place here
	evHeard                      // something, whatever it was, was read from the link on side, and dealt with, while the machine expects it
	evAppReady                   // the program called Ready
	evStop                       // SIGTERM, Stop, or the operator's stop
	evClose                      // Close: end at once
	evDrained                    // nothing is open any more, or the drain deadline has passed
	evTimer                      // a timer fired (timer, late)
	evEmpty                      // the link that actPoll named was read empty
	evHandover                   // the operator's verbs
	evRollback                   //
	evUnhealthy                  // the program says that it can't do its work
	evWithdraw                   // the present successor is sent away before it serves (why)
	evTakeOut                    // the operator's drain: nobody is to succeed
	evHammer                     // what is still waited for on the way out is waited for no more
	evDelayed                    // the stop delay is over
	evNobody                     // there is no incumbent at the path: this process is the first
	evDialed                     // connected to the incumbent, hello is out
)

type timerKind uint8

const (
	timerStep          timerKind = iota // a batch was sent, `got` is due
	timerReady                          // everything was sent, `ready` is due
	timerServing                        // serve was sent, `serving` is due
	timerProbation                      // the end of probation
	timerReleased                       // release was sent, `released` is due
	timerOffer                          // hello was sent, the incumbent's next word is due
	timerOwed                           // a stop is owed, and so was the successor told to stop: another one is due
	timerElderSilent                    // the elder missed its heartbeats; this and the next two are not started, but raised by heartbeat.go
	timerKillSilent                     // and has for so long that it is to be ended
	timerYoungerSilent                  // the younger missed its heartbeats
	timerCount
)

var timerNames = [...]string{"step", "ready", "serving", "probation", "released", "offer", "owed", "elder_silent", "kill_silent", "younger_silent"}

func (t timerKind) String() string { return timerNames[t] }

// side is the link that must be read empty before the timer may act; sideAsker is
// none.
func (t timerKind) side() side {
	switch t {
	case timerOffer, timerElderSilent, timerKillSilent:
		return sideElder
	case timerOwed:
		return sideAsker
	}
	return sideYounger
}

// ofHeartbeats: such a timer is not started, and counts while watches says so.
func (t timerKind) ofHeartbeats() bool { return t >= timerElderSilent }

func (t timerKind) bit() uint16 { return 1 << t }

type event struct {
	kind  eventKind
	side  side
	msg   msgType
	last  bool     // sockets, got: the last batch
	mode  Takeover // evHello
	timer timerKind
	late  bool   // evTimer: it fired while this very process was stopped
	full  bool   // evHello: as many older generations drain as may
	why   reason // busy, refuse, revoke: the reason that was read; evBad: why, if it is not the protocol
}

type actionKind uint8

const (
	actSend            actionKind = iota // send msg, with why, on side
	actCloseLink                         // close the link on side
	actAdmit                             // the asker's connection becomes the younger link
	actOffer                             // begin to send the sockets on the younger link
	actAccept                            // begin to accept on every socket that this process holds
	actPark                              // stop accepting without closing, except on sockets the successor rejected
	actResume                            // accept again on parked sockets, except exclusive ones
	actResumeExclusive                   // accept again on parked exclusive sockets, and run singletons
	actStopAccepting                     // stop accepting for good and close every socket; files stay
	actRelease                           // close the parked copies, close what was rejected and remove its files; files of handed sockets stay
	actDropSockets                       // close sockets that were never served
	actDelayStop                         // a plain stop begins: not ready any more, but accepting; evDelayed follows
	actShut                              // plain stop: accept what is queued, close everything, remove the files this process owns
	actAnswer                            // begin to answer the control socket
	actStopAnswering                     // stop answering it and close this copy; the path stays
	actDrain                             // begin to drain; evDrained follows
	actStartTimer                        //
	actStopTimer                         //
	actPoll                              // read the link on side until it is empty, then raise evEmpty
	actRetire                            // the younger link, already told revoke, is only waited for from now on
	actRetry                             // close what was tried and look for the incumbent again
	actKill                              // end the elder's process (by pidfd)
	actReportUnstopped                   // say that a stop was not carried out, because nobody succeeds (why)
	actReportStopWaits                   // say that a stop waits for the silent elder, which would have to serve then
	actReportSilent                      // say that the peer on side is alive but silent
	actReportHeard                       // say that it answers again
	actReportUnhealthy                   // say that this process is unhealthy, and nobody can take back
	actStandIn                           // answer the control socket's questions in the stead of the silent elder; verbs are refused
	actStandAside                        // leave them to the elder again
	actReply                             // answer the operator's verb
	actOutcome                           // record how the handoff went (outcome, why)
	actEnd                               // this process's part is over (why)
	actionCount
)

// reply answers an operator's verb.
type reply uint8

const (
	replyOK reply = iota
	replyAlready
	replyNoStandby
	replySpare
	replySilent
	replyNotNow
)

// reason is why a link or a process ended; it travels in frames.
type reason string

const (
	whyNone        reason = ""
	whyStarting    reason = "starting"      // busy: not serving yet
	whyHandoff     reason = "handoff"       // busy: another successor is on its way
	whyProbation   reason = "probation"     // busy: the last handoff can still be taken back
	whyStopping    reason = "stopping"      // busy: this process is about to end
	whyReleased    reason = "released"      // busy: the successor answers now, ask again
	whyRevoking    reason = "revoking"      // busy: a revoked successor may still read an exclusive socket
	whyMaxDraining reason = "max_draining"  // busy: as many older generations drain as may
	whyDisplaced   reason = "displaced"     // revoke: a spare gives way
	whyWithdrawn   reason = "withdrawn"     // refuse, revoke: its request was withdrawn
	whyTimeout     reason = "timeout"       // revoke: an answer did not come in time
	whyRollback    reason = "rollback"      // revoke: the operator took back
	whyProtocol    reason = "protocol"      // revoke, abort: a frame that has no place there
	whyForeign     reason = "foreign_netns" // abort: a socket of another network namespace was offered, which the successor does not allow
	whyAborted     reason = "aborted"       // the successor gave up by itself
	whyDied        reason = "died"          // the link ended without a word
	whyDraining    reason = "draining"      // revoke: an operator takes the service out, nobody is to succeed
	whyStopped     reason = "stopped"       // plain stop; revoke: an operator stopped that successor
	whyHandedOver  reason = "handed_over"   // the good end
	whyRevoked     reason = "revoked"       // was told to stop after it had served
	whyRefused     reason = "refused"       // the incumbent refused
	whySilent      reason = "silent"        // the peer is connected but says nothing; busy: that is so of the incumbent
	whyUnhealthy   reason = "unhealthy"     // the successor reported itself unhealthy
	whyClosed      reason = "closed"        // Close
)

// outcome is how far a handoff came, as its request id shows it in the status.
type outcome uint8

const (
	outcomeStarting outcome = iota
	outcomeStandby
	outcomeCommitted
	outcomeReleased
	outcomeFailed
	outcomeRolledBack
)

type action struct {
	kind    actionKind
	side    side
	msg     msgType
	timer   timerKind
	reply   reply
	outcome outcome
	plain   bool // actDrain: nobody succeeds
	why     reason
}

// machine is comparable and small on purpose: the walk stores millions of copies.
type machine struct {
	state State
	mode  Takeover

	elder phase
	got   bool // sockets arrived over the present elder link

	younger     phase
	youngerMode Takeover
	revoking    uint8 // retired links that have not ended

	seeking   bool // nobody was met at the path yet, or not again: who serves is not known
	appReady  bool // the program called Ready
	wanted    bool // a handover was asked for before the successor was ready
	stopping  bool // a stop waits: for a starting successor, or for the elder's last word
	hurry     bool // release without probation
	asked     bool // this handover is how a stop is done
	owed      bool // a stop's handover was taken back: the next successor that is ready is handed over to
	delays    bool // a plain stop is delayed
	leaving   bool // it is being delayed: accepts, and hands over to whoever comes
	out       bool // the service is taken out: whoever asks to succeed is refused
	exclusive bool // some socket is declared exclusive, or some job is a singleton
	held      bool // exclusive sockets and singletons wait for a revoked successor to end
	released  bool // a successor confirmed that it is on its own
	aborted   bool // revoked by its own word, not by the incumbent's
	probation bool // there is a probation; false releases at once after commit
	kill      bool // a silent incumbent is ended
	silent    bool // the elder is: this process stands in for it
	mute      bool // the younger, a standby, is silent
	sick      bool // unhealthy, beside an elder that is silent
	unwell    bool // revoked by its own word, since it is unhealthy

	armed   uint16 // timers that run, by bit
	pending uint16 // timers that wait for their link to be read empty, by bit
}

// sole says that nobody can take back from this process: it alone decides who is next.
func (m *machine) sole() bool {
	return m.state == StateServing && (m.elder == phaseNone || m.elder == phaseDraining)
}

// watches says whether a timer of heartbeats counts now. Between serve and
// serving, and while sockets are sent, other timers bound the peer's silence.
func (m *machine) watches(t timerKind) bool {
	switch t {
	case timerElderSilent, timerKillSilent:
		return m.elder == phaseReady || m.elder == phaseServing || m.elder == phaseReleased
	case timerYoungerSilent:
		return m.younger == phaseReady || m.younger == phaseServing || m.younger == phaseRelease
	}
	return false
}

// expects says that it matters now whether something is heard on side: the peer is
// called silent, or is about to be.
func (m *machine) expects(s side) bool {
	return s == sideElder && m.silent || s == sideYounger && m.mute || m.pending != 0
}

// step feeds one event to the machine and returns what must be done, in order.
func (m *machine) step(ev event) []action {
	o := &steps{m: m}
	switch ev.kind {
	case evHello:
		o.hello(ev.mode, ev.full)
	case evFrame:
		switch ev.side {
		case sideElder:
			o.elderFrame(ev)
		case sideYounger:
			o.youngerFrame(ev)
		case sideRetired:
			o.retiredFrame(ev.msg)
		}
	case evReset:
		// † A reset overtakes the frames that are still queued; a revoke may be
		// among them. The link's end is evEOF and nothing else.
	case evEOF:
		o.ended(ev.side)
	case evBad:
		o.bad(ev.side, ev.why)
	case evHeard:
		o.heard(ev.side)
	case evAppReady:
		o.appReady()
	case evStop:
		o.stop()
	case evClose:
		o.close()
	case evDrained:
		if m.state == StateDraining || m.state == StateRevoked {
			o.leave()
		}
	case evTimer:
		o.timer(ev.timer, ev.late)
	case evEmpty:
		o.empty(ev.side)
	case evHandover:
		o.handover()
	case evRollback:
		o.rollback()
	case evUnhealthy:
		o.unhealthy()
	case evWithdraw:
		o.withdraw(ev.why)
	case evTakeOut:
		o.takeOut()
	case evHammer:
		o.hammer()
	case evDelayed:
		o.delayed()
	case evNobody:
		m.elder, m.seeking = phaseNone, false
		o.do(action{kind: actAnswer})
		o.serveIfReady()
	case evDialed:
		m.elder, m.seeking = phaseHello, false
		o.start(timerOffer)
	}
	return o.acts
}

// steps collects the actions of one step.
type steps struct {
	m    *machine
	acts []action
}

func (o *steps) do(a action) { o.acts = append(o.acts, a) }

func (o *steps) send(s side, msg msgType, why reason) {
	o.do(action{kind: actSend, side: s, msg: msg, why: why})
}

func (o *steps) start(t timerKind) {
	o.m.armed |= t.bit()
	o.m.pending &^= t.bit() // it begins anew
	o.do(action{kind: actStartTimer, timer: t})
}

func (o *steps) stopTimer(t timerKind) {
	o.m.pending &^= t.bit()
	if o.m.armed&t.bit() != 0 {
		o.m.armed &^= t.bit()
		o.do(action{kind: actStopTimer, timer: t})
	}
}

func (o *steps) stopTimers(s side) {
	for t := range timerCount {
		if t.side() == s {
			o.stopTimer(t)
		}
	}
}

func (o *steps) outcome(out outcome, why reason) {
	o.do(action{kind: actOutcome, outcome: out, why: why})
}

func (o *steps) reply(r reply) { o.do(action{kind: actReply, reply: r}) }

func (o *steps) end(why reason) {
	o.stopTimers(sideElder)
	o.stopTimers(sideYounger)
	o.stopTimer(timerOwed)
	o.m.state = StateGone
	o.do(action{kind: actEnd, why: why})
}
