package main

import (
	"context"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/internal/leak"
)

// standIn is what a standby, generation 2, tells of its silent incumbent.
func standIn(st *handoff.Status) {
	standby(st)
	st.Instance, st.Generation, st.PID = "stand-in", 2, 12
	st.Generations[0].SilentSeconds, st.Generations[1].PID = 4.2, 12
}

// answersAgain is the same incumbent later.
func answersAgain(st *handoff.Status) {
	st.Instance, st.Generation, st.PID = "first", 1, 11
	st.Generations[0].SilentSeconds = 0
}

func TestReachedBesideSilence(t *testing.T) {
	tests := []struct {
		generations string
		silent      int // index
		want        string
	}{
		{"serving standby/standby", 0, "standby"},
		{"serving standby/auto", 1, "standby serving"},
		{"parked serving", 0, "serving committed"},
		{"parked serving", 1, ""},
		{"serving revoked", 1, "serving released"},
	}
	for _, tt := range tests {
		st := gens(tt.generations)
		st.Generations[tt.silent].SilentSeconds = 4
		var got []string
		for _, what := range []string{"standby", "serving", "committed", "released", "drained"} {
			if reached(what, st) {
				got = append(got, what)
			}
		}
		require.Equal(t, tt.want, strings.Join(got, " "), "%s, %d is silent", tt.generations, tt.silent)
	}
}

func TestWhoIsSilent(t *testing.T) {
	tests := []struct {
		generations string
		silent      int    // index
		answers     uint64 // generation
		who, remedy string
	}{
		{"serving standby/standby", 0, 2, "generation 1 is silent for 4.0s; generation 2 waits as a standby", "look at that process: let it continue (SIGCONT); or end it: what it has accepted is lost then, and generation 2 serves"},
		{"parked serving", 0, 2, "generation 2 serves; generation 1 can still take back, but is silent for 4.0s", "look at that process: let it continue (SIGCONT); or end it: what it has accepted is lost then, and generation 2 serves"},
		{"serving standby/standby", 1, 1, "generation 1 serves; generation 2 waits as a standby, but is silent for 4.0s", ""},
		{"serving revoked", 1, 1, "generation 1 serves; generation 2 was sent away and ends, but is silent for 4.0s", ""},
	}
	for _, tt := range tests {
		st := gens(tt.generations)
		st.Generation, st.Generations[tt.silent].SilentSeconds = tt.answers, 4
		require.Equal(t, tt.who, whoServes(st))
		require.Equal(t, tt.remedy, silenceRemedy(st))
	}
	st := gens("serving standby")
	require.Empty(t, silenceRemedy(st))
	require.Empty(t, silenceRemedy(nil))
}

func TestBecause(t *testing.T) {
	require.Equal(t, "silent: it did not answer heartbeats", because("rolled_back", "silent"))
	require.Equal(t, "unhealthy: it said so itself", because("rolled_back", "unhealthy"))
	require.Equal(t, "died", because("rolled_back", "died"))
	require.Equal(t, "silent", because("failed", "silent"))
	require.Contains(t, because("failed", "foreign_netns"), "another network namespace")
}

// TestSilence: what each command says beside a silent incumbent in whose stead
// its standby answers.
func TestSilence(t *testing.T) {
	const (
		remedy  = `hint: look at pid 11: let it continue \(SIGCONT\); or end it: what it has accepted is lost then, and generation 2 serves\n$`
		refused = `^handoffctl: error: generation 1 \(pid 11\), which decides, is alive but silent\nhandoffctl: hint: look at that process\n$`
	)
	tests := []struct {
		args   string
		code   int
		stdout string
		stderr string
	}{
		{args: "status", stdout: `(?s)\n1 +serving \(silent 4\.2s\) .*\n2 +standby .*\ngeneration 1 \(pid 11, v1\) is silent for 4\.2s: look at pid 11: let it continue`},
		{args: "check", code: exitRefused, stderr: `error: not ready: generation 1 \(pid 11, v1\) is serving \(silent\); generation 2 \(pid 12\) is standby\n.*` + remedy},
		{args: "check --state serving,ready", code: exitRefused, stderr: "not serving or ready: .*\n.*" + remedy},
		{args: "check --state alive", stdout: `^alive: generation 2 `},
		{args: "wait --for=serving --timeout 300ms", code: exitUnknown, stderr: `time ran out after 300ms, not serving yet: generation 1 \(pid 11, v1\) is silent for 4\.2s; generation 2 \(pid 12\) waits as a standby\n.*` + remedy},
		{args: "wait --for=released --timeout 300ms", code: exitUnknown, stderr: remedy},
		{args: "handover", code: exitRefused, stderr: refused},
		{args: "rollback", code: exitRefused, stderr: refused},
		{args: "drain", code: exitRefused, stderr: refused},
		{args: "stop", code: exitRefused, stderr: refused},
		{args: "stop --generation 1", code: exitRefused, stderr: refused},
		{args: "upgrade -- false", code: exitUnknown, stderr: `^handoffctl: error: generation 1 \(pid 11, v1\) is silent for 4\.2s; CMD was not started\n.*` + remedy},
	}
	for _, tt := range tests {
		t.Run(tt.args, func(t *testing.T) {
			leak.Check(t)
			f, path := newFake(t, script{standsIn: true})
			f.update(standIn)
			got := ctl(t.Context(), append([]string{"--socket", path}, strings.Fields(tt.args)...)...)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stdout, got.stdout)
			require.Equal(t, tt.stdout == "", got.stdout == "", got.stdout)
			require.Regexp(t, tt.stderr, got.stderr)
			require.Equal(t, tt.stderr == "", got.stderr == "", got.stderr)
		})
	}
}

