package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/fdhandoff/handoff/handoff"
)

// Sockets that live in another network namespace than the process that serves them.

// foreignLines say who serves such sockets, and that clients reach some no more.
func foreignLines(st *handoff.Status) (lines []string) {
	for _, g := range st.Generations {
		if g.Foreign > 0 {
			lines = append(lines, fmt.Sprintf("generation %d has %s in another network namespace", g.Generation, sockets(g.Foreign)))
		}
		if len(g.NetworkGone) > 0 {
			lines = append(lines, fmt.Sprintf("generation %d: the network is gone of %s", g.Generation, strings.Join(g.NetworkGone, ", ")))
		}
	}
	if remedy := goneRemedy(st.Generations); remedy != "" {
		lines = append(lines, remedy)
	}
	return lines
}

// socketState says how a socket came here, and what else there is to know of it.
func socketState(s handoff.SocketInfo) string {
	state := s.State
	if s.Exclusive {
		state += ", exclusive"
	}
	if s.Foreign {
		state += ", foreign"
	}
	if s.NetworkGone != "" {
		state += ", network gone: " + s.NetworkGone
	}
	return state
}

func sockets(n int) string {
	if n == 1 {
		return "1 socket"
	}
	return fmt.Sprintf("%d sockets", n)
}

// goneRemedy is what to do where the network of sockets is gone, or "".
func goneRemedy(all []handoff.GenerationStatus) string {
	if !slices.ContainsFunc(all, func(g handoff.GenerationStatus) bool { return len(g.NetworkGone) > 0 }) {
		return ""
	}
	return "stop the service, and start it where its clients are: a successor would take the same sockets"
}
