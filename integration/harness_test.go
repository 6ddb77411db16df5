package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
	"github.com/fdhandoff/handoff/internal/leak"
)

// patience bounds every wait. A test that passes needs a small part of it.
const patience = 60 * time.Second

// waitTick is between two looks at what cannot be waited for, such as /proc.
const waitTick = 10 * time.Millisecond

// programs are built once for all tests.
var programs proc.Binaries

func TestMain(m *testing.M) {
	if path := os.Getenv(jobEnv); path != "" {
		os.Exit(runJob(path))
	}
	if addr := os.Getenv(saturatedEnv); addr != "" {
		os.Exit(runSaturated(addr))
	}
	os.Exit(buildAndRun(m))
}

func buildAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "handoff-bin")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer os.RemoveAll(dir)
	// One test runs a program as another user.
	if err := os.Chmod(dir, 0o755); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if err := proc.BecomeSubreaper(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	// The race detector makes every program wait a second before it exits, unless told not to.
	if err := os.Setenv("GORACE", "atexit_sleep_ms=0"); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if programs, err = proc.Build(context.Background(), dir, raceEnabled); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return m.Run()
}

// service is one chain of servers in a directory of its own, with everything that a test does to it.
type service struct {
	t      *testing.T
	dir    string // mode 0700, short
	socket string
	binary string // the server; programs.Server unless the test has another

	procs []*proc.Process // that run started

	mu      sync.Mutex
	logs    []string
	adopted map[int]*proc.Adopted
	started int
}

// newService gives a test its directory. At the end of the test every process that belongs to it is killed, and the
// logs are shown when it failed.
func newService(t *testing.T) *service {
	t.Helper()
	leak.Check(t)
	dir, err := os.MkdirTemp("", "ho")
	require.NoError(t, err)
	s := &service{t: t, dir: dir, socket: filepath.Join(dir, "ctl"), binary: programs.Server, adopted: make(map[int]*proc.Adopted)}
	t.Cleanup(func() {
		s.endAll()
		if t.Failed() {
			s.showLogs()
		}
		os.RemoveAll(dir)
	})
	return s
}

// sub runs a part of the test under a name of its own; what it starts ends with it.
func (s *service) sub(name string, f func()) {
	whole := s.t
	whole.Run(name, func(t *testing.T) {
		s.t = t
		defer func() { s.t = whole }()
		f()
	})
}

// ctx is bounded by patience and by the test.
func (s *service) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

func (s *service) endAll() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, a := range s.adopted {
		a.End()
	}
	pids, err := proc.Mentioning(s.dir + "/")
	if err != nil {
		s.t.Errorf("look for processes left: %v", err)
	}
	for _, pid := range pids {
		if s.adopted[pid] != nil {
			continue
		}
		if a, err := proc.Adopt(pid); err == nil {
			a.End()
		}
	}
}

// showLogs prints the end of every log.
func (s *service) showLogs() {
	for _, path := range s.logs {
		b, err := os.ReadFile(path)
		if err != nil {
			continue // its process never began
		}
		s.t.Logf("%s:\n%s", filepath.Base(path), b[max(0, len(b)-4000):])
	}
}

// path is a name in the service's directory.
func (s *service) path(name string) string { return filepath.Join(s.dir, name) }

// newLog is the path of another log, shown if the test fails.
func (s *service) newLog(name string) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.started++
	path := s.path(fmt.Sprintf("%02d-%s.log", s.started, name))
	s.logs = append(s.logs, path)
	return path
}

// web is the listener of a test that does not say otherwise. It is inherited under this name, so that every
// generation has the port that the kernel chose for the first.
const web = "127.0.0.1:0"

// args is a server's command line. A later flag overrides an earlier one, and --http is added unless extra has an address.
func (s *service) args(label string, extra ...string) []string {
	args := []string{"--socket", s.socket, "--label", label, "--log-format", "json", "--probation", "0s"}
	hasAddress := slices.ContainsFunc(extra, func(e string) bool {
		return slices.Contains([]string{"--http", "--https", "--tcp-echo", "--udp-echo", "--config"}, e)
	})
	if !hasAddress {
		args = append(args, "--http", web)
	}
	return append(args, extra...)
}

// server starts a server and does not wait for it.
func (s *service) server(label string, extra ...string) *proc.Process {
	s.t.Helper()
	return s.run(label, s.binary, s.args(label, extra...)...)
}

// run starts any program; it ends with the test.
func (s *service) run(name, path string, args ...string) *proc.Process {
	s.t.Helper()
	p, err := proc.Start(proc.Spec{Name: name, Path: path, Args: args, Log: s.newLog(name)})
	require.NoError(s.t, err)
	s.t.Cleanup(p.End)
	s.procs = append(s.procs, p)
	return p
}

// whole waits until all that a process wrote has been read, which is a little later than it ends.
func (s *service) whole(p *proc.Process) {
	s.t.Helper()
	_, err := p.WaitLog(s.ctx(), func(proc.Line) bool { return false })
	require.ErrorContains(s.t, err, "its output ended")
}

// serving starts a server and waits until it serves.
func (s *service) serving(label string, extra ...string) *proc.Process {
	s.t.Helper()
	p := s.server(label, extra...)
	s.waitStatus("serves "+label, func(st proc.Status) bool { return st.Serving().PID == p.PID() })
	return p
}

