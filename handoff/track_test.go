package handoff

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// trackPair returns a tracked connection and its other end.
func trackPair(t *testing.T, l *TrackedListener) (*TrackedConn, net.Conn) {
	t.Helper()
	client, err := net.Dial(l.Addr().Network(), l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	nc, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	deadline := time.Now().Add(patience)
	require.NoError(t, client.SetDeadline(deadline))
	require.NoError(t, nc.SetDeadline(deadline))
	return nc.(*TrackedConn), client
}

// trackOn tracks a listener that no Process has.
func trackOn(t *testing.T, network string) (*TrackedListener, drainer) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	host := &fakeHost{}
	l := track(host, ln)
	return l, host.drainers[0]
}

func waitClosed(t *testing.T, what string, c <-chan struct{}) {
	t.Helper()
	select {
	case <-c:
	case <-time.After(patience):
		t.Fatal(what)
	}
}

// echoUntilDrained serves a line protocol: it answers lines, and says bye when
// it is told of the drain.
func echoUntilDrained(p *Process, l *TrackedListener) {
	go func() {
		for {
			nc, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				c := nc.(*TrackedConn)
				defer c.Close()
				go func() {
					select {
					case <-c.Draining():
						io.WriteString(c, "bye\n")
						c.Close()
					case <-c.Context().Done():
					}
				}()
				for r := bufio.NewReader(c); ; {
					line, err := r.ReadString('\n')
					if err != nil {
						return
					}
					fmt.Fprintf(c, "%d %s", p.Generation(), line)
				}
			}()
		}
	}()
}

func TestTrackedConnectionsAreDrained(t *testing.T) {
	c := newChain(t)
	one := c.start("one", probation, func(cfg *Config) { cfg.DrainSpread = -1 })
	ln := one.Track(c.listen(one, "tcp", "127.0.0.1:0"))
	echoUntilDrained(one, ln)
	c.ready(one)
	talk := func() func(string) string {
		nc, err := net.Dial("tcp", ln.Addr().String())
		require.NoError(t, err)
		t.Cleanup(func() { nc.Close() })
		nc.SetDeadline(time.Now().Add(patience))
		r := bufio.NewReader(nc)
		return func(say string) string {
			io.WriteString(nc, say)
			line, err := r.ReadString('\n')
			require.NoError(t, err)
			return strings.TrimSpace(line)
		}
	}
	first := talk()
	require.Equal(t, "1 hello", first("hello\n"))
	require.Equal(t, map[string]int{"conn": 1}, c.statusOf(1).Open)

	// Probation does not touch it, and a take-back neither.
	serve := func(label string) *Process {
		p := c.start(label)
		echoUntilDrained(p, p.Track(c.listen(p, "tcp", "127.0.0.1:0")))
		c.ready(p)
		return p
	}
	two := serve("two")
	second := talk()
	require.Equal(t, "2 hello", second("hello\n"))
	require.Equal(t, "1 still", first("still\n"))
	_, err := c.client().Rollback(c.ctx)
	require.NoError(t, err)
	require.Equal(t, "bye", second(""), "revoked, it drains")
	two.Wait(c.ctx)
	require.Equal(t, "1 again", first("again\n"))
	third := talk()
	require.Equal(t, "1 third", third("third\n"))

	serve("three")
	one.Stop() // release
	require.Equal(t, "bye", first(""))
	require.Equal(t, "bye", third(""))
	r := c.wait(one)
	require.Equal(t, map[string]int{"conn": 2}, r.Open)
	require.Empty(t, r.Cut)
}

func TestTrackedConnectionAtTheDeadline(t *testing.T) {
	leak.CheckExact(t)
	l, d := trackOn(t, "tcp")
	stays, staying := trackPair(t, l)
	heeds, _ := trackPair(t, l)
	gone, _ := trackPair(t, l)
	require.NoError(t, gone.Close())
	require.ErrorIs(t, context.Cause(gone.Context()), context.Canceled)
	require.ErrorIs(t, gone.Close(), net.ErrClosed)
	require.Equal(t, map[string]int{"conn": 2}, d.open())

	d.beginDrain(0, false)
	_, err := l.Accept()
	require.ErrorIs(t, err, net.ErrClosed)
	waitClosed(t, "not told", stays.Draining())
	require.NoError(t, stays.Context().Err())

	context.AfterFunc(heeds.Context(), func() { heeds.Close() })
	began := time.Now()
	require.Equal(t, map[string]int{"conn": 1}, d.cut(), "the other one was closed by the program")
	_, err = staying.Read(make([]byte, 1))
	require.Error(t, err)
	require.GreaterOrEqual(t, time.Since(began), cutGrace)
	require.ErrorIs(t, context.Cause(stays.Context()), ErrDrainDeadline)
	require.ErrorIs(t, context.Cause(heeds.Context()), ErrDrainDeadline)
	waitClosed(t, "not drained", d.drained())
	require.Empty(t, d.open())
	require.Empty(t, d.cut(), "nothing is left")
}

func TestTrackedDrainEndsWhenAllAreClosed(t *testing.T) {
	leak.CheckExact(t)
	l, d := trackOn(t, "unix")
	c, _ := trackPair(t, l)
	d.beginDrain(0, true)
	d.beginDrain(time.Hour, false) // does nothing
	waitClosed(t, "not told", c.Draining())
	require.False(t, isClosed(d.drained()))
	require.NoError(t, c.Close())
	waitClosed(t, "not drained", d.drained())
	require.Empty(t, d.cut())
}

// heldListener returns from Accept when it is told, whether it was closed or not.
type heldListener struct {
	net.Listener
	entered chan struct{}
	conns   chan net.Conn
}

