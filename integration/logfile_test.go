package integration

import (
	"bytes"
	"encoding/json"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// Two generations write one log file; it is opened again when it was moved away.
func TestLogFileOfTwoGenerations(t *testing.T) {
	s := newService(t)
	path := s.newLog("both")
	flags := []string{"--log-file", path, "--access-log"}
	first := s.serving("v1", flags...)
	addr := s.address(web)
	under := s.requests(20, "tcp", addr, "/slow?for=1s")
	second := s.serving("v2", flags...)
	s.requests(20, "tcp", addr, "/").all(t, 0)
	under.all(t, 0)
	s.exits(first, 0, "handed over")
	require.Eventually(t, func() bool { // a line is written after its answer
		text, err := os.ReadFile(path)
		return err == nil && bytes.Count(text, []byte(`"msg":"request"`)) == 40
	}, patience, waitTick)
	require.NoError(t, os.Rename(path, path+".1"))
	s.kill(second, syscall.SIGUSR1)
	require.Eventually(t, func() bool { _, err := os.Stat(path); return err == nil }, patience, waitTick)
	s.kill(second, syscall.SIGTERM)
	s.exits(second, 0, "a plain stop")
	require.Empty(t, first.Lines(), "all is in the file")
	require.Empty(t, second.Lines())

	moved, _ := records(t, path+".1")
	require.Equal(t, 1, moved["ended"])
	require.Equal(t, 40, moved["request"])
	rest, generations := records(t, path)
	require.Equal(t, 1, rest["ended"])
	require.Equal(t, map[float64]bool{2: true}, generations)
}

// records counts the records of a log by message, and has their generations.
func records(t *testing.T, path string) (messages map[string]int, generations map[float64]bool) {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	messages, generations = map[string]int{}, map[float64]bool{}
	for line := range bytes.Lines(text) {
		var r struct {
			Msg        string
			Generation float64
		}
		require.NoError(t, json.Unmarshal(line, &r), "%s", line)
		messages[r.Msg]++
		generations[r.Generation] = true
	}
	return messages, generations
}
