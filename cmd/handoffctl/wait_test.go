package main

import (
	"cmp"
	"context"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"

	"github.com/fdhandoff/handoff/handoff"
)

// during runs the program, and do once it has waited for something: the fake
// holds its long poll.
func during(ctx context.Context, do func(), args ...string) outcome {
	done := make(chan outcome)
	go func() { done <- ctl(ctx, args...) }()
	do()
	return <-done
}

func TestWaitThroughChange(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	got := during(t.Context(), func() {
		// Nobody, then a first one that ends, then another one.
		first, err := startFake(path, handoff.GenerationStatus{Generation: 1, State: "starting"}, script{})
		require.NoError(t, err)
		require.Eventually(t, func() bool { return first.polled() }, 5*time.Second, time.Millisecond)
		first.close()
		second, err := startFake(path, serving1, script{})
		require.NoError(t, err)
		t.Cleanup(second.close)
	}, "--socket", path, "wait", "--for=serving", "--timeout", "30s")
	require.Equal(t, outcome{code: exitDone, stdout: "serving: generation 1 (pid 11, v1) serves\n"}, got)
}

func TestWaitThroughHandover(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{upTo: "committed"})
	f.update(func(st *handoff.Status) { st.Generations = gens("parked serving").Generations })
	got := during(t.Context(), func() {
		require.Eventually(t, f.polled, 5*time.Second, time.Millisecond)
		f.update(func(st *handoff.Status) { st.Generations = gens("draining serving").Generations })
		require.Eventually(t, f.polled, 5*time.Second, time.Millisecond)
		// The same socket, another process: its revisions are lower.
		f.update(func(st *handoff.Status) {
			st.Instance, st.Revision = "other", 0
			st.Generations = gens("gone serving").Generations[1:]
		})
	}, "--socket", path, "wait", "--for=drained", "--json")
	require.Equal(t, exitDone, got.code)
	require.Empty(t, got.stderr)
	require.Contains(t, got.stdout, `"outcome": "drained"`)
}

func TestWaitEndsWithout(t *testing.T) {
	tests := []struct {
		name   string
		start  func(t *testing.T, path string)
		time   string // default 300ms
		code   int
		stderr string
	}{
		{name: "nobody ever came", start: func(*testing.T, string) {}, code: exitNobody, stderr: "nobody came to .*/s within 300ms\n"},
		{
			name: "somebody is there", code: exitUnknown, stderr: "time ran out after 300ms, not drained yet: generation 2 serves; generation 1 can still take back\n",
			start: func(t *testing.T, path string) {
				f, err := startFake(path, serving1, script{})
				require.NoError(t, err)
				t.Cleanup(f.close)
				f.update(func(st *handoff.Status) {
					st.Generations = []handoff.GenerationStatus{{Generation: 2, State: "serving"}, {Generation: 1, State: "parked"}}
				})
			},
		},
		{
			name: "somebody silent", code: exitUnknown, stderr: "the process at the socket does not answer\n",
			start: startSilent,
		},
		{
			name: "another program's socket", time: "1m", code: exitUsage, stderr: "a socket of another kind",
			start: startOther,
		},
		{
			name: "a file", time: "1m", code: exitUsage, stderr: "not a socket",
			start: func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, nil, 0o600)) },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(t.TempDir(), "s")
			tt.start(t, path)
			got := ctl(t.Context(), "--socket", path, "wait", "--for", "drained", "--timeout", cmp.Or(tt.time, "300ms"))
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, `^handoffctl: error: .*`+tt.stderr, got.stderr)
			require.Empty(t, got.stdout)
		})
	}
}

func TestWaitInterrupted(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{})
	ctx, cancel := context.WithCancel(t.Context())
	got := during(ctx, func() {
		require.Eventually(t, f.polled, 5*time.Second, time.Millisecond)
		cancel()
	}, "--socket", path, "wait", "--for=standby")
	require.Equal(t, exitUnknown, got.code)
	require.Contains(t, got.stderr, "stopped waiting (context canceled), not standby yet: generation 1 (pid 11, v1) serves\n")
}

func TestWaitDrainedWithCuts(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{})
	f.update(func(st *handoff.Status) {
		st.Last = &handoff.HandoffStatus{From: 1, To: 2, Outcome: "released", Cut: map[string]int{"h2": 1, "idle": 0, "hijacked": 2}}
	})
	got := ctl(t.Context(), "--socket", path, "wait", "--for=drained")
	require.Equal(t, exitCut, got.code)
	require.Contains(t, got.stderr, "cut at the drain deadline: 1 h2, 2 hijacked\n")
	require.Contains(t, got.stdout, "drained: ")
}

// startSilent is a process at the socket that never answers.
func startSilent(t *testing.T, path string) {
	t.Helper()
	shortLooks(t)
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
}

// startOther is another program's socket.
func startOther(t *testing.T, path string) {
	t.Helper()
	ln, err := net.Listen("unix", path)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
}
