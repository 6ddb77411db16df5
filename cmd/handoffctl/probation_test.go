package main

import (
	"context"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/internal/leak"
)

// probationOf makes the incumbent of a fake tell of its probation.
func probationOf(seconds float64) func(*handoff.Status) {
	return func(st *handoff.Status) { st.Generations[0].ProbationSeconds = seconds }
}

// ran is a check that leaves a line.
const ran = "echo ran >> $D/ran; "

func TestChecks(t *testing.T) {
	hasCome := func(p *trialRun, _ string) bool { return came(p.f, p) }
	const long = 300 // seconds of probation, which a test does not wait for
	tests := []struct {
		name   string
		script script
		nobody bool
		status func(*handoff.Status) // default is a long probation
		cmd    string
		checks []string
		flags  []string
		code   int
		stdout string
		stderr string
		verbs  string
		over   func(p *trialRun, stderr string) bool
		ran    int
		runs   bool
		idle   bool // CMD was never started
	}{
		{
			name: "fails at once", checks: []string{ran + "echo oh no; exit 7", ran},
			code: exitRefused, verbs: "rollback ", ran: 1, runs: true,
			stderr: `^handoffctl: check: check 1 of 2 \(.*\) wrote:\n  \| oh no\nhandoffctl: error: check 1 of 2 \(.*\) did not pass: exit status 7; generation 2 was rolled back; generation 1 .* serves; CMD \(pid \d+\) still runs: it was told to end\nhandoffctl: hint: what CMD wrote is in .*/log\n$`,
		},
		{
			name: "the last fails", checks: []string{ran, ran + "kill -9 $$"},
			code: exitRefused, verbs: "rollback ", ran: 2, runs: true,
			stderr: `^handoffctl: check: check 1 of 2 \(.*\) passed\nhandoffctl: error: check 2 of 2 \(.*\) did not pass: signal: killed; generation 2 was rolled back`,
		},
		{
			name: "fails in the second round", checks: []string{"echo noise; " + ran, ran + "test $(wc -l <$D/ran) -lt 3"},
			code: exitRefused, verbs: "rollback ", ran: 4, runs: true,
			stderr: `^handoffctl: check: check 1 of 2 \(.*\) passed\nhandoffctl: check: check 2 of 2 \(.*\) passed\nhandoffctl: error: check 2 of 2 \(.*\) did not pass in round 2: exit status 1; generation 2 was rolled back`,
		},
		{
			name: "has not passed when the probation is nearly over", status: probationOf(0.5), script: script{probation: 0.5}, checks: []string{ran, ran + "echo slow; sleep 60; :"},
			code: exitRefused, verbs: "rollback ", ran: 2, runs: true,
			stderr: `check 1 of 2 \(.*\) passed\nhandoffctl: check: check 2 of 2 \(.*\) wrote:\n  \| slow\nhandoffctl: error: check 2 of 2 \(.*\) has not passed when the probation was nearly over; generation 2 was rolled back; .*\nhandoffctl: hint: a longer --probation`,
		},
		{
			name: "takes too long", checks: []string{ran + "sleep 60; :"}, over: hasRun,
			code: exitRefused, verbs: "rollback ", ran: 1, runs: true,
			stderr: `error: time ran out after 1h0m0s, check 1 of 1 \(.*\) has not passed; generation 2 was rolled back; generation 1 .* serves`,
		},
		{
			name: "passed once, and then time runs out", checks: []string{ran}, flags: []string{"--check-interval=1h"},
			over: func(_ *trialRun, stderr string) bool { return strings.Contains(stderr, "passed") },
			code: exitUnknown, ran: 1, runs: true,
			stderr: `passed\n(?s:.*)handoffctl: error: time ran out after 1h0m0s, not released yet, but committed: generation 2 .* serves; generation 1 .* can still take back`,
		},
		{
			name: "time runs out before the commit", script: script{upTo: "starting"}, checks: []string{ran}, over: hasCome,
			code: exitRefused, verbs: "withdraw deploy", stderr: `not released yet; the request is withdrawn; generation 1 .* serves; CMD .* was ended`,
		},
		{
			name: "committed when the request is withdrawn", script: script{upTo: "starting", lateCommit: true}, checks: []string{ran}, over: hasCome,
			code: exitRefused, verbs: "withdraw deploy, rollback ", runs: true, stderr: `not released yet; generation 2 was rolled back; generation 1 .* serves`,
		},
		{
			name: "released before it had passed", script: script{upTo: "released"}, checks: []string{"sleep 60; :"},
			code: exitUnknown, runs: true, stderr: `error: generation 2 was released before the checks had passed; generation 2 .* serves; generation 1 .* drains; CMD .* still runs: it serves\nhandoffctl: hint: its incumbent was stopped, or died`,
		},
		{
			name: "released while it failed", script: script{upTo: "committed", noRollback: true}, checks: []string{ran + "false"},
			code: exitUnknown, verbs: "rollback ", ran: 1, runs: true,
			stderr: `did not pass: exit status 1; generation 2 was released before it could be rolled back; generation 2 .* serves; generation 1 .* drains; CMD .* still runs: it serves\nhandoffctl: hint: deploy the older version again`,
		},
		{
			name: "no probation", status: probationOf(0), checks: []string{ran},
			code: exitRefused, idle: true, stderr: `^handoffctl: error: generation 1 \(pid 11, v1\) has no probation, in which checks could be run; CMD was not started\nhandoffctl: hint: start the service with --probation, or do without --check\n$`,
		},
		{
			name: "too short a probation", status: probationOf(0.2), checks: []string{ran},
			code: exitRefused, idle: true, stderr: `the probation of generation 1 .* is too short for checks: 200ms; CMD was not started`,
		},
		{
			name: "nobody serves yet", nobody: true, checks: []string{ran},
			stdout: "^serving: generation 1 ", stderr: "^handoffctl: note: nobody served, so no check was run\n$", runs: true,
		},
		{
			name: "released in an earlier run", status: remembered("released"), checks: []string{ran + "false"},
			stdout: "^request deploy is finished, CMD was not started: already released", idle: true,
		},
		{
			name: "released in an earlier run, and drains", status: remembered("released"), checks: []string{ran + "false"}, flags: []string{"--wait=drained"},
			over: func(p *trialRun, _ string) bool { return p.f.polled() },
			code: exitUnknown, stderr: `error: time ran out after 1h0m0s, not drained yet, but released: `, idle: true,
		},
		{
			name: "CMD dies", script: script{atEnd: "rolled_back"}, cmd: "exec $S auto die", checks: []string{"sleep 60; :"},
			code: exitRefused, stderr: `(?s)\| panic: no.*rolled back \(died.*generation 1 .* serves`,
		},
		{
			name: "with a precheck", cmd: "exec $S auto stay", checks: []string{ran + "false"}, flags: []string{"--precheck", ran},
			code: exitRefused, verbs: "handover deploy, rollback ", ran: 2, runs: true, stderr: `(?s)precheck 1 of 1.*check 1 of 1 .* did not pass: exit status 1; generation 2 was rolled back`,
		},
		{name: "an empty one", checks: []string{" "}, code: exitUsage, stderr: "--check is empty", idle: true},
		{name: "not waited for", checks: []string{ran}, flags: []string{"--wait=committed"}, code: exitUsage, stderr: "--wait=released or drained only", idle: true},
		{name: "no pause at all", checks: []string{ran}, flags: []string{"--check-interval=0"}, code: exitUsage, stderr: "--check-interval must be positive", idle: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			if tt.script.upTo == "" {
				tt.script.upTo = "committed"
			}
			if tt.script.probation == 0 {
				tt.script.probation = long
			}
			p := newTrialRun(t, tt.script, tt.nobody)
			if tt.status == nil {
				tt.status = probationOf(long)
			}
			if p.f != nil {
				p.f.update(tt.status)
			}
			if tt.cmd == "" {
				tt.cmd = "exec $S auto stay"
			}
			flags := append([]string{"--check-interval=1ms"}, tt.flags...)
			for _, c := range tt.checks {
				flags = append(flags, "--check", c)
			}
			got := p.runUntil(t, tt.over, tt.cmd, flags...)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stdout, got.stdout)
			require.Equal(t, tt.stdout == "", got.stdout == "", got.stdout)
			require.Regexp(t, tt.stderr, got.stderr)
			require.Equal(t, tt.stderr == "", got.stderr == "", got.stderr)
			if p.f != nil {
				require.Equal(t, tt.verbs, verbs(p.f))
			}
			require.Equal(t, tt.ran, strings.Count(p.read("ran"), "ran\n"))
			if tt.idle {
				require.NoFileExists(t, p.file("pid"))
				return
			}
			endLater(t, p.file("pid"), tt.runs)
		})
	}
}

