package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/delay"
	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// ended is what the last record of a server says of its requests and connections.
type ended struct {
	Msg        string         `json:"msg"`
	Generation uint64         `json:"generation"`
	Reason     string         `json:"reason"`
	Answered   uint64         `json:"answered"`
	Moved      uint64         `json:"moved"`
	Cut        map[string]int `json:"cut"`
}

// ended reads the last record of each server of the test, by generation. Each must have ended by itself.
func (s *service) ended(generations int) map[uint64]ended {
	s.t.Helper()
	for _, p := range s.procs {
		s.whole(p)
	}
	all := make(map[uint64]ended)
	for _, path := range s.logs {
		f, err := os.Open(path)
		require.NoError(s.t, err)
		defer f.Close()
		lines := bufio.NewScanner(f)
		for lines.Scan() {
			require.NotContains(s.t, lines.Text(), "DATA RACE", path)
			var e ended
			if json.Unmarshal(lines.Bytes(), &e) == nil && e.Msg == "ended" {
				require.NotContains(s.t, all, e.Generation)
				all[e.Generation] = e
			}
		}
		require.NoError(s.t, lines.Err())
	}
	require.Len(s.t, all, generations)
	return all
}

// answeredAndMoved sums up over all of them.
func answeredAndMoved(all map[uint64]ended) (answered, moved uint64) {
	for _, e := range all {
		answered += e.Answered
		moved += e.Moved
	}
	return answered, moved
}

// chain deploys n versions, the starts of which are `every` apart, or as far as a handoff takes. It returns when all but
// the last have ended.
func (s *service) chain(first *proc.Process, n int, every time.Duration, args ...string) (last *proc.Adopted) {
	s.t.Helper()
	var all []*proc.Adopted
	begin := time.Now()
	pace := time.NewTicker(every)
	defer pace.Stop()
	for g := 2; g <= n+1; g++ {
		_, p := s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=released"}, args...)
		all = append(all, p)
		select {
		case <-pace.C:
		case <-s.ctx().Done():
			s.t.Fatal("no time is left")
		}
	}
	s.t.Logf("%d handoffs, %s apart", n, (time.Since(begin) / time.Duration(n)).Round(time.Millisecond))
	s.exits(first, 0, "generation 1")
	for i, p := range all[:n-1] {
		s.exits(p, 0, fmt.Sprintf("generation %d", i+2))
	}
	return all[n-1]
}

