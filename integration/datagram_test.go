package integration

import (
	"fmt"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// Datagram sockets pass through fifty handoffs; every datagram is answered, once, by whoever serves then.
func TestFiftyHandoffsOfDatagramSockets(t *testing.T) {
	const handoffs = 50
	s := newService(t)
	path := s.path("gram")
	sockets := []string{"--udp-echo", "udp=" + web, "--udp-echo", "unix:" + path}
	var chain []*proc.Adopted
	next := func(label string) {
		_, p := s.upgrade(label, []string{"--wait=released"}, sockets...)
		chain = append(chain, p)
	}
	next("v1")
	run := s.load(
		load.Stream{Kind: load.Datagram, Address: s.address("udp"), Conns: 20, Rate: 500},
		load.Stream{Kind: load.Datagram, Network: "unixgram", Address: path, Conns: 5, Rate: 100},
	)
	for i := range handoffs {
		next(fmt.Sprintf("v%d", i+2))
	}
	for i, old := range chain[:handoffs] {
		s.exits(old, 0, fmt.Sprintf("generation %d", i+1))
	}
	st := s.alone(handoffs + 1)
	require.Equal(t, chain[handoffs].PID, st.PID)
	t.Logf("%s", s.noLoss(run))
	require.FileExists(t, path)
	s.kill(chain[handoffs], syscall.SIGTERM)
	s.exits(chain[handoffs], 0, "the last one")
	require.NoFileExists(t, path)
}