// TestWatchSilentIncumbent: each begin and end of it is a line.
func TestWatchSilentIncumbent(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{})
	ctx, cancel := context.WithCancel(t.Context())
	got := during(ctx, func() {
		play(t, f, standIn, func(st *handoff.Status) { st.Generations[0].SilentSeconds++ }, answersAgain)
		cancel()
	}, "--socket", path, "status", "--watch")
	require.Equal(t, exitDone, got.code, got.stderr)
	var lines []string
	for line := range strings.Lines(got.stdout) {
		_, rest, _ := strings.Cut(strings.TrimSpace(line), "  ")
		lines = append(lines, rest)
	}
	require.Len(t, lines, 3, got.stdout)
	require.Equal(t, "1 serving (silent); 2 standby | generation 2 (pid 12) answers; 1 is silent; generation 2 (pid 12) came", lines[1])
	require.Equal(t, "1 serving; 2 standby | generation 1 (pid 11, v1) answers; 1 answers again", lines[2])
}

// TestUpgradeBesideSilence: an incumbent that falls silent before the commit is
// waited for, since it may answer again.
func TestUpgradeBesideSilence(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "released"}, false)
	p.f.mu.Lock()
	p.f.script.standsIn = true
	p.f.mu.Unlock()
	done := make(chan outcome, 1)
	go func() { done <- p.run(t.Context(), t, "exec $S standby stay") }()
	require.Eventually(t, func() bool { return verbs(p.f) == "handover deploy" }, 10*time.Second, time.Millisecond)
	p.f.update(func(st *handoff.Status) { p.f.script.standsIn = false })
	got := <-done
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Equal(t, "handoffctl: note: the handover waits: generation 1 (pid 11), which decides, is alive but silent\n", got.stderr)
	require.Equal(t, "handover deploy, handover deploy", verbs(p.f))
	endLater(t, p.file("pid"), true)
}

// TestChecksBesideSilence: while the incumbent is silent its probation stands
// still, and what is left of it is not known.
func TestChecksBesideSilence(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
	got := p.checking(t.Context(), t, "sleeps", 1, func() {
		p.f.update(func(st *handoff.Status) {
			st.Instance, st.Generation, st.PID = "stand-in", 2, 12
			st.Generations[0].SilentSeconds, st.Generations[0].LeftSeconds = 4, 0
		})
		require.Eventually(t, p.f.polled, 10*time.Second, time.Millisecond)
		require.Empty(t, verbs(p.f), "the check that runs has time")
		p.f.update(func(st *handoff.Status) {
			answersAgain(st)
			st.Generations[0].LeftSeconds = 0.3
			st.Generations[0].ProbationSeconds = 0.3
		})
	}, "--check", "sleep 60 & echo $! >$D/sleeps; wait")
	require.Equal(t, exitRefused, got.code, got.stderr)
	require.Regexp(t, "has not passed when the probation was nearly over; generation 2 was rolled back", got.stderr)
	endLater(t, p.file("sleeps"), false)
	endLater(t, p.file("pid"), true)
}

// TestChecksFailBesideSilence: the rollback is asked for until the incumbent
// answers again.
func TestChecksFailBesideSilence(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
	got := p.checking(t.Context(), t, "at", 1, func() {
		p.f.mu.Lock()
		p.f.script.standsIn = true
		p.f.mu.Unlock()
		require.NoError(t, os.WriteFile(p.file("go"), nil, 0o600))
		require.Eventually(t, func() bool { return strings.Count(verbs(p.f), "rollback") > 2 }, 10*time.Second, time.Millisecond)
		p.f.mu.Lock()
		p.f.script.standsIn = false
		p.f.mu.Unlock()
	}, "--check", "echo x >$D/at; until test -e $D/go; do sleep 0.01; done; false")
	require.Equal(t, exitRefused, got.code, got.stderr)
	require.Contains(t, got.stderr, "did not pass: exit status 1; generation 2 was rolled back")
	endLater(t, p.file("pid"), true)
}