// checking runs an upgrade with checks, and do once CMD is in probation and there
// is as much of a file as is wanted.
func (p *trialRun) checking(ctx context.Context, t *testing.T, file string, lines int, do func(), flags ...string) outcome {
	t.Helper()
	p.f.update(probationOf(300))
	done := make(chan outcome, 1)
	go func() { done <- p.run(ctx, t, "exec $S auto stay", flags...) }()
	require.Eventually(t, func() bool { return strings.Count(p.read(file), "\n") >= lines }, 10*time.Second, time.Millisecond)
	do()
	return <-done
}

// TestChecksPasses: round after round, until it is released; the one that runs
// then is ended and does not count.
func TestChecksPasses(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
	got := p.checking(t.Context(), t, "ran", 7, p.f.release, "--check-interval=1ms", "--json",
		"--check", "echo $HANDOFF_SOCKET $HANDOFF_REQUEST $HANDOFF_GENERATION >$D/told; echo noise",
		"--check", ran+"test $(wc -l <$D/ran) -lt 7 || { sleep 60 & echo $! >$D/sleeps; wait; }")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Equal(t, p.path+" deploy 2\n", p.read("told"))
	require.Regexp(t, `^handoffctl: check: check 1 of 2 \(.*\) passed\nhandoffctl: check: check 2 of 2 \(.*\) passed\n$`, got.stderr, "each is told of once")
	require.Contains(t, got.stdout, `"outcome": "released"`)
	require.NotContains(t, got.stdout, `"check"`)
	require.Empty(t, verbs(p.f))
	if p.read("sleeps") != "" {
		endLater(t, p.file("sleeps"), false)
	}
	endLater(t, p.file("pid"), true)
}

