package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"

	"github.com/fdhandoff/handoff/handoff"
)

func standby(st *handoff.Status) {
	st.Generations = append(st.Generations, handoff.GenerationStatus{Generation: 2, State: "standby", Takeover: "standby", PID: 12, Request: "hello-id"})
}

func TestHandover(t *testing.T) {
	request := func(outcome string) func(*handoff.Status) {
		return func(st *handoff.Status) {
			st.Requests = []handoff.RequestStatus{{ID: "d", Outcome: outcome, Generation: 2}}
			st.Generations = gens("draining serving").Generations
		}
	}
	tests := []struct {
		name   string
		script script
		status func(*handoff.Status)
		args   []string
		over   func(*fake) bool // its time runs out then
		code   int
		stdout string
		stderr string
		verbs  []string
	}{
		{
			name: "released by default", script: script{upTo: "released"}, status: standby,
			stdout: "^released: generation 2 .*serves", verbs: []string{"handover "},
		},
		{
			name: "accepted", script: script{upTo: "committed"}, status: standby, args: []string{"--wait=accepted"},
			stdout: "^accepted: handover to generation 2\n$", verbs: []string{"handover "},
		},
		{
			name: "time runs out in probation", script: script{upTo: "committed"}, status: standby, args: []string{endless}, over: (*fake).polled,
			code: exitUnknown, stderr: "time ran out after 1h0m0s, not released yet: generation 2 .*serves; generation 1 .*can still take back\n", verbs: []string{"handover "},
		},
		{
			name: "rolled back", script: script{upTo: "committed", then: "rolled_back"}, status: standby,
			code: exitRefused, stderr: `rolled back \(checks\); generation 1 \(pid 11, v1\) serves\n`, verbs: []string{"handover "},
		},
		{
			name: "no standby", code: exitRefused, stderr: "error: no standby waits\nhandoffctl: hint: start the next version as a standby", verbs: []string{"handover "},
		},
		{
			name: "repeated when done", status: request("released"), args: []string{"--request-id=d"},
			stdout: "^already released: ",
		},
		{
			name: "repeated when rolled back", status: request("rolled_back"), args: []string{"--request-id=d"},
			code: exitRefused, stderr: "request d: rolled back;",
		},
		{
			name: "by its own id", script: script{upTo: "drained"}, status: standby, args: []string{"--request-id=d", "--wait=drained"},
			stdout: "^drained: ", verbs: []string{"handover d"},
		},
		{
			name: "cut", script: script{upTo: "drained", cut: map[string]int{"h2": 3}}, status: standby, args: []string{"--wait=drained"},
			code: exitCut, stdout: "^drained: ", stderr: "3 h2", verbs: []string{"handover "},
		},
		{name: "unprintable id", args: []string{"--request-id=a\nb"}, code: exitUsage, stderr: "must be printable"},
		{name: "negative time", args: []string{"--timeout=-1s"}, code: exitUsage, stderr: "--timeout is negative"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			f, path := newFake(t, tt.script)
			if tt.status != nil {
				f.update(tt.status)
			}
			over := func(string) bool { return tt.over != nil && tt.over(f) }
			got := ctlUntil(t, over, append([]string{"--socket", path, "handover"}, tt.args...)...)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stdout, got.stdout)
			require.Regexp(t, tt.stderr, got.stderr)
			require.Equal(t, tt.stderr == "", got.stderr == "")
			require.Equal(t, tt.verbs, f.asked())
		})
	}
}

func TestRollback(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{})
	f.update(func(st *handoff.Status) { st.Generations = gens("parked serving").Generations })
	require.Equal(t, outcome{stdout: "rolled back: generation 1 serves\n"}, ctl(t.Context(), "--socket", path, "rollback"))
	require.Equal(t, outcome{code: exitRefused, stderr: "handoffctl: error: nothing can be taken back\n"}, ctl(t.Context(), "--socket", path, "rollback"))
}

func TestNotAllowed(t *testing.T) {
	leak.Check(t)
	_, path := newFake(t, script{})
	for _, args := range [][]string{{"--allow-uid", "4294967295", "status"}, {"--allow-uid", "x", "status"}} {
		got := ctl(t.Context(), append([]string{"--socket", path}, args...)...)
		require.Equal(t, exitUsage, got.code, got.stderr)
	}
}
