package integration

import (
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
	"github.com/fdhandoff/handoff/internal/refusing"
)

// buildTool builds a program of this directory.
func (s *service) buildTool(name string) string {
	s.t.Helper()
	out := s.path(name)
	b, err := exec.CommandContext(s.t.Context(), "go", "build", "-o", out, "./"+name).CombinedOutput()
	require.NoError(s.t, err, "%s", b)
	return out
}

// losses sends requests to addr, until end is called, which returns the exit code and what was said.
func (s *service) losses(addr string, args ...string) (end func() (int, string)) {
	s.t.Helper()
	p := s.run("losses", s.buildTool("losses"), append([]string{"--address", addr, "--time", "2m"}, args...)...)
	_, err := p.WaitLog(s.ctx(), func(l proc.Line) bool { return strings.HasPrefix(l.Text, "sending to ") })
	require.NoError(s.t, err)
	return func() (int, string) {
		s.t.Helper()
		require.NoError(s.t, p.Signal(syscall.SIGINT))
		code, err := p.Wait(s.ctx())
		require.NoError(s.t, err)
		p.End() // so that all of its output is here
		var said strings.Builder
		for _, l := range p.Lines() {
			said.WriteString(l.Text + "\n")
		}
		return code, said.String()
	}
}

// The recipe of docs/checking.md sees nothing lost when versions change here …
func TestLossesOfHandoffs(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	end := s.losses(s.address(web))
	s.upgrade("v2", []string{"--wait=drained"})
	s.upgrade("v3", []string{"--wait=drained"})
	code, said := end()
	require.Zero(t, code, said)
	require.Contains(t, said, "nothing was lost: ")
}

// … and does see what the usual way loses: without this the test above would say nothing.
func TestLossesOfShutdown(t *testing.T) {
	s := newService(t)
	program := s.buildTool("shutdown")
	start := func(addr string) (*proc.Process, string) {
		p := s.run("shutdown", program, "--address", addr)
		l, err := p.WaitLog(s.ctx(), func(l proc.Line) bool { return strings.HasPrefix(l.Text, "serving ") })
		require.NoError(t, err)
		return p, strings.TrimPrefix(l.Text, "serving ")
	}
	old, addr := start("127.0.0.1:0")
	end := s.losses(addr, "--rate", "3000")
	for range 10 {
		next, same := start(addr)
		require.Equal(t, addr, same)
		s.kill(old, syscall.SIGTERM)
		s.exits(old, 0, "Shutdown says that all is well")
		old = next
	}
	code, said := end()
	require.Equal(t, 1, code, said)
	require.Regexp(t, `[1-9]\d* of \d+ requests were lost`, said)
}

// Wrong usage, and a server that does not answer, are not taken for success.
func TestLossesWithoutAnAnswer(t *testing.T) {
	s := newService(t)
	addr := refusing.Address(t)
	program := s.buildTool("losses")
	for _, tc := range []struct {
		name string
		args []string
		code int
	}{
		{"nobody listens", []string{"--address", addr, "--time", "100ms"}, 1},
		{"nothing to send", []string{"--address", addr, "--rate", "0", "--new", "0"}, 2},
		{"an argument", []string{"--address", addr, "now"}, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r, err := proc.Run(s.ctx(), exec.Command(program, tc.args...))
			require.NoError(t, err)
			require.Equal(t, tc.code, r.Code, "%s%s", r.Stdout, r.Stderr)
		})
	}
}
