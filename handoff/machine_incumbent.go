package handoff

// What the machine does as the older end of a link: the incumbent.

// hello admits one successor at a time: at most one living, unrevoked
// successor holds descriptors. †
//
// Whether too many drain is looked at last: it is the one reason that an operator
// can do something about, so it is not said where another would come first; and a
// spare is not displaced for a successor that isn't admitted. A spare itself makes
// nothing drain that would not have drained without it: it succeeds at the
// incumbent's death or stop only.
func (o *steps) hello(mode Takeover, full bool) {
	m := o.m
	if m.out {
		o.send(sideAsker, msgRefuse, whyDraining)
		return
	}
	why := whyNone
	switch {
	case m.silent:
		why = whySilent // and this process only stands in for it
	case m.state == StateStarting || m.state == StateStandby:
		why = whyStarting
	case m.state == StateDraining || m.state == StateRevoked || m.state == StateGone:
		why = whyReleased
	case m.state != StateServing || !m.sole():
		why = whyProbation
	case m.stopping:
		why = whyStopping
	case m.revoking > 0 && m.exclusive:
		why = whyRevoking
	case m.younger != phaseNone && !m.givesWay(mode):
		why = whyHandoff
	case full && mode != Spare:
		why = whyMaxDraining
	}
	if why != whyNone {
		o.send(sideAsker, msgBusy, why)
		return
	}
	switch {
	case m.younger == phaseNone:
	case m.youngerMode == Spare:
		o.dismiss(whyDisplaced)
	default:
		o.dismiss(whySilent)
	}
	m.younger, m.youngerMode = phaseOffer, mode
	o.do(action{kind: actAdmit})
	o.send(sideYounger, msgWelcome, whyNone)
	o.do(action{kind: actOffer})
	o.start(timerStep)
}

// givesWay says whether the younger, which is there, makes room for another one: a
// spare for whoever is none, and one that is silent for whoever is no less than it.
func (m *machine) givesWay(mode Takeover) bool {
	return mode != Spare && (m.mute || m.youngerMode == Spare) || m.mute && m.youngerMode == Spare
}

// dismiss revokes a successor that was never told to serve.
func (o *steps) dismiss(why reason) {
	o.stopTimers(sideYounger)
	o.outcome(outcomeFailed, why)
	o.send(sideYounger, msgRevoke, why)
	o.do(action{kind: actCloseLink, side: sideYounger})
	o.m.younger, o.m.wanted, o.m.mute = phaseNone, false, false
	o.stopIfAsked()
}

// stopIfAsked: the successor that a stop waited for did not come.
func (o *steps) stopIfAsked() {
	if !o.m.stopping {
		return
	}
	o.m.stopping = false
	if o.m.leaving { // it was delayed for long enough
		o.shut()
		return
	}
	o.plainStop()
}

func (o *steps) youngerFrame(ev event) {
	m := o.m
	switch {
	case m.younger == phaseNone || m.state == StateGone:
	case ev.msg == msgAbort || ev.msg == msgRevoked:
		o.youngerEnded(ev.why, true)
	case ev.msg == msgBye:
		o.ended(sideYounger)
	case m.state == StateDraining:
	case ev.msg == msgPing:
		o.send(sideYounger, msgPong, whyNone)
	case ev.msg == msgPong:
		// Heard, as every frame is.
	case ev.msg == msgGot && m.younger == phaseOffer:
		if !ev.last {
			o.start(timerStep)
			return
		}
		m.younger = phaseHeld
		o.stopTimer(timerStep)
		o.start(timerReady)
	case ev.msg == msgReady && m.younger == phaseHeld:
		m.younger = phaseReady
		o.stopTimer(timerReady)
		o.outcome(outcomeStandby, whyNone)
		if m.youngerMode == Auto || m.wanted || m.stopping || m.leaving || m.owed {
			o.commit()
		}
	case ev.msg == msgServing && m.younger == phaseServe:
		m.younger = phaseServing
		o.stopTimer(timerServing)
		o.outcome(outcomeCommitted, whyNone)
		if !m.probation || m.hurry {
			o.release()
			return
		}
		o.start(timerProbation)
	case ev.msg == msgReleased && m.younger == phaseRelease:
		// It may have died since: its end is in the queue then, and there is still
		// somebody who can serve. †
		m.younger = phaseReleased
		o.stopTimers(sideYounger)
		o.do(action{kind: actPoll, side: sideYounger})
	default:
		o.bad(sideYounger, whyNone)
	}
}

// commit parks and tells the standby to serve.
func (o *steps) commit() {
	m := o.m
	m.asked = m.stopping || m.leaving || m.owed
	m.wanted, m.stopping, m.leaving, m.mute = false, false, false, false
	o.settleOwed()
	m.state, m.younger = StateParked, phaseServe
	o.do(action{kind: actPark})
	o.send(sideYounger, msgServe, whyNone)
	o.start(timerServing)
}

