package handoff

import "fmt"

// The rules that the walk checks, and how it goes from state to state.

// check looks at one state.
func (k *walker) check(w *world) {
	exclusive, sole, answering, holders := 0, 0, 0, 0
	for i := range k.n {
		p := &w.procs[i]
		if !w.lives(i) {
			continue
		}
		if p.exclusive {
			exclusive++
		}
		if p.m.sole() {
			sole++
		}
		if p.answers {
			answering++
		}
		if p.standsIn && (p.answers || !p.m.silent) {
			k.fail("process %d stands in for an incumbent that is not silent", i)
		}
		if p.knowsRevoked && (p.plain || p.exclusive) {
			k.fail("process %d serves although it read revoke", i)
		}
		if l := &w.links[i]; l.open && l.role == roleYounger && p.m.got && p.m.elder != phaseDraining && w.lives(int(l.elder)) {
			holders++
		}
		if p.m.leaving && p.m.younger == phaseReady {
			k.fail("process %d stops, and does not hand over to the successor that is ready", i)
		}
		if p.m.state == StateParked || p.m.state == StateReleasing {
			m := p.m
			if acts := k.step(&m, event{kind: evRollback}); m.state != StateServing || !replied(acts, replyOK) {
				k.fail("process %d is %v and can't roll back", i, p.m.state)
			}
		}
		if p.m.state == StateDraining {
			m := p.m
			if acts := k.step(&m, event{kind: evRollback}); m.state != StateDraining || !replied(acts, replyNotNow) {
				k.fail("process %d rolled back after it had read released", i)
			}
		}
	}
	switch {
	case exclusive > 1:
		k.fail("an exclusive socket has %d owners", exclusive)
	case sole > 1:
		k.fail("%d processes hold themselves to be the only owner", sole)
	case answering > 1:
		k.fail("%d processes answer the control socket", answering)
	case holders > 1:
		k.fail("%d living, unrevoked successors hold descriptors", holders)
	}
}

func replied(acts []action, want reply) bool {
	got, ok := replyIn(acts)
	return ok && got == want
}

// settleSteps bounds what "is about to serve" means.
const settleSteps = 120

// settle runs the world to rest without faults or verbs and demands that the
// owner serves. If wake, processes that were stopped continue first.
func (k *walker) settle(w world, wake bool) {
	if wake {
		for i := range k.n {
			if w.procs[i].stopped {
				w.procs[i].stopped, w.procs[i].wasStopped = false, true
			}
		}
	}
	steps := 0
	for ; steps < settleSteps && k.rest(&w); steps++ {
		k.check(&w)
		if k.broken != "" {
			return
		}
	}
	if steps == settleSteps {
		k.fail("not at rest after %d steps", steps)
		return
	}
	if w.owner < 0 || (!wake && w.procs[w.owner].stopped) {
		return
	}
	o := &w.procs[w.owner]
	switch {
	case !w.lives(int(w.owner)) || !o.plain:
		k.fail("process %d must serve and does not: total loss", w.owner)
	case wake && !o.answers:
		k.fail("process %d serves and does not answer the control socket", w.owner)
	case wake && !o.exclusive:
		k.fail("process %d serves without its exclusive socket", w.owner)
	}
	if !wake {
		return
	}
	for i := range k.n {
		if s := w.procs[i].m.state; w.lives(i) && int8(i) != w.owner && s != StateStandby && s != StateStarting {
			k.fail("process %d is %v for ever", i, s)
		}
	}
	owed := o.m.owed
	k.admits(&w, int(w.owner))
	if !owed {
		return
	}
	for steps = 0; steps < settleSteps && k.rest(&w); steps++ {
	}
	if o.m.owed && o.m.younger == phaseReady {
		k.fail("process %d was told to stop, and its standby waits for ever", w.owner)
	}
}

