package main

import (
	"fmt"
	"strings"

	"github.com/fdhandoff/handoff/handoff"
)

// What a status means: pure functions of one answer.

// Further words that a command may wait for, beyond the library's outcomes.
const (
	waitAccepted = "accepted" // the verb was accepted
	waitServing  = "serving"  // some generation serves
	waitDrained  = "drained"  // and the older ones are gone
)

func inState(st *handoff.Status, match func(handoff.GenerationStatus) bool) (found []handoff.GenerationStatus) {
	for _, g := range st.Generations {
		if match(g) {
			found = append(found, g)
		}
	}
	return found
}

func isState(states ...string) func(handoff.GenerationStatus) bool {
	return func(g handoff.GenerationStatus) bool {
		for _, s := range states {
			if g.State == s {
				return true
			}
		}
		return false
	}
}

// isSpare: a spare waits for the incumbent's death only, so no handoff waits for it.
func isSpare(g handoff.GenerationStatus) bool {
	return g.Takeover == "spare" && (g.State == "starting" || g.State == "standby")
}

// underWay: a handoff to g, or away from it, is not over. A standby by intent
// may wait for ever; one in mode auto is a moment of its handoff.
func underWay(g handoff.GenerationStatus) bool {
	switch g.State {
	case "parked", "releasing":
		return true
	case "starting":
		return !isSpare(g)
	case "standby":
		return g.Takeover == "auto"
	}
	return false
}

// reached says whether st is what `wait --for=what` waits for. These are
// properties of the service, not of one handoff:
//
//	standby    a successor is ready and waits for a handover; spares do not count
//	serving    some generation serves
//	committed  the newest generation serves; spares do not count
//	released   exactly one generation has the service and no handoff is under way;
//	           standbys and spares may wait, and older generations may drain
//	drained    released, and no generation drains any more
func reached(what string, st *handoff.Status) bool {
	// Who is silent accepts nothing.
	serving := inState(st, func(g handoff.GenerationStatus) bool { return g.State == "serving" && !isSilent(g) })
	switch what {
	case handoff.OutcomeStandby:
		return len(inState(st, func(g handoff.GenerationStatus) bool { return g.State == "standby" && !isSpare(g) })) > 0
	case waitServing:
		return len(serving) > 0
	case handoff.OutcomeCommitted:
		var newest handoff.GenerationStatus
		for _, g := range st.Generations {
			if !isSpare(g) && g.Generation > newest.Generation {
				newest = g
			}
		}
		return newest.State == "serving" && !isSilent(newest)
	case handoff.OutcomeReleased:
		return len(serving) == 1 && len(inState(st, underWay)) == 0
	case waitDrained:
		return reached(handoff.OutcomeReleased, st) && len(inState(st, isState("draining", "revoked"))) == 0
	}
	return false
}

// target is the handoff that a command follows: by its request id, or by its
// successor's number.
type target struct {
	request    string
	generation uint64 // 0 until it is known
}

// progress is how far a target got.
type progress struct {
	outcome    string // "" if nothing is known of it
	reason     string
	generation uint64
	successor  *handoff.GenerationStatus // while it lives
	drained    bool                      // no older generation lives
}

// ranks orders the outcomes that are steps of one way.
var ranks = map[string]int{
	handoff.OutcomeStarting:  1,
	handoff.OutcomeStandby:   2,
	handoff.OutcomeCommitted: 3,
	handoff.OutcomeReleased:  4,
	handoff.OutcomeServing:   4,
	waitDrained:              5,
}

// failed: the handoff ended, and not by the successor's serving.
func (p progress) failed() bool {
	switch p.outcome {
	case handoff.OutcomeWithdrawn, handoff.OutcomeFailed, handoff.OutcomeRolledBack:
		return true
	}
	return false
}

func (p progress) rank() int {
	if n := ranks[p.outcome]; n == ranks[handoff.OutcomeReleased] && p.drained {
		return ranks[waitDrained]
	}
	return ranks[p.outcome]
}

// reached says whether the target got as far as what.
func (p progress) reached(what string) bool { return p.rank() >= ranks[what] }

