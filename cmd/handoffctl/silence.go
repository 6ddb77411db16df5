package main

import (
	"fmt"

	"github.com/fdhandoff/handoff/handoff"
)

// Processes that are alive and do not answer, as others tell of them.

func isSilent(g handoff.GenerationStatus) bool { return g.SilentSeconds > 0 }

// silentDecider is the generation that decides who serves, where it is silent and
// its successor answers in its stead; nil if there is none.
func silentDecider(st *handoff.Status) *handoff.GenerationStatus {
	if st == nil {
		return nil
	}
	for i, g := range st.Generations {
		if isSilent(g) && g.Generation < st.Generation && isState("serving", "parked", "releasing")(g) {
			return &st.Generations[i]
		}
	}
	return nil
}

func silence(g handoff.GenerationStatus) string {
	return name(g) + " is silent for " + age(g.SilentSeconds)
}

// silenceRemedy is what to do about a silent decider, or "".
func silenceRemedy(st *handoff.Status) string {
	g := silentDecider(st)
	if g == nil {
		return ""
	}
	who := "that process"
	if g.PID > 0 {
		who = fmt.Sprintf("pid %d", g.PID)
	}
	return fmt.Sprintf("look at %s: let it continue (SIGCONT); or end it: what it has accepted is lost then, and generation %d serves", who, st.Generation)
}