// admits: at rest nothing is left that a successor would have to wait for, but
// another one, and nothing but an operator's drain keeps it away for ever.
func (k *walker) admits(w *world, i int) {
	for j := range k.n {
		l, o := &w.links[j], &w.procs[i].m
		if !w.lives(j) || o.out || o.younger != phaseNone && o.youngerMode != Spare {
			continue
		}
		if o.younger != phaseNone && w.procs[j].m.mode == Spare || !k.dial(w, j) {
			continue
		}
		if k.admit(w, i, j); l.role != roleYounger {
			k.fail("process %d is told busy for ever", j)
		}
		return
	}
}

// rest does one step of an undisturbed run: programs become ready, frames
// arrive, drains end, and only when nothing else moves a timer fires.
func (k *walker) rest(w *world) bool {
	w.refuse()
	for i := range k.n {
		if !w.runs(i) {
			continue
		}
		p := &w.procs[i]
		if p.m.state == StateStarting && !p.m.appReady && (p.m.elder == phaseHeld || p.m.elder == phaseNone && !p.dialing) {
			k.feed(w, i, event{kind: evAppReady})
			return true
		}
		moved := false
		k.inbound(w, i, func(s side, l *walkLink, q *queue) {
			if !moved {
				moved = k.next(w, i, s, l, q)
			}
		})
		for j := range k.n {
			moved = moved || (j != i && k.admit(w, i, j))
		}
		// A process that was told busy asks again and again; that is no step
		// towards rest while somebody else is being admitted or serves.
		if !moved && p.dialing && !w.listening() {
			moved = k.dial(w, i)
		}
		if moved {
			return true
		}
	}
	for i := range k.n {
		if !w.runs(i) {
			continue
		}
		p := &w.procs[i]
		if p.m.state == StateDraining || p.m.state == StateRevoked {
			k.feed(w, i, event{kind: evDrained})
			return true
		}
		if p.m.leaving && !p.m.stopping {
			k.feed(w, i, event{kind: evDelayed})
			return true
		}
		for _, s := range []side{sideElder, sideYounger} {
			if w.peerSpeaks(i, s) {
				k.feed(w, i, event{kind: evHeard, side: s})
				return true
			}
		}
		for t := range timerCount {
			if p.m.armed&t.bit() != 0 {
				p.wasStopped = false
				k.feed(w, i, event{kind: evTimer, timer: t})
				return true
			}
		}
	}
	return false
}

// moves calls visit with every world that one event makes of w, and with what
// the event was.
func (k *walker) moves(w world, visit func(next world, what string)) {
	try := func(what string, f func(*world) bool) {
		next := w
		if f(&next) {
			next.refuse()
			visit(next, what)
		}
	}
	for i := range k.n {
		p := &w.procs[i]
		switch {
		case !p.born:
			if i == 1 || w.procs[i-1].born {
				try(name(i, "is started"), func(w *world) bool { w.procs[i].born, w.procs[i].dialing = true, true; return true })
			}
			continue
		case p.dead:
			continue
		}
		if w.crashes > 0 {
			try(name(i, "crashes"), func(w *world) bool { w.crashes--; w.exit(i); return true })
		}
		if p.stopped {
			try(name(i, "continues"), func(w *world) bool { w.procs[i].stopped, w.procs[i].wasStopped = false, true; return true })
			continue
		}
		if w.stops > 0 {
			try(name(i, "is stopped (SIGSTOP)"), func(w *world) bool { w.stops--; w.procs[i].stopped = true; return true })
		}
		k.runMoves(w, i, try)
	}
}

