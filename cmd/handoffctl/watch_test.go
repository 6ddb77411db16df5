package main

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"

	"github.com/fdhandoff/handoff/handoff"
)

// play changes what a fake tells step by step, each when somebody waits for it.
func play(t *testing.T, f *fake, steps ...func(*handoff.Status)) {
	t.Helper()
	for _, step := range steps {
		require.Eventually(t, f.polled, 10*time.Second, time.Millisecond)
		f.update(step)
	}
	require.Eventually(t, f.polled, 10*time.Second, time.Millisecond)
}

// handoffSteps are one handoff, as the processes tell of it.
func handoffSteps() []func(*handoff.Status) {
	second := handoff.GenerationStatus{Generation: 2, State: "starting", Takeover: "auto", PID: 12, Label: "v2"}
	state := func(n int, s string) func(*handoff.Status) {
		return func(st *handoff.Status) { st.Generations[n].State = s }
	}
	return []func(*handoff.Status){
		func(st *handoff.Status) { st.Generations[0].Open = map[string]int{"active": 9} }, // as always
		func(st *handoff.Status) { st.Generations = append(st.Generations, second) },
		func(st *handoff.Status) { st.Generations[0].State, st.Generations[1].State = "parked", "serving" },
		func(st *handoff.Status) {
			st.Generations[0].State, st.Generations[0].Open, st.Generations[0].LeftSeconds = "draining", map[string]int{"active": 2}, 30
			st.Instance, st.Revision, st.Generation, st.PID = "second", 0, 2, 12
			st.Last = &handoff.HandoffStatus{ID: "h", From: 1, To: 2, Outcome: "released"}
		},
		func(st *handoff.Status) { st.Generations[0].LeftSeconds = 29 }, // no news
		func(st *handoff.Status) { st.Generations[0].Open["active"] = 1 },
		func(st *handoff.Status) {
			st.Generations = st.Generations[1:]
			st.Last = &handoff.HandoffStatus{ID: "h", From: 1, To: 2, Outcome: "released", Cut: map[string]int{"active": 1}}
		},
		state(0, "serving"), // no news
		func(st *handoff.Status) { st.Generations[0].Adopted = 1 },
		func(st *handoff.Status) { st.Generations[0].Adopted = 121 },
		func(st *handoff.Status) {
			st.Requests = append(st.Requests, handoff.RequestStatus{ID: "d\n", Outcome: "withdrawn"})
		},
		func(st *handoff.Status) { st.Generations[0].Stopping, st.Generations[0].LeftSeconds = true, 5 },
	}
}

// lineChan is a writer that sends each line.
type lineChan chan string

func (c lineChan) Write(b []byte) (int, error) {
	for line := range strings.Lines(string(b)) {
		c <- strings.TrimSuffix(line, "\n")
	}
	return len(b), nil
}

func TestWatch(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	ctx, cancel := context.WithCancel(t.Context())
	out, code := make(lineChan, 100), make(chan int, 1)
	var stderr bytes.Buffer
	go func() { code <- run(ctx, []string{"--socket", path, "status", "--watch"}, out, &stderr) }()
	says := func(want ...string) {
		t.Helper()
		for _, w := range want {
			at, rest, _ := strings.Cut(<-out, "  ")
			_, err := time.Parse(time.RFC3339, at)
			require.NoError(t, err)
			require.Equal(t, w, rest)
		}
	}
	says("nobody answers at the socket")
	f, err := startFake(path, serving1, script{})
	require.NoError(t, err)
	play(t, f, handoffSteps()...)
	says(
		"1 serving | generation 1 (pid 11, v1) answers",
		"1 serving, 9 active; 2 starting | generation 2 (pid 12, v2) came",
		"1 parked, 9 active; 2 serving | 1: serving to parked; 2: starting to serving",
		"1 draining, 2 active, 30s left; 2 serving | generation 2 (pid 12, v2) answers; 1: parked to draining; handoff 1 to 2 released",
		"1 draining, 1 active, 29s left; 2 serving",
		"2 serving | 1 is gone; 1 cut 1 active",
		"2 serving | 1 connection moved to 2",
		"2 serving | 120 connections moved to 2",
		`2 serving | request d\n withdrawn`,
		"2 serving (stopping), 5.0s left | 2 stops",
	)
	f.close()
	says("nobody answers at the socket")
	g, err := startFake(path, handoff.GenerationStatus{Generation: 1, State: "starting"}, script{})
	require.NoError(t, err)
	t.Cleanup(g.close)
	play(t, g, func(st *handoff.Status) {
		st.Generations[0].State = "serving"
		st.Last = &handoff.HandoffStatus{To: 1, Outcome: "released"} // from nobody: no handoff
	})
	says("1 starting | generation 1 answers", "1 serving | 1: starting to serving")
	cancel()
	require.Equal(t, exitDone, <-code)
	require.Empty(t, stderr.String())
	require.Empty(t, out, "nothing else was news")
}

