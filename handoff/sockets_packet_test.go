package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// echo answers each datagram with "generation datagram". What it returns is
// closed when nothing is read, or still to be answered, any more.
func echo(p *Process, pc net.PacketConn) <-chan struct{} {
	done := make(chan struct{})
	go func() {
		defer close(done)
		b := make([]byte, 1500)
		for {
			n, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			pc.WriteTo(fmt.Appendf(nil, "%d %s", p.Generation(), b[:n]), from)
		}
	}()
	return done
}

// packetClient is a client that can be answered.
func packetClient(t testing.TB, c *chain, to net.Addr) net.Conn {
	t.Helper()
	var d net.Dialer
	if to.Network() == "unixgram" {
		f, err := os.CreateTemp(filepath.Dir(c.socket), "client")
		require.NoError(t, err)
		require.NoError(t, f.Close())
		require.NoError(t, os.Remove(f.Name()))
		d.LocalAddr = &net.UnixAddr{Name: f.Name(), Net: "unixgram"}
	}
	conn, err := d.Dial(to.Network(), to.String())
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	return conn
}

func echoed(t testing.TB, conn net.Conn, text string) string {
	t.Helper()
	_, err := conn.Write([]byte(text))
	require.NoError(t, err)
	return heard(t, conn)
}

func heard(t testing.TB, conn net.Conn) string {
	t.Helper()
	b := make([]byte, 1500)
	n, err := conn.Read(b)
	require.NoError(t, err)
	return string(b[:n])
}

// packetNetworks runs a test for both kinds of packet sockets.
func packetNetworks(t *testing.T, f func(t *testing.T, c *chain, s Socket)) {
	t.Run("udp", func(t *testing.T) {
		f(t, newChain(t), Socket{Network: "udp", Address: "127.0.0.1:0"})
	})
	t.Run("unixgram", func(t *testing.T) {
		c := newChain(t)
		f(t, c, Socket{Network: "unixgram", Address: filepath.Join(filepath.Dir(c.socket), "d")})
	})
}

func (c *chain) packet(p *Process, s Socket) net.PacketConn {
	c.t.Helper()
	pc, err := p.ListenPacketSocket(c.ctx, s)
	require.NoError(c.t, err)
	return pc
}

