package integration

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// echoEnv makes the test binary a server of datagrams, since cmd/server has none: its value is the path of the
// unixgram socket.
const echoEnv = "HANDOFF_TEST_ECHO"

// echoDatagrams sends every datagram back, and ends as a server does.
func echoDatagrams(path string) int {
	ctx := context.Background()
	p, err := handoff.Start(ctx, handoff.Config{Probation: -1})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer p.Close()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		for range signals {
			p.Stop()
		}
	}()
	for _, s := range []handoff.Socket{
		{Name: "udp", Network: "udp", Address: "127.0.0.1:0"},
		{Name: "unixgram", Network: "unixgram", Address: path},
	} {
		pc, err := p.ListenPacketSocket(ctx, s)
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go echoAll(pc)
	}
	if err := p.Ready(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := p.Wait(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func echoAll(pc net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(b)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err == nil {
			_, err = pc.WriteTo(b[:n], from)
		}
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// Datagram sockets pass through fifty handoffs; every datagram is answered, once, by whoever serves then.
func TestFiftyHandoffsOfDatagramSockets(t *testing.T) {
	const handoffs = 50
	s := newService(t)
	path := s.path("gram")
	t.Setenv(echoEnv, path)
	self, err := os.Executable()
	require.NoError(t, err)
	var chain []*proc.Adopted
	next := func() {
		s.must("upgrade", "--wait=released", "--log", s.newLog("echo"), "--", self)
		chain = append(chain, s.adopt(s.status().Serving().PID))
	}
	next()
	run := s.load(
		load.Stream{Kind: load.Datagram, Address: s.address("udp"), Conns: 20, Rate: 500},
		load.Stream{Kind: load.Datagram, Network: "unixgram", Address: path, Conns: 5, Rate: 100},
	)
	for range handoffs {
		next()
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