// TestChecksPause: between two rounds.
func TestChecksPause(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
	began := time.Now()
	got := p.checking(t.Context(), t, "ran", 3, p.f.release, "--check-interval=200ms", "--check", ran)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.GreaterOrEqual(t, time.Since(began), 400*time.Millisecond)
	endLater(t, p.file("pid"), true)
}

// TestChecksAndDrained: checks end at the release, the waiting does not.
func TestChecksAndDrained(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
	got := p.checking(t.Context(), t, "ran", 2, func() {
		p.f.release()
		require.Eventually(t, p.f.polled, 10*time.Second, time.Millisecond)
		p.f.update(func(st *handoff.Status) { st.Generations = st.Generations[1:] })
	}, "--check-interval=1ms", "--wait=drained", "--check", ran)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "drained: generation 2")
	endLater(t, p.file("pid"), true)
}

// TestChecksInterrupted: before all have passed once nobody would check CMD any
// more, so it is rolled back; after that the handoff goes on.
func TestChecksInterrupted(t *testing.T) {
	for _, tt := range []struct {
		name, check string
		code        int
		stderr      string
		verbs       string
	}{
		{
			name: "before", check: "echo x >$D/at; sleep 60 & echo $! >$D/sleeps; echo y >>$D/at; wait", code: exitRefused, verbs: "rollback ",
			stderr: `error: stopped waiting \(context canceled\) before the checks had passed; generation 2 was rolled back; generation 1 .* serves; CMD \(pid \d+\) still runs: it was told to end\n$`,
		},
		{
			name: "after", check: "echo x >>$D/at", code: exitUnknown,
			stderr: `error: stopped waiting \(context canceled\), not released yet: generation 2 .* serves; generation 1 .* can still take back; request deploy goes on; CMD \(pid \d+\) still runs: it is on its own\n`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
			ctx, cancel := context.WithCancel(t.Context())
			got := p.checking(ctx, t, "at", 2, cancel, "--check-interval=1ms", "--check", tt.check)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stderr, got.stderr)
			require.Equal(t, tt.verbs, verbs(p.f))
			if tt.verbs != "" {
				endLater(t, p.file("sleeps"), false)
			}
			endLater(t, p.file("pid"), true)
		})
	}
}

