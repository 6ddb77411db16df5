package main

import (
	"context"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"

	"github.com/fdhandoff/handoff/handoff"
)

// server is the path of a program that is fakeServer.
func server(t *testing.T) string {
	t.Helper()
	self, err := os.Executable()
	require.NoError(t, err)
	path := filepath.Join(t.TempDir(), "fakeserver")
	require.NoError(t, os.Symlink(self, path))
	return path
}

// shell returns CMD as a script in which $S is the fake server.
func shell(t *testing.T, script string) []string {
	return []string{"env", "S=" + server(t), "sh", "-c", script}
}

// came: CMD has connected, and the tool knows.
func came(f *fake, _ *trialRun) bool {
	return strings.Contains(strings.Join(f.asked(), " "), "test_hello") && f.polled()
}

// begun: CMD has said which process it is.
func begun(_ *fake, p *trialRun) bool { return strings.HasSuffix(p.read("pid"), "\n") }

// gone: CMD has ended, and was waited for.
func gone(f *fake, p *trialRun) bool {
	pid, err := strconv.Atoi(strings.TrimSpace(p.read("pid")))
	return begun(f, p) && err == nil && syscall.Kill(pid, 0) != nil
}

// wrote: CMD's log has that.
func wrote(text string) func(*fake, *trialRun) bool {
	return func(_ *fake, p *trialRun) bool { return strings.Contains(p.read("log"), text) }
}

