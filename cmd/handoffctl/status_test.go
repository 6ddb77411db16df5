package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
)

func TestMovingLines(t *testing.T) {
	for _, tt := range []struct {
		name string
		g    handoff.GenerationStatus
		want []string
	}{
		{name: "nothing moved", g: handoff.GenerationStatus{State: "draining", Open: map[string]int{"idle": 3}}},
		{name: "what was adopted is the others'", g: handoff.GenerationStatus{State: "serving", Adopted: 3}},
		{name: "one", g: handoff.GenerationStatus{State: "draining", Moved: 1}, want: []string{"generation 5 drains: 1 connection moved, 0 open"}},
		{
			name: "taken back from", g: handoff.GenerationStatus{State: "revoked", Moved: 2, Open: map[string]int{"idle": 1, "h2": 3}},
			want: []string{"generation 5 is revoked: 2 connections moved, 4 open"},
		},
		{
			name: "turned off meanwhile", g: handoff.GenerationStatus{State: "draining", Moved: 2, MoveOff: "nobody takes them"},
			want: []string{"generation 5 drains: 2 connections moved, 0 open", "generation 5 does not move idle connections: nobody takes them"},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			tt.g.Generation = 5
			require.Equal(t, tt.want, movingLines(&handoff.Status{Generations: []handoff.GenerationStatus{tt.g}}))
		})
	}
}

// TestMovedWithTheLastHandoff: only what moved to the successor that it names.
func TestMovedWithTheLastHandoff(t *testing.T) {
	st := &handoff.Status{
		Generations: []handoff.GenerationStatus{{Generation: 1, Adopted: 7}, {Generation: 2, Adopted: 1}, {Generation: 3, Adopted: 9}},
		Last:        &handoff.HandoffStatus{From: 1, To: 2, Outcome: handoff.OutcomeReleased},
	}
	require.Regexp(t, `^1 to 2 released .* ago; 1 connection moved to 2$`, lastHandoff(st))
	st.Generations[1].Adopted = 0
	require.Regexp(t, `^1 to 2 released .* ago$`, lastHandoff(st))
}

// TestMovedNotes: what moved between two looks, also to a process that came in between.
func TestMovedNotes(t *testing.T) {
	at := func(adopted ...uint64) *handoff.Status {
		st := &handoff.Status{Instance: "i", Generation: 1, PID: 11}
		for i, n := range adopted {
			st.Generations = append(st.Generations, handoff.GenerationStatus{Generation: uint64(i + 1), PID: i + 11, State: "serving", Adopted: n})
		}
		return st
	}
	require.Empty(t, changes(at(4), at(4)))
	require.Empty(t, changes(at(4), at(3)), "a process that another one tells of is told late")
	require.Equal(t, []string{"3 connections moved to 1"}, changes(at(4), at(7)))
	require.Equal(t, []string{"generation 2 (pid 12) came", "5 connections moved to 2"}, changes(at(0), at(0, 5)))
	require.Equal(t, []string{"generation 1 (pid 11) answers"}, changes(nil, at(4)), "what moved before the watch is no news")
}
