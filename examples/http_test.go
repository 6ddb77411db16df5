package examples

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
)

// The chi example is replaced twice under load, and nothing is lost.
func TestChi(t *testing.T) {
	s := newService(t)
	programs := []string{s.build("chi"), s.build("chi", "-ldflags", "-X main.version=v2")}
	s.succession(append(programs, programs[0]),
		load.Stream{Kind: load.KeepAlive, Conns: 20, Rate: 300},
		load.Stream{Kind: load.NewConn, Rate: 100})
}

// So is the Echo example.
func TestEcho(t *testing.T) {
	s := newService(t)
	programs := []string{s.build("echo"), s.build("echo", "-ldflags", "-X main.version=v2")}
	s.succession(append(programs, programs[0]),
		load.Stream{Kind: load.KeepAlive, Conns: 20, Rate: 300},
		load.Stream{Kind: load.NewConn, Rate: 100})
}

// So is the net/http example, and its endless answers end with a word.
func TestNetHTTP(t *testing.T) {
	s := newService(t)
	program := s.build("nethttp")
	rep := s.succession([]string{program, program, program},
		load.Stream{Kind: load.KeepAlive, Conns: 20, Rate: 300},
		load.Stream{Kind: load.NewConn, Rate: 100},
		load.Stream{Kind: load.Events, Conns: 5})
	for g := uint64(1); g <= 3; g++ {
		require.NotZero(t, rep.Generations[g], "answers of generation %d", g)
	}
	require.NotZero(t, rep.ByKind[load.Events].Drained)
}
