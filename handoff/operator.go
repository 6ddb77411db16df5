package handoff

import (
	"fmt"
	"slices"
	"time"
)

// What an operator may ask over the control socket, and what he is answered. An
// accepted verb is carried out although the operator goes away.

// answerOperator answers one question.
func (p *Process) answerOperator(f *frame) *frame {
	var out *frame
	ok := true
	switch f.Type {
	case msgStatus:
		out, ok = p.answerStatus(f)
	case msgListSockets:
		out = p.answerSockets(f)
	case msgHandover:
		ok = p.ask(func() { out = p.answerHandover(f.Request) })
	case msgRollback:
		ok = p.ask(func() { out = p.answerRollback(f.Text) })
	case msgWithdraw:
		ok = p.ask(func() { out = p.answerWithdraw(f.Request) })
	case msgStop:
		ok = p.ask(func() { out = p.answerStop(f.Generation) })
	default:
		out = &frame{Type: msgError, Code: "unknown_type", Text: "this process does not know that question", Hint: "is the tool newer than the server?"}
	}
	if !ok && f.Type == msgStatus {
		return refusal("busy", "this process has just ended", "ask again")
	}
	if !ok {
		return refusal("not_now", "this process has just ended", "see handoffctl status")
	}
	return out
}

func (p *Process) okFrame(text string) *frame {
	return &frame{Type: msgOK, Generation: p.Generation(), Text: text}
}

func refusal(code, text, hint string) *frame {
	return &frame{Type: msgError, Code: code, Text: clip(text), Hint: hint}
}

// answerHandover is idempotent: a request id that was seen, or a handover that
// is under way, is answered with already.
func (p *Process) answerHandover(id string) *frame {
	if r, ok := p.ledger.find(id); ok && r.achieved() {
		f := p.okFrame("this request is " + r.Outcome)
		f.Already, f.Request, f.Generation = true, id, r.Generation
		return f
	}
	l := p.younger
	p.feed(event{kind: evHandover})
	switch p.answer {
	case replyOK, replyAlready:
		f := p.okFrame("handing over")
		f.Request, f.Already = id, p.answer == replyAlready
		if l != nil {
			f.Generation = l.number
			p.followHandover(id, l)
		}
		return f
	case replyNoStandby:
		return refusal("no_standby", fmt.Sprintf("generation %d serves and no successor is there", p.Generation()), "start the next version first, or use handoffctl upgrade")
	case replySilent:
		return refusal("silent", fmt.Sprintf("the standby, generation %d (%s), is alive but silent", l.number, l.where()), "look at that process, or start another version, which takes its place")
	case replySpare:
		return refusal("no_standby", "only a spare is there, which waits for the incumbent's death", "start the next version with --takeover standby or auto")
	}
	return p.notNow()
}

// followHandover has the status show under id how the handover to l goes. Of
// several operators that asked for the same one, each has an id of his own.
func (p *Process) followHandover(id string, l *link) {
	if id == "" || slices.Contains(p.ledger.verbs, id) {
		return
	}
	outcome := OutcomeStandby
	switch {
	case p.m.younger == phaseDraining:
		outcome = OutcomeReleased
	case p.m.younger >= phaseServing:
		outcome = OutcomeCommitted
	case p.m.younger < phaseReady:
		outcome = OutcomeStarting
	}
	p.ledger.set(RequestStatus{ID: id, Outcome: outcome, Generation: l.number, Time: time.Now()})
	if outcome != OutcomeReleased && len(p.ledger.verbs) < maxRequests {
		p.ledger.verbs = append(p.ledger.verbs, id)
	}
	p.changed()
}

// notNow refuses what only an incumbent that is sure of itself can do.
func (p *Process) notNow() *frame {
	if p.m.leaving {
		return refusal("not_now", "this process is about to stop", "see handoffctl status")
	}
	if p.m.state == StateParked || p.m.state == StateReleasing {
		return refusal("not_now", "the last handoff is in probation, and can still be taken back", "wait for its release, or handoffctl rollback first")
	}
	return refusal("not_now", "this process does not serve alone: it is "+p.m.state.String(), "see handoffctl status")
}

// takeOut answers the operator on c, and then lets nobody succeed, also where he
// has gone before the answer. That comes first, since this process may be gone
// right after; false means that it was a no, or could not be sent.
func (p *Process) takeOut(c *conn) (ok bool) {
	p.ask(func() {
		m := p.m
		acts := m.step(event{kind: evTakeOut})
		f := p.okFrame("draining")
		switch reply, _ := replyIn(acts); reply {
		case replyNotNow:
			f = p.notNow()
		case replyAlready:
			f.Already = true
		}
		sent := say(c, f) == nil
		if f.Type != msgOK {
			return
		}
		if ok = sent; ok {
			p.control.keep(c, true)
		}
		if !f.Already {
			p.Logger().Info("an operator takes the service out")
		}
		p.feed(event{kind: evTakeOut}) // also where it stops already: nobody is to come after it
	})
	return ok
}

