package integration

import (
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// The last record of a process says how it went.
func TestLastRecord(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	var under []*held
	for range 3 {
		under = append(under, s.hold(s.address(web), 1))
	}
	s.waitStatus("3 requests under way", func(st proc.Status) bool { return st.Of(1).Open["active"] >= 3 })
	second := s.serving("v2")
	s.waitStatus("it drains", func(st proc.Status) bool { return st.Of(1).State == "draining" })
	for _, h := range under {
		h.finish(s)
	}
	s.exits(first, 0, "handed over")
	last := lastRecord(t, first)
	require.Equal(t, "INFO", last["level"])
	require.Equal(t, "handed_over", last["reason"])
	require.EqualValues(t, 0, last["exit_code"])
	require.EqualValues(t, 1, last["generation"])
	require.EqualValues(t, map[string]any{"active": 3.0}, last["open"])
	require.EqualValues(t, 3, last["answered"])
	require.Greater(t, last["uptime"], last["drain"])
	require.NotZero(t, last["drain"])
	require.Greater(t, last["goroutines"], 0.0)
	require.Greater(t, last["descriptors"], 2.0)

	taken := s.server("taken", "--http", s.address(web), "--takeover", "never")
	s.exits(taken, 1, "somebody serves")
	last = lastRecord(t, taken)
	require.Equal(t, "ERROR", last["level"])
	require.Equal(t, "not_started", last["reason"])
	require.EqualValues(t, 1, last["exit_code"])
	require.Contains(t, last["error"], "an incumbent serves already")
	s.kill(second, syscall.SIGTERM)
	s.exits(second, 0, "a plain stop")
	require.Equal(t, "stopped", lastRecord(t, second)["reason"])
}

// lastRecord is the last line of a process that has ended.
func lastRecord(t *testing.T, p *proc.Process) map[string]any {
	t.Helper()
	// Its output is read a little later than it ends.
	_, err := p.WaitLog(t.Context(), func(proc.Line) bool { return false })
	require.ErrorContains(t, err, "its output ended")
	lines := p.Lines()
	require.NotEmpty(t, lines)
	last := lines[len(lines)-1]
	require.Equal(t, "ended", last.Field("msg"), last.Text)
	return last.Fields
}

// A second SIGTERM is hammer time: what is open is cut at once, and the log has
// what every goroutine was doing.
func TestSecondSIGTERM(t *testing.T) {
	s := newService(t)
	server := s.serving("v1", "--drain-timeout", "10m", "--stop-delay", "10m")
	under := s.requests(3, "tcp", s.address(web), "/slow?for=1h")
	s.waitStatus("3 requests under way", func(st proc.Status) bool { return st.Of(1).Open["active"] >= 3 })
	s.kill(server, syscall.SIGTERM)
	_, err := server.WaitLog(s.ctx(), func(l proc.Line) bool { return strings.HasPrefix(l.Field("msg"), "stopping: ") })
	require.NoError(t, err)
	s.kill(server, syscall.SIGTERM)
	s.exits(server, 6, "3 connections were cut")
	under.wg.Wait()
	last := lastRecord(t, server)
	require.Equal(t, "WARN", last["level"])
	require.EqualValues(t, map[string]any{"active": 3.0}, last["cut"])
	state, handlers := "before", 0
	for _, l := range server.Lines() {
		switch {
		case l.Field("msg") == "hammer time: what every goroutine is doing follows":
			require.Equal(t, "before", state)
			state = "dump"
		case l.Field("msg") == "hammer time: end of the goroutines":
			require.Equal(t, "dump", state)
			state = "after"
		case state == "dump" && strings.Contains(l.Text, ".slow+"):
			handlers++
		}
	}
	require.Equal(t, "after", state)
	require.NotZero(t, handlers, "the handlers that held up the stop are in it")
}
