package handoff

import (
	"log/slog"
	"time"
)

// Whether the other end of a link is there: from ready to release each side asks
// again and again, and is answered by the goroutine that obeys the machine, not
// by the kernel or a reader, so that a process that hangs does not answer. What
// silence means is the machine's.

// missed is how many heartbeats in a row must pass without anything heard before
// the peer is called silent. The first of them asks.
const missed = 3

// leastKillSilent is longer than an incumbent that hands over may wait for its
// singletons, during which it answers nothing.
const leastKillSilent = 2 * singletonGrace

// pulse is what one end of a link knows of the other. It is owned by run.
type pulse struct {
	watched bool
	heard   time.Time // when anything was read last
	quiet   int       // heartbeats since
	killed  bool      // it was to be ended: that is tried once
	asked   bool      // a ping is not answered yet: there is one at most, so that the last word always fits the buffer
}

// silence is for how long nothing was heard, if that is long. known says that it is long
// as the machine knows, also where this process was stopped since, and counts anew.
func (l *link) silence(heartbeat time.Duration, known bool) time.Duration {
	if heartbeat == 0 || !l.pulse.watched {
		return 0
	}
	d, long := time.Since(l.pulse.heard), missed*heartbeat
	switch {
	case known:
		return max(d, long)
	case d >= long:
		return d
	}
	return 0
}

// watchPulses begins to ask where the machine watches a link, and ends it.
func (p *Process) watchPulses() {
	if p.cfg.Heartbeat == 0 {
		return
	}
	some := false
	for _, at := range []struct {
		l *link
		t timerKind
	}{{p.elder, timerElderSilent}, {p.younger, timerYoungerSilent}} {
		if at.l == nil {
			continue
		}
		on := p.m.watches(at.t)
		if on && !at.l.pulse.watched {
			at.l.pulse = pulse{heard: time.Now(), asked: at.l.pulse.asked}
		}
		at.l.pulse.watched = on
		some = some || on
	}
	switch {
	case !some:
		p.beat.stop()
		p.beat = nil
	case p.beat == nil:
		p.nextBeat()
	}
}

func (p *Process) nextBeat() {
	r := &runningTimer{due: time.Now().Add(p.cfg.Heartbeat)}
	p.beat = r
	r.t = time.AfterFunc(p.cfg.Heartbeat, func() {
		p.post(func() {
			if p.beat == r {
				p.nextBeat()
				p.beatNow(time.Since(r.due) > lateAfter)
			}
		})
	})
}

// beatNow asks each watched peer that is not asked yet, and tells the machine of
// one that has been quiet for long. late says that this process was stopped
// itself: then it knows nothing of the time between.
func (p *Process) beatNow(late bool) {
	for _, l := range []*link{p.elder, p.younger} {
		if l == nil || l.closed || !l.pulse.watched {
			continue
		}
		if late {
			l.pulse.quiet, l.pulse.heard = 0, time.Now()
		}
		l.pulse.quiet++
		if !l.pulse.asked {
			l.pulse.asked = true
			l.send(&frame{Type: msgPing})
		}
		if l.pulse.quiet < missed {
			continue
		}
		t := timerYoungerSilent
		if l.side == sideElder {
			t = timerElderSilent
			if p.m.silent && p.m.kill && !l.pulse.killed && time.Since(l.pulse.heard) >= p.cfg.KillSilent {
				t = timerKillSilent
			}
		}
		p.feed(event{kind: evTimer, timer: t})
	}
}

// heardOn notes that something was read from l, and dealt with.
func (p *Process) heardOn(l *link, pong bool) {
	l.pulse.heard, l.pulse.quiet, l.pulse.killed = time.Now(), 0, false
	if pong {
		l.pulse.asked = false
	}
	if p.m.expects(l.side) {
		p.feedFrom(l, event{kind: evHeard})
	}
}

// reportSilent tells of a peer that is alive and does not answer.
func (p *Process) reportSilent(s side) {
	l := p.link(s)
	if l == nil {
		return
	}
	log := p.silentLogger(l)
	if s == sideYounger {
		log.Warn("the standby is alive but silent; it is not handed over to", "hint", "look at that process, or start another version, which takes its place")
		return
	}
	log.Warn("the incumbent is alive but silent; nothing is lost, its connections wait",
		"hint", "look at that process: let it continue (SIGCONT); or end it: what it has accepted is lost then, and this one serves")
}

// silentLogger names the silent process in each line.
func (p *Process) silentLogger(l *link) *slog.Logger {
	return p.Logger().With("silent_generation", l.number, "silent_pid", l.peer.PID, "for", time.Since(l.pulse.heard).Round(time.Millisecond))
}

func (p *Process) reportHeard(s side) {
	if l := p.link(s); l != nil {
		p.Logger().Info("the silent process answers again", "silent_generation", l.number, "silent_pid", l.peer.PID)
	}
}

// killElder ends the silent incumbent. Its death is noticed as any other.
func (p *Process) killElder() {
	l := p.elder
	l.pulse.killed = true
	err := l.kill()
	log := p.silentLogger(l)
	if err != nil {
		log.Error("the silent incumbent can't be ended", "error", err, "hint", "end that process: this one serves alone then")
		return
	}
	log.Warn("ended the silent incumbent (SIGKILL)")
}
