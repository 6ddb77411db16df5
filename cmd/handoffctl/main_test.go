package main

import (
	"bytes"
	"context"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
)

func TestMain(m *testing.M) {
	lookTime = 20 * time.Second // a machine that is stopped for a moment makes nobody silent
	testscript.Main(m, map[string]func(){"handoffctl": main, "fakeserver": fakeServer})
}

type outcome struct {
	code           int
	stdout, stderr string
}

// ctl runs the program in this process.
func ctl(ctx context.Context, args ...string) outcome {
	var stdout, stderr bytes.Buffer
	code := run(ctx, args, &stdout, &stderr)
	return outcome{code: code, stdout: stdout.String(), stderr: stderr.String()}
}

// shortLooks is for tests of processes that are silent.
func shortLooks(t *testing.T) {
	t.Helper()
	before := lookTime
	lookTime = time.Second
	t.Cleanup(func() { lookTime = before })
}

// endless is what a test gives for --timeout whose end it decides about by ctlUntil.
const endless = "--timeout=1h"

// runsOut is a context whose time runs out when a test says so, however slow the machine is.
type runsOut struct {
	context.Context
	over chan struct{}
}

func (c runsOut) Done() <-chan struct{} { return c.over }

func (c runsOut) Err() error {
	select {
	case <-c.over:
		return context.DeadlineExceeded
	default:
		return nil
	}
}

// said is what the program has written so far.
type said struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *said) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *said) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// ctlUntil runs the program in this process. Its time has run out when at is true, which is given what stderr has.
func ctlUntil(t *testing.T, at func(stderr string) bool, args ...string) outcome {
	t.Helper()
	ctx := runsOut{context.Background(), make(chan struct{})}
	var stdout, stderr said
	ended := make(chan int, 1)
	go func() { ended <- run(ctx, args, &stdout, &stderr) }()
	for late := time.After(time.Minute); !at(stderr.String()); {
		select {
		case code := <-ended: // too early: the outcome tells
			return outcome{code: code, stdout: stdout.String(), stderr: stderr.String()}
		case <-late:
			close(ctx.over)
			<-ended
			require.FailNow(t, "it does not get there", "%s", stderr.String())
		case <-time.After(time.Millisecond):
		}
	}
	close(ctx.over)
	return outcome{code: <-ended, stdout: stdout.String(), stderr: stderr.String()}
}

var serving1 = handoff.GenerationStatus{Generation: 1, State: "serving", Takeover: "auto", PID: 11, Label: "v1", Sockets: 2}

// newFake starts a fake that ends with the test.
func newFake(t *testing.T, sc script) (*fake, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	f, err := startFake(path, serving1, sc)
	require.NoError(t, err)
	t.Cleanup(f.close)
	return f, path
}

func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir: "testdata",
		Setup: func(env *testscript.Env) error {
			// Two of everything that a status shows, and something to cut.
			f, err := startFake(filepath.Join(env.WorkDir, "s"), serving1, script{upTo: "released"})
			if err != nil {
				return err
			}
			env.Defer(f.close)
			env.Defer(func() { // whatever a script that failed left behind
				ctx, cancel := context.WithTimeout(context.Background(), time.Second)
				defer cancel()
				_, _ = (&handoff.Client{Socket: filepath.Join(env.WorkDir, "first")}).Stop(ctx)
			})
			f.update(func(st *handoff.Status) {
				ended := time.Now().Add(-3*time.Hour - 10*time.Minute)
				st.Generation, st.PID = 8, 12
				st.Generations = []handoff.GenerationStatus{
					{Generation: 7, State: "draining", PID: 11, Label: "v\x1b[31m1", Sockets: 2, AgeSeconds: 7500, Answered: 9000, Holds: map[string]int{"import": 1, "mail": 2}, Open: map[string]int{"idle": 5, "active": 2, "h2": 0}, Moved: 120, LeftSeconds: 28},
					{Generation: 8, State: "serving", PID: 12, Label: "v2", Sockets: 3, Stopping: true, AgeSeconds: 3.21, Adopted: 119, MoveOff: "the self-check\nfailed", Unclaimed: []string{"old"}},
					{Generation: 9, State: "standby", Takeover: "spare"},
				}
				st.Last = &handoff.HandoffStatus{ID: "h", From: 7, To: 8, Outcome: "rolled_back", Reason: "died", Time: ended, Cut: map[string]int{"hijacked": 3}}
			})
			env.Setenv("TMPDIR", env.WorkDir)
			env.Setenv("GORACE", "atexit_sleep_ms=0") // a second for every program otherwise
			return nil
		},
	})
}

// TestHelp holds the help of every command to one form.
func TestHelp(t *testing.T) {
	root := newRoot(&app{})
	for _, cmd := range root.Commands() {
		t.Run(cmd.Name(), func(t *testing.T) {
			got := ctl(t.Context(), cmd.Name(), "--help")
			require.Equal(t, exitDone, got.code)
			require.Empty(t, got.stderr)
			require.Regexp(t, `(?s)^Usage:\n  handoffctl `+cmd.Name()+`.*\n\n`+
				`[A-Z][^\n]+\.\n.*`+
				`\nExamples:\n(  [^\n]+\n){3}\n`+
				`Flags:\n.*\nExit codes:\n    0  [^\n]+\n    1  `, got.stdout)
			require.Equal(t, cmd.Name() == "upgrade", bytes.Contains([]byte(got.stdout), []byte("127  CMD is not found")))
			require.NotRegexp(t, `(?m) +$`, got.stdout, "a line ends in blanks")
			require.NotRegexp(t, `.{121}`, got.stdout, "a line is too long")
		})
	}
}

func TestCompletion(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		got := ctl(t.Context(), "completion", shell)
		require.Equal(t, exitDone, got.code, shell)
		require.Contains(t, got.stdout, "__complete", shell)
	}
	tests := []struct {
		name string
		line []string
		want string
	}{
		{name: "commands", line: []string{"ro"}, want: "rollback\t"},
		{name: "help topics", line: []string{"help", "up"}, want: "upgrade\t"},
		{name: "states", line: []string{"wait", "--for", ""}, want: "standby\nserving\ncommitted\nreleased\ndrained\n:4\n"},
		{name: "outcomes", line: []string{"handover", "--wait", ""}, want: "accepted\ncommitted\nreleased\ndrained\n:4\n"},
		{name: "outcomes of upgrade", line: []string{"upgrade", "--wait", ""}, want: "standby\ncommitted\nreleased\ndrained\n:4\n"},
		{name: "what a drain is waited for", line: []string{"drain", "--wait", ""}, want: "accepted\ndrained\n:4\n"},
		{name: "states to check", line: []string{"check", "--state", ""}, want: "ready\nalive\nstarting\nstandby\n"},
		{name: "another state to check", line: []string{"check", "--state", "standby,"}, want: "standby,ready\nstandby,alive\n"},
		{name: "files of check", line: []string{"check", "--self-socket", ""}, want: ":0\n"},
		{name: "commands to check with", line: []string{"upgrade", "--precheck", ""}, want: ":0\n"},
		{name: "shells", line: []string{"completion", "z"}, want: "zsh\n"},
		{name: "files", line: []string{"status", "--socket", ""}, want: ":0\n"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := ctl(t.Context(), append([]string{"__complete"}, tt.line...)...)
			require.Equal(t, exitDone, got.code)
			require.Contains(t, got.stdout, tt.want)
		})
	}
}
