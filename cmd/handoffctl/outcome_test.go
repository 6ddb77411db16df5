package main

import (
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
)

// gens reads "serving standby/spare": generations from 1 on, oldest first.
func gens(s string) *handoff.Status {
	st := &handoff.Status{}
	for i, word := range strings.Fields(s) {
		state, takeover, _ := strings.Cut(word, "/")
		st.Generations = append(st.Generations, handoff.GenerationStatus{
			Generation: uint64(i + 1), State: state, Takeover: takeover,
		})
	}
	return st
}

func TestReached(t *testing.T) {
	all := []string{"standby", "serving", "committed", "released", "drained"}
	tests := []struct {
		generations string
		want        string
	}{
		{"starting", ""},
		{"serving", "serving committed released drained"},
		{"serving starting/auto", "serving"},
		{"serving starting/standby", "serving"},
		{"serving standby/auto", "standby serving"},
		{"serving standby/standby", "standby serving released drained"},
		{"serving starting/spare", "serving committed released drained"},
		{"serving standby/spare", "serving committed released drained"},
		{"parked standby/auto", "standby"},
		{"parked serving/auto", "serving committed"},
		{"parked serving standby/spare", "serving committed"},
		{"releasing serving", "serving committed"},
		{"draining serving", "serving committed released"},
		{"draining draining serving", "serving committed released"},
		{"draining serving standby/spare", "serving committed released"},
		{"draining parked serving", "serving committed"},
		{"serving revoked", "serving released"},
		{"draining", ""},
		{"", ""},
	}
	for _, tt := range tests {
		t.Run(tt.generations, func(t *testing.T) {
			var got []string
			for _, what := range all {
				if reached(what, gens(tt.generations)) {
					got = append(got, what)
				}
			}
			require.Equal(t, tt.want, strings.Join(got, " "))
		})
	}
}

func TestTarget(t *testing.T) {
	const id = "deploy"
	tests := []struct {
		name        string
		generations string
		request     string // outcome that is remembered
		of          uint64 // its generation
		last        string // outcome of the last handoff to of
		byNumber    bool   // the target is known by of alone
		echo        uint64 // the generation that was started with the id
		want        string
		reached     string // the furthest
		failed      bool
	}{
		{name: "never heard of", generations: "serving"},
		{name: "remembered", generations: "serving starting", request: "starting", of: 2, want: "starting"},
		{name: "withdrawn before it came", generations: "serving", request: "withdrawn", want: "withdrawn", failed: true},
		{name: "standby", generations: "serving standby", request: "standby", of: 2, want: "standby", reached: "standby"},
		{name: "committed", generations: "parked serving", request: "committed", of: 2, want: "committed", reached: "committed"},
		{name: "committed, seen before it is recorded", generations: "parked serving", request: "standby", of: 2, want: "committed", reached: "committed"},
		{name: "released", generations: "draining serving", request: "released", of: 2, want: "released", reached: "released"},
		{name: "drained", generations: "gone serving", request: "released", of: 2, want: "released", reached: "released"},
		{name: "first of its chain", generations: "serving", request: "serving", of: 1, want: "serving", reached: "drained"},
		{name: "the incumbent died in probation", generations: "gone serving", request: "committed", of: 2, want: "released", reached: "released"},
		{name: "known by its successor only", generations: "parked serving", echo: 2, want: "committed", reached: "committed"},
		{name: "handed over in turn", generations: "draining serving", echo: 1, want: "released", reached: "drained"},
		{name: "revoked", generations: "serving revoked", request: "committed", of: 2, want: "rolled_back", failed: true},
		{name: "rolled back", generations: "serving", request: "rolled_back", of: 2, want: "rolled_back", failed: true},
		{name: "by number", generations: "parked serving", of: 2, byNumber: true, want: "committed", reached: "committed"},
		{name: "by number, ended", generations: "serving", of: 2, byNumber: true, last: "rolled_back", want: "rolled_back", failed: true},
		{name: "by number, forgotten", generations: "serving", of: 2, byNumber: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			st := gens(tt.generations)
			if tt.request != "" {
				st.Requests = []handoff.RequestStatus{{ID: "other", Outcome: "failed"}, {ID: id, Outcome: tt.request, Generation: tt.of}}
			}
			if tt.last != "" {
				st.Last = &handoff.HandoffStatus{From: 1, To: tt.of, Outcome: tt.last}
			}
			if tt.echo != 0 {
				st.Generations[tt.echo-1].Request = id
			}
			who := target{request: id}
			if tt.byNumber {
				who = target{generation: tt.of}
			}
			p := who.in(st)
			require.Equal(t, tt.want, p.outcome)
			require.Equal(t, tt.failed, p.failed())
			furthest := ""
			for _, what := range []string{"standby", "committed", "released", "drained"} {
				if p.reached(what) {
					furthest = what
				}
			}
			require.Equal(t, tt.reached, furthest)
		})
	}
}

func TestDrainedTarget(t *testing.T) {
	st := gens("draining serving")
	st.Requests = []handoff.RequestStatus{{ID: "deploy", Outcome: "released", Generation: 2}}
	require.False(t, target{request: "deploy"}.in(st).reached("drained"))
	st.Generations = slices.Delete(st.Generations, 0, 1)
	require.True(t, target{request: "deploy"}.in(st).reached("drained"))
}

func TestPlain(t *testing.T) {
	require.Equal(t, "größe", plain("größe"))
	require.Equal(t, `a\x1b[31mb\n`, plain("a\x1b[31mb\n"))
	require.NotContains(t, plain("\xff\u202e"), "\u202e")
}

func TestAge(t *testing.T) {
	tests := []struct {
		seconds float64
		want    string
	}{
		{-1, "-"},
		{0, "0.0s"},
		{4.24, "4.2s"},
		{9.96, "9s"},
		{59.9, "59s"},
		{60, "1m0s"},
		{3599, "59m59s"},
		{7500, "2h5m"},
		{9*86400 + 4*3600, "9d4h"},
		{1e300, "11574074074d1h"},
	}
	for _, tt := range tests {
		require.Equal(t, tt.want, age(tt.seconds))
	}
}
