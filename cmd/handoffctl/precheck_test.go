package main

import (
	"context"
	"os"
	"os/exec"
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

// trialRun is one upgrade with prechecks or checks, in a directory of its own that the
// commands run in by the name $D.
type trialRun struct {
	f    *fake // nil: nobody
	path string
	dir  string
}

func newTrialRun(t *testing.T, sc script, nobody bool) *trialRun {
	p := &trialRun{path: filepath.Join(t.TempDir(), "s"), dir: t.TempDir()}
	if !nobody {
		p.f, p.path = newFake(t, sc)
	}
	t.Setenv("D", p.dir)
	return p
}

// run runs it with CMD as a shell script that first says which process it is.
func (p *trialRun) run(ctx context.Context, t *testing.T, cmd string, flags ...string) outcome {
	args := append([]string{"--socket", p.path, "upgrade", "--request-id=deploy", "--log", p.file("log")}, flags...)
	return ctl(ctx, append(append(args, "--"), shell(t, "echo $$ > $D/pid; "+cmd)...)...)
}

// runUntil is run, with a time that runs out when over says so; nil is never.
func (p *trialRun) runUntil(t *testing.T, over func(p *trialRun, stderr string) bool, cmd string, flags ...string) outcome {
	args := append([]string{"--socket", p.path, "upgrade", "--request-id=deploy", endless, "--log", p.file("log")}, flags...)
	at := func(stderr string) bool { return over != nil && over(p, stderr) }
	return ctlUntil(t, at, append(append(args, "--"), shell(t, "echo $$ > $D/pid; "+cmd)...)...)
}

// hasRun: a check has left its line.
func hasRun(p *trialRun, _ string) bool { return strings.HasSuffix(p.read("ran"), "\n") }

// command is the same as a process of its own, which ends on no account of the test's.
func (p *trialRun) command(t *testing.T, cmd string, flags ...string) *exec.Cmd {
	self, err := os.Executable()
	require.NoError(t, err)
	tool := filepath.Join(p.dir, "handoffctl")
	require.NoError(t, os.Symlink(self, tool))
	args := append([]string{"--socket", p.path, "upgrade", "--request-id=deploy", "--log", p.file("log")}, flags...)
	return exec.Command(tool, append(append(args, "--"), shell(t, "echo $$ > $D/pid; "+cmd)...)...)
}

// dead says that a process is gone, or is one that nobody has waited for.
func dead(pid int) bool {
	stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
	if err != nil {
		return true
	}
	_, state, _ := strings.Cut(string(stat), ") ")
	return strings.HasPrefix(state, "Z") || strings.HasPrefix(state, "X")
}

func (p *trialRun) file(name string) string { return filepath.Join(p.dir, name) }

// read is what a command left in a file, "" if there is none.
func (p *trialRun) read(name string) string {
	b, _ := os.ReadFile(p.file(name))
	return string(b)
}

func TestPrecheck(t *testing.T) {
	tests := []struct {
		name   string
		script script
		nobody bool
		status func(*handoff.Status)
		cmd    string // default is a server that takes over by itself, unless it is told not to
		checks []string
		flags  []string
		code   int
		stdout string
		stderr string
		verbs  string
		over   func(p *trialRun, stderr string) bool
		ran    int  // so many checks
		runs   bool // CMD runs on
		idle   bool // CMD was never started
	}{
		{
			name: "pass, in order", script: script{upTo: "released"}, checks: []string{ran + "echo one", ran + "echo two; printf three >&2"},
			stdout: "^released: generation 2 ", verbs: "handover deploy", ran: 2, runs: true,
			stderr: `(?s)^handoffctl: precheck: precheck 1 of 2 \(.*echo one\)\n  \| one\nhandoffctl: precheck: precheck 2 of 2 \(.*\)\n  \| two\n  \| three\n$`,
		},
		{
			name: "the first fails", script: script{upTo: "released"}, checks: []string{ran + "echo oh no; exit 7", ran},
			code: exitRefused, stderr: `(?s)  \| oh no\nhandoffctl: error: precheck 1 of 2 \(.*\) did not pass: exit status 7; the request is withdrawn; generation 1 .* serves; CMD \(pid \d+\) was ended\nhandoffctl: hint: what CMD wrote is in .*/log\n$`,
			verbs: "withdraw deploy", ran: 1,
		},
		{
			name: "the last fails", script: script{upTo: "released"}, checks: []string{ran, ran + "kill -9 $$"},
			code: exitRefused, stderr: `precheck 2 of 2 \(.*\) did not pass: signal: killed; the request is withdrawn`, verbs: "withdraw deploy", ran: 2,
		},
		{
			name: "takes too long", script: script{upTo: "released"}, checks: []string{ran + "sleep 60; :"}, over: hasRun,
			code: exitRefused, stderr: `error: time ran out after 1h0m0s, precheck 1 of 1 \(.*\) still ran; the request is withdrawn; generation 1 .* serves; CMD .* was ended`, verbs: "withdraw deploy", ran: 1,
		},
		{
			name: "leaves something behind that holds its output", script: script{upTo: "released"}, checks: []string{ran + "sleep 30 & echo $! > $D/behind"},
			stdout: "^released: ", stderr: "precheck 1 of 1", verbs: "handover deploy", ran: 1, runs: true,
		},
		{
			name: "the standby is all that is wanted", script: script{upTo: "released"}, checks: []string{ran}, flags: []string{"--wait=standby"},
			stdout: "^standby: generation 1 .* serves", stderr: "precheck 1 of 1", ran: 1, runs: true,
		},
		{
			name: "fails, and the standby is all that is wanted", script: script{upTo: "released"}, checks: []string{ran + "false"}, flags: []string{"--wait=standby"},
			code: exitRefused, stderr: "did not pass: exit status 1; the request is withdrawn", verbs: "withdraw deploy", ran: 1,
		},
		{
			name: "nobody serves yet", nobody: true, checks: []string{ran},
			stdout: "^serving: generation 1 ", stderr: "^handoffctl: note: nobody served, so no precheck was run\n$", runs: true,
		},
		{
			name: "CMD is auto whatever it is told, and is seen in time", script: script{upTo: "starting"}, cmd: "exec $S always-auto stay", checks: []string{ran},
			code: exitRefused, stderr: `CMD takes over as auto, which leaves no time for prechecks; the request is withdrawn; .*was ended\nhandoffctl: hint: start it with --takeover standby`, verbs: "withdraw deploy",
		},
		{
			name: "CMD is auto, and is being committed when the request is withdrawn", script: script{upTo: "starting", committing: true}, cmd: "exec $S always-auto stay", checks: []string{ran},
			code: exitRefused, stderr: `CMD takes over as auto, which leaves no time for prechecks; generation 2 took over before the prechecks had passed, and was rolled back; generation 1 .* serves`, verbs: "withdraw deploy, rollback ", runs: true,
		},
		{
			name: "CMD takes over before the checks", script: script{upTo: "committed"}, cmd: "exec $S always-auto stay", checks: []string{ran},
			code: exitRefused, stderr: `error: generation 2 took over before the prechecks had passed, and was rolled back; generation 1 .* serves; CMD .* still runs: .*\nhandoffctl: hint: start it with --takeover standby`, verbs: "rollback ", runs: true,
		},
		{
			name: "CMD takes over for good before the checks", script: script{upTo: "released"}, cmd: "exec $S always-auto stay", checks: []string{ran},
			code: exitUnknown, stderr: `error: generation 2 serves although the prechecks have not passed; generation 2 .* serves; generation 1 .* drains; CMD .* still runs`, runs: true,
		},
		{
			name: "CMD is a spare", script: script{upTo: "released"}, cmd: "exec $S spare stay", checks: []string{ran},
			code: exitRefused, stderr: "CMD started a spare.*withdrawn", verbs: "withdraw deploy",
		},
		{
			name: "CMD fails while it is checked", script: script{upTo: "released", atEnd: "failed"}, cmd: "exec $S standby die", checks: []string{ran + "sleep 60; :"},
			code: exitRefused, stderr: `(?s)\| panic: no.*request deploy: failed \(died\); generation 1 .* serves|CMD ended: exit status 3; `, verbs: "withdraw deploy", ran: -1,
		},
		{
			name: "committed in an earlier run", status: remembered("released"), checks: []string{ran + "false"},
			stdout: "^request deploy is finished, CMD was not started: already released", idle: true,
		},
		{name: "an empty one", checks: []string{" "}, code: exitUsage, stderr: "--precheck is empty", idle: true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			p := newTrialRun(t, tt.script, tt.nobody)
			if tt.status != nil {
				p.f.update(tt.status)
			}
			if tt.cmd == "" {
				tt.cmd = "exec $S auto stay"
			}
			flags := tt.flags
			for _, c := range tt.checks {
				flags = append(flags, "--precheck", c)
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
			if tt.ran >= 0 { // otherwise it may have come too late
				require.Equal(t, tt.ran, strings.Count(p.read("ran"), "ran\n"))
			}
			if pid, err := strconv.Atoi(strings.TrimSpace(p.read("behind"))); err == nil {
				require.NoError(t, syscall.Kill(pid, syscall.SIGKILL), "what passed may leave something behind")
			}
			if tt.idle {
				require.NoFileExists(t, p.file("pid"))
				return
			}
			endLater(t, p.file("pid"), tt.runs)
		})
	}
}

// TestPrecheckKnows: what a check is told, and that it has no terminal to wait for.
func TestPrecheckKnows(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "released"}, false)
	got := p.run(t.Context(), t, "exec $S auto stay", "--json", "--precheck",
		`echo $HANDOFF_SOCKET $HANDOFF_REQUEST $HANDOFF_GENERATION >$D/told; readlink /proc/self/fd/0 >>$D/told; printf '\033[31m'; head -c 2500 /dev/zero | tr '\0' x`)
	require.Equal(t, exitDone, got.code, got.stderr)
	require.Equal(t, p.path+" deploy 2\n/dev/null\n", p.read("told"))
	require.NotContains(t, got.stderr, "\033")
	long := 0
	for line := range strings.Lines(got.stderr) {
		if strings.HasPrefix(line, "  | ") {
			long++
			require.LessOrEqual(t, len(line), trialLine+20)
		}
	}
	require.Equal(t, 3, long)
	require.NotContains(t, got.stdout, `"precheck"`)
	endLater(t, p.file("pid"), true)
}

