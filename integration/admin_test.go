package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// The admin address stays the same through handoffs, is always answered, and by
// the generation that serves.
func TestAdminAcrossHandoffs(t *testing.T) {
	const handoffs = 8
	s := newService(t)
	flags := []string{"--admin", "admin=127.0.0.1:0"}
	server := s.serving("v1", flags...)
	addr := s.address("admin")
	var mu sync.Mutex
	answers := map[string]map[uint64]int{} // by path and generation
	var bad []string
	ctx, cancel := context.WithCancel(s.ctx())
	var polling sync.WaitGroup
	for _, path := range []string{"/healthz", "/readyz", "/status"} {
		answers[path] = map[uint64]int{}
		polling.Go(func() {
			pace := time.NewTicker(3 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				a := get(s.t.Context(), "tcp", addr, path)
				mu.Lock()
				answers[path][a.generation]++
				if a.err != nil || a.status != http.StatusOK {
					bad = append(bad, fmt.Sprintf("%s: %d %q %v", path, a.status, a.body, a.err))
				}
				mu.Unlock()
				<-pace.C
			}
		})
	}
	defer polling.Wait()
	defer cancel()
	for g := uint64(2); g <= 1+handoffs; g++ {
		next := s.serving(fmt.Sprintf("v%d", g), flags...)
		s.exits(server, 0, "an older generation")
		server = next
		require.Equal(t, addr, s.address("admin"))
		require.Eventually(t, func() bool {
			mu.Lock()
			defer mu.Unlock()
			return answers["/healthz"][g] > 0 && answers["/readyz"][g] > 0 && answers["/status"][g] > 0
		}, patience, waitTick, "generation %d", g)
	}
	cancel()
	polling.Wait()
	require.Empty(t, bad)

	a := get(s.ctx(), "tcp", addr, "/status")
	require.NoError(t, a.err)
	var st proc.Status
	require.NoError(t, json.Unmarshal([]byte(a.body), &st))
	require.Equal(t, 1, st.Schema)
	require.EqualValues(t, 1+handoffs, st.Generation)
	require.Equal(t, server.PID(), st.Serving().PID)
}

// A plain stop: readiness turns false first, while connections are accepted as
// before; then what is open is finished.
func TestStopDelay(t *testing.T) {
	const delay = 2 * time.Second
	s := newService(t)
	server := s.serving("v1", "--admin", "admin=127.0.0.1:0", "--stop-delay", delay.String())
	addr, admin := s.address(web), s.address("admin")
	require.Equal(t, http.StatusOK, get(s.ctx(), "tcp", admin, "/readyz").status)
	begin := time.Now()
	s.kill(server, syscall.SIGTERM)
	var ready answer
	require.Eventually(t, func() bool {
		ready = get(s.ctx(), "tcp", admin, "/readyz")
		return ready.err != nil || ready.status != http.StatusOK
	}, patience, waitTick)
	require.NoError(t, ready.err)
	require.Equal(t, http.StatusServiceUnavailable, ready.status)
	require.Equal(t, "it is about to stop\n", ready.body)
	require.Equal(t, http.StatusOK, get(s.ctx(), "tcp", admin, "/healthz").status)
	s.answeredBy(addr, 1)
	late := s.requests(3, "tcp", addr, "/slow?for=4s")
	late.all(t, 1)
	s.exits(server, 0, "a plain stop")
	require.GreaterOrEqual(t, time.Since(begin), delay)
	require.Error(t, get(s.ctx(), "tcp", addr, "/").err)
}

// The last record of a process says how it went.
func TestLastRecord(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	run := s.requests(3, "tcp", s.address(web), "/slow?for=500ms")
	s.waitStatus("3 requests under way", func(st proc.Status) bool { return st.Of(1).Open["active"] >= 3 })
	second := s.serving("v2")
	run.all(t, 1)
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
