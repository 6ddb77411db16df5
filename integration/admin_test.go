package integration

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
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
	answers := map[string]map[uint64]int{"/healthz": {}, "/readyz": {}, "/status": {}} // by generation
	var bad []string
	ctx, cancel := context.WithCancel(t.Context()) // it goes on for longer than a wait
	var polling sync.WaitGroup
	for path, by := range answers {
		polling.Go(func() {
			pace := time.NewTicker(3 * time.Millisecond)
			defer pace.Stop()
			for ctx.Err() == nil {
				a := get(s.t.Context(), "tcp", addr, path)
				mu.Lock()
				by[a.generation]++
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
	const delay = 5 * time.Second // all that is asked meanwhile must come in time
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
	late := s.requests(3, "tcp", addr, "/slow?for=6s")
	late.all(t, 1)
	s.exits(server, 0, "a plain stop")
	require.GreaterOrEqual(t, time.Since(begin), delay)
	require.Error(t, get(s.ctx(), "tcp", addr, "/").err)
}