// TestPrecheckInterrupted: nobody would commit CMD any more, so the attempt ends,
// with all that the check had started.
func TestPrecheckInterrupted(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "released"}, false)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan outcome, 1)
	go func() {
		done <- p.run(ctx, t, "exec $S auto stay", "--precheck", "sleep 60 & echo $! > $D/sleeps; wait")
	}()
	require.Eventually(t, func() bool { return strings.HasSuffix(p.read("sleeps"), "\n") }, 10*time.Second, time.Millisecond)
	cancel()
	got := <-done
	require.Equal(t, exitRefused, got.code)
	require.Regexp(t, `error: stopped waiting \(context canceled\) before the prechecks had passed; the request is withdrawn; generation 1 .* serves; CMD \(pid \d+\) was ended\n$`, got.stderr)
	require.Equal(t, "withdraw deploy", verbs(p.f))
	endLater(t, p.file("sleeps"), false)
	endLater(t, p.file("pid"), false)
}

// TestPrecheckInterruptedAtFirst: where nobody serves CMD becomes the first
// without anybody's help, so an interrupt ends the waiting only.
func TestPrecheckInterruptedAtFirst(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{}, true)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan outcome, 1)
	go func() { done <- p.run(ctx, t, "exec sleep 60", "--precheck", "false") }()
	require.Eventually(t, func() bool { return strings.HasSuffix(p.read("pid"), "\n") }, 10*time.Second, time.Millisecond)
	cancel()
	got := <-done
	require.Equal(t, exitUnknown, got.code)
	require.Contains(t, got.stderr, "request deploy goes on")
	endLater(t, p.file("pid"), true)
}