// TestWatchAsJSON: each line is a whole status.
func TestWatchAsJSON(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{})
	ctx, cancel := context.WithCancel(t.Context())
	got := during(ctx, func() {
		play(t, f, handoffSteps()[1])
		f.close()
		cancel()
	}, "--socket", path, "status", "--watch", "--json")
	require.Equal(t, exitDone, got.code, got.stderr)
	all := strings.Split(strings.TrimSpace(got.stdout), "\n")
	require.GreaterOrEqual(t, len(all), 2)
	for i, line := range all {
		var st watched
		require.NoError(t, json.Unmarshal([]byte(line), &st), line)
		require.Equal(t, 1, st.Schema)
		require.Equal(t, path, st.Socket)
		if i < 2 {
			require.Len(t, st.Generations, i+1)
			require.Empty(t, st.Error)
		} else { // the fake may have been gone before the watch was ended
			require.NotNil(t, st.Generations)
			require.Empty(t, st.Generations)
			require.NotEmpty(t, st.Error)
		}
	}
}

func TestWatchEnds(t *testing.T) {
	tests := []struct {
		name   string
		start  func(t *testing.T, path string)
		time   string // default 300ms
		code   int
		stdout string
		stderr string
	}{
		{
			name: "by its time", time: "3s", stdout: "  1 serving \\| generation 1 \\(pid 11, v1\\) answers\n$",
			start: func(t *testing.T, path string) {
				f, err := startFake(path, serving1, script{})
				require.NoError(t, err)
				t.Cleanup(f.close)
			},
		},
		{
			name: "nobody ever came", start: func(*testing.T, string) {}, time: "3s",
			code: exitNobody, stdout: "  nobody answers at the socket\n$", stderr: "nobody came to .*/s within 3s\n",
		},
		{
			name: "silence", code: exitUnknown, stderr: "time ran out after 300ms, nothing was seen: the process at the socket does not answer\n",
			start: startSilent,
		},
		{
			name: "another program's socket", time: "1m", code: exitUsage, stderr: "a socket of another kind",
			start: startOther,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(t.TempDir(), "s")
			tt.start(t, path)
			got := ctl(t.Context(), "--socket", path, "status", "--watch", "--timeout", cmp.Or(tt.time, "300ms"))
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stdout, got.stdout)
			require.Equal(t, tt.stdout == "", got.stdout == "", got.stdout)
			require.Regexp(t, tt.stderr, got.stderr)
			require.Equal(t, tt.stderr == "", got.stderr == "", got.stderr)
		})
	}
}

// TestWatchSilence: a process that answers no more is told of, and so is its
// coming back.
func TestWatchSilence(t *testing.T) {
	leak.Check(t)
	shortLooks(t)
	f, path := newFake(t, script{})
	w := &watcher{a: &app{}, c: &handoff.Client{Socket: path}, quiet: 20 * time.Millisecond}
	st, trouble, err := w.next(t.Context())
	require.NoError(t, err)
	require.Empty(t, trouble)
	w.last = st
	for range 10 {
		st, trouble, err = w.next(t.Context())
		require.NoError(t, err)
		require.Empty(t, trouble, "nothing changed, but it answers")
		require.Equal(t, w.last.Revision, st.Revision)
	}
	f.mu.Lock()
	f.silent = true
	f.mu.Unlock()
	st, trouble, err = w.next(t.Context())
	require.NoError(t, err)
	require.Nil(t, st)
	require.Equal(t, "the process at the socket does not answer", trouble)
	w.last = nil
	f.mu.Lock()
	f.silent = false
	f.mu.Unlock()
	st, _, err = w.next(t.Context())
	require.NoError(t, err)
	require.NotNil(t, st)
}
