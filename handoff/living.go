package handoff

import (
	"cmp"
	"context"
	"slices"
	"time"
)

// Which generations live, and what they do: the older ones report while they
// drain, through the link or, once their successor has gone too, by registering
// with whoever serves.

// reportEvery is how often a draining process reports.
const reportEvery = 500 * time.Millisecond

// living is what this process knows of older generations. The zero value knows
// none. It is owned by run.
type living struct {
	reports map[any][]GenerationStatus // by the link or connection that told; its own comes first
	heard   map[any]time.Time          // when it told
	orphans []orphan
}

// orphan is a generation of which a process told that has gone. It drains on, and
// registers itself; until then it is not forgotten.
type orphan struct {
	g     GenerationStatus
	until time.Time
}

// orphanGrace is how long a generation may take to register.
const orphanGrace = 2 * reportEvery

// report takes what a draining process says of itself and of older ones. It says
// whether these are others than before.
func (v *living) report(from any, f *frame) (others bool) {
	if v.reports == nil {
		v.reports, v.heard = map[any][]GenerationStatus{}, map[any]time.Time{}
	}
	var all []GenerationStatus
	if f.Self != nil {
		all = append(all, *f.Self)
	}
	all = append(all, f.Older...)
	others = !slices.EqualFunc(all, v.reports[from], func(a, b GenerationStatus) bool { return a.Generation == b.Generation })
	v.reports[from], v.heard[from] = all, time.Now()
	v.orphans = slices.DeleteFunc(v.orphans, func(o orphan) bool {
		return slices.ContainsFunc(all, func(g GenerationStatus) bool { return g.Generation == o.g.Generation })
	})
	return others
}

// highest is the highest number among those that report. One from which the last
// number could be reached is no report's of a chain that counted from 1.
func (v *living) highest() (n uint64) {
	for _, all := range v.reports {
		for _, g := range all {
			if g.Generation <= maxGeneration/2 {
				n = max(n, g.Generation)
			}
		}
	}
	return n
}

// lost: who told has gone. Of what it told, the older ones may live.
func (v *living) lost(from any) {
	if all := v.reports[from]; len(all) > 1 {
		for _, g := range all[1:] {
			v.expect(g)
		}
	}
	delete(v.reports, from)
	delete(v.heard, from)
}

// expect keeps a generation that is to register by itself.
func (v *living) expect(g GenerationStatus) {
	if len(v.orphans) >= maxOlder {
		v.orphans = v.orphans[1:] // what peers can make this process keep has a bound
	}
	v.orphans = append(v.orphans, orphan{g, time.Now().Add(orphanGrace)})
}

// forget says that a generation has ended that was to register.
func (v *living) forget(n uint64) {
	v.orphans = slices.DeleteFunc(v.orphans, func(o orphan) bool { return o.g.Generation == n })
}

// source finds who reported the generation n.
func (v *living) source(n uint64) any {
	for from, all := range v.reports {
		if slices.ContainsFunc(all, func(g GenerationStatus) bool { return g.Generation == n }) {
			return from
		}
	}
	return nil
}

// hurryOlder has the draining generation n cut what it has open: straight, or by
// way of a draining one that knows it.
func (p *Process) hurryOlder(n uint64) bool {
	f := &frame{Type: msgHurry, Generation: n}
	switch from := p.living.source(n).(type) {
	case *link:
		return from.trySend(f) == nil
	case *conn:
		return say(from, f) == nil
	}
	return false
}

// hurried: whoever serves now wants generation n, this one or an older one, to
// end.
func (p *Process) hurried(n uint64) {
	if n == p.Generation() {
		p.hammer()
		return
	}
	p.hurryOlder(n)
}