// Every datagram is answered once, whichever generation reads it.
func TestDatagramsAreNeitherLostNorDoubled(t *testing.T) {
	packetNetworks(t, func(t *testing.T, c *chain, s Socket) {
		one := c.start("one", probation)
		pc := c.packet(one, s)
		prev, answered := one, echo(one, pc)
		c.ready(one)
		conn := packetClient(t, c, pc.LocalAddr())

		ctx, cancel := context.WithCancel(c.ctx)
		defer cancel()
		window := make(chan struct{}, 5) // fewer than a unixgram queue takes
		answers := map[int]int{}
		by := map[string]int{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		sent, stopped := 0, make(chan struct{})
		wg.Go(func() {
			defer close(stopped)
			for ; ctx.Err() == nil; sent++ {
				select {
				case window <- struct{}{}:
				case <-ctx.Done():
					return
				}
				if _, err := fmt.Fprint(conn, sent); err != nil {
					t.Error(err)
					return
				}
			}
		})
		wg.Go(func() {
			b := make([]byte, 1500)
			for {
				n, err := conn.Read(b)
				if err != nil {
					if !errors.Is(err, os.ErrDeadlineExceeded) {
						t.Error(err)
					}
					return
				}
				generation, text, _ := strings.Cut(string(b[:n]), " ")
				i, err := strconv.Atoi(text)
				if err != nil {
					t.Error(err)
				}
				mu.Lock()
				answers[i]++
				by[generation]++
				mu.Unlock()
				<-window
			}
		})
		answeredBy := func(g uint64) {
			t.Helper()
			c.until(fmt.Sprintf("generation %d answers", g), func() bool {
				mu.Lock()
				defer mu.Unlock()
				return by[fmt.Sprint(g)] >= 20
			})
		}
		answeredBy(1)
		for i := range 5 {
			p := c.start(fmt.Sprint(i+2), probation)
			done := echo(p, c.packet(p, s))
			c.ready(p)
			answeredBy(p.Generation())
			if i%2 == 0 { // every second one is taken back first
				_, err := c.client().Rollback(c.ctx)
				require.NoError(t, err)
				<-done
				p.Close()
				mu.Lock()
				clear(by)
				mu.Unlock()
				answeredBy(prev.Generation())
				continue
			}
			prev.Stop()
			<-answered
			c.wait(prev)
			prev, answered = p, done
		}
		cancel()
		<-stopped
		c.until("every datagram is answered", func() bool { return len(window) == 0 })
		// What is doubled would be on its way by now: the last answer came
		// after it through the same queue.
		conn.SetReadDeadline(time.Unix(1, 0))
		wg.Wait()
		require.Len(t, answers, sent)
		for i, n := range answers {
			require.Equal(t, 1, n, "answers to datagram %d", i)
		}
		t.Logf("%d datagrams", sent)
	})
}

// What a process has read it answers, also when it is parked or has handed over.
func TestAnswersAfterPark(t *testing.T) {
	packetNetworks(t, func(t *testing.T, c *chain, s Socket) {
		one := c.start("one", probation)
		pc := c.packet(one, s)
		c.ready(one)
		conn := packetClient(t, c, pc.LocalAddr())
		_, err := conn.Write([]byte("a question"))
		require.NoError(t, err)
		b := make([]byte, 100)
		n, from, err := pc.ReadFrom(b)
		require.NoError(t, err)
		require.Equal(t, "a question", string(b[:n]))
		answer := func(text string) {
			t.Helper()
			_, err := pc.WriteTo([]byte(text), from)
			require.NoError(t, err)
			require.Equal(t, text, heard(t, conn))
		}
		answer("serving")

		two := c.start("two")
		echo(two, c.packet(two, s))
		c.ready(two)
		require.Equal(t, StateParked, one.State())
		answer("parked")
		require.Equal(t, "2 x", echoed(t, conn, "x"))
		one.Stop()
		<-one.Done()
		_, _, err = pc.ReadFrom(b)
		require.ErrorIs(t, err, net.ErrClosed)
		answer("draining")
		require.Equal(t, "2 y", echoed(t, conn, "y"))
		c.wait(one)
		_, err = pc.WriteTo([]byte("gone"), from)
		require.ErrorIs(t, err, net.ErrClosed)
	})
}

// A packet socket that the program closes after the handoff is closed at once.
func TestPacketConnClosedWhileDraining(t *testing.T) {
	c := newChain(t)
	s := Socket{Network: "udp", Address: "127.0.0.1:0"}
	one := c.start("one")
	pc := c.packet(one, s)
	c.ready(one)
	two := c.start("two")
	c.packet(two, s)
	c.ready(two)
	<-one.Done()
	require.NoError(t, pc.Close())
	require.ErrorIs(t, pc.Close(), net.ErrClosed)
	_, err := pc.WriteTo([]byte("x"), pc.LocalAddr())
	require.ErrorIs(t, err, net.ErrClosed)
	c.wait(one)
}

func TestReadDeadlinesWhileParked(t *testing.T) {
	packetNetworks(t, func(t *testing.T, c *chain, s Socket) {
		one := c.start("one", probation)
		pc := c.packet(one, s)
		c.ready(one)
		two := c.start("two")
		c.packet(two, s)
		c.ready(two)
		require.Equal(t, StateParked, one.State())

		expires := func(when string) {
			t.Helper()
			_, _, err := pc.ReadFrom(make([]byte, 10))
			require.ErrorIs(t, err, os.ErrDeadlineExceeded, when)
			var timeout net.Error
			require.ErrorAs(t, err, &timeout)
			require.True(t, timeout.Timeout())
		}
		require.NoError(t, pc.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
		expires("it runs out")
		require.NoError(t, pc.SetDeadline(time.Unix(1, 0)))
		expires("it is in the past")
		require.NoError(t, pc.SetReadDeadline(time.Time{}))
		read := make(chan error, 1)
		go func() { _, _, err := pc.ReadFrom(make([]byte, 10)); read <- err }()
		select {
		case err := <-read:
			t.Fatalf("parked without a deadline, ReadFrom returns %v", err)
		case <-time.After(20 * time.Millisecond):
		}
		require.NoError(t, pc.SetReadDeadline(time.Now().Add(-time.Second)))
		require.ErrorIs(t, <-read, os.ErrDeadlineExceeded, "set while a ReadFrom waits")

		// A deadline that was set while parked holds after the take-back.
		_, err := c.client().Rollback(c.ctx)
		require.NoError(t, err)
		<-two.Done()
		expires("taken back")
		require.NoError(t, pc.SetDeadline(time.Time{}))
		echo(one, pc)
		require.Equal(t, "1 x", echoed(t, packetClient(t, c, pc.LocalAddr()), "x"))
	})
}

// An exclusive socket never has two owners, not even for an instant.
func TestExclusiveSocketWaitsForTheSuccessor(t *testing.T) {
	c := newChain(t)
	exclusive := Socket{Network: "udp", Address: "127.0.0.1:0", Exclusive: true}
	one := c.start("one", probation)
	pc, ln := c.packet(one, exclusive), c.listen(one, "tcp", "127.0.0.1:0")
	echo(one, pc)
	greet(one, ln)
	c.ready(one)

	hangs, goOn := make(chan struct{}), make(chan struct{})
	two := c.start("two", func(cfg *Config) {
		cfg.OnState = func(_, to State) {
			if to == StateRevoked {
				close(hangs)
				<-goOn // it has read revoke, and can't answer
			}
		}
	})
	pc2 := c.packet(two, exclusive)
	echo(two, pc2)
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	c.ready(two)
	conn := packetClient(t, c, pc.LocalAddr())
	require.Equal(t, "2 x", echoed(t, conn, "x"))

	_, err := c.client().Rollback(c.ctx)
	require.NoError(t, err)
	<-hangs
	accepts := func(end any) bool {
		s := memberOf(t, one, end)
		if s.listener != nil {
			s.listener.mu.Lock()
			defer s.listener.mu.Unlock()
			return s.listener.inner != nil
		}
		s.packet.mu.Lock()
		defer s.packet.mu.Unlock()
		return s.packet.inner != nil
	}
	require.Equal(t, StateServing, one.State())
	require.True(t, accepts(ln), "what is not exclusive resumes at once")
	require.False(t, accepts(pc))
	require.Equal(t, "2 y", echoed(t, conn, "y"), "it has one owner still, which answers")

	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	ended := c.waits(ctx, "hasty")
	cancel()
	err = <-ended
	require.ErrorContains(t, err, "busy")
	require.ErrorContains(t, err, "has not confirmed")
	require.False(t, accepts(pc))

	close(goOn)
	c.until("the exclusive socket is resumed", func() bool { return accepts(pc) })
	require.Equal(t, "1 z", echoed(t, conn, "z"))
	two.Close()
	_, _, err = pc2.ReadFrom(make([]byte, 10))
	require.ErrorIs(t, err, net.ErrClosed)

	three := c.start("three")
	sockets, err := c.client().Sockets(c.ctx)
	require.NoError(t, err)
	require.True(t, sockets[0].Exclusive)
	echo(three, c.packet(three, Socket{Network: "udp", Address: "127.0.0.1:0"}))
	require.True(t, three.sockets.exclusive(), "it stays what it was declared to be")
	c.ready(three)
	one.Stop()
	c.wait(one)
	require.Equal(t, "3 u", echoed(t, conn, "u"))
	_, err = pc.WriteTo([]byte("x"), conn.LocalAddr())
	require.ErrorIs(t, err, net.ErrClosed, "nothing is sent on it by two")
}

// The death of a revoked successor confirms as well as its word.
func TestExclusiveSocketIsFreeWhenTheSuccessorIsGone(t *testing.T) {
	c := newChain(t)
	exclusive := Socket{Network: "udp", Address: "127.0.0.1:0", Exclusive: true}
	one := c.start("one", probation)
	pc := c.packet(one, exclusive)
	echo(one, pc)
	c.ready(one)
	two := c.start("two")
	c.packet(two, exclusive)
	c.ready(two)
	c.reach(one, StateParked)
	two.ask(func() { two.elder.c.Close() })
	c.reach(one, StateServing)
	two.Close()
	require.Equal(t, "1 x", echoed(t, packetClient(t, c, pc.LocalAddr()), "x"))
}