func TestUpgrade(t *testing.T) {
	tests := []struct {
		name   string
		script script
		wait   string
		over   func(f *fake, p *trialRun) bool // the time runs out then; nil: never
		cmd    string                          // a shell script; default is a server that takes over
		nobody bool                            // at the socket
		status func(*handoff.Status)
		code   int
		stdout string
		stderr string
		verbs  string // without hellos, in order
		runs   bool   // CMD runs on
		idle   bool   // CMD was never started
	}{
		{name: "takes over", script: script{upTo: "released"}, stdout: "^released: generation 2 .*; generation 1 .* drains\n$", runs: true},
		{name: "committed is enough", script: script{upTo: "committed"}, wait: "committed", stdout: "^committed: ", runs: true},
		{name: "drained", script: script{upTo: "drained"}, wait: "drained", stdout: "^drained: generation 2 ", runs: true},
		{
			name: "drained with cuts", script: script{upTo: "drained", cut: map[string]int{"h2": 2}}, wait: "drained",
			code: exitCut, stdout: "^drained: ", stderr: "error: connections were cut at the drain deadline: 2 h2", runs: true,
		},
		{
			name: "standby is committed", script: script{upTo: "released"}, cmd: "exec $S standby stay",
			stdout: "^released: ", verbs: "handover deploy", runs: true,
		},
		{name: "standby is wanted", script: script{upTo: "released"}, cmd: "exec $S standby stay", wait: "standby", stdout: "^standby: ", runs: true},
		{name: "first generation", nobody: true, stdout: "^serving: generation 1 ", runs: true},
		{name: "starter that exits 0", script: script{upTo: "released"}, cmd: "$S auto stay & exit 0", stdout: "^released: "},
		{
			name: "spare", script: script{upTo: "released"}, cmd: "exec $S spare stay",
			code: exitRefused, stderr: "CMD started a spare.*withdrawn.*was ended\nhandoffctl: hint: start it as auto", verbs: "withdraw deploy",
		},
		{
			name: "exits 0 and never comes", cmd: "echo so long; exit 0", over: wrote("so long"),
			code: exitRefused, stderr: `(?s)\| so long\n.*time ran out after 1h0m0s, not released yet: CMD has not connected to the control socket; the request is withdrawn; generation 1 \(pid 11, v1\) serves`, verbs: "withdraw deploy",
		},
		{
			name: "fails at once", cmd: "echo 'no configuration'; exit 3",
			code: exitRefused, stderr: `(?s)\| no configuration\n.*error: CMD ended: exit status 3; the request is withdrawn; generation 1 .* serves\n`, verbs: "withdraw deploy",
		},
		{
			name: "is killed", cmd: "kill -9 $$",
			code: exitRefused, stderr: "CMD ended: signal: killed; the request is withdrawn", verbs: "withdraw deploy",
		},
		{
			name: "hangs before it is ready", script: script{upTo: "starting"}, over: came,
			code: exitRefused, stderr: "not released yet; the request is withdrawn; generation 1 .* serves; CMD .* was ended\n", verbs: "withdraw deploy",
		},
		{
			name: "another standby is in the way", cmd: "sleep 60", over: begun,
			status: func(st *handoff.Status) { st.Generations = gens("serving standby/standby").Generations },
			code:   exitRefused, stderr: "hint: generation 2 waits as a standby, and only one successor is let in", verbs: "withdraw deploy",
		},
		{
			name: "too many drain", cmd: "sleep 60", over: begun,
			status: func(st *handoff.Status) {
				st.Generations, st.Generation, st.PID = gens("draining serving").Generations, 2, 12
				st.Waiting = []handoff.WaitingStatus{
					{Request: "other", Reason: "stopping", Text: "no"},
					{Request: "deploy", Reason: "max_draining", Text: "1 older generation still drains, and at most 1 may: wait, or handoffctl stop --generation 1"},
				}
			},
			code: exitRefused, stderr: `not released yet: CMD waits to be let in \(max draining\); the request is withdrawn; .*\nhandoffctl: hint: CMD was not let in: 1 older generation still drains, and at most 1 may: wait, or handoffctl stop --generation 1\n$`, verbs: "withdraw deploy",
		},
		{
			name: "in probation for longer", script: script{upTo: "committed"}, over: came,
			code: exitUnknown, stderr: "not released yet, but committed: generation 2 .* serves; generation 1 .* can still take back\nhandoffctl: hint: it goes on", runs: true,
		},
		{
			name: "drains for longer", script: script{upTo: "released"}, wait: "drained", over: came,
			code: exitUnknown, stderr: "not drained yet, but released: generation 2 .* serves; generation 1 .* drains\n", runs: true,
		},
		{
			name: "withdrawn too late", script: script{upTo: "starting", lateCommit: true}, over: came,
			code: exitUnknown, stderr: "not released yet, but committed: generation 2 .* serves", verbs: "withdraw deploy", runs: true,
		},
		{
			name: "withdrawn too late, but that is all that is wanted", script: script{upTo: "starting", lateCommit: true}, wait: "committed", over: came,
			stdout: "^committed: generation 2 .* serves", verbs: "withdraw deploy", runs: true,
		},
		{
			name: "rolled back", script: script{upTo: "committed", then: "rolled_back"},
			code: exitRefused, stderr: `request deploy: rolled back \(checks\); generation 1 .* serves; CMD .* still runs: it was told to end`, runs: true,
		},
		{
			name: "failed before commit", script: script{upTo: "starting", then: "failed"},
			code: exitRefused, stderr: `request deploy: failed \(checks\); generation 1 .* serves; CMD .* was ended`, verbs: "withdraw deploy",
		},
		{
			name: "dies in probation", script: script{upTo: "committed", atEnd: "rolled_back"}, cmd: "exec $S auto die",
			code: exitRefused, stderr: `(?s)\| panic: no\\x1b\[31m configuration\n.*rolled back \(died\); generation 1 .* serves`,
		},
		{
			name: "a starter that fails when all is done", script: script{upTo: "committed", atEnd: "released"}, cmd: "exec $S auto die",
			stdout: "^released: ",
		},
		{
			name: "nobody, exits 0 and never comes", nobody: true, cmd: "exit 0", over: gone,
			code: exitUnknown, stderr: "not released yet: CMD has not connected to the control socket; nobody answers at the socket now\nhandoffctl: hint: what CMD started elsewhere may still come",
		},
		{
			name: "nobody, hangs", nobody: true, cmd: "exec sleep 60", over: begun,
			code: exitRefused, stderr: "not released yet: CMD has not connected to the control socket; CMD .* was ended; nobody answers at the socket now\n",
		},
		{
			name: "nobody, fails", nobody: true, cmd: "exit 7",
			code: exitRefused, stderr: "CMD ended: exit status 7; nobody answers at the socket now\n",
		},
		{
			name: "done in an earlier run", idle: true, status: remembered("released"),
			stdout: "^request deploy is finished, CMD was not started: already released: ",
		},
		{
			name: "failed in an earlier run", idle: true, status: remembered("failed"),
			code: exitRefused, stderr: "request deploy: failed; .*\nhandoffctl: hint: CMD was not started: another --request-id makes a new attempt",
		},
		{
			name: "withdrawn in an earlier run", idle: true, status: remembered("withdrawn"),
			code: exitRefused, stderr: "request deploy: withdrawn; .* serves",
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			path := filepath.Join(t.TempDir(), "s")
			var f *fake
			if !tt.nobody {
				f, path = newFake(t, tt.script)
				if tt.status != nil {
					f.update(tt.status)
				}
			}
			if tt.cmd == "" {
				tt.cmd = "exec $S auto stay"
			}
			if tt.wait == "" {
				tt.wait = "released"
			}
			p := &trialRun{f: f, path: path, dir: t.TempDir()}
			log, pidFile := p.file("log"), p.file("pid")
			args := []string{"--socket", path, "upgrade", "--request-id=deploy", "--log", log, "--wait", tt.wait, endless, "--"}
			over := func(string) bool { return tt.over != nil && tt.over(f, p) }
			got := ctlUntil(t, over, append(args, shell(t, "echo $$ > "+pidFile+"; "+tt.cmd)...)...)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stdout, got.stdout)
			require.Equal(t, tt.stdout == "", got.stdout == "", got.stdout)
			require.Regexp(t, tt.stderr, got.stderr)
			require.Equal(t, tt.stderr == "", got.stderr == "", got.stderr)
			if f != nil {
				require.Equal(t, tt.verbs, verbs(f))
			}
			if tt.idle {
				require.NoFileExists(t, pidFile)
				return
			}
			endLater(t, pidFile, tt.runs)
		})
	}
}