func replyIn(acts []action) (reply, bool) {
	for _, a := range acts {
		if a.kind == actReply {
			return a.reply, true
		}
	}
	return 0, false
}

// answerStop is about one generation by its number; 0 is this one, which is told
// after its answer was sent.
func (p *Process) answerStop(n uint64) *frame {
	f := p.okFrame("stopping")
	if n == 0 {
		return f
	}
	if n == p.Generation() {
		if p.living.source(n) == nil {
			return f
		}
		return refusal("not_now", fmt.Sprintf("there are two generations %d: this one, and one that drains of a chain before it", n), "end the older one by its pid, or this one without a number")
	}
	f.Generation = n
	if l := p.younger; l != nil && l.number == n {
		p.feed(event{kind: evWithdraw, why: whyStopped})
		if p.answer != replyOK {
			return refusal("not_now", fmt.Sprintf("generation %d serves in probation", n), "handoffctl rollback takes back")
		}
		f.Text = fmt.Sprintf("generation %d is sent away", n)
		return f
	}
	for l := range p.retired {
		if l.number == n && !l.closed {
			return refusal("not_now", fmt.Sprintf("generation %d was revoked, and does not answer", n), "end that process if it hangs")
		}
	}
	if !p.hurryOlder(n) {
		return refusal("not_now", fmt.Sprintf("no generation %d is known here that could be stopped", n), "handoffctl status lists the living ones")
	}
	f.Text = fmt.Sprintf("generation %d is told to cut what it has open", n)
	return f
}

func (p *Process) answerRollback(text string) *frame {
	from := p.younger
	p.feed(event{kind: evRollback})
	if p.answer == replyOK {
		f := p.okFrame(fmt.Sprintf("generation %d serves again", p.Generation()))
		if from != nil {
			p.Logger().Warn("rolled back by an operator", "from", from.number, "text", text)
		}
		return f
	}
	if p.m.state == StateServing && p.younger == nil && p.last != nil && p.last.Outcome == OutcomeRolledBack && p.last.From == p.Generation() {
		f := p.okFrame(fmt.Sprintf("generation %d was rolled back already", p.last.To))
		f.Already = true
		return f
	}
	if p.m.state == StateServing && p.younger != nil {
		return refusal("not_now", "the successor does not serve yet: there is nothing to roll back", "see handoffctl status")
	}
	return refusal("not_now", "nothing to roll back: no handoff is in probation", "after release, go back by deploying the older version again")
}

// answerWithdraw refuses a request before it is committed, however late its
// hello comes.
func (p *Process) answerWithdraw(id string) *frame {
	if id == "" {
		return refusal("bad_request", "withdraw needs a request id", "")
	}
	f := p.okFrame("request " + id + " is withdrawn")
	f.Request = id
	if p.ledger.withdrawn(id) {
		f.Already = true
		return f
	}
	if p.younger != nil && p.younger.peer.Request == id {
		p.feed(event{kind: evWithdraw, why: whyWithdrawn})
		if p.answer != replyOK {
			return refusal("not_now", "request "+id+" is committed already", "handoffctl rollback takes back during probation")
		}
	} else if r, ok := p.ledger.find(id); ok && r.achieved() {
		return refusal("not_now", "request "+id+" is "+r.Outcome+" already", "")
	}
	p.ledger.set(RequestStatus{ID: id, Outcome: OutcomeWithdrawn, Time: time.Now()})
	p.changed()
	return f
}

// answerStatus answers at once, or when something has changed since what the
// operator has seen.
func (p *Process) answerStatus(f *frame) (*frame, bool) {
	until := time.NewTimer(time.Duration(min(f.WaitMS, maxPollMillis)) * time.Millisecond)
	defer until.Stop()
	for expired := f.WaitMS == 0; ; {
		var s *Status
		var wake chan struct{}
		gone := false
		ok := p.ask(func() {
			if gone = p.m.state == StateGone; gone {
				return
			}
			s = p.status()
			if f.After != nil && f.After.Instance == p.instance && f.After.Revision == p.revision && !expired {
				s, wake = nil, make(chan struct{})
				p.watchers = append(p.watchers, wake)
			}
		})
		if !ok || gone {
			return nil, false
		}
		if s != nil {
			return &frame{Type: msgStatus, Status: s}, true
		}
		select {
		case <-wake:
		case <-until.C:
			expired = true
			p.post(func() { p.watchers = slices.DeleteFunc(p.watchers, func(w chan struct{}) bool { return w == wake }) })
		case <-p.gone:
			return nil, false
		}
	}
}

// changed wakes whoever watches the status.
func (p *Process) changed() {
	p.revision++
	for _, w := range p.watchers {
		close(w)
	}
	p.watchers = nil
}

// answerSockets lists one page of the named set.
func (p *Process) answerSockets(f *frame) *frame {
	page, total := p.sockets.list(p.State(), f.Offset, socketsPage)
	return &frame{Type: msgSocketList, Total: total, Offset: min(f.Offset, total), List: page}
}
