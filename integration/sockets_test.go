package integration

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// refused waits until nobody listens at an address: a connection is refused rather than left without an answer.
func (s *service) refused(network, addr string) {
	s.t.Helper()
	require.Eventually(s.t, func() bool {
		c, err := net.Dial(network, addr)
		if err == nil {
			c.Close()
			return false
		}
		return errors.Is(err, syscall.ECONNREFUSED) || errors.Is(err, os.ErrNotExist)
	}, patience, waitTick, "somebody still listens at %s", addr)
}

func TestSocketsAddedAndRemoved(t *testing.T) {
	s := newService(t)
	kept, gone, added := s.path("kept"), s.path("gone"), s.path("added")
	first := s.serving("v1", "--http", "a="+web, "--http", "b="+web, "--http", "unix:"+kept, "--http", "unix:"+gone)
	a, b := s.address("a"), s.address("b")
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: a, Conns: 20, Rate: 200},
		load.Stream{Kind: load.NewConn, Address: a, Rate: 50},
		load.Stream{Kind: load.KeepAlive, Network: "unix", Address: kept, Conns: 5, Rate: 50},
		load.Stream{Kind: load.NewConn, Network: "unix", Address: kept, Rate: 50},
	)
	// What the successor drops is served by the incumbent until release: its clients lose nothing that they sent.
	dropped := s.load(
		load.Stream{Kind: load.KeepAlive, Address: b, Conns: 5, Rate: 50},
		load.Stream{Kind: load.KeepAlive, Network: "unix", Address: gone, Conns: 5, Rate: 50},
	)
	s.answers(run, 1, 20)
	s.answers(dropped, 1, 20)

	_, second := s.upgrade("v2", []string{"--wait=released"},
		"--http", "a="+web, "--http", "c="+web, "--http", "unix:"+kept, "--http", "unix:"+added)
	require.NoError(t, dropped.Wait(s.ctx(), func(c load.Counts) bool { return c.Lost > 0 }))
	rep := dropped.Stop()
	for _, l := range rep.Losses {
		require.Equal(t, load.CauseDial, l.Cause, "%s", rep)
	}
	s.exits(first, 0, "generation 1")
	s.alone(2)
	require.Equal(t, a, s.address("a"))
	s.answeredBy(s.address("c"), 2)
	require.Equal(t, uint64(2), get(s.ctx(), "unix", added, "/").generation)
	s.refused("tcp", b)
	require.NoFileExists(t, gone, "a socket that nobody listens on any more")
	require.FileExists(t, kept)
	s.answers(run, 2, 20)
	s.noLoss(run)

	// The last owner removes the files.
	s.kill(second, syscall.SIGTERM)
	s.exits(second, 0, "generation 2")
	require.NoFileExists(t, kept)
	require.NoFileExists(t, added)
	require.NoFileExists(t, s.socket)
}

// A socket that gets another name stays the same socket: its clients notice nothing.
func TestSocketRenamed(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--http", "old="+web)
	addr := s.address("old")
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 200},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 50},
	)
	s.answers(run, 1, 20)
	s.upgrade("v2", nil, "--http", "new="+addr)
	s.exits(first, 0, "generation 1")
	require.Equal(t, addr, s.address("new"))
	s.upgrade("v3", nil, "--http", "new="+web)
	require.Equal(t, addr, s.address("new"))
	s.answers(run, 3, 20)
	s.noLoss(run)
}

// What the successor did not claim is said while the incumbent still serves it.
func TestUnclaimedSocketIsReported(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--http", "a="+web, "--http", "b="+web, "--probation", "60s")
	b := s.address("b")
	s.upgrade("v2", []string{"--wait=committed"}, "--http", "a="+web)
	st := s.status()
	var unclaimed []string
	for _, g := range st.Generations {
		unclaimed = append(unclaimed, g.Unclaimed...)
	}
	require.Equal(t, []string{"tcp b (" + b + ")"}, unclaimed)
	s.answeredBy(b, 1)
	s.must("rollback")
	s.waitStatus("1 serves again", func(st proc.Status) bool { return st.Serving().Generation == 1 })
	s.answeredBy(b, 1)
}
