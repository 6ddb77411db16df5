package handoff

import (
	"cmp"
	"log/slog"
	"net"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// BenchmarkMove moves idle TCP connections from one HTTP server to another, and
// compares the cost with the least that it can be: the same sockets sent in batches of
// as many, each batch acknowledged, and made connections again by net.FileConn. An
// iteration does both, one after the other, and a ratio is that of the medians: of the
// time that it takes, and of the processors' time, which depends less on what else the
// machine does. (A move uses both, the bare way mostly one.) More than twice the time
// fails it, of the quickest iteration of each: where something else has one of two
// processors, a move takes half as long again.
//
//	go test -run '^$' -bench Move -benchtime 15x ./handoff
func BenchmarkMove(b *testing.B) {
	const conns = 2000
	var bare, move []cost
	for b.Loop() {
		bare = append(bare, moveBare(b, conns))
		move = append(move, moveIdle(b, conns))
	}
	median := func(all []cost, of func(cost) time.Duration) float64 {
		var d []time.Duration
		for _, c := range all {
			d = append(d, of(c))
		}
		slices.Sort(d)
		return float64(d[len(d)/2].Nanoseconds()) / conns
	}
	took, cpu := func(c cost) time.Duration { return c.took }, func(c cost) time.Duration { return c.cpu }
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(bare, took), "bare-ns/conn")
	b.ReportMetric(median(move, took), "move-ns/conn")
	quickest := func(all []cost) float64 {
		return float64(slices.MinFunc(all, func(a, b cost) int { return cmp.Compare(a.took, b.took) }).took)
	}
	least := quickest(move) / quickest(bare)
	b.ReportMetric(median(move, took)/median(bare, took), "ratio")
	b.ReportMetric(least, "least-ratio")
	b.ReportMetric(median(move, cpu)/median(bare, cpu), "cpu-ratio")
	require.LessOrEqual(b, least, 2.0, "a move costs more than it may")
}

// cost is what a move takes.
type cost struct{ took, cpu time.Duration }

// processors is the time that this process has had of them.
func processors(b *testing.B) time.Duration {
	var u unix.Rusage
	require.NoError(b, unix.Getrusage(unix.RUSAGE_SELF, &u))
	return time.Duration(unix.TimevalToNsec(u.Utime) + unix.TimevalToNsec(u.Stime))
}

// dialMany opens connections through ln, and returns what the clients have.
func dialMany(b *testing.B, addr string, n int) (clients []net.Conn) {
	b.Helper()
	for range n {
		nc, err := net.Dial("tcp", addr)
		require.NoError(b, err)
		clients = append(clients, nc)
	}
	return clients
}

func closeClients(clients []net.Conn) {
	for _, nc := range clients {
		nc.(*net.TCPConn).SetLinger(0) // or thousands of ports stay in TIME_WAIT
		nc.Close()
	}
}

// moveBare passes the sockets of connections from one goroutine to another.
func moveBare(b *testing.B, n int) cost {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(b, err)
	defer ln.Close()
	clients := dialMany(b, ln.Addr().String(), n)
	defer closeClients(clients)
	var all []*descriptor
	for range n {
		nc, err := ln.Accept()
		require.NoError(b, err)
		d, err := dupConn(nc.(*net.TCPConn))
		require.NoError(b, err)
		nc.Close()
		all = append(all, d)
	}
	from, to := connPair(b)
	defer from.Close()
	defer to.Close()

	begun, cpu := time.Now(), processors(b)
	sent := make(chan error, 1)
	go func() {
		for batch := range slices.Chunk(all, maxBatch) {
			if err := from.send([]byte("{}"), batch...); err != nil {
				sent <- err
				return
			}
			if _, _, err := from.receive(); err != nil {
				sent <- err
				return
			}
			closeAll(batch)
		}
		sent <- nil
	}()
	var got []net.Conn
	for len(got) < n {
		_, fds, err := to.receive()
		require.NoError(b, err)
		for _, d := range fds {
			f := d.disown("connection")
			nc, err := net.FileConn(f)
			require.NoError(b, err)
			f.Close()
			got = append(got, nc)
		}
		require.NoError(b, to.send([]byte("{}")))
	}
	require.NoError(b, <-sent)
	c := cost{time.Since(begun), processors(b) - cpu}
	for _, nc := range got {
		nc.Close()
	}
	return c
}

// moveIdle has one Process drain, and another take its connections.
func moveIdle(b *testing.B, n int) cost {
	c := newChain(b)
	quiet := func(cfg *Config) { cfg.Logger = slog.New(slog.DiscardHandler) }
	one := c.mover("tcp", "one", named("one"), quiet)
	clients := dialMany(b, one.addr, n)
	defer closeClients(clients)
	request, answer := []byte(get("/")), make([]byte, 1024)
	for _, nc := range clients {
		_, err := nc.Write(request)
		require.NoError(b, err)
		_, err = nc.Read(answer)
		require.NoError(b, err)
	}
	cpu := processors(b) // the handoff itself is in it, as are sockets and files that end
	two := c.mover("tcp", "two", named("two"), quiet)
	r := c.wait(one.Process)
	require.EqualValues(b, n, r.Moved)
	late := time.Now() // `got` comes before the connections are waited on
	for two.adopted.Load() < uint64(n) {
		runtime.Gosched()
	}
	total := cost{r.Duration + time.Since(late), processors(b) - cpu}
	require.NoError(b, two.Close())
	return total
}