// TestChecksUnderAnOperator: somebody rolls back, or the incumbent dies, while a
// check runs.
func TestChecksUnderAnOperator(t *testing.T) {
	for _, tt := range []struct {
		name   string
		do     func(p *trialRun)
		code   int
		stderr string
	}{
		{
			name: "rollback", code: exitRefused, stderr: `error: request deploy: rolled back \(rollback\); generation 1 .* serves`,
			do: func(p *trialRun) { _, _ = (&handoff.Client{Socket: p.path}).Rollback(context.Background()) },
		},
		{
			name: "death", code: exitUnknown, stderr: `error: generation 2 was released before the checks had passed; generation 2 .* serves; CMD`,
			do: func(p *trialRun) {
				p.f.update(func(st *handoff.Status) { st.Generations = st.Generations[1:]; st.Instance = "second" })
			},
		},
		{
			name: "stop", code: exitUnknown, stderr: `handoffctl: error: generation 2 was released before the checks had passed; generation 2 .* serves; generation 1 .* drains`,
			do: func(p *trialRun) {
				p.f.update(func(st *handoff.Status) { st.Generations[0].State, st.Generations[0].LeftSeconds = "releasing", 0 })
				require.Eventually(t, func() bool { return p.f.polled() || verbs(p.f) != "" }, 10*time.Second, time.Millisecond)
				p.f.update(func(st *handoff.Status) { st.Generations[0].State = "draining" })
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
			got := p.checking(t.Context(), t, "sleeps", 1, func() { tt.do(p) }, "--check", "sleep 60 & echo $! >$D/sleeps; wait")
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stderr, got.stderr)
			endLater(t, p.file("sleeps"), false)
			endLater(t, p.file("pid"), true)
		})
	}
}

// TestChecksAgain: a handoff that an earlier run left in probation is checked anew.
func TestChecksAgain(t *testing.T) {
	for _, tt := range []struct {
		name, check string
		rounds      int
		code        int
		verbs       string
	}{
		{name: "passes", check: ran, rounds: 2, code: exitDone},
		{name: "fails", check: ran + "false", rounds: 1, code: exitRefused, verbs: "rollback "},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			p := newTrialRun(t, script{}, false)
			p.f.update(func(st *handoff.Status) {
				st.Generations = gens("parked serving").Generations
				st.Generations[0].ProbationSeconds, st.Generations[0].LeftSeconds = 300, 299
				st.Generations[1].Request = "deploy"
				st.Requests = []handoff.RequestStatus{{ID: "deploy", Outcome: "committed", Generation: 2}}
			})
			done := make(chan outcome, 1)
			go func() { done <- p.run(t.Context(), t, "false", "--check-interval=1ms", "--check", tt.check) }()
			// The second round is after all have passed.
			require.Eventually(t, func() bool { return strings.Count(p.read("ran"), "\n") >= tt.rounds }, 10*time.Second, time.Millisecond)
			if tt.code == exitDone {
				p.f.release()
			}
			got := <-done
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Equal(t, tt.verbs, verbs(p.f))
			require.NoFileExists(t, p.file("pid"))
		})
	}
}

