package handoff

import "cmp"

// What the machine does when something ends: links, waits, the process itself.

// ended: a link was read to its end, or its peer is dead.
func (o *steps) ended(s side) {
	if o.m.state == StateGone {
		return
	}
	switch s {
	case sideElder:
		if o.m.state != StateRevoked {
			o.elderEnded()
		}
	case sideYounger:
		o.youngerEnded(whyNone, false)
	case sideRetired:
		o.retiredEnded()
	}
}

// bad: the peer said something that has no place here. It is not believed any
// more; what that means depends on who can still do without it. why is none where the
// peer broke the protocol.
func (o *steps) bad(s side, why reason) {
	m := o.m
	switch {
	case m.state == StateGone || s == sideRetired:
	case s == sideElder:
		// Before it serves, a successor leaves; while it serves, it goes on.
		if m.state == StateStarting || m.state == StateStandby {
			o.abort(cmp.Or(why, whyProtocol))
		}
	case m.younger == phaseNone || m.state == StateDraining:
	case m.state == StateParked || m.state == StateReleasing:
		o.takeBack(whyProtocol, false)
	default:
		o.dismiss(whyProtocol)
	}
}

// timer: a timer that fired while this process was itself stopped says nothing
// about the peer; and none acts before its link was read empty, because the
// answer may be waiting there. †
func (o *steps) timer(t timerKind, late bool) {
	m := o.m
	switch {
	case t.ofHeartbeats():
		if late || !m.watches(t) {
			return // the next heartbeat tells more
		}
	case m.armed&t.bit() == 0:
		return
	case late:
		o.start(t)
		return
	case t == timerOwed:
		m.armed &^= t.bit()
		o.nobodyCame()
		return
	}
	m.pending |= t.bit()
	o.do(action{kind: actPoll, side: t.side()})
}

// empty: the link was read empty; the timers that waited for it act, unless what
// was read has stopped them.
func (o *steps) empty(s side) {
	m := o.m
	if s == sideYounger && m.state == StateReleasing && m.younger == phaseReleased {
		o.drain()
		return
	}
	for t := range timerCount {
		if t.side() != s || m.pending&t.bit() == 0 {
			continue
		}
		m.pending &^= t.bit()
		switch {
		case t.ofHeartbeats():
			if m.watches(t) {
				o.silent(t)
			}
		case m.armed&t.bit() != 0:
			m.armed &^= t.bit()
			o.due(t)
		}
	}
}

// due: what the timer waited for did not come.
func (o *steps) due(t timerKind) {
	switch t {
	case timerStep, timerReady:
		o.dismiss(whyTimeout)
	case timerServing, timerReleased:
		o.takeBack(whyTimeout, false)
	case timerProbation:
		o.release()
	case timerOffer:
		o.abort(whySilent)
	}
}

// silent: heartbeats were missed, by a process that is alive.
func (o *steps) silent(t timerKind) {
	m := o.m
	switch {
	case t == timerKillSilent && m.silent && m.kill:
		o.do(action{kind: actKill, side: sideElder})
	case t == timerElderSilent && !m.silent:
		// It is not dead, so nothing changes hands. †
		m.silent = true
		o.do(action{kind: actReportSilent, side: sideElder})
		o.do(action{kind: actStandIn})
	case t == timerYoungerSilent && m.younger != phaseReady:
		o.takeBack(whySilent, false)
	case t == timerYoungerSilent && !m.mute:
		m.mute = true
		o.do(action{kind: actReportSilent, side: sideYounger})
	}
}

// heard: who speaks is not silent.
func (o *steps) heard(s side) {
	m := o.m
	for t := timerElderSilent; t < timerCount; t++ {
		if t.side() == s {
			m.pending &^= t.bit()
		}
	}
	switch {
	case s == sideElder && m.silent:
		m.silent = false
		o.do(action{kind: actReportHeard, side: sideElder})
		o.do(action{kind: actStandAside})
		switch {
		case m.elder != phaseServing:
		case m.sick:
			o.unhealthy()
		case m.stopping:
			m.stopping = false
			o.stop()
		}
	case s == sideYounger && m.mute:
		m.mute = false
		o.do(action{kind: actReportHeard, side: sideYounger})
	}
}

// unhealthy: the program can't do its work. Whoever can still take back does.
func (o *steps) unhealthy() {
	m := o.m
	switch {
	case m.state == StateGone || m.state >= StateParked:
	case m.state == StateServing && m.elder == phaseServing && !m.silent, m.state != StateServing && m.elder != phaseNone:
		m.unwell = true
		o.abort(whyUnhealthy)
	default:
		m.sick = m.elder == phaseServing // until the elder is heard, or ends
		o.do(action{kind: actReportUnhealthy})
	}
}

