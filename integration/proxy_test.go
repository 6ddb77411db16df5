package integration

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// A reverse proxy goes through twenty versions under 1,000 POST/s. Every one is answered, and reaches the backend once.
func TestProxySurvivesTwentyHandoffs(t *testing.T) {
	const handoffs = 20
	s := newService(t)
	b := newBackend(t)
	first := s.serving("v1", "--proxy", b.url)
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 50, Rate: 700},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 100},
		load.Stream{Kind: load.H2C, Address: addr, Conns: 4, Rate: 200},
	)
	s.answers(run, 1, 500)
	var chain []*proc.Adopted
	for g := uint64(2); g < 2+handoffs; g++ {
		_, successor := s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=released"}, "--proxy", b.url)
		chain = append(chain, successor)
		s.answers(run, g, 300)
	}
	s.exits(first, 0, "generation 1")
	for i, old := range chain[:handoffs-1] {
		s.exits(old, 0, fmt.Sprintf("generation %d", i+2))
	}
	rep := s.noLoss(run)
	t.Logf("%s", rep)
	require.Zero(t, rep.Refused, "%s", rep)
	require.Equal(t, rep.Sent, b.posts.Load(), "each POST reaches the backend once")
}
