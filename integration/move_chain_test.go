package integration

import (
	"fmt"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// A few connections move through twenty generations, each of which answers one request on them; others say nothing all
// the time, and are answered by the last.
func TestMoveThroughTwentyGenerations(t *testing.T) {
	const handoffs, n = 20, 5
	s := newService(t)
	sockets := []string{"--http", web, "--http", "unix:" + s.path("web")}
	first := s.serving("v1", sockets...)
	addr := s.address(web)
	talking := append(s.keepAlives("tcp", addr, n), s.keepAlives("unix", s.path("web"), n)...)
	silent := append(s.keepAlives("tcp", addr, n), s.keepAlives("unix", s.path("web"), n)...)
	fresh := append(s.keepAlives("tcp", addr, n), s.keepAlives("unix", s.path("web"), n)...) // nothing was ever asked on them
	s.allAnsweredBy(append(talking, silent...), 1)
	var all []waiter = []waiter{first}
	var last *proc.Adopted
	for g := uint64(2); g <= handoffs+1; g++ {
		_, last = s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=drained"}, sockets...)
		all = append(all, last)
		s.allAnsweredBy(talking, g)
		// Each is counted just after it is served.
		st := s.waitStatus("all have come", func(st proc.Status) bool { return st.Of(g).Adopted >= 6*n })
		require.EqualValues(t, 6*n, st.Of(g).Adopted)
	}
	s.allAnsweredBy(silent, handoffs+1)
	s.allAnsweredBy(fresh, handoffs+1)
	for _, p := range all[:handoffs] {
		s.exits(p, 0, "an older generation")
	}
	endAllTalk(t, s, append(append(talking, silent...), fresh...))
	s.kill(last, syscall.SIGTERM)
	s.exits(last, 0, "a plain stop")
	ends := s.ended(handoffs + 1)
	answered, _ := answeredAndMoved(ends)
	require.EqualValues(t, 2*n*(handoffs+1)+2*n*2+2*n, answered)
	for g := uint64(1); g <= handoffs; g++ {
		require.EqualValues(t, 6*n, ends[g].Moved, "by generation %d", g)
	}
}

// A successor that is revoked gives its connections back to the incumbent, which has kept its own.
func TestMoveBackAtARollback(t *testing.T) {
	const n = 200
	s := newService(t)
	first := s.serving("v1", "--probation", "1h")
	addr := s.address(web)
	before := s.keepAlives("tcp", addr, n)
	s.allAnsweredBy(before, 1)
	_, second := s.upgrade("v2", []string{"--wait=committed"})
	after := s.keepAlives("tcp", addr, n)
	s.allAnsweredBy(after, 2)
	s.allAnsweredBy(before, 1)
	run := s.load(load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 200}, load.Stream{Kind: load.NewConn, Address: addr, Rate: 50})
	s.answers(run, 2, 50)
	s.must("rollback")
	s.exits(second, 7, "revoked")
	s.allAnsweredBy(after, 1)
	s.allAnsweredBy(before, 1)
	s.answers(run, 1, 50)
	rep := s.noLoss(run)
	require.EqualValues(t, 20, rep.ByKind[load.KeepAlive].Dials)
	require.Zero(t, rep.Announced)
	endAllTalk(t, s, append(before, after...))
	s.kill(first, syscall.SIGTERM)
	s.exits(first, 0, "a plain stop")
	all := s.ended(2)
	answered, _ := answeredAndMoved(all)
	require.Equal(t, 5*n+rep.Sent, answered, "each request was answered once")
	require.GreaterOrEqual(t, all[2].Moved, uint64(n+20))
	require.Zero(t, all[1].Moved)
}

// Where one side does not move connections, each is told to close by an answer, and none is lost.
func TestMoveTurnedOff(t *testing.T) {
	const conns = 50
	off := []string{"--move-idle=false"}
	for _, tc := range []struct {
		name     string
		old, new []string
		not      uint64 // the generation that moves none
	}{
		{"by the incumbent", off, nil, 1},
		{"by the successor", nil, off, 2},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService(t)
			first := s.serving("v1", tc.old...)
			addr := s.address(web)
			run := s.load(
				load.Stream{Kind: load.KeepAlive, Address: addr, Conns: conns, Rate: 500},
				load.Stream{Kind: load.NewConn, Address: addr, Rate: 50},
			)
			s.answers(run, 1, 100)
			second := s.serving("v2", tc.new...)
			s.exits(first, 0, "generation 1")
			s.answers(run, 2, 100)
			// Who was told to close comes back when its next request is due.
			require.Eventually(t, func() bool { return run.Report().ByKind[load.KeepAlive].Dials >= 2*conns }, patience, waitTick)
			rep := s.noLoss(run)
			require.EqualValues(t, conns, rep.Announced, "%s", rep)
			require.EqualValues(t, 2*conns, rep.ByKind[load.KeepAlive].Dials)
			if tc.not == 2 {
				require.NotEmpty(t, s.status().Of(2).MoveOff)
			}
			s.kill(second, syscall.SIGTERM)
			s.exits(second, 0, "a plain stop")
			answered, moved := answeredAndMoved(s.ended(2))
			require.Equal(t, rep.Sent, answered)
			require.Zero(t, moved)
		})
	}
}

// Thousands of connections that are quiet, but for a request now and then, move at each handoff.
func TestMoveManyQuietConnections(t *testing.T) {
	const handoffs = 3
	conns, rate := 9000, 1500.0
	if raceEnabled {
		conns, rate = 1500, 150
		t.Logf("%d connections instead of 9,000: the race detector takes more memory and time for each", conns)
	}
	needFiles(t, conns+1000)
	s := newService(t)
	first := s.serving("v1")
	addr := s.address(web)
	run := s.load(load.Stream{Kind: load.KeepAlive, Address: addr, Conns: conns, Rate: rate})
	s.answers(run, 1, uint64(conns)) // each connection has spoken
	var last *proc.Adopted
	var all []waiter = []waiter{first}
	type window struct{ begin, end time.Time }
	var moves []window
	begun := time.Now()
	for g := uint64(2); g <= handoffs+1; g++ {
		begin := time.Now()
		_, last = s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=drained"})
		all = append(all, last)
		moves = append(moves, window{begin, time.Now()})
		s.answers(run, g, uint64(rate)) // as long as a second
	}
	for _, p := range all[:handoffs] {
		s.exits(p, 0, "an older generation")
	}
	rep := s.noLoss(run)
	t.Logf("%s", rep)
	t.Logf("before:            %s", rep.Latency(time.Time{}, begun))
	for i, m := range moves {
		t.Logf("during handoff %d: %s, took %s", i+1, rep.Latency(m.begin, m.end), m.end.Sub(m.begin).Round(time.Millisecond))
	}
	require.Zero(t, rep.Announced)
	require.EqualValues(t, conns, rep.Dials)
	s.kill(last, syscall.SIGTERM)
	s.exits(last, 0, "a plain stop")
	ends := s.ended(handoffs + 1)
	answered, _ := answeredAndMoved(ends)
	require.Equal(t, rep.Sent, answered, "each request was answered once")
	for g := uint64(1); g <= handoffs; g++ {
		require.EqualValues(t, conns, ends[g].Moved, "by generation %d", g)
	}
}

// needFiles wants the limit of open files to allow n: what is below it would look like a fault of the server. (Go
// raises the soft limit to the hard one.)
func needFiles(t *testing.T, n int) {
	t.Helper()
	var limit syscall.Rlimit
	require.NoError(t, syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit))
	require.GreaterOrEqual(t, limit.Max, uint64(n), "the hard limit of open files (ulimit -Hn) is too low for this test")
}