func (l *heldListener) Accept() (net.Conn, error) {
	l.entered <- struct{}{}
	nc, ok := <-l.conns
	if !ok {
		return nil, net.ErrClosed
	}
	return nc, nil
}

// A connection that an Accept had in its hands when the drain began is drained
// like those before it, whenever it comes.
func TestTrackedConnectionThatComesLate(t *testing.T) {
	start := func(t *testing.T) (*heldListener, drainer, chan *TrackedConn) {
		leak.CheckExact(t)
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		held := &heldListener{ln, make(chan struct{}), make(chan net.Conn, 1)}
		host := &fakeHost{}
		l := track(host, held)
		accepted := make(chan *TrackedConn, 1)
		go func() {
			nc, err := l.Accept()
			if err != nil {
				accepted <- nil
				return
			}
			accepted <- nc.(*TrackedConn)
		}()
		<-held.entered
		return held, host.drainers[0], accepted
	}
	pipe := func(t *testing.T) net.Conn {
		ours, theirs := net.Pipe()
		t.Cleanup(func() { theirs.Close() })
		return ours
	}
	t.Run("during the drain", func(t *testing.T) {
		held, d, accepted := start(t)
		d.beginDrain(0, false)
		require.False(t, isClosed(d.drained()), "one may come")
		held.conns <- pipe(t)
		c := <-accepted
		waitClosed(t, "not told", c.Draining())
		require.False(t, isClosed(d.drained()))
		c.Close()
		waitClosed(t, "not drained", d.drained())
	})
	t.Run("none after all", func(t *testing.T) {
		held, d, accepted := start(t)
		d.beginDrain(0, false)
		close(held.conns)
		require.Nil(t, <-accepted)
		waitClosed(t, "not drained", d.drained())
	})
	t.Run("after the deadline", func(t *testing.T) {
		held, d, accepted := start(t)
		cuts := make(chan map[string]int, 1)
		go func() { cuts <- d.cut() }()
		l := (*TrackedListener)(d.(*trackDrain))
		require.Eventually(t, func() bool { l.mu.Lock(); defer l.mu.Unlock(); return l.overdue }, patience, time.Millisecond)
		held.conns <- pipe(t)
		c := <-accepted
		require.ErrorIs(t, context.Cause(c.Context()), ErrDrainDeadline)
		require.Equal(t, map[string]int{"conn": 1}, <-cuts)
	})
	t.Run("after the end", func(t *testing.T) {
		held, d, accepted := start(t)
		require.Empty(t, d.cut())
		nc := pipe(t)
		held.conns <- nc
		require.Nil(t, <-accepted)
		_, err := nc.Write([]byte("x"))
		require.ErrorIs(t, err, io.ErrClosedPipe, "closed")
	})
}

func TestQueueOfAStoppedTrackedListenerIsServed(t *testing.T) {
	c := newChain(t)
	p := c.start("one")
	ln := p.Track(c.listen(p, "tcp", "127.0.0.1:0"))
	c.ready(p)
	queued, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer queued.Close()
	queued.SetDeadline(time.Now().Add(patience))
	p.Stop()
	<-p.Done()
	echoUntilDrained(p, ln)
	b, err := io.ReadAll(queued)
	require.NoError(t, err)
	require.Equal(t, "bye\n", string(b))
	require.Equal(t, "stopped", c.wait(p).Reason)
}

func TestTrackedConnDoesWhatTheBareOneDoes(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			leak.CheckExact(t)
			l, _ := trackOn(t, network)
			c, client := trackPair(t, l)
			require.IsType(t, map[string]net.Conn{"tcp": &net.TCPConn{}, "unix": &net.UnixConn{}}[network], c.NetConn())
			raw, err := c.SyscallConn()
			require.NoError(t, err)
			require.NoError(t, raw.Control(func(uintptr) {}))
			n, err := c.ReadFrom(strings.NewReader("hello"))
			require.NoError(t, err)
			require.EqualValues(t, 5, n)
			require.NoError(t, c.CloseWrite())
			got, err := io.ReadAll(client)
			require.NoError(t, err)
			require.Equal(t, "hello", string(got))
			io.WriteString(client, "and back")
			require.NoError(t, client.Close())
			var b strings.Builder
			_, err = io.Copy(&b, c)
			require.NoError(t, err)
			require.Equal(t, "and back", b.String())
		})
	}
	t.Run("something simple", func(t *testing.T) {
		ours, theirs := net.Pipe()
		defer theirs.Close()
		c := passConn{ours}
		defer c.Close()
		require.ErrorIs(t, c.CloseWrite(), errors.ErrUnsupported)
		_, err := c.SyscallConn()
		require.ErrorIs(t, err, errors.ErrUnsupported)
	})
}

// A connection by TLS whose client does not read is closed without a goodbye,
// for which it would wait.
func TestTrackedTLSIsForced(t *testing.T) {
	leak.CheckExact(t)
	server, client := tlsConfigs(t)
	ours, theirs := net.Pipe()
	defer theirs.Close()
	shaken := make(chan error, 1)
	go func() { shaken <- tls.Client(theirs, client).Handshake() }() // then nobody reads
	tc := tls.Server(ours, server)
	require.NoError(t, tc.Handshake())
	require.NoError(t, <-shaken)
	l, _ := trackOn(t, "tcp")
	c := &TrackedConn{passConn: passConn{tc}, listener: l, notice: newNotice()}
	began := time.Now()
	require.True(t, c.force())
	require.False(t, c.force())
	require.Less(t, time.Since(began), 4*time.Second, "a goodbye is given 5 s")
}
