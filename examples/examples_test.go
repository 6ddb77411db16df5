// Package examples runs each example as people would: as real processes, of which the next takes over from the last.
package examples

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime/debug"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
	"github.com/fdhandoff/handoff/internal/leak"
)

// patience bounds every wait. A test that passes needs a small part of it.
const patience = 60 * time.Second

// anyPort is the address of every example here: the kernel chooses the port, and the next version inherits it.
const anyPort = "127.0.0.1:0"

// raceFlag is -race where these tests were built with it, so that the examples are watched too.
var raceFlag = func() []string {
	info, ok := debug.ReadBuildInfo()
	if ok && slices.Contains(info.Settings, debug.BuildSetting{Key: "-race", Value: "true"}) {
		return []string{"-race"}
	}
	return nil
}()

// service is one example in a directory of its own, and its versions.
type service struct {
	t       *testing.T
	dir     string
	socket  string
	env     []string
	running int
}

func newService(t *testing.T, env ...string) *service {
	t.Helper()
	leak.Check(t)
	dir, err := os.MkdirTemp("", "ex") // short: the path of a socket has room for 107 bytes
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	s := &service{t: t, dir: dir, socket: filepath.Join(dir, "control")}
	// The race detector makes a program wait a second before it exits, unless told not to.
	s.env = append([]string{"HANDOFF_SOCKET=" + s.socket, "ADDR=" + anyPort, "GORACE=atexit_sleep_ms=0"}, env...)
	return s
}

// build compiles an example; flags go to go build. Nothing but the test's own time bounds it: where nothing is in the
// compiler's cache yet, it takes minutes.
func (s *service) build(example string, flags ...string) string {
	s.t.Helper()
	out := filepath.Join(s.dir, fmt.Sprintf("%s%d", example, len(flags)))
	args := slices.Concat([]string{"build", "-o", out}, raceFlag, flags, []string{"./" + example})
	b, err := exec.CommandContext(s.t.Context(), "go", args...).CombinedOutput()
	require.NoError(s.t, err, "%s", b)
	return out
}

func (s *service) ctx() context.Context {
	ctx, cancel := context.WithTimeout(s.t.Context(), patience)
	s.t.Cleanup(cancel)
	return ctx
}

// start starts one version and does not wait for it. Its output is shown if the test fails.
func (s *service) start(program string) *proc.Process {
	s.t.Helper()
	s.running++
	log := filepath.Join(s.dir, fmt.Sprintf("%d.log", s.running))
	p, err := proc.Start(proc.Spec{Path: program, Env: s.env, Log: log})
	require.NoError(s.t, err)
	s.t.Cleanup(func() {
		p.End()
		if b, err := os.ReadFile(log); err == nil && s.t.Failed() {
			s.t.Logf("%s:\n%s", filepath.Base(log), b)
		}
	})
	return p
}

// waitStatus waits until the control socket tells of a status for which match holds.
func (s *service) waitStatus(what string, match func(proc.Status) bool) proc.Status {
	s.t.Helper()
	st, err := proc.WaitStatus(s.ctx(), s.socket, match)
	require.NoError(s.t, err, what)
	return st
}

// serves waits until a process has the service.
func (s *service) serves(p *proc.Process) {
	s.t.Helper()
	s.waitStatus("serves", func(st proc.Status) bool { return st.Serving().PID == p.PID() })
}

// exits waits for the end of a version and wants it to be a good one.
func (s *service) exits(p *proc.Process) {
	s.t.Helper()
	code, err := p.Wait(s.ctx())
	require.NoError(s.t, err)
	require.Zero(s.t, code, "exit code of %s", p.Name)
}

// stop ends the last version by SIGTERM.
func (s *service) stop(p *proc.Process) {
	s.t.Helper()
	require.NoError(s.t, p.Signal(syscall.SIGTERM))
	s.exits(p)
	require.NoFileExists(s.t, s.socket)
}

// address is where the service listens.
func (s *service) address() string {
	s.t.Helper()
	sockets, err := (&handoff.Client{Socket: s.socket}).Sockets(s.ctx())
	require.NoError(s.t, err)
	i := slices.IndexFunc(sockets, func(k handoff.SocketInfo) bool { return k.Name == anyPort })
	require.GreaterOrEqual(s.t, i, 0, "%+v", sockets)
	return sockets[i].Address
}

// succession replaces versions under load, each by the next, and wants nothing lost.
func (s *service) succession(programs []string, streams ...load.Stream) load.Report {
	s.t.Helper()
	old := s.start(programs[0])
	s.serves(old)
	addr := s.address()
	for i := range streams {
		streams[i].Address = addr
	}
	run, err := load.Start(s.t.Context(), load.Config{Streams: streams})
	require.NoError(s.t, err)
	defer run.Stop()
	require.NoError(s.t, run.Wait(s.ctx(), run.More(50)))
	for _, program := range programs[1:] {
		next := s.start(program)
		s.serves(next)
		s.exits(old) // under load all the while
		require.NoError(s.t, run.Wait(s.ctx(), run.More(50)))
		old = next
	}
	rep := run.Stop()
	require.Zero(s.t, rep.Lost, "%s", rep)
	require.Zero(s.t, rep.Broken, "%s", rep)
	s.stop(old)
	return rep
}

// answer is what became of a request.
type answer struct {
	status int
	body   string
	err    error
}

// request sends one request over a connection of its own, once: net/http's client would send some again.
func request(ctx context.Context, addr, method, path string) (a answer) {
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	if err != nil {
		return answer{err: err}
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n", method, path); err != nil {
		return answer{err: err}
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return answer{err: err}
	}
	body, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, string(body), err}
}
