package integration

import (
	"net"
	"net/http"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// SIGTERM with 1,000 requests under way: each is answered and the process ends with 0.
func TestStopWithAThousandBusyConnections(t *testing.T) {
	const busy = 1000
	s := newService(t)
	server := s.serving("v1")
	addr := s.address(web)
	under := s.requests(busy, "tcp", addr, "/slow?for=6s")
	s.waitStatus("1,000 requests under way", func(st proc.Status) bool { return st.Of(1).Open["active"] >= busy })
	s.kill(server, syscall.SIGTERM)
	under.all(t, 1)
	s.exits(server, 0, "a plain stop")
	require.NoFileExists(t, s.socket)
}

// The same with requests that come and go at any time: of those sent over connections that were open nothing is lost,
// and later dials are refused.
func TestStopUnderLoad(t *testing.T) {
	s := newService(t)
	server := s.serving("v1")
	addr := s.address(web)
	run := s.load(load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 200, Rate: 1000})
	s.answers(run, 1, 500)
	s.kill(server, syscall.SIGTERM)
	s.exits(server, 0, "a plain stop")
	rep := run.Stop()
	onlyNewcomers(t, rep)
	require.Zero(t, rep.Broken, "%s", rep)
}

// onlyNewcomers wants that nothing was lost but what came too late to be accepted: a refused dial, or a connection
// that was still in the kernel's queue when the listener closed.
func onlyNewcomers(t *testing.T, rep load.Report) {
	t.Helper()
	for _, l := range rep.Losses {
		if l.Cause != load.CauseDial {
			require.True(t, l.Fresh && l.Cause == load.CauseReset, "%+v\n%s", l, rep)
		}
	}
}

// handoffctl stop is the same as SIGTERM.
func TestStopByOperator(t *testing.T) {
	s := newService(t)
	server := s.serving("v1")
	s.must("stop")
	s.exits(server, 0, "a plain stop")
	s.wantFailure(3, "status")
}

// What is still open at the drain deadline is cut, and the exit code says so.
func TestStopCutsAtTheDeadline(t *testing.T) {
	s := newService(t)
	server := s.serving("v1", "--drain-timeout", "500ms")
	addr := s.address(web)
	under := s.requests(3, "tcp", addr, "/slow?for=1m")
	s.waitStatus("3 requests under way", func(st proc.Status) bool { return st.Of(1).Open["active"] >= 3 })
	s.kill(server, syscall.SIGTERM)
	s.exits(server, 6, "3 connections were cut")
	under.wg.Wait()
	for _, a := range under.answers {
		require.Error(t, a.err)
	}
}

// A handler of an endless answer learns of the drain and ends it with a word.
func TestEventsEndAtStop(t *testing.T) {
	s := newService(t)
	server := s.serving("v1")
	addr := s.address(web)
	run := s.load(load.Stream{Kind: load.Events, Address: addr, Conns: 5})
	require.NoError(t, run.Wait(s.ctx(), func(c load.Counts) bool { return c.Events >= 5 }))
	s.kill(server, syscall.SIGTERM)
	require.NoError(t, run.Wait(s.ctx(), func(c load.Counts) bool { return c.Drained >= 5 }))
	s.exits(server, 0, "a plain stop")
	onlyNewcomers(t, run.Stop())
}

// A keep-alive connection that stays silent does not hold up a plain stop until the drain deadline.
func TestSilentConnectionsAtStop(t *testing.T) {
	s := newService(t)
	server := s.serving("v1", "--drain-timeout", "5m")
	addr := s.address(web)
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, ask(c, "/"))
	require.Equal(t, http.StatusOK, readAnswer(s.ctx(), c).status)
	begin := time.Now()
	s.kill(server, syscall.SIGTERM)
	s.exits(server, 0, "a plain stop")
	require.Less(t, time.Since(begin), 30*time.Second)
}