func remembered(outcome string) func(*handoff.Status) {
	return func(st *handoff.Status) {
		st.Generations = gens("draining serving").Generations
		st.Requests = []handoff.RequestStatus{{ID: "deploy", Outcome: outcome, Generation: 2}}
	}
}

// verbs are what f was asked for, hellos aside.
func verbs(f *fake) string {
	var all []string
	for _, v := range f.asked() {
		if !strings.HasPrefix(v, "test_hello") {
			all = append(all, v)
		}
	}
	return strings.Join(all, ", ")
}

// endLater checks whether the command whose pid is in pidFile runs, and ends it.
// Its parent is this process, which reaps it; what a check has left behind is reaped by process 1, in its own time.
func endLater(t *testing.T, pidFile string, runs bool) {
	t.Helper()
	b, err := os.ReadFile(pidFile)
	require.NoError(t, err)
	pid, err := strconv.Atoi(strings.TrimSpace(string(b)))
	require.NoError(t, err)
	if runs {
		require.NoError(t, syscall.Kill(pid, 0))
		require.NoError(t, syscall.Kill(-pid, syscall.SIGKILL))
	}
	require.Eventually(t, func() bool { return syscall.Kill(pid, 0) != nil }, time.Minute, time.Millisecond)
}

// TestUpgradeAgain: repeating an id under way waits for it, and starts nothing.
func TestUpgradeAgain(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{})
	f.update(func(st *handoff.Status) {
		st.Generations = gens("parked serving").Generations
		st.Requests = []handoff.RequestStatus{{ID: "deploy", Outcome: "committed", Generation: 2}}
	})
	got := during(t.Context(), func() {
		require.Eventually(t, f.polled, 5*time.Second, time.Millisecond)
		f.update(remembered("released"))
	}, "--socket", path, "upgrade", "--request-id=deploy", "--", "false")
	require.Equal(t, outcome{stdout: "released: generation 2 serves; generation 1 drains\n"}, got)
}

// TestUpgradeTakesUpStandby: what an earlier run left as a standby is committed.
func TestUpgradeTakesUpStandby(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{upTo: "released"})
	f.update(func(st *handoff.Status) {
		standby(st)
		st.Generations[1].Request = "deploy"
		st.Requests = []handoff.RequestStatus{{ID: "deploy", Outcome: "standby", Generation: 2}}
	})
	got := ctl(t.Context(), "--socket", path, "upgrade", "--request-id=deploy", "--", "false")
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Equal(t, "handover deploy", verbs(f))
}

func TestUpgradeInterrupted(t *testing.T) {
	leak.Check(t)
	f, path := newFake(t, script{upTo: "standby"})
	ctx, cancel := context.WithCancelCause(t.Context())
	pidFile := filepath.Join(t.TempDir(), "pid")
	args := []string{"--socket", path, "upgrade", "--request-id=deploy", "--log", os.DevNull, "--"}
	got := during(ctx, func() {
		require.Eventually(t, func() bool { return len(f.asked()) > 0 && f.polled() }, 10*time.Second, time.Millisecond)
		cancel(context.Canceled)
	}, append(args, shell(t, "echo $$ > "+pidFile+"; exec $S auto stay")...)...)
	require.Equal(t, exitUnknown, got.code)
	require.Regexp(t, `stopped waiting .*not released yet: generation 1 .* serves; generation 2 .* waits as a standby; request deploy goes on; CMD \(pid \d+\) still runs`, got.stderr)
	require.Contains(t, got.stderr, "hint: the same command with --request-id deploy waits for it again\n")
	require.Empty(t, verbs(f))
	endLater(t, pidFile, true)
}

