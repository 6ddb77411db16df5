package main

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"

	"github.com/fdhandoff/handoff/handoff"
)

func TestEnding(t *testing.T) {
	slowly := []handoff.GenerationStatus{
		{Generation: 1, State: "serving", Stopping: true, LeftSeconds: 5},
		{Generation: 1, State: "draining", Open: map[string]int{"active": 3, "idle": 1}, Holds: map[string]int{"import": 1}, LeftSeconds: 30},
		{Generation: 1, State: "draining", Open: map[string]int{"active": 3, "idle": 1}, Holds: map[string]int{"import": 1}, LeftSeconds: 29},
		{Generation: 1, State: "draining", Open: map[string]int{"active": 1}, LeftSeconds: 28},
	}
	shown := `^handoffctl: progress: generation 1 is serving \(stopping\), 5\.0s left
handoffctl: progress: generation 1 is draining, open: 3 active, 1 idle, held by: 1 import, 30s left
handoffctl: progress: generation 1 is draining, open: 1 active, 28s left
`
	state := func(s string) func(*handoff.Status) {
		return func(st *handoff.Status) {
			st.Generations = gens(s).Generations
			for _, g := range st.Generations {
				if g.State == "serving" {
					st.Generation = g.Generation
				}
			}
		}
	}
	tests := []struct {
		name   string
		args   []string
		script script
		status func(*handoff.Status)
		until  string // it has said this when its time runs out
		code   int
		stdout string
		stderr string
		verbs  []string
	}{
		{name: "drain", args: []string{"drain"}, stdout: "^generation 1 is gone: nobody answers at the socket now\n$", verbs: []string{"drain "}},
		{
			name: "drain that takes its time", args: []string{"drain"}, script: script{drains: slowly},
			stdout: "^generation 1 is gone: nobody answers", stderr: shown + "$", verbs: []string{"drain "},
		},
		{
			name: "drain with cuts", args: []string{"drain"}, script: script{drains: slowly, cut: map[string]int{"active": 1, "hold": 2}},
			code: exitCut, stdout: "^generation 1 is gone", stderr: shown + "handoffctl: error: connections were cut at the drain deadline: 1 active, 2 hold\n", verbs: []string{"drain "},
		},
		{name: "drain accepted", args: []string{"drain", "--wait=accepted"}, stdout: "^accepted: generation 1 drains\n$", verbs: []string{"drain "}},
		{
			name: "drain in probation", args: []string{"drain"}, status: state("parked serving"),
			code: exitRefused, stderr: "error: generation 2 serves in probation\nhandoffctl: hint: handoffctl rollback takes back\n", verbs: []string{"drain "},
		},
		{
			name: "drain that does not end", args: []string{"drain", endless}, script: script{drains: slowly[3:], hangs: true}, until: "28s left",
			code: exitUnknown, stderr: "time ran out after 1h0m0s, generation 1 is not gone yet: no generation serves; generation 1 drains, 28s left\n", verbs: []string{"drain "},
		},
		{name: "stop", args: []string{"stop"}, stdout: "^generation 1 is gone: nobody answers at the socket now\n$", verbs: []string{"stop "}},
		{
			name: "stop with cuts", args: []string{"stop"}, script: script{cut: map[string]int{"active": 1}},
			code: exitCut, stdout: "^generation 1 is gone", stderr: "cut at the drain deadline: 1 active\n", verbs: []string{"stop "},
		},
		{name: "stop accepted", args: []string{"stop", "--wait=accepted"}, stdout: "^accepted: generation 1 stops\n$", verbs: []string{"stop "}},
		{
			name: "stop of an older generation", args: []string{"stop", "--generation=1"}, status: state("draining serving"),
			stdout: "^generation 1 is gone: generation 2 serves\n$", verbs: []string{"stop 1"},
		},
		{
			// Cutting is what was asked for, so it is no failure.
			name: "stop of an older generation that had something open", args: []string{"stop", "--generation=1"}, status: state("draining serving"), script: script{cut: map[string]int{"active": 4}},
			stdout: "^generation 1 is gone: generation 2 serves; cut: 4 active\n$", verbs: []string{"stop 1"},
		},
		{
			name: "stop of an older generation, accepted", args: []string{"stop", "--generation=1", "--wait=accepted"}, status: state("draining serving"), script: script{hangs: true},
			stdout: "^accepted: generation 1 stops\n$", verbs: []string{"stop 1"},
		},
		{
			name: "stop of an older generation that does not end", args: []string{"stop", "--generation=1", endless}, status: state("draining serving"), script: script{hangs: true}, until: "progress",
			code: exitUnknown, stderr: "generation 1 is not gone yet: generation 2 serves; generation 1 drains\n", verbs: []string{"stop 1"},
		},
		{
			name: "stop of a standby", args: []string{"stop", "--generation=2"}, status: state("serving standby/standby"),
			stdout: "^generation 2 is gone: generation 1 serves\n$", verbs: []string{"stop 2"},
		},
		{
			name: "stop of the one that answers, by its number", args: []string{"stop", "--generation=1"}, script: script{drains: slowly},
			stdout: "^generation 1 is gone: nobody answers", stderr: shown + "$", verbs: []string{"stop 1"},
		},
		{
			name: "stop of a generation in probation", args: []string{"stop", "--generation=2"}, status: state("parked serving"),
			code: exitRefused, stderr: "error: generation 2 serves in probation: generation 2 serves; generation 1 can still take back\nhandoffctl: hint: handoffctl rollback", verbs: []string{"stop 2"},
		},
		{
			name: "stop of one that has ended", args: []string{"stop", "--generation=1"},
			status: func(st *handoff.Status) {
				st.Generation, st.Generations = 2, []handoff.GenerationStatus{{Generation: 2, State: "serving", PID: 12}}
			},
			stdout: `^generation 1 is gone already: generation 2 \(pid 12\) serves\n$`,
		},
		{
			name: "stop of one that does not live", args: []string{"stop", "--generation=9"}, status: state("draining serving"),
			code: exitRefused, stderr: "error: no generation 9 lives: generation 2 serves; generation 1 drains\n$",
		},
		{name: "stop of no generation", args: []string{"stop", "--generation=0"}, code: exitUsage, stderr: "--generation counts from 1"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			f, path := newFake(t, tt.script)
			if tt.status != nil {
				f.update(tt.status)
			}
			over := func(stderr string) bool { return tt.until != "" && strings.Contains(stderr, tt.until) }
			got := ctlUntil(t, over, append([]string{"--socket", path}, tt.args...)...)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stdout, got.stdout)
			require.Equal(t, tt.stdout == "", got.stdout == "", got.stdout)
			require.Regexp(t, tt.stderr, got.stderr)
			require.Equal(t, tt.stderr == "", got.stderr == "", got.stderr)
			require.Equal(t, tt.verbs, f.asked())
		})
	}
}

func TestDrainAsJSON(t *testing.T) {
	leak.Check(t)
	_, path := newFake(t, script{cut: map[string]int{"hold": 1}})
	got := ctl(t.Context(), "--socket", path, "drain", "--json")
	require.Equal(t, exitCut, got.code)
	var r result
	require.NoError(t, json.Unmarshal([]byte(got.stdout), &r))
	require.Equal(t, []any{"drain", "drained", true, uint64(1), exitCut}, []any{r.Command, r.Outcome, r.Changed, r.Generation, r.Exit})
	require.Equal(t, map[string]int{"hold": 1}, r.Cut)
	require.Equal(t, exitNobody, ctl(t.Context(), "--socket", path, "drain").code)
}
