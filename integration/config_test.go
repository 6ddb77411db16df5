package integration

import (
	"os"
	"os/exec"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// A flag beats a variable that the library would read for itself, and a
// variable beats the file.
func TestConfigurationOfAHandover(t *testing.T) {
	s := newService(t)
	config := s.path("server.yaml")
	require.NoError(t, os.WriteFile(config, []byte("takeover: never\nhttp: [\""+web+"\"]\n"), 0o600))
	t.Setenv("HANDOFF_TAKEOVER", "standby")
	first := s.serving("v1")
	second := s.serving("v2", "--takeover", "auto")
	s.exits(first, 0, "handed over")
	third := s.server("v3", "--config", config)
	s.waitStatus("a standby", func(st proc.Status) bool { return st.In("standby").PID == third.PID() })
	require.Equal(t, second.PID(), s.status().Serving().PID)
	s.must("handover")
	s.exits(second, 0, "handed over")
}

// What --check-config prints is a configuration that a server starts with.
func TestCheckedConfigurationIsServed(t *testing.T) {
	s := newService(t)
	files := s.tlsFiles()
	files.write(t, newPair(t, 1))
	r, err := proc.Run(s.ctx(), exec.Command(programs.Server, append(s.args("v1", files.flags()...), "--check-config", "--http", web)...))
	require.NoError(t, err)
	require.NotZero(t, r.Code)
	require.Contains(t, r.Stderr, "is used twice")
	r, err = proc.Run(s.ctx(), exec.Command(programs.Server, append(s.args("v1", files.flags()...), "--check-config", "--http", "plain="+web)...))
	require.NoError(t, err)
	require.Zero(t, r.Code, r.Stderr)
	require.NoFileExists(t, s.socket)
	config := s.path("server.yaml")
	require.NoError(t, os.WriteFile(config, []byte(r.Stdout), 0o600))
	server := s.run("v1", programs.Server, "--config", config)
	s.waitStatus("it serves", func(st proc.Status) bool { return st.Serving().PID == server.PID() })
	s.answeredBy(s.address("plain"), 1)
}