// TestChecksOnce: of two runs with the same request one checks, and the other
// waits for it.
func TestChecksOnce(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
	second := make(chan outcome, 1)
	got := p.checking(t.Context(), t, "ran", 2, func() {
		go func() {
			second <- ctl(t.Context(), "--socket", p.path, "upgrade", "--request-id=deploy", "--check", "echo no >>$D/ran; false", "--", "false")
		}()
		require.Eventually(t, func() bool { return strings.Count(p.read("ran"), "\n") >= 10 }, 10*time.Second, time.Millisecond)
		p.f.release()
	}, "--check-interval=20ms", "--check", ran)
	require.Equal(t, exitDone, got.code, got.stderr)
	got = <-second
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Contains(t, got.stdout, "request deploy is finished, CMD was not started: already released")
	require.NotContains(t, p.read("ran"), "no\n")
	require.Empty(t, verbs(p.f))
	endLater(t, p.file("pid"), true)
}

// TestRollbackComesFirst: a check that does not let itself be ended keeps nobody
// from taking back in time.
func TestRollbackComesFirst(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
	got := p.checking(t.Context(), t, "at", 1, func() {
		p.f.update(func(st *handoff.Status) { st.Generations[0].LeftSeconds = 0.3 })
		require.Eventually(t, func() bool { return verbs(p.f) == "rollback " }, 10*time.Second, time.Millisecond)
		pid, err := strconv.Atoi(strings.TrimSpace(p.read("at")))
		require.NoError(t, err)
		require.False(t, dead(pid))
	}, "--check", "trap '' TERM; echo $$ >$D/at; while :; do sleep 0.05; done")
	require.Equal(t, exitRefused, got.code, got.stderr)
	endLater(t, p.file("at"), false)
	endLater(t, p.file("pid"), true)
}

// TestNeedProbation: the incumbent changed while CMD was starting.
func TestNeedProbation(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "starting"}, false)
	got := p.checking(t.Context(), t, "pid", 1, func() {
		require.Eventually(t, func() bool { return len(p.f.asked()) > 0 && p.f.polled() }, 10*time.Second, time.Millisecond)
		p.f.update(probationOf(0))
	}, "--check", ran)
	require.Equal(t, exitRefused, got.code, got.stderr)
	require.Regexp(t, `has no probation, in which checks could be run; the request is withdrawn; .* CMD .* was ended\nhandoffctl: hint: start the service with --probation`, got.stderr)
	require.Equal(t, "withdraw deploy", verbs(p.f))
	require.Empty(t, p.read("ran"))
	endLater(t, p.file("pid"), false)
}

func TestMargin(t *testing.T) {
	for _, tt := range []struct{ probation, want time.Duration }{
		{0, 200 * time.Millisecond},
		{time.Second, 200 * time.Millisecond},
		{5 * time.Second, 500 * time.Millisecond},
		{time.Hour, 2 * time.Second},
	} {
		require.Equal(t, tt.want, margin(tt.probation))
	}
}

// TestTrialDiesWithUs: a trial has no life of its own.
func TestTrialDiesWithUs(t *testing.T) {
	p := newTrialRun(t, script{upTo: "committed", probation: 300}, false)
	p.f.update(probationOf(300))
	cmd := p.command(t, "exec $S auto stay", "--check", "echo $$ >$D/check; read x <$D/never; sleep 60; :")
	require.NoError(t, syscall.Mkfifo(p.file("never"), 0o600))
	require.NoError(t, cmd.Start())
	require.Eventually(t, func() bool { return strings.HasSuffix(p.read("check"), "\n") }, 10*time.Second, time.Millisecond)
	pid, err := strconv.Atoi(strings.TrimSpace(p.read("check")))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(pid, 0))
	require.NoError(t, cmd.Process.Kill())
	_ = cmd.Wait()
	require.Eventually(t, func() bool { return dead(pid) }, 10*time.Second, time.Millisecond)
	server, err := strconv.Atoi(strings.TrimSpace(p.read("pid")))
	require.NoError(t, err)
	require.NoError(t, syscall.Kill(server, syscall.SIGKILL), "what it started lives on")
}
