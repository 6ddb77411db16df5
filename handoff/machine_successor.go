package handoff

// What the machine does as the younger end of a link: the successor.

func (o *steps) elderFrame(ev event) {
	m := o.m
	if m.state == StateGone || m.state == StateRevoked {
		return
	}
	switch {
	case ev.msg == msgWelcome && m.elder == phaseHello:
		m.elder = phaseOffer
		o.start(timerOffer)
	case ev.msg == msgBusy && m.elder == phaseHello:
		o.again()
	case ev.msg == msgRefuse && m.elder == phaseHello:
		o.giveUp(whyRefused)
	case ev.msg == msgSockets && m.elder == phaseOffer:
		m.got = true
		o.send(sideElder, msgGot, whyNone)
		if !ev.last {
			o.start(timerOffer)
			return
		}
		m.elder = phaseHeld
		o.stopTimer(timerOffer)
		o.standbyIfReady()
	case ev.msg == msgServe && m.elder == phaseReady:
		m.elder, m.state = phaseServing, StateServing
		o.do(action{kind: actAccept})
		o.send(sideElder, msgServing, whyNone)
	case ev.msg == msgRelease && m.elder == phaseServing:
		m.elder = phaseReleased
		o.send(sideElder, msgReleased, whyNone)
	case ev.msg == msgDraining && m.elder == phaseReleased:
		m.elder = phaseDraining
		o.alone(whyNone)
	case ev.msg == msgDraining && m.elder == phaseDraining:
		// Repeated: the driver reads what is in it.
	case ev.msg == msgRevoke:
		o.revoked(ev.why)
	case ev.msg == msgPing && m.elder != phaseHello:
		o.send(sideElder, msgPong, whyNone)
	case ev.msg == msgPong && m.elder != phaseHello:
		// Heard, as every frame is.
	case ev.msg == msgBye:
		o.ended(sideElder)
	default:
		o.bad(sideElder, whyNone)
	}
}

// revoked obeys the incumbent, which decides alone until it has said draining. †
func (o *steps) revoked(why reason) {
	m := o.m
	switch m.elder {
	case phaseOffer, phaseHeld, phaseReady:
		if m.mode == Spare && why == whyDisplaced {
			o.again()
			return
		}
		o.giveUp(why)
	case phaseServing, phaseReleased:
		m.state = StateRevoked
		o.do(action{kind: actStopAccepting})
		o.send(sideElder, msgRevoked, whyNone)
		o.leaveElder()
		o.do(action{kind: actDrain})
	}
}

// again lets go of what was offered and looks for the incumbent anew.
func (o *steps) again() {
	m := o.m
	o.leaveElder()
	o.do(action{kind: actDropSockets})
	m.got, m.state, m.seeking = false, StateStarting, true
	o.do(action{kind: actRetry})
}

// giveUp ends a process that never served.
func (o *steps) giveUp(why reason) {
	o.leaveElder()
	o.do(action{kind: actDropSockets})
	o.end(why)
}

// leaveElder ends this process's part as the successor of somebody.
func (o *steps) leaveElder() {
	m := o.m
	o.stopTimers(sideElder)
	if m.silent {
		m.silent = false
		o.do(action{kind: actStandAside})
	}
	o.do(action{kind: actCloseLink, side: sideElder})
	m.elder = phaseNone
}

// alone follows the incumbent's last word on who serves: from here on this
// process answers the control socket and decides who is next.
func (o *steps) alone(why reason) {
	o.do(action{kind: actAnswer})
	o.outcome(outcomeReleased, why)
	if o.m.stopping {
		o.m.stopping = false
		o.stop()
	}
}

// elderEnded is the incumbent's death, or its bye: whoever holds sockets serves.
func (o *steps) elderEnded() {
	m := o.m
	was := m.elder
	if was == phaseNone {
		return
	}
	o.stopTimers(sideElder)
	m.elder, m.silent = phaseNone, false
	switch was {
	case phaseHello, phaseOffer, phaseHeld:
		if !m.got {
			o.again()
			return
		}
		// The control listener came first, so there is somebody to answer. What
		// did not arrive is opened afresh as the program asks for it.
		o.do(action{kind: actAnswer})
		o.serveIfReady()
	case phaseReady:
		m.state = StateServing
		o.do(action{kind: actAccept})
		o.alone(whyDied)
	case phaseServing, phaseReleased:
		o.alone(whyDied)
	}
	o.do(action{kind: actCloseLink, side: sideElder})
}

// appReady: the program is ready to serve.
func (o *steps) appReady() {
	o.m.appReady = true
	o.standbyIfReady()
	o.serveIfReady()
}

func (o *steps) standbyIfReady() {
	m := o.m
	if m.appReady && m.state == StateStarting && m.elder == phaseHeld {
		m.elder, m.state = phaseReady, StateStandby
		o.send(sideElder, msgReady, whyNone)
	}
}

// serveIfReady serves where there is no incumbent: the first generation, or one
// whose incumbent died while it was starting.
func (o *steps) serveIfReady() {
	m := o.m
	if m.appReady && m.state == StateStarting && m.elder == phaseNone && !m.seeking {
		m.state = StateServing
		o.do(action{kind: actAccept})
		o.outcome(outcomeReleased, whyNone)
	}
}

// abort ends a successor of its own will; its incumbent resumes or goes on.
func (o *steps) abort(why reason) {
	m := o.m
	served := m.state == StateServing
	if served {
		o.do(action{kind: actStopAccepting}) // before the word that says so
	}
	o.send(sideElder, msgAbort, why)
	if !served {
		o.giveUp(why)
		return
	}
	o.leaveElder()
	m.state, m.aborted = StateRevoked, true
	o.do(action{kind: actDrain})
}
