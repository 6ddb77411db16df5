package delay

import (
	"bytes"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"github.com/fdhandoff/handoff/internal/refusing"
)

const d = 30 * time.Millisecond

// pair is a client's connection through a proxy, and what the server accepted for it.
func pair(t *testing.T, delay time.Duration) (client, server *net.TCPConn) {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	p, err := Start(ln.Addr().String(), delay)
	require.NoError(t, err)
	t.Cleanup(p.Close)
	c, err := net.Dial("tcp", p.Addr())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	s, err := ln.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { s.Close() })
	for _, conn := range []net.Conn{c, s} {
		require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	}
	return c.(*net.TCPConn), s.(*net.TCPConn)
}

// Each direction takes the delay, and not twice that for what follows at once.
func TestDelaysEachDirection(t *testing.T) {
	leak.Check(t)
	client, server := pair(t, d)
	send := func(from, to *net.TCPConn) time.Duration {
		begin := time.Now()
		for range 10 {
			_, err := from.Write([]byte("x"))
			require.NoError(t, err)
		}
		_, err := io.ReadFull(to, make([]byte, 10))
		require.NoError(t, err)
		return time.Since(begin)
	}
	least := time.Hour
	for range 5 { // a machine that stands still makes one of them late
		there, back := send(client, server), send(server, client)
		require.GreaterOrEqual(t, there, d)
		require.GreaterOrEqual(t, back, d)
		least = min(least, there+back)
	}
	require.Less(t, least, 10*d, "ten bytes at once take one delay together")
}

// What is sent at both ends at once comes whole and in order, and the end behind it.
func TestOrderAndHalfClose(t *testing.T) {
	leak.Check(t)
	client, server := pair(t, 2*time.Millisecond)
	const size = 20 << 20
	var all sync.WaitGroup
	for i, way := range [][2]*net.TCPConn{{client, server}, {server, client}} {
		sent := make([]byte, size)
		rand.NewChaCha8([32]byte{byte(i)}).Read(sent)
		all.Go(func() {
			for rest := sent; len(rest) > 0; {
				n := min(len(rest), 1+rand.IntN(100_000))
				if _, err := way[0].Write(rest[:n]); err != nil {
					t.Error(err)
					return
				}
				rest = rest[n:]
			}
			way[0].CloseWrite()
		})
		all.Go(func() {
			got, err := io.ReadAll(way[1])
			if err != nil || !bytes.Equal(got, sent) {
				t.Errorf("%d of %d bytes came, %v, the same: %v", len(got), size, err, bytes.Equal(got, sent))
			}
		})
	}
	all.Wait()
}

// The end of one direction leaves the other open.
func TestHalfCloseLeavesTheOtherDirection(t *testing.T) {
	leak.Check(t)
	client, server := pair(t, d)
	begin := time.Now()
	require.NoError(t, client.CloseWrite())
	_, err := server.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
	require.GreaterOrEqual(t, time.Since(begin), d)
	_, err = server.Write([]byte("late"))
	require.NoError(t, err)
	require.NoError(t, server.Close())
	got, err := io.ReadAll(client)
	require.NoError(t, err)
	require.Equal(t, "late", string(got))
}

// A reset is one at the other end too, after the delay, and not before what was sent ahead of it.
func TestReset(t *testing.T) {
	leak.Check(t)
	client, server := pair(t, d)
	_, err := server.Write([]byte("x"))
	require.NoError(t, err)
	_, err = io.ReadFull(client, make([]byte, 1))
	require.NoError(t, err)
	begin := time.Now()
	reset(server)
	_, err = client.Read(make([]byte, 1))
	require.ErrorIs(t, err, syscall.ECONNRESET)
	require.GreaterOrEqual(t, time.Since(begin), d)
}

// Nobody listens behind the proxy.
func TestRefused(t *testing.T) {
	leak.Check(t)
	p, err := Start(refusing.Address(t), d)
	require.NoError(t, err)
	defer p.Close()
	c, err := net.Dial("tcp", p.Addr())
	if err == nil { // it may be reset before it is connected, or after
		defer c.Close()
		_, err = c.Read(make([]byte, 1))
	}
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// Close ends connections of which nobody reads, and with a delay that would outlast the test.
func TestCloseEndsEverything(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	p, err := Start(ln.Addr().String(), time.Hour)
	require.NoError(t, err)
	for range 10 {
		c, err := net.Dial("tcp", p.Addr())
		require.NoError(t, err)
		defer c.Close()
		s, err := ln.Accept()
		require.NoError(t, err)
		defer s.Close()
		_, err = c.Write(make([]byte, 1000))
		require.NoError(t, err)
	}
	p.Close()
	p.Close()
	_, err = net.Dial("tcp", p.Addr())
	require.ErrorIs(t, err, syscall.ECONNREFUSED)
}