// known lists what was reported, oldest first.
func (v *living) known() []GenerationStatus {
	// What a process says of itself comes before what another says of it.
	var all, told []GenerationStatus
	now := time.Now()
	for from, r := range v.reports {
		for i, g := range r {
			if i > 0 {
				told = append(told, g)
				continue
			}
			if quiet := now.Sub(v.heard[from]); quiet >= missed*reportEvery {
				g.SilentSeconds = quiet.Seconds()
			}
			all = append(all, g)
		}
	}
	all = append(all, told...)
	v.orphans = slices.DeleteFunc(v.orphans, func(o orphan) bool { return now.After(o.until) })
	for _, o := range v.orphans {
		all = append(all, o.g)
	}
	slices.SortStableFunc(all, func(a, b GenerationStatus) int { return cmp.Compare(a.Generation, b.Generation) })
	return slices.CompactFunc(all, func(a, b GenerationStatus) bool { return a.Generation == b.Generation })
}

// older is known, as far as a frame takes it.
func (v *living) older() []GenerationStatus {
	all := v.known()
	if len(all) > maxOlder {
		all = all[len(all)-maxOlder:]
	}
	return newest(all, maxOlderSize)
}

// self is this process as the status shows it.
func (p *Process) self() *GenerationStatus {
	g := p.describe(p.program, p.m.state)
	g.Takeover = p.cfg.Takeover.String()
	g.Handoff = p.handoff
	g.Open, g.Holds, g.Answered = p.openConnections(), clipCounts(p.holds.names()), p.answered.Load()
	g.Moved, g.Adopted, g.MoveOff = p.moved.Load(), p.adopted.Load(), clip(p.moveOff())
	g.Sockets, g.Unclaimed = p.sockets.count()
	g.Foreign, g.NetworkGone = p.sockets.abroad()
	g.Stopping, g.StopOwed = p.m.leaving, p.m.owed
	g.Unhealthy = clip(p.complaint)
	g.ProbationSeconds = p.cfg.Probation.Seconds()
	if p.m.leaving || p.m.armed&timerProbation.bit() != 0 || p.m.state == StateDraining || p.m.state == StateRevoked {
		g.LeftSeconds = max(0, time.Until(p.deadline).Seconds())
	}
	return &g
}

func (p *Process) describe(who program, s State) GenerationStatus {
	age := 0.0
	if !who.Started.IsZero() {
		age = max(0, time.Since(who.Started).Seconds())
	}
	return GenerationStatus{
		Generation: who.Generation, State: s.String(), PID: who.PID, Label: who.Label, Request: who.Request,
		Started: who.Started, AgeSeconds: age,
	}
}

// status is the whole picture as this process sees it.
func (p *Process) status() *Status {
	all := p.living.older()
	if l := p.elder; l != nil && l.number > 0 && p.living.reports[l] == nil {
		g := p.describe(l.peer, map[phase]State{phaseServing: StateParked, phaseReleased: StateReleasing}[p.m.elder])
		if p.m.elder < phaseServing {
			g.State = StateServing.String()
		}
		if p.m.silent {
			g.SilentSeconds = l.silence(p.cfg.Heartbeat, true).Seconds()
		}
		all = append(all, g)
	}
	all = append(all, *p.self())
	if l := p.younger; l != nil {
		who := l.peer
		who.Generation = l.number
		state := StateServing
		switch p.m.younger {
		case phaseOffer, phaseHeld:
			state = StateStarting
		case phaseReady, phaseServe:
			state = StateStandby
		}
		g := p.describe(who, state)
		g.Takeover, g.Handoff = l.mode.String(), l.id
		if p.m.younger >= phaseReady {
			g.Sockets = p.offer.took
		}
		if p.m.mute {
			g.SilentSeconds = l.silence(p.cfg.Heartbeat, true).Seconds()
		}
		all = append(all, g)
	}
	for l := range p.retired {
		who := l.peer
		who.Generation = l.number
		g := p.describe(who, StateRevoked)
		g.SilentSeconds = l.silence(p.cfg.Heartbeat, false).Seconds()
		all = append(all, g)
	}
	slices.SortStableFunc(all, func(a, b GenerationStatus) int { return cmp.Compare(a.Generation, b.Generation) })
	all = slices.CompactFunc(all, func(a, b GenerationStatus) bool { return a.Generation == b.Generation && a.PID == b.PID })
	return &Status{
		Schema: 1, Socket: p.cfg.Socket, Instance: p.instance, Revision: p.revision, Time: time.Now(),
		Generation: p.Generation(), PID: p.program.PID, Generations: all, Waiting: p.waiting.list(), Requests: p.ledger.list(), Last: p.last,
	}
}

