package handoff

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"time"
)

// The old side: admitting a successor, offering the sockets batch by batch, and
// keeping account of how it went.

// offer is what the incumbent sends to one successor.
type offer struct {
	items []manifestItem
	send  []*descriptor // of each item, the socket's own
	owner []*socket     // of each item; nil for the control listener
	sent  int
	batch int // items in the batch that is not acknowledged yet
	took  int // claimed by the successor
}

// askToSucceed answers a hello: driver-level refusals first, then the machine.
// It reports whether the connection became a link.
func (p *Process) askToSucceed(l *link, f *frame) bool {
	haltAt("read", f.Type)
	l.peer, l.mode = *f.Program, f.Mode
	log := p.Logger().With("successor_pid", l.peer.PID, "successor_label", l.peer.Label, "mode", l.mode.String(), "request", l.peer.Request)
	version, ok := negotiate(*f.Versions)
	if !ok {
		text := fmt.Sprintf("no common protocol version: you speak %d to %d, the incumbent %d to %d", f.Versions.Min, f.Versions.Max, minVersion, maxVersion)
		log.Warn("refused a successor", "reason", text)
		l.send(&frame{Type: msgRefuse, Code: "version", Text: text})
		return false
	}
	if p.ledger.withdrawn(l.peer.Request) {
		text := fmt.Sprintf("request %s was withdrawn", l.peer.Request)
		log.Warn("refused a successor", "reason", text)
		l.send(&frame{Type: msgRefuse, Code: "withdrawn", Text: text})
		return false
	}
	p.m.exclusive = p.sockets.exclusive() || len(p.jobs.all) > 0 || p.revokedSingletons()
	p.asker, l.files, l.version = l, f.Files, version
	p.feed(event{kind: evHello, mode: f.Mode, full: p.tooManyDrain()})
	admitted := p.younger == l
	p.asker = nil
	if p.m.exclusive {
		for r := range p.retired {
			log.Warn("a revoked successor has not confirmed yet, an exclusive socket or a singleton waits for it", "revoked_pid", r.peer.PID, "hint", "end that process if it hangs")
		}
	}
	if !admitted {
		log.Debug("a successor was told busy", "state", p.m.state.String())
	}
	return admitted
}

// admit makes the asker's connection the younger link.
func (p *Process) admit() {
	l := p.asker
	p.next = p.nextNumber()
	l.side, l.number, l.id = sideYounger, p.next, rand.Text()[:10]
	p.younger = l
	p.waiting.admitted(l)
	if d, err := l.c.pidfd(); err == nil {
		if err := l.watchLife(d); err != nil {
			p.Logger().Debug("the successor's death is noticed by the end of its link only", "error", err)
		}
	}
	p.setGeneration(p.Generation(), l.id)
	p.prepareOffer(l.files)
	p.ledger.set(RequestStatus{ID: l.peer.Request, Outcome: OutcomeStarting, Generation: l.number, Time: time.Now()})
	p.Logger().Info("a successor is starting", "successor", l.number, "successor_pid", l.peer.PID,
		"successor_label", l.peer.Label, "mode", l.mode.String(), "request", l.peer.Request)
}

// nextNumber is what the next successor gets. Older ones may be of a chain that ended
// before this one began.
func (p *Process) nextNumber() uint64 { return max(p.next, p.living.highest()) + 1 }

func (p *Process) welcome(f *frame) {
	l := p.younger
	me := p.program
	f.Version, f.Generation, f.Handoff, f.Program = l.version, l.number, l.id, &me
	f.Deadlines = &deadlines{
		StepSeconds: p.cfg.StepTimeout.Seconds(), ReadySeconds: p.cfg.ReadyTimeout.Seconds(), ProbationSeconds: p.cfg.Probation.Seconds(), HeartbeatSeconds: p.cfg.Heartbeat.Seconds(),
	}
	f.Total, f.Requests, f.Open = len(p.offer.items), p.ledger.list(), p.movableConnections()
}

// prepareOffer lists what there is to hand over: the control listener first.
func (p *Process) prepareOffer(files []string) {
	wanted := map[string]bool{}
	for _, name := range files {
		wanted[name] = true
	}
	o := offer{
		items: []manifestItem{p.control.item()}, send: []*descriptor{p.control.d}, owner: []*socket{nil},
	}
	p.sockets.mu.Lock()
	defer p.sockets.mu.Unlock()
	for _, s := range p.sockets.claimed {
		s.rejected = s.item.Kind == kindFile && !wanted[s.item.Name]
		if s.rejected || s.deaf {
			continue
		}
		it := s.item
		it.Outside = p.sockets.outside[s.netns]
		o.items, o.send, o.owner = append(o.items, it), append(o.send, s.d), append(o.owner, s)
	}
	p.offer = o
}

// offerNext sends the next batch.
func (p *Process) offerNext() {
	o := &p.offer
	first, size := o.sent, 0
	for o.sent < len(o.items) && o.sent-first < maxBatch {
		b, err := json.Marshal(&o.items[o.sent])
		if size += len(b) + 1; err != nil || size > maxFrame-1024 {
			break
		}
		o.sent++
	}
	o.batch = o.sent - first
	p.younger.send(&frame{
		Type: msgSockets, First: first, Sockets: o.items[first:o.sent], Last: o.sent == len(o.items),
	}, o.send[first:o.sent]...)
}