// TestUpgradeOutOfTime: a CMD that came in the last moment has connected.
func TestUpgradeOutOfTime(t *testing.T) {
	for name, came := range map[string]bool{"came": true, "did not come": false} {
		t.Run(name, func(t *testing.T) {
			leak.Check(t)
			f, path := newFake(t, script{})
			if came {
				f.update(func(st *handoff.Status) {
					st.Generations = append(st.Generations, handoff.GenerationStatus{Generation: 2, State: "starting", Takeover: "auto", PID: 12, Request: "deploy"})
					st.Requests = []handoff.RequestStatus{{ID: "deploy", Outcome: "starting", Generation: 2}}
				})
			}
			over := make(chan struct{})
			close(over)
			u := &upgrade{
				a: &app{stdout: io.Discard, stderr: io.Discard}, f: &follower{c: &handoff.Client{Socket: path}},
				r: &result{}, t: target{request: "deploy"}, wait: handoff.OutcomeReleased,
			}
			err := u.timeUp(runsOut{context.Background(), over})
			require.ErrorContains(t, err, "not released yet")
			require.Equal(t, !came, strings.Contains(err.Error(), "has not connected"), err)
			require.Equal(t, "withdraw deploy", verbs(f))
		})
	}
}

// TestUpgradeSilence: whoever is silent may have committed, so CMD is let alone.
func TestUpgradeSilence(t *testing.T) {
	leak.Check(t)
	shortLooks(t)
	f, path := newFake(t, script{upTo: "standby"})
	pidFile := filepath.Join(t.TempDir(), "pid")
	args := []string{"--socket", path, "upgrade", "--log", os.DevNull, endless, "--"}
	got := ctlUntil(t, func(string) bool {
		f.mu.Lock()
		defer f.mu.Unlock()
		f.silent = len(f.verbs) > 0
		return f.silent
	}, append(args, shell(t, "echo $$ > "+pidFile+"; exec $S auto stay")...)...)
	require.Equal(t, exitUnknown, got.code, got.stderr)
	require.Regexp(t, `the request could not be withdrawn: .*; CMD \(pid \d+\) still runs: it may serve\n`, got.stderr)
	endLater(t, pidFile, true)
}

func TestChildEnds(t *testing.T) {
	tests := []struct {
		name, script string
		min, max     time.Duration
	}{
		{name: "at SIGTERM", script: "exec sleep 60", max: 5 * time.Second},
		{name: "its children too", script: "sleep 60 & sleep 60", max: 5 * time.Second},
		{name: "by force", script: "trap '' TERM; echo ready; sleep 60; sleep 60", min: 100 * time.Millisecond, max: 10 * time.Second},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			log := filepath.Join(t.TempDir(), "log")
			require.NoError(t, os.WriteFile(log, []byte("older\n"), 0o600))
			c, err := startChild("/bin/sh", []string{"sh", "-c", tt.script}, nil, log, "r")
			require.NoError(t, err)
			if tt.min > 0 {
				require.Eventually(t, func() bool { return len(c.tail()) == 1 }, 5*time.Second, time.Millisecond)
				require.Equal(t, []string{"ready"}, c.tail())
			}
			grace, began := 4*time.Second, time.Now()
			if tt.min > 0 {
				grace = tt.min
			}
			require.True(t, c.end(grace))
			require.GreaterOrEqual(t, time.Since(began), tt.min)
			require.False(t, c.running())
			require.Eventually(t, func() bool { return syscall.Kill(-c.pid, 0) == syscall.ESRCH }, time.Minute, time.Millisecond)
			require.False(t, c.end(grace), "there is nothing more to end")
		})
	}
}

func TestTail(t *testing.T) {
	log := filepath.Join(t.TempDir(), "log")
	long := strings.Repeat("x", 100) + "\n"
	require.NoError(t, os.WriteFile(log, []byte("older\n"+strings.Repeat(long, 100)+"last\n"), 0o600))
	lines := (&child{log: log, from: 6}).tail()
	require.Len(t, lines, tailLines)
	require.Equal(t, "last", lines[tailLines-1])
	require.Equal(t, strings.TrimSpace(long), lines[0])
	require.Empty(t, (&child{log: log, from: 6 + 101*100 + 5}).tail())
	require.Empty(t, (&child{log: os.DevNull}).tail())
	require.Empty(t, (&child{log: log + "gone"}).tail())
}
