package integration

import (
	"os"
	"strings"
	"sync"
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
