package integration

import (
	"bytes"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/fdhandoff/handoff/integration/proc"
)

// dialControl opens a control connection that the test speaks on by itself.
func (s *service) dialControl() *net.UnixConn {
	s.t.Helper()
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: s.socket, Net: "unixpacket"})
	require.NoError(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	return c
}

func TestRubbishOnTheControlSocket(t *testing.T) {
	s, run := underLoad(t)
	pid := s.status().PID
	before, err := proc.Descriptors(pid)
	require.NoError(t, err)
	for name, frame := range map[string][]byte{
		"no JSON":                      []byte("GET / HTTP/1.1\r\n\r\n"),
		"bytes":                        bytes.Repeat([]byte{0xff, 0}, 1000),
		"no object":                    []byte(`[1,2,3]`),
		"no type":                      []byte(`{}`),
		"an unknown type":              []byte(`{"type":"please"}`),
		"a type of no string":          []byte(`{"type":{"type":"hello"}}`),
		"deep":                         []byte(`{"type":` + strings.Repeat("[", 20000)),
		"too large":                    []byte(`{"type":"status","x":"` + strings.Repeat("x", 100<<10) + `"}`),
		"hello without a version":      []byte(`{"type":"hello"}`),
		"hello of another age":         []byte(`{"type":"hello","versions":[900,901]}`),
		"the middle of a conversation": []byte(`{"type":"released"}`),
	} {
		s.sub(name, func() {
			c := s.dialControl()
			_, err := c.Write(frame)
			require.NoError(s.t, err)
			c.CloseWrite()
			// An answer is welcome, an end too; a connection left without either would be found below as a descriptor.
			buf := make([]byte, 64<<10)
			for err == nil {
				_, err = c.Read(buf)
			}
			c.Close()
		})
	}
	s.sendDescriptors()
	s.sendNothing()
	require.Equal(t, pid, s.status().PID)
	s.noMoreDescriptors(pid, before)
	s.unharmed(run)
}

// sendDescriptors sends descriptors where none are expected. They must not stay open at the server, which may also
// have forbidden them (SO_PASSRIGHTS): then sending fails with EPERM.
func (s *service) sendDescriptors() {
	s.t.Helper()
	c := s.dialControl()
	r, w, err := os.Pipe()
	require.NoError(s.t, err)
	defer r.Close()
	rights := unix.UnixRights(int(w.Fd()), int(w.Fd()))
	_, _, err = c.WriteMsgUnix([]byte(`{"type":"status"}`), rights, nil)
	w.Close()
	if err != nil {
		require.ErrorIs(s.t, err, unix.EPERM)
		return
	}
	// The pipe ends when nobody holds its other end any more.
	n, err := r.Read(make([]byte, 1))
	require.Zero(s.t, n)
	require.Error(s.t, err)
}

// sendNothing sends an empty message, which reads like an end and is none.
func (s *service) sendNothing() {
	s.t.Helper()
	c := s.dialControl()
	_, err := c.Write(nil)
	require.NoError(s.t, err)
	c.Close()
}

// Many clients that connect and say nothing delay neither an operator nor a handoff.
func TestSilentClientsOfTheControlSocket(t *testing.T) {
	s, run := underLoad(t)
	for range 20 {
		s.dialControl()
	}
	s.unharmed(run)
}

// The kernel itself tells a stream client that it is wrong here.
func TestStreamClientOfTheControlSocket(t *testing.T) {
	s, run := underLoad(t)
	_, err := net.Dial("unix", s.socket)
	require.ErrorIs(t, err, syscall.EPROTOTYPE)
	s.unharmed(run)
}

// asNobody runs a program as a user without rights.
func (s *service) asNobody(path string, args ...string) proc.Result {
	s.t.Helper()
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	r, err := proc.Run(s.ctx(), cmd)
	require.NoError(s.t, err)
	return r
}

func TestRootWrongUserOnTheControlSocket(t *testing.T) {
	needRoot(t)
	s, run := underLoad(t)
	for _, tc := range []struct {
		name      string
		dir, sock os.FileMode
		seen      bool // the incumbent can see the attempt
	}{
		{"kept out by the directory", 0o700, 0o600, false},
		{"kept out by the socket's mode", 0o755, 0o600, false},
		{"let in by both, refused by its uid", 0o755, 0o666, true},
	} {
		s.sub(tc.name, func() {
			require.NoError(s.t, os.Chmod(s.dir, tc.dir))
			require.NoError(s.t, os.Chmod(s.socket, tc.sock))
			for _, verb := range []string{"status", "handover"} {
				r := s.asNobody(programs.Handoffctl, "--socket", s.socket, verb)
				require.Equal(s.t, 5, r.Code, "%s%s", r.Stdout, r.Stderr)
				require.Contains(s.t, r.Stderr, "handoffctl: error: ")
			}
			r := s.asNobody(programs.Server, s.args("intruder")...)
			require.Equal(s.t, 1, r.Code, "%s%s", r.Stdout, r.Stderr)
			require.Contains(s.t, r.Stdout+r.Stderr, s.socket)
			if tc.seen {
				s.logged("65534")
			}
		})
	}
	require.NoError(t, os.Chmod(s.dir, 0o700))
	require.NoError(t, os.Chmod(s.socket, 0o600))
	s.unharmed(run)
}

// logged wants a line with text in one of the service's logs.
func (s *service) logged(text string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		for _, path := range s.logs {
			b, err := os.ReadFile(path)
			if err == nil && strings.Contains(string(b), text) {
				return true
			}
		}
		return false
	}, patience, waitTick, "%q in a log", text)
}