// count is how many sockets are held, and which the present successor does not take.
func (set *socketSet) count() (n int, unclaimed []string) {
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.claimed {
		if s.rejected {
			unclaimed = append(unclaimed, s.String())
		}
	}
	return len(set.claimed), clipList(unclaimed)
}

// list describes one page of the named set to operators.
func (set *socketSet) list(state State, first, most int) (page []SocketInfo, total int) {
	set.mu.Lock()
	defer set.mu.Unlock()
	all := slices.Concat(set.claimed, set.unclaimed)
	first = min(first, len(all))
	for i, s := range all[first:min(first+most, len(all))] {
		page = append(page, s.info(first+i, state, first+i >= len(set.claimed)))
	}
	return page, len(all)
}

func (s *socket) info(index int, state State, unclaimed bool) SocketInfo {
	i := SocketInfo{
		Index: index, Name: s.item.Name, Network: s.item.Network, Address: s.item.Local,
		Asked: s.item.Asked, Exclusive: s.item.Exclusive, State: "fresh",
		Foreign: s.foreign, Netns: s.netns, NetworkGone: s.gone,
	}
	if s.d != nil {
		if facts, err := s.d.facts(); err == nil {
			i.Inode = facts.inode
		}
	}
	switch {
	case unclaimed || s.rejected:
		i.State = "unclaimed"
	case s.item.Kind == kindFile:
		i.State = "file"
	case state == StateParked || state == StateReleasing:
		i.State = "parked"
	case s.index >= 0:
		i.State = "inherited"
	}
	return i
}

// reportDraining tells the successor how the drain goes, again and again.
func (p *Process) reportDraining() {
	p.work.Go(func() {
		tick := time.NewTicker(reportEvery)
		defer tick.Stop()
		for {
			select {
			case <-tick.C:
			case <-p.life.Done():
				return
			}
			p.post(p.passOn)
		}
	})
}

// register reports to whoever serves once the link that this process drained
// under has ended, so that every living generation is in the status.
func (p *Process) register() {
	for p.life.Err() == nil {
		if c, err := p.dialOwn(); err == nil {
			p.reportOn(c)
		}
		p.pause()
	}
}

// dialOwn connects to whoever answers this service's control socket now.
func (p *Process) dialOwn() (*conn, error) {
	ctx, cancel := context.WithTimeout(p.life, p.cfg.StepTimeout)
	defer cancel()
	return dial(ctx, p.cfg.Socket, p.allow())
}

func (p *Process) pause() {
	ctx, cancel := context.WithTimeout(p.life, reportEvery)
	defer cancel()
	<-ctx.Done()
}

// reportOn registers on c and reports until the other end is gone.
func (p *Process) reportOn(c *conn) {
	heard := make(chan struct{})
	defer func() { c.Close(); <-heard }()
	go func() {
		defer close(heard)
		for {
			f, err := p.question(c)
			if err != nil {
				return
			}
			if f.Type == msgHurry {
				p.post(func() { p.hurried(f.Generation) })
			}
		}
	}()
	for kind := msgRegister; ; kind = msgDraining {
		f := &frame{Type: kind}
		if !p.ask(func() { f.Self, f.Older = p.self(), p.living.older() }) || say(c, f) != nil {
			return
		}
		p.pause()
	}
}

// hearRegistered keeps what a draining process reports, until it is gone.
func (p *Process) hearRegistered(c *conn, f *frame) {
	defer p.post(func() { p.reporterGone(c); p.changed() })
	for {
		told := f
		p.post(func() { p.reported(c, told); p.changed() })
		var err error
		if f, err = p.question(c); err != nil || f.Type != msgDraining {
			return
		}
	}
}