// fromYounger takes account of what the successor says. last says that the
// batch it acknowledges was the last one.
func (p *Process) fromYounger(l *link, f *frame) (last bool, err error) {
	o := &p.offer
	switch f.Type {
	case msgGot:
		if p.m.younger != phaseOffer {
			return false, fmt.Errorf("%w: got", errLink)
		}
		if f.N != o.batch {
			return false, fmt.Errorf("%w: %d descriptors were sent and %d arrived; raise the successor's limit of open files (ulimit -n)", errLink, o.batch, f.N)
		}
		if o.sent == len(o.items) {
			return true, nil
		}
		p.offerNext()
	case msgRejected:
		if p.m.younger != phaseHeld {
			return false, fmt.Errorf("%w: rejected", errLink)
		}
		return false, p.reject(f.Rejected)
	case msgAbort:
		if f.Text != "" {
			p.Logger().Warn("the successor gives up", "reason", string(f.Reason), "text", f.Text)
		}
	case msgReady:
		o.took = f.N
		l.singletons = f.Singletons
		p.m.exclusive = p.m.exclusive || f.Singletons
		if err := p.declareExclusive(f.Exclusive); err != nil {
			return false, err
		}
		p.checkOffered()
	}
	return false, nil
}

// reject notes what the successor did not take: it is served here until release.
func (p *Process) reject(list []rejection) error {
	p.sockets.mu.Lock()
	defer p.sockets.mu.Unlock()
	for _, r := range list {
		if r.Index <= 0 || r.Index >= len(p.offer.owner) {
			return fmt.Errorf("%w: rejected index %d", errLink, r.Index)
		}
		p.offer.owner[r.Index].rejected = true
	}
	return nil
}

// declareExclusive notes what the successor declared: whoever takes back must
// wait for it too.
func (p *Process) declareExclusive(indexes []int) error {
	p.sockets.mu.Lock()
	defer p.sockets.mu.Unlock()
	for _, i := range indexes {
		if i <= 0 || i >= len(p.offer.owner) {
			return fmt.Errorf("%w: exclusive index %d", errLink, i)
		}
		p.offer.owner[i].item.Exclusive = true
		p.m.exclusive = true
	}
	return nil
}

// checkOffered says what this successor does not have.
func (p *Process) checkOffered() {
	if names := p.markUnoffered(); len(names) > 0 {
		p.Logger().Warn("the successor does not take every socket; these are served here until release, then closed", "unclaimed", clipList(names))
	}
}

// markUnoffered finds what was opened since the offer, and lists all that the
// successor does not have.
func (p *Process) markUnoffered() (names []string) {
	p.sockets.mu.Lock()
	defer p.sockets.mu.Unlock()
	offered := map[*socket]bool{}
	for _, s := range p.offer.owner {
		offered[s] = true
	}
	for _, s := range p.sockets.claimed {
		s.rejected = s.rejected || !offered[s]
		if s.rejected {
			names = append(names, s.String())
		}
	}
	return names
}

// recordOutcome keeps account of how a handoff goes, by request id and as the
// last attempt that ended.
func (p *Process) recordOutcome(out outcome, why reason) {
	names := [...]string{OutcomeStarting, OutcomeStandby, OutcomeCommitted, OutcomeReleased, OutcomeFailed, OutcomeRolledBack}
	l := p.younger
	h := HandoffStatus{ID: p.handoff, From: p.Generation(), Outcome: names[out], Reason: string(why), Time: time.Now()}
	id := p.cfg.Request
	switch {
	case l != nil && l.number > 0:
		h.To, id = l.number, l.peer.Request
	default:
		// As the one that took over, or as the first.
		h.To, h.From = h.From, 0
		if p.elder != nil {
			h.From = p.elder.number
		}
	}
	outcome := h.Outcome
	if h.From == 0 {
		outcome = OutcomeServing
	}
	if why == whyWithdrawn {
		outcome = OutcomeWithdrawn
	}
	p.ledger.set(RequestStatus{ID: id, Outcome: outcome, Generation: h.To, Reason: string(why), Time: h.Time})
	if out == outcomeReleased {
		p.ledger.settle(h.To, outcome)
	}
	if l != nil {
		for _, id := range p.ledger.verbs {
			p.ledger.set(RequestStatus{ID: id, Outcome: outcome, Generation: h.To, Reason: string(why), Time: h.Time})
		}
	}
	if out >= outcomeReleased && why != whyDisplaced { // a spare that gives way is no attempt that failed
		p.last = &h
		p.ledger.verbs = nil
	}
	if h.From > 0 {
		p.Logger().Info("handoff", "outcome", h.Outcome, "from", h.From, "to", h.To, "reason", h.Reason)
	}
}

func busyText(why reason) string {
	switch why {
	case whyStarting:
		return "it is starting itself"
	case whyHandoff:
		return "another successor is on its way"
	case whyProbation:
		return "the last handoff is in probation"
	case whyStopping:
		return "it is about to stop"
	case whySilent:
		return "the incumbent is alive but silent, and a standby waits for it"
	case whyRevoking:
		return "a revoked successor has not confirmed yet"
	case whyMaxDraining:
		return "as many older generations drain as may"
	}
	return "its successor answers now"
}

func revokeText(why reason) string {
	switch why {
	case whyDisplaced:
		return "a spare gives way to another successor"
	case whyWithdrawn:
		return "its request was withdrawn"
	case whyTimeout:
		return "it did not answer in time"
	case whyRollback:
		return "an operator rolled back"
	case whyProtocol:
		return "it broke the protocol"
	case whyDraining:
		return "the service is taken out, nobody is to succeed"
	case whyStopped:
		return "an operator stopped it"
	case whySilent:
		return "it did not answer heartbeats"
	}
	return string(why)
}
