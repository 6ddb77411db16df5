package handoff

import (
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
// time that it takes, and of the processors' time.
//
// More than twice the time fails it, of the quickest iteration of each way: a move uses
// two processors, the bare way mostly one, so that whatever else keeps the machine busy
// makes the ratio worse. What fails is measured on, for up to five times as long.
//
//	go test -run '^$' -bench Move -benchtime 15x ./handoff
func BenchmarkMove(b *testing.B) {
	const conns, most, further = 2000, 2.0, 4
	var c comparison
	for b.Loop() {
		c.add(b, conns)
	}
	for n := range further * len(c.move) {
		least := c.ratio(quickest, took)
		if least <= most {
			break
		}
		if n == 0 {
			b.Logf("ratio %.2f at best: measured on", least)
		}
		c.add(b, conns)
	}
	b.ReportMetric(0, "ns/op")
	b.ReportMetric(median(c.bare, took)/conns, "bare-ns/conn")
	b.ReportMetric(median(c.move, took)/conns, "move-ns/conn")
	b.ReportMetric(c.ratio(median, took), "ratio")
	b.ReportMetric(c.ratio(quickest, took), "best-ratio")
	b.ReportMetric(c.ratio(median, onProcessors), "cpu-ratio")
	require.LessOrEqual(b, c.ratio(quickest, took), most, "a move costs more than it may")
}

// comparison is what the iterations cost.
type comparison struct{ bare, move []cost }

func (c *comparison) add(b *testing.B, conns int) {
	c.bare = append(c.bare, moveBare(b, conns))
	c.move = append(c.move, moveIdle(b, conns))
}

func (c *comparison) ratio(which func([]cost, func(cost) time.Duration) float64, of func(cost) time.Duration) float64 {
	return which(c.move, of) / which(c.bare, of)
}

// quickest is in nanoseconds.
func quickest(all []cost, of func(cost) time.Duration) float64 {
	least := of(all[0])
	for _, c := range all {
		least = min(least, of(c))
	}
	return float64(least.Nanoseconds())
}

// median is in nanoseconds.
func median(all []cost, of func(cost) time.Duration) float64 {
	var d []time.Duration
	for _, c := range all {
		d = append(d, of(c))
	}
	slices.Sort(d)
	return float64(d[len(d)/2].Nanoseconds())
}

func took(c cost) time.Duration         { return c.took }
func onProcessors(c cost) time.Duration { return c.cpu }

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