// Keep-alive connections of every kind go through a chain of versions: no request is lost, none is answered twice, and
// no client ever has to dial again.
func TestMove(t *testing.T) {
	const handoffs, conns = 20, 100
	rate := func(perSecond float64) float64 {
		if raceEnabled { // with it two processors are not enough for more
			return perSecond / 5
		}
		return perSecond
	}
	builtIn := func(*service) []string { return []string{"--http", web} }
	for _, tc := range []struct {
		name    string
		args    func(s *service) []string
		delay   time.Duration // each way between clients and server
		streams func(s *service, addr string) []load.Stream
	}{
		{"keep-alive", builtIn, 0, func(_ *service, addr string) []load.Stream {
			return []load.Stream{
				{Kind: load.KeepAlive, Address: addr, Conns: conns, Rate: rate(1500)},
				{Kind: load.NewConn, Address: addr, Rate: rate(200)},
			}
		}},
		{"5 ms away", builtIn, 5 * time.Millisecond, func(_ *service, addr string) []load.Stream {
			return []load.Stream{
				{Kind: load.KeepAlive, Address: addr, Conns: conns, Rate: rate(1000)},
				{Kind: load.Pipelined, Address: addr, Conns: 10, Rate: rate(100)},
				{Kind: load.NewConn, Address: addr, Rate: rate(100)},
			}
		}},
		{"Go's client", builtIn, 0, func(_ *service, addr string) []load.Stream {
			return []load.Stream{{Kind: load.GoClient, Address: addr, Conns: conns, Rate: rate(1500)}}
		}},
		{"Go's client, 5 ms away", builtIn, 5 * time.Millisecond, func(_ *service, addr string) []load.Stream {
			return []load.Stream{{Kind: load.GoClient, Address: addr, Conns: conns, Rate: rate(1000)}}
		}},
		{"pipelined, in fragments", builtIn, 0, func(_ *service, addr string) []load.Stream {
			return []load.Stream{{Kind: load.Pipelined, Address: addr, Conns: conns, Rate: rate(1000), Body: 2000}}
		}},
		{"2 MB bodies", builtIn, 0, func(_ *service, addr string) []load.Stream {
			return []load.Stream{
				{Kind: load.KeepAlive, Address: addr, Conns: 10, Rate: rate(30), Body: 2 << 20},
				{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: rate(200)},
				{Kind: load.Pipelined, Address: addr, Conns: 2, Rate: rate(4), Body: 2 << 20},
			}
		}},
		{"Unix listener", func(s *service) []string { return []string{"--http", web, "--http", "unix:" + s.path("web")} }, 0, func(s *service, addr string) []load.Stream {
			path := s.path("web")
			return []load.Stream{
				{Kind: load.KeepAlive, Network: "unix", Address: path, Conns: 50, Rate: rate(700)},
				{Kind: load.GoClient, Network: "unix", Address: path, Conns: 20, Rate: rate(300)},
				{Kind: load.Pipelined, Network: "unix", Address: path, Conns: 20, Rate: rate(200)},
				{Kind: load.NewConn, Network: "unix", Address: path, Rate: rate(100)},
				{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: rate(200)},
			}
		}},
		{"proxy", func(s *service) []string { return []string{"--http", web, "--proxy", newBackend(s.t).url} }, 0, func(_ *service, addr string) []load.Stream {
			return []load.Stream{
				{Kind: load.KeepAlive, Address: addr, Conns: conns, Rate: rate(600)},
				{Kind: load.Pipelined, Address: addr, Conns: 20, Rate: rate(100)},
				{Kind: load.NewConn, Address: addr, Rate: rate(100)},
			}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newService(t)
			args := append(tc.args(s), "--log-level", "debug") // which tells why a connection is not taken
			first := s.serving("v1", args...)
			addr := s.address(web)
			if tc.delay > 0 {
				p, err := delay.Start(addr, tc.delay)
				require.NoError(t, err)
				t.Cleanup(p.Close)
				addr = p.Addr()
			}
			streams := tc.streams(s, addr)
			run := s.load(streams...)
			s.answers(run, 1, 200)
			begin := time.Now()
			last := s.chain(first, handoffs, 100*time.Millisecond, args...)
			over := time.Now()
			s.answers(run, handoffs+1, 100)
			rep := run.Stop()
			t.Logf("%s", rep)
			t.Logf("latency before:          %s", rep.Latency(time.Time{}, begin))
			t.Logf("latency during handoffs: %s", rep.Latency(begin, over))
			s.kill(last, syscall.SIGTERM)
			s.exits(last, 0, "a plain stop")

			require.Zero(t, rep.Lost)
			require.Zero(t, rep.Broken)
			require.Zero(t, rep.Refused)
			require.Zero(t, rep.Announced, "no answer said close")
			kept, want := uint64(0), make(map[load.Kind]uint64)
			for _, k := range streams {
				if k.Kind != load.NewConn {
					want[k.Kind] += uint64(k.Conns)
					kept += uint64(k.Conns)
				}
			}
			for kind, n := range want {
				c := rep.ByKind[kind]
				require.GreaterOrEqual(t, c.Dials, n, "dials of %s", kind)
				require.LessOrEqual(t, c.Dials, n+c.GivenUp, "dials of %s: for no other reason", kind)
			}
			answered, moved := answeredAndMoved(s.ended(handoffs + 1))
			t.Logf("%d connections moved %d times; each for each handoff would be %d", kept, moved, kept*handoffs)
			require.Equal(t, rep.Sent, answered, "each request was answered once")
			require.GreaterOrEqual(t, moved, kept*handoffs/2)
			require.LessOrEqual(t, moved, kept*handoffs+rep.ByKind[load.NewConn].Sent)
		})
	}
}