// stop is what SIGTERM means in each state.
func (o *steps) stop() {
	m := o.m
	switch m.state {
	case StateStarting, StateStandby:
		o.quit(whyStopped)
	case StateServing:
		o.settleOwed() // this one takes its place
		switch {
		case m.leaving:
		case m.elder == phaseServing && m.silent:
			// To give back to it would end the service.
			m.stopping = true
			o.do(action{kind: actReportStopWaits})
		case m.elder == phaseServing:
			o.abort(whyStopped)
		case m.elder == phaseReleased:
			// Who serves is being decided; its answer is on its way.
			m.stopping = true
		case m.younger == phaseReady && m.mute:
			// As after a handover that failed, without having parked for it.
			o.dismiss(whySilent)
			o.unstopped(whySilent)
		case m.younger == phaseReady:
			m.stopping = true
			o.commit()
		case m.younger == phaseOffer || m.younger == phaseHeld:
			m.stopping = true // bounded by timerStep and timerReady
		default:
			o.plainStop()
		}
	case StateReleasing:
		m.asked = true
	case StateParked:
		m.hurry = true
		if m.younger == phaseServing {
			o.release()
		}
	}
}

// quit leaves before this process has served.
func (o *steps) quit(why reason) {
	if o.m.elder != phaseNone {
		o.abort(why)
		return
	}
	o.do(action{kind: actShut})
	o.end(whyStopped)
}

// nobodyCame: the successor to which a stop had handed over was told to stop as well,
// and nobody else has come since. So the whole service is taken down.
func (o *steps) nobodyCame() {
	if o.m.younger != phaseNone {
		o.start(timerOwed) // somebody has; if that one fails, there may be another
		return
	}
	o.plainStop()
}

// plainStop ends the chain: nobody succeeds. Where it is delayed, this process
// accepts until then, so that whoever routes traffic to it can turn away first; and
// who comes meanwhile succeeds after all.
func (o *steps) plainStop() {
	o.settleOwed()
	if !o.m.delays {
		o.shut()
		return
	}
	o.m.leaving = true
	o.do(action{kind: actDelayStop})
}

// delayed: the delay of a plain stop is over.
func (o *steps) delayed() {
	switch m := o.m; {
	case !m.leaving:
	case m.younger == phaseOffer || m.younger == phaseHeld:
		m.stopping = true // bounded by timerStep and timerReady
	default:
		o.shut()
	}
}

func (o *steps) shut() {
	o.m.state, o.m.leaving = StateDraining, false
	o.do(action{kind: actShut})
	o.do(action{kind: actDrain, plain: true})
}

// takeOut is a plain stop that no successor prevents.
func (o *steps) takeOut() {
	m := o.m
	switch {
	case m.leaving || m.state == StateDraining && !m.released:
		m.out = true
		o.reply(replyAlready)
		if m.leaving && m.younger != phaseNone {
			o.dismiss(whyDraining)
		}
	case !m.sole():
		o.reply(replyNotNow)
	default:
		m.stopping, m.out = false, true
		o.settleOwed()
		o.reply(replyOK)
		if m.younger != phaseNone {
			o.dismiss(whyDraining)
		}
		// Who was told busy asks again within the delay, and is refused.
		m.leaving = true
		o.do(action{kind: actDelayStop})
	}
}

// hammer ends what a stop still waits for.
func (o *steps) hammer() {
	m := o.m
	switch {
	case m.state != StateServing || !m.stopping && !m.leaving:
	case m.elder == phaseServing:
		m.stopping = false
		o.abort(whyStopped)
	case m.younger == phaseOffer:
		m.stopping = false
		o.dismiss(whyStopped)
		o.shut()
	case m.younger == phaseHeld:
		// It has everything, and serves as soon as it is ready: clients wait
		// in the queues until then.
		o.stopTimers(sideYounger)
		o.do(action{kind: actStopAccepting})
		o.send(sideYounger, msgBye, whyNone)
		o.do(action{kind: actCloseLink, side: sideYounger})
		m.state, m.younger, m.stopping, m.leaving = StateDraining, phaseNone, false, false
		o.do(action{kind: actDrain})
	case m.leaving:
		o.shut()
	}
}

// close ends this process at once.
func (o *steps) close() {
	m := o.m
	switch m.state {
	case StateGone:
	case StateStarting, StateStandby:
		o.quit(whyAborted)
	case StateServing:
		if m.sole() && m.younger == phaseNone {
			o.do(action{kind: actShut})
			o.leave()
			return
		}
		o.do(action{kind: actStopAccepting})
		if m.elder == phaseServing {
			o.send(sideElder, msgAbort, whyClosed)
		}
		o.leave()
	default:
		o.do(action{kind: actStopAccepting})
		o.leave()
	}
}

// leave closes the links, each with a word, and ends.
func (o *steps) leave() {
	m := o.m
	why := whyStopped
	switch {
	case m.state == StateRevoked && m.unwell:
		why = whyUnhealthy
	case m.state == StateRevoked && !m.aborted:
		why = whyRevoked
	case m.released:
		why = whyHandedOver
	case m.state != StateDraining && m.state != StateRevoked:
		why = whyClosed
	}
	for _, l := range []struct {
		s side
		p *phase
	}{{sideYounger, &m.younger}, {sideElder, &m.elder}} {
		if *l.p != phaseNone {
			o.send(l.s, msgBye, whyNone)
			o.do(action{kind: actCloseLink, side: l.s})
			*l.p = phaseNone
		}
	}
	o.end(why)
}
