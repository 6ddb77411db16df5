package integration

import (
	"bufio"
	"crypto/rand"
	"crypto/tls"
	"io"
	"net/http"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

const operationsPage = "docs/operations.md"

// script is a block of docs/operations.md in which the port is the kernel's choice.
func script(t *testing.T, name string) string {
	t.Helper()
	text := blockOf(t, operationsPage, "<!-- run: "+name+" -->", "sh")
	require.Contains(t, text, "# tested\n")
	return strings.ReplaceAll(text, "127.0.0.1:8080", web)
}

// The deploy script of docs/operations.md deploys what passes the check, and goes back from what does not.
func TestDeployOfOperations(t *testing.T) {
	for _, tc := range []struct {
		name, check string
		code        int
		serving     uint64
	}{
		{"the check passes", "true", 0, 2},
		{"the check fails", "false", 1, 1},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService(t)
			// A check fails or passes within the probation of the version that runs.
			old := s.serving("v1", "--probation", "4s")
			next := s.path("next")
			text := "#!/bin/sh\nexec server --http " + web + " --label v2 --socket " + s.socket + "\n"
			require.NoError(t, os.WriteFile(next, []byte(text), 0o700))
			r := s.sh(s.dir, script(t, "deploy"), next, tc.check)
			require.Equal(t, tc.code, r.Code, "%s%s", r.Stdout, r.Stderr)
			st := s.alone(tc.serving)
			if tc.serving == 2 {
				s.adopt(st.Serving().PID)
				s.exits(old, 0, "handed over")
				return
			}
			require.Equal(t, old.PID(), st.Serving().PID)
			require.Contains(t, r.Stderr, "check 1 of 1 (false) did not pass: exit status 1; generation 2 was rolled back; generation 1 ")
		})
	}
}

// The handover in two steps.
func TestStandbyOfOperations(t *testing.T) {
	s := newService(t)
	old := s.serving("v1")
	r := s.sh(s.dir, script(t, "standby"))
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.EqualValues(t, 2, s.status().Serving().Generation)
	s.exits(old, 0, "handed over")
}

// The plain stop: its exit code is that of the server.
func TestStopOfOperations(t *testing.T) {
	s := newService(t)
	r := s.sh(s.dir, "set -e\n"+script(t, "stop"))
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	log, err := os.ReadFile(s.path("v1.log"))
	require.NoError(t, err)
	require.Contains(t, string(log), "delay=200ms")
	require.Contains(t, string(log), "reason=stopped")
}

// A client comes back to the next version by a full handshake, unless the versions share their ticket keys.
func TestTicketsOfOperations(t *testing.T) {
	program := blockOf(t, migratingPage, "<!-- after tls -->", "go")
	shared := strings.Replace(program, "\thello := http.HandlerFunc(", `	if err := shareTickets(config, "tickets.key"); err != nil {
		return err
	}
	hello := http.HandlerFunc(`, 1)
	require.NotEqual(t, program, shared)
	shared += "\n" + blockOf(t, operationsPage, "<!-- ticket keys -->", "go")
	for _, tc := range []struct {
		name, source string
		resumed      bool
	}{
		{"keys of each process", program, false},
		{"shared keys", shared, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService(t)
			s.writeCertificate(1)
			keys := make([]byte, 64)
			rand.Read(keys)
			require.NoError(t, os.WriteFile(s.path("tickets.key"), keys, 0o600))
			app := s.program("app", s.tlsSource(tc.source))
			old := s.app(app)
			client := insecure()
			client.ClientSessionCache = tls.NewLRUClientSessionCache(1)
			client.ServerName = "localhost"
			require.False(t, s.resumes(client), "there is no ticket yet")
			require.True(t, s.resumes(client), "by the same process")
			next := s.app(app)
			s.exits(old, 0, "handed over")
			require.Equal(t, tc.resumed, s.resumes(client), "by the next version")
			s.kill(next, syscall.SIGTERM)
			s.exits(next, 0, "stopped")
		})
	}
}

// resumes makes one request and tells whether its handshake was a short one. The whole answer is read, since
// tickets come before it.
func (s *service) resumes(config *tls.Config) bool {
	s.t.Helper()
	c, err := (&tls.Dialer{Config: config}).DialContext(s.ctx(), "tcp", s.address(secureWeb))
	require.NoError(s.t, err)
	defer c.Close()
	_, err = io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
	require.NoError(s.t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(s.t, err)
	_, err = io.Copy(io.Discard, resp.Body)
	require.NoError(s.t, err)
	return c.(*tls.Conn).ConnectionState().DidResume
}