// runMoves are the events of a process that runs.
func (k *walker) runMoves(w world, i int, try func(string, func(*world) bool)) {
	p := &w.procs[i]
	feed := func(what string, ev event) {
		try(name(i, what), func(w *world) bool { k.feed(w, i, ev); return true })
	}
	seen := 0
	k.inbound(&w, i, func(side, *walkLink, *queue) { seen++ })
	for nth := range seen {
		try(name(i, fmt.Sprint("reads link ", nth)), func(w *world) (moved bool) {
			at := 0
			k.inbound(w, i, func(s side, l *walkLink, q *queue) {
				if at++; at == nth+1 {
					moved = k.next(w, i, s, l, q)
				}
			})
			return moved
		})
	}
	for j := range k.n {
		try(name(i, fmt.Sprint("answers the hello of ", j)), func(w *world) bool { return j != i && k.admit(w, i, j) })
	}
	try(name(i, "dials"), func(w *world) bool { return k.dial(w, i) })
	if p.m.state == StateStarting && !p.m.appReady && (p.m.elder == phaseHeld || p.m.elder == phaseNone) {
		feed("calls Ready", event{kind: evAppReady})
	}
	if p.m.state == StateDraining || p.m.state == StateRevoked {
		feed("has drained", event{kind: evDrained})
	}
	if p.m.leaving && !p.m.stopping {
		feed("has delayed its stop", event{kind: evDelayed})
	}
	for t := range timerCount {
		if p.m.armed&t.bit() == 0 {
			continue
		}
		feed("times out: "+t.String(), event{kind: evTimer, timer: t})
		if p.wasStopped {
			feed("times out late: "+t.String(), event{kind: evTimer, timer: t, late: true})
		}
	}
	k.silenceMoves(w, i, feed)
	if w.verbs == 0 {
		return
	}
	for _, verb := range []struct {
		name     string
		kind     eventKind
		operator bool // goes to whoever answers the control socket
	}{
		{"handover", evHandover, true},
		{"rollback", evRollback, true},
		{"withdraw", evWithdraw, true},
		{"drain", evTakeOut, true},
		{"SIGTERM", evStop, false},
		{"is unhealthy", evUnhealthy, false},
		{"hammer", evHammer, false},
		{"Close", evClose, false},
	} {
		if verb.operator && !p.answers && !p.standsIn {
			continue
		}
		try(name(i, verb.name), func(w *world) bool {
			w.verbs--
			k.feed(w, i, event{kind: verb.kind})
			return true
		})
	}
}

// silenceMoves are the findings of heartbeats. A peer that runs may be found
// silent, too, when it is slow; but one that is to be killed must be stopped. A
// timer that ran while this process was stopped itself is late.
func (k *walker) silenceMoves(w world, i int, feed func(string, event)) {
	p := &w.procs[i]
	for t := timerElderSilent; t < timerCount; t++ {
		if !p.m.watches(t) {
			continue
		}
		if p.wasStopped {
			feed("finds late: "+t.String(), event{kind: evTimer, timer: t, late: true})
		}
		if !k.slow && !w.peerStopped(i, t.side()) || t == timerKillSilent && !w.peerStopped(i, t.side()) {
			continue
		}
		feed("finds: "+t.String(), event{kind: evTimer, timer: t})
	}
	for _, s := range []side{sideElder, sideYounger} {
		if w.peerSpeaks(i, s) {
			feed("hears its peer", event{kind: evHeard, side: s})
		}
	}
}

// peer is the process at the other end of the link on side s of process i.
func (w *world) peer(i int, s side) (peer int, ok bool) {
	if s == sideElder {
		l := &w.links[i]
		return int(l.elder), l.open && l.elder >= 0 && l.role != roleClosed && w.lives(int(l.elder))
	}
	for j := range w.links {
		if l := &w.links[j]; l.role == roleYounger && l.elder == int8(i) {
			return j, l.open && w.lives(j)
		}
	}
	return 0, false
}

func (w *world) peerStopped(i int, s side) bool {
	peer, ok := w.peer(i, s)
	return ok && w.procs[peer].stopped
}

// peerSpeaks: the one that was called silent answers a heartbeat.
func (w *world) peerSpeaks(i int, s side) bool {
	m := &w.procs[i].m
	if s == sideElder && !m.silent || s == sideYounger && !m.mute {
		return false
	}
	peer, ok := w.peer(i, s)
	return ok && w.runs(peer)
}

func name(i int, what string) string { return fmt.Sprintf("%c %s", 'A'+rune(i), what) }