// TestPrecheckOvertaken: an operator hands over while a check runs. What he did
// stays.
func TestPrecheckOvertaken(t *testing.T) {
	leak.Check(t)
	p := newTrialRun(t, script{upTo: "released"}, false)
	done := make(chan outcome, 1)
	go func() {
		done <- p.run(t.Context(), t, "exec $S auto stay", "--precheck", "sleep 60 & echo $! > $D/sleeps; wait")
	}()
	require.Eventually(t, func() bool { return strings.HasSuffix(p.read("sleeps"), "\n") }, 10*time.Second, time.Millisecond)
	_, err := (&handoff.Client{Socket: p.path}).Handover(t.Context(), "")
	require.NoError(t, err)
	got := <-done
	require.Equal(t, exitUnknown, got.code)
	require.Regexp(t, `error: generation 2 serves although the prechecks have not passed; generation 2 .* serves; .*\nhandoffctl: hint: somebody else handed over to it`, got.stderr)
	require.Equal(t, "handover ", verbs(p.f))
	endLater(t, p.file("sleeps"), false)
	endLater(t, p.file("pid"), true)
}

// TestPrecheckAgain: what an earlier run left as a standby is checked before it
// is committed.
func TestPrecheckAgain(t *testing.T) {
	for _, wait := range []string{"released", "standby"} {
		t.Run(wait, func(t *testing.T) {
			leak.Check(t)
			p := newTrialRun(t, script{upTo: "released"}, false)
			p.f.update(func(st *handoff.Status) {
				standby(st)
				st.Generations[1].Request = "deploy"
				st.Requests = []handoff.RequestStatus{{ID: "deploy", Outcome: "standby", Generation: 2}}
			})
			got := p.run(t.Context(), t, "false", "--wait", wait, "--precheck", "echo ran >> $D/ran")
			require.Equal(t, exitDone, got.code, got.stderr)
			require.Equal(t, "ran\n", p.read("ran"))
			require.NoFileExists(t, p.file("pid"))
		})
	}
}

// TestPrecheckEndsByForce: a check that does not heed SIGTERM is killed.
func TestPrecheckEndsByForce(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	t.Setenv("D", dir)
	c, err := startTrial("trap '' TERM; echo $$ > $D/pid; sleep 60; sleep 60", nil, func(string) {})
	require.NoError(t, err)
	require.Eventually(t, func() bool { b, _ := os.ReadFile(filepath.Join(dir, "pid")); return len(b) > 0 }, 10*time.Second, time.Millisecond)
	require.True(t, c.end(100*time.Millisecond))
	require.Eventually(t, func() bool { return syscall.Kill(-c.pid, 0) == syscall.ESRCH }, time.Minute, time.Millisecond)
}