// release asks the successor to confirm that from now on it is on its own.
// Nothing is given up before its answer was read. †
func (o *steps) release() {
	m := o.m
	o.stopTimer(timerProbation)
	m.state, m.younger = StateReleasing, phaseRelease
	o.send(sideYounger, msgRelease, whyNone)
	o.start(timerReleased)
}

// drain is the point of no return: `released` was read, and nothing behind it.
func (o *steps) drain() {
	m := o.m
	o.stopTimers(sideYounger)
	m.state, m.younger, m.released = StateDraining, phaseDraining, true
	o.outcome(outcomeReleased, whyNone)
	o.do(action{kind: actRelease})
	o.do(action{kind: actStopAnswering})
	o.send(sideYounger, msgDraining, whyNone)
	o.do(action{kind: actDrain})
}

// takeBack resumes. confirmed says that the successor no longer accepts: it is
// dead, or said so. Otherwise it is told, and exclusive sockets wait until it
// has answered or died. †
func (o *steps) takeBack(why reason, confirmed bool) {
	m := o.m
	o.stopTimers(sideYounger)
	if m.hurry || m.asked {
		o.unstopped(why)
	}
	m.state, m.hurry, m.asked = StateServing, false, false
	o.outcome(outcomeRolledBack, why)
	if confirmed {
		o.do(action{kind: actCloseLink, side: sideYounger})
	} else {
		o.send(sideYounger, msgRevoke, why)
		o.do(action{kind: actRetire})
		m.revoking++
		m.held = m.exclusive
	}
	m.younger = phaseNone
	o.do(action{kind: actResume})
	if !m.held {
		o.do(action{kind: actResumeExclusive})
	}
}

// unstopped: this process was told to stop, and serves on because whoever was to
// succeed it failed. Who told it, an engine that replaces containers above all,
// does not say so twice: so the next one that is ready is handed over to, whatever
// its mode. An operator's rollback wants this process to serve, and ends that. And if
// the successor gave back because it was told to stop, too, either an engine replaces
// it, and there will be another one; or all of the service is taken down, and there
// will not.
func (o *steps) unstopped(why reason) {
	o.m.owed = why != whyRollback
	o.do(action{kind: actReportUnstopped, why: why})
	if why == whyStopped {
		o.start(timerOwed)
	}
}

// settleOwed: the stop that was owed is carried out now, or another one is.
func (o *steps) settleOwed() {
	o.m.owed = false
	o.stopTimer(timerOwed)
}

// youngerEnded: the successor died, or ended by its own word.
func (o *steps) youngerEnded(why reason, word bool) {
	m := o.m
	if why == whyNone {
		why = whyDied
		if word {
			why = whyAborted
		}
	}
	switch {
	case m.younger == phaseNone:
	case m.state == StateParked || m.state == StateReleasing:
		o.takeBack(why, true)
	case m.state == StateDraining:
		o.do(action{kind: actCloseLink, side: sideYounger})
		m.younger = phaseNone
	default:
		o.stopTimers(sideYounger)
		o.outcome(outcomeFailed, why)
		o.do(action{kind: actCloseLink, side: sideYounger})
		m.younger, m.wanted, m.mute = phaseNone, false, false
		o.stopIfAsked()
	}
}

// retiredFrame listens to a revoked successor only for its end; whatever else it
// says comes too late, a `released` too. †
func (o *steps) retiredFrame(msg msgType) {
	if msg == msgRevoked || msg == msgAbort || msg == msgBye {
		o.retiredEnded()
	}
}

func (o *steps) retiredEnded() {
	m := o.m
	if m.revoking == 0 {
		return
	}
	m.revoking--
	if m.revoking == 0 && m.held {
		m.held = false
		if m.state == StateServing {
			o.do(action{kind: actResumeExclusive})
		}
	}
}

func (o *steps) handover() {
	m := o.m
	switch {
	case m.state == StateParked || m.state == StateReleasing || m.state == StateDraining:
		o.reply(replyAlready)
	case !m.sole() || m.leaving:
		o.reply(replyNotNow)
	case m.younger == phaseNone:
		o.reply(replyNoStandby)
	case m.youngerMode == Spare:
		o.reply(replySpare)
	case m.mute:
		o.reply(replySilent)
	case m.younger == phaseReady:
		o.reply(replyOK)
		o.commit()
	case m.wanted:
		o.reply(replyAlready)
	default:
		o.reply(replyOK)
		m.wanted = true
	}
}

func (o *steps) rollback() {
	if o.m.state == StateParked || o.m.state == StateReleasing {
		o.reply(replyOK)
		o.takeBack(whyRollback, false)
		return
	}
	o.reply(replyNotNow)
}

func (o *steps) withdraw(why reason) {
	m := o.m
	if m.state == StateServing && (m.younger == phaseOffer || m.younger == phaseHeld || m.younger == phaseReady) {
		o.reply(replyOK)
		o.dismiss(why)
		return
	}
	o.reply(replyNotNow)
}
