package handoff

import "slices"

// ledger remembers how requests went, by the id that a deploy tool gave. It
// travels from generation to generation, so that asking again after the
// successor answers still finds the outcome. The zero value is empty.
type ledger struct {
	all   []RequestStatus // oldest first, at most maxRequests
	verbs []string        // the ids that operators gave the handover under way
}

func (g *ledger) find(id string) (RequestStatus, bool) {
	i := slices.IndexFunc(g.all, func(r RequestStatus) bool { return r.ID == id })
	if id == "" || i < 0 {
		return RequestStatus{}, false
	}
	return g.all[i], true
}

// set records the outcome of a request; one without an id is nobody's. What one
// generation has achieved for a request is not undone by another that comes
// with the same id.
func (g *ledger) set(r RequestStatus) {
	old, ok := g.find(r.ID)
	if r.ID == "" || ok && old.achieved() && old.Generation != r.Generation {
		return
	}
	r.Reason = clip(r.Reason)
	g.all = slices.DeleteFunc(g.all, func(o RequestStatus) bool { return o.ID == r.ID })
	if len(g.all) >= maxRequests {
		g.all = slices.Delete(g.all, 0, len(g.all)-maxRequests+1)
	}
	g.all = append(g.all, r)
}

// merge takes over what the incumbent remembers.
func (g *ledger) merge(theirs []RequestStatus) {
	for _, r := range theirs {
		if mine, ok := g.find(r.ID); !ok || mine.Time.Before(r.Time) {
			g.set(r)
		}
	}
}

// list is what a frame can carry of it.
func (g *ledger) list() []RequestStatus { return slices.Clone(newest(g.all, maxRequestsSize)) }

// settle gives every request that one generation came with, or was handed over
// by, the outcome that its handoff has.
func (g *ledger) settle(generation uint64, outcome string) {
	for i := range g.all {
		if r := &g.all[i]; r.Generation == generation && r.Outcome == OutcomeCommitted {
			r.Outcome = outcome
		}
	}
}

// achieved says that the request's version serves, or has served.
func (r *RequestStatus) achieved() bool {
	return r.Outcome == OutcomeCommitted || r.Outcome == OutcomeReleased || r.Outcome == OutcomeServing
}

// withdrawn says that a hello with this id comes too late.
func (g *ledger) withdrawn(id string) bool {
	r, ok := g.find(id)
	return ok && r.Outcome == OutcomeWithdrawn
}