// in finds t in st. What the answering process remembers of the request counts,
// and what is to be seen of the successor: after the incumbent's death nobody
// may have recorded that its successor is on its own.
func (t target) in(st *handoff.Status) progress {
	p := progress{generation: t.generation}
	for _, r := range st.Requests {
		if t.request != "" && r.ID == t.request {
			p.outcome, p.reason = r.Outcome, r.Reason
			if r.Generation != 0 {
				p.generation = r.Generation
			}
		}
	}
	for i, g := range st.Generations {
		if p.generation != 0 && g.Generation == p.generation ||
			p.generation == 0 && t.request != "" && g.Request == t.request {
			p.generation, p.successor = g.Generation, &st.Generations[i]
		}
	}
	if l := st.Last; p.outcome == "" && p.successor == nil && l != nil && p.generation != 0 && l.To == p.generation {
		p.outcome, p.reason = l.Outcome, l.Reason
	}
	if p.successor != nil && !p.failed() {
		if seen := outcomeOf(*p.successor, st); seen == handoff.OutcomeRolledBack || ranks[seen] > ranks[p.outcome] {
			p.outcome = seen
		}
	}
	p.drained = len(inState(st, func(g handoff.GenerationStatus) bool { return g.Generation < p.generation })) == 0
	return p
}

// outcomeOf is what a successor's state says about the handoff to it.
func outcomeOf(g handoff.GenerationStatus, st *handoff.Status) string {
	switch g.State {
	case "starting":
		return handoff.OutcomeStarting
	case "standby":
		return handoff.OutcomeStandby
	case "serving":
		for _, o := range st.Generations {
			if o.Generation < g.Generation && isState("parked", "releasing")(o) {
				return handoff.OutcomeCommitted
			}
		}
		return handoff.OutcomeReleased
	case "parked", "releasing", "draining":
		return handoff.OutcomeReleased // only who is on its own hands over in turn
	case "revoked":
		return handoff.OutcomeRolledBack
	}
	return ""
}

// cut is what was closed at the drain deadline after the handoff to generation.
func cut(st *handoff.Status, generation uint64) map[string]int {
	if st == nil || st.Last == nil || generation != 0 && st.Last.To != generation {
		return nil
	}
	return st.Last.Cut
}

func total(m map[string]int) (n int) {
	for _, v := range m {
		n += v
	}
	return n
}

// whoServes says in one line who has the service now.
func whoServes(st *handoff.Status) string {
	if st == nil {
		return "nobody answers at the socket now"
	}
	var parts []string
	for _, g := range inState(st, isState("serving")) {
		switch {
		case isSilent(g):
			parts = append(parts, silence(g))
		case g.Stopping:
			parts = append(parts, name(g)+" serves, but is about to stop")
		default:
			parts = append(parts, name(g)+" serves")
		}
	}
	if len(parts) == 0 {
		parts = append(parts, "no generation serves")
	}
	for _, g := range st.Generations {
		switch {
		case g.State == "parked":
			parts = append(parts, name(g)+" can still take back")
		case g.State == "releasing":
			parts = append(parts, name(g)+" is giving up the service")
		case isSpare(g):
			parts = append(parts, name(g)+" waits as a spare")
		case g.State == "standby":
			parts = append(parts, name(g)+" waits as a standby")
		case g.State == "starting":
			parts = append(parts, name(g)+" is starting")
		case g.State == "draining" && g.LeftSeconds > 0:
			parts = append(parts, name(g)+" drains, "+age(g.LeftSeconds)+" left")
		case g.State == "draining":
			parts = append(parts, name(g)+" drains")
		case g.State == "revoked":
			parts = append(parts, name(g)+" was sent away and ends")
		}
		if isSilent(g) && g.State != "serving" {
			parts[len(parts)-1] += ", but is silent for " + age(g.SilentSeconds)
		}
	}
	return strings.Join(parts, "; ")
}

func name(g handoff.GenerationStatus) string {
	var in []string
	if g.PID > 0 {
		in = append(in, fmt.Sprintf("pid %d", g.PID))
	}
	if g.Label != "" {
		in = append(in, g.Label)
	}
	s := fmt.Sprintf("generation %d", g.Generation)
	if len(in) > 0 {
		s += " (" + strings.Join(in, ", ") + ")"
	}
	return s
}
