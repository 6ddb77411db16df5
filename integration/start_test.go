package integration

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// Several servers started at the same instant become a chain: each takes over from the one before, the last serves,
// and the others end as if they had been replaced one by one.
func TestFirstStartRace(t *testing.T) {
	const racers = 6
	for round := range 3 {
		s := newService(t)
		all := s.race(racers)
		st := s.alone(racers)
		s.answeredBy(s.address(web), racers)
		for _, p := range all {
			if p.PID() != st.Serving().PID {
				s.exits(p, 0, fmt.Sprintf("round %d, %s", round, p.Name))
			}
		}
	}
}

// With --takeover never one of them serves and the others say why they do not.
func TestFirstStartRaceNever(t *testing.T) {
	const racers = 6
	s := newService(t)
	all := s.race(racers, "--takeover", "never")
	st := s.alone(1)
	for _, p := range all {
		if p.PID() != st.Serving().PID {
			s.exits(p, 1, p.Name)
		}
	}
	s.answeredBy(s.address(web), 1)
}

func (s *service) race(n int, extra ...string) []*proc.Process {
	var all []*proc.Process
	for i := range n {
		all = append(all, s.server(fmt.Sprintf("racer%d", i), extra...))
	}
	return all
}

// The file of a control socket whose process was killed is replaced; the chain begins again.
func TestStaleSocketFile(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--http", "unix:"+s.path("web"))
	s.kill(first, syscall.SIGKILL)
	s.exits(first, -1, "generation 1")
	require.FileExists(t, s.socket)
	s.wantFailure(3, "status")
	second := s.serving("again", "--http", "unix:"+s.path("web"))
	s.alone(1)
	require.EqualValues(t, 1, get(s.ctx(), "unix", s.path("web"), "/").generation)
	s.kill(second, syscall.SIGTERM)
	s.exits(second, 0, "a plain stop")
	require.NoFileExists(t, s.socket)
	s.wantFailure(3, "status")
}

// Several first starts over a stale file: the race and the stale path at once.
func TestFirstStartRaceOverStaleFile(t *testing.T) {
	const racers = 4
	s := newService(t)
	first := s.serving("v1")
	s.kill(first, syscall.SIGKILL)
	s.exits(first, -1, "generation 1")
	s.race(racers)
	s.alone(racers)
	s.answeredBy(s.address(web), racers)
}

// failsToStart starts a server that must end with one of the codes, its log naming each of the words.
func (s *service) failsToStart(words ...string) {
	s.t.Helper()
	p := s.server("refused")
	code, err := p.Wait(s.ctx())
	require.NoError(s.t, err)
	require.Contains(s.t, []int{1, 2}, code)
	p.End() // so that the log is whole
	var log strings.Builder
	for _, l := range p.Lines() {
		log.WriteString(l.Text + "\n")
	}
	for _, w := range words {
		require.Contains(s.t, log.String(), w)
	}
}

func TestRegularFileAtThePath(t *testing.T) {
	s := newService(t)
	require.NoError(t, os.WriteFile(s.socket, []byte("precious"), 0o600))
	s.failsToStart(s.socket)
	b, err := os.ReadFile(s.socket)
	require.NoError(t, err)
	require.Equal(t, "precious", string(b))
	s.wantFailure(2, "status")
}

func TestSymbolicLinkAtThePath(t *testing.T) {
	s := newService(t)
	require.NoError(t, os.Symlink("/nonexistent", s.socket))
	s.failsToStart(s.socket)
	target, err := os.Readlink(s.socket)
	require.NoError(t, err)
	require.Equal(t, "/nonexistent", target)
}

func TestDirectoryThatOthersMayWrite(t *testing.T) {
	s := newService(t)
	require.NoError(t, os.Chmod(s.dir, 0o777))
	s.failsToStart(s.dir)
	require.NoFileExists(t, s.socket)
	// Where only the owner of a file may remove it, as in /tmp, the directory will do.
	require.NoError(t, os.Chmod(s.dir, 0o777|os.ModeSticky))
	s.serving("v1")
}

func TestPathTooLong(t *testing.T) {
	s := newService(t)
	s.socket = filepath.Join(s.dir, strings.Repeat("x", 108-len(s.dir)-1))
	require.Len(t, s.socket, 108)
	s.failsToStart("107")
	s.socket = s.socket[:107]
	s.serving("v1")
}

func TestMissingDirectory(t *testing.T) {
	s := newService(t)
	s.socket = filepath.Join(s.dir, "missing", "ctl")
	s.failsToStart(s.socket)
	s.wantFailure(3, "status")
}

// Somebody else's stream socket is at the path: it is left alone and served on.
func TestForeignServerAtThePath(t *testing.T) {
	s := newService(t)
	ln, err := net.Listen("unix", s.socket)
	require.NoError(t, err)
	defer ln.Close()
	before, err := os.Stat(s.socket)
	require.NoError(t, err)
	s.failsToStart(s.socket)
	s.wantFailure(2, "status")
	after, err := os.Stat(s.socket)
	require.NoError(t, err)
	require.True(t, os.SameFile(before, after))
	c, err := net.Dial("unix", s.socket)
	require.NoError(t, err)
	c.Close()
}

// The control socket is its owner's alone from its first moment on, whatever the umask.
func TestSocketMode(t *testing.T) {
	s := newService(t)
	s.run("v1", "/bin/sh", append([]string{"-c", `umask 0; exec "$0" "$@"`, programs.Server}, s.args("v1")...)...)
	s.alone(1)
	info, err := os.Stat(s.socket)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())
}
