package integration

import (
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The same request at the same instant, from several deploy tools: CMD is started once, and everyone gets its outcome.
func TestSameRequestAtTheSameInstant(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	mark := s.path("started")
	var wg sync.WaitGroup
	codes := make([]int, 4)
	script := "echo started >>" + mark + `; exec "$@"`
	for i := range codes {
		wg.Go(func() {
			all := []string{"upgrade", "--request-id", "deploy-1", "--wait=committed", "--log", s.newLog("v2"), "--", "/bin/sh", "-c", script, "sh", programs.Server}
			codes[i] = s.ctl(append(all, s.args("v2")...)...).Code
		})
	}
	wg.Wait()
	require.Equal(t, make([]int, 4), codes)
	b, err := os.ReadFile(mark)
	require.NoError(t, err)
	require.Equal(t, 1, strings.Count(string(b), "started"))
	s.adopt(s.status().Serving().PID)
	require.EqualValues(t, 2, s.status().Serving().Generation)
	files, err := os.ReadDir(s.dir)
	require.NoError(t, err)
	for _, f := range files {
		require.False(t, strings.HasPrefix(f.Name(), "ctl.") && f.Name() != "ctl.lock", "%s is left", f.Name())
	}
}

// A CMD that takes over without the request's id, as one does that is started elsewhere with another environment, is no
// success that can be known of, and no failure either.
func TestRequestThatGotLost(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	lost := []string{"upgrade", "--timeout", "6s", "--log", s.newLog("v2"), "--", "/bin/sh", "-c", `unset HANDOFF_REQUEST; exec "$@"`, "sh", programs.Server}
	r := s.wantFailure(4, append(lost, s.args("v2")...)...)
	require.Contains(t, r.Stderr, "generation 2 took over meanwhile without this request's id")
	require.Contains(t, r.Stderr, "HANDOFF_REQUEST did not reach it")
	st := s.status().Serving()
	s.adopt(st.PID)
	require.EqualValues(t, 2, st.Generation, "it is let alone")
}

// Where the incumbent does not answer nothing is started: a successor would wait for it too.
func TestUpgradeOfASilentIncumbent(t *testing.T) {
	s := newService(t)
	server := s.serving("v1")
	s.kill(server, syscall.SIGSTOP)
	s.stopped(server.PID())
	mark := s.path("started")
	r := s.wantFailure(4, "upgrade", "--timeout", "10s", "--", "/bin/sh", "-c", "echo started >"+mark)
	require.Contains(t, r.Stderr, "does not answer; CMD was not started")
	require.NoFileExists(t, mark)
	s.kill(server, syscall.SIGCONT)
	require.EqualValues(t, 1, s.status().Serving().Generation)
}