// waitStatus waits until the control socket tells of a status for which match holds.
func (s *service) waitStatus(what string, match func(proc.Status) bool) proc.Status {
	s.t.Helper()
	st, err := proc.WaitStatus(s.ctx(), s.socket, match)
	require.NoError(s.t, err, what)
	require.Equal(s.t, 1, st.Schema)
	return st
}

// status is the status now.
func (s *service) status() proc.Status {
	s.t.Helper()
	return s.waitStatus("status", func(proc.Status) bool { return true })
}

// alone waits until one generation serves and no other process of the chain is left.
func (s *service) alone(generation uint64) proc.Status {
	s.t.Helper()
	return s.waitStatus(fmt.Sprintf("generation %d alone", generation), func(st proc.Status) bool {
		return len(st.Generations) == 1 && st.Serving().Generation == generation
	})
}

// ctl runs handoffctl on the service's socket.
func (s *service) ctl(args ...string) proc.Result {
	s.t.Helper()
	cmd := exec.Command(programs.Handoffctl, append([]string{"--socket", s.socket}, args...)...)
	r, err := proc.Run(s.ctx(), cmd)
	require.NoError(s.t, err)
	return r
}

// must runs handoffctl and wants exit code 0.
func (s *service) must(args ...string) proc.Result {
	s.t.Helper()
	r := s.ctl(args...)
	require.Zero(s.t, r.Code, "handoffctl %v: %s%s", args, r.Stdout, r.Stderr)
	return r
}

// wantFailure runs handoffctl and wants another exit code, with the reason on standard error alone.
func (s *service) wantFailure(code int, args ...string) proc.Result {
	s.t.Helper()
	r := s.ctl(args...)
	require.Equal(s.t, code, r.Code, "handoffctl %v: %s%s", args, r.Stdout, r.Stderr)
	require.Contains(s.t, r.Stderr, "handoffctl: error: ")
	return r
}

// upgrade deploys a server by handoffctl and holds the process that serves then.
func (s *service) upgrade(label string, flags []string, extra ...string) (proc.Result, *proc.Adopted) {
	s.t.Helper()
	r := s.must(s.upgradeArgs(label, flags, extra...)...)
	return r, s.adopt(s.status().Serving().PID)
}

func (s *service) upgradeArgs(label string, flags []string, extra ...string) []string {
	args := append([]string{"upgrade", "--log", s.newLog(label)}, flags...)
	args = append(args, "--", s.binary)
	return append(args, s.args(label, extra...)...)
}

// adopt holds a process that handoffctl started and left.
func (s *service) adopt(pid int) *proc.Adopted {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := proc.Adopt(pid)
	require.NoError(s.t, err)
	s.adopted[pid] = a
	return a
}

// waiter is a process whose end can be waited for.
type waiter interface {
	Wait(ctx context.Context) (int, error)
}

// exits waits for the process's end and wants that exit code.
func (s *service) exits(p waiter, code int, what string) {
	s.t.Helper()
	got, err := p.Wait(s.ctx())
	require.NoError(s.t, err, what)
	require.Equal(s.t, code, got, what)
}

// address is where a socket of the service listens, by its name.
func (s *service) address(name string) string {
	s.t.Helper()
	var list proc.Sockets
	r := s.must("sockets", "--json")
	require.NoError(s.t, json.Unmarshal([]byte(r.Stdout), &list), "%s", r.Stdout)
	addr, err := list.Address(name)
	require.NoError(s.t, err)
	return addr
}

// load puts load on; it ends with the test at the latest.
func (s *service) load(streams ...load.Stream) *load.Run {
	s.t.Helper()
	run, err := load.Start(s.t.Context(), load.Config{Streams: streams, Timeout: 20 * time.Second})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { run.Stop() })
	return run
}

// answers waits until a generation has answered n requests of the run.
func (s *service) answers(run *load.Run, generation, n uint64) {
	s.t.Helper()
	require.NoError(s.t, run.Wait(s.ctx(), load.Answers(generation, n)), "generation %d answers", generation)
}

// noLoss ends the run and wants every request answered and no connection broken.
func (s *service) noLoss(run *load.Run) load.Report {
	s.t.Helper()
	rep := run.Stop()
	require.Zero(s.t, rep.Lost, "%s", rep)
	require.Zero(s.t, rep.Broken, "%s", rep)
	require.NotZero(s.t, rep.Answered)
	return rep
}

// kill sends a signal to a process.
func (s *service) kill(p interface{ Signal(syscall.Signal) error }, sig syscall.Signal) {
	s.t.Helper()
	require.NoError(s.t, p.Signal(sig))
}

// stopped waits until the kernel has stopped a process, which it does some time after the signal.
func (s *service) stopped(pid int) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		stat, err := os.ReadFile("/proc/" + strconv.Itoa(pid) + "/stat")
		return err == nil && len(stat) > 0 && stateOf(stat) == 'T'
	}, patience, waitTick)
}

// stateOf is the third field of /proc/PID/stat; the second is in parentheses and may hold anything.
func stateOf(stat []byte) byte {
	for i := len(stat) - 1; i >= 0; i-- {
		if stat[i] == ')' && i+2 < len(stat) {
			return stat[i+2]
		}
	}
	return 0
}

// needRoot is called by every TestRoot…: it skips what only root can run. Where HANDOFF_TEST_ROOT is set, as in .ci/run, it fails instead.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	require.Empty(t, os.Getenv("HANDOFF_TEST_ROOT"), "this test needs root")
	t.Skip("needs root; HANDOFF_TEST_ROOT=1 makes this a failure")
}
