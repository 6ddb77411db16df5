package main

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"io"
	"log/slog"
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// toldConn is a connection as Process.Track returns them.
type toldConn struct {
	*net.TCPConn
	draining chan struct{}
}

func (c toldConn) Draining() <-chan struct{} { return c.draining }

// echoed returns a client's connection to echoConn, what begins its drain, and what is closed at its end.
func echoed(t *testing.T) (client *net.TCPConn, draining, ended chan struct{}) {
	t.Helper()
	leak.Check(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	accepted, err := ln.Accept()
	require.NoError(t, err)
	draining, ended = make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		echoConn(toldConn{accepted.(*net.TCPConn), draining})
	}()
	return c.(*net.TCPConn), draining, ended
}

func TestEchoOfAConnection(t *testing.T) {
	c, _, ended := echoed(t)
	sent := make([]byte, 1<<20)
	rand.Read(sent)
	go func() {
		c.Write(sent)
		c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.True(t, bytes.Equal(sent, got))
	<-ended
}

// TestEchoEndsWhenItIsTold: what was read has come back by then, the client sees the end of the stream and no reset,
// and what it still sends does no harm.
func TestEchoEndsWhenItIsTold(t *testing.T) {
	c, draining, ended := echoed(t)
	lines := bufio.NewReader(c)
	for _, text := range []string{"one\n", "two\n"} {
		_, err := io.WriteString(c, text)
		require.NoError(t, err)
		got, err := lines.ReadString('\n')
		require.NoError(t, err)
		require.Equal(t, text, got)
	}
	close(draining)
	rest, err := io.ReadAll(lines)
	require.NoError(t, err)
	require.Empty(t, rest)
	for range 10 {
		_, err := io.WriteString(c, "too late\n")
		require.NoError(t, err)
	}
	select {
	case <-ended:
		t.Fatal("it does not wait for the client's end")
	default:
	}
	require.NoError(t, c.CloseWrite())
	<-ended
}

// TestEchoFinishesWhatItHasRead: the client reads late, and the drain begins while the echo waits for it.
func TestEchoFinishesWhatItHasRead(t *testing.T) {
	c, draining, ended := echoed(t)
	b := bytes.Repeat([]byte("0123456789abcdef"), 4<<10)
	sent := 0
	for { // until nobody takes any more: all buffers are full, and the echo hangs in a write
		require.NoError(t, c.SetWriteDeadline(time.Now().Add(200*time.Millisecond)))
		n, err := c.Write(b[sent%16 : len(b)-16+sent%16])
		sent += n
		if err != nil {
			break
		}
	}
	close(draining)
	require.NoError(t, c.CloseWrite())
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	require.NotEmpty(t, got)
	require.LessOrEqual(t, len(got), sent)
	for i, x := range got {
		if x != b[i%16] {
			t.Fatalf("byte %d is %q", i, x)
		}
	}
	<-ended
}

func TestEchoOfDatagrams(t *testing.T) {
	for _, network := range []string{"udp", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			leak.Check(t)
			addr, local := "127.0.0.1:0", "127.0.0.1:0"
			if network == "unixgram" {
				addr, local = filepath.Join(t.TempDir(), "s"), filepath.Join(t.TempDir(), "c")
			}
			pc, err := net.ListenPacket(network, addr)
			require.NoError(t, err)
			ended := make(chan struct{})
			go func() { defer close(ended); echoDatagrams(pc, slog.New(slog.DiscardHandler)) }()
			c, err := net.ListenPacket(network, local)
			require.NoError(t, err)
			defer c.Close()
			require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
			if network == "unixgram" { // one that can't be answered is no harm
				nameless, err := net.Dial(network, addr)
				require.NoError(t, err)
				_, err = nameless.Write([]byte("from nobody"))
				require.NoError(t, err)
				require.NoError(t, nameless.Close())
			}
			b := make([]byte, maxDatagram)
			for _, size := range []int{1, 0, 1000, 30_000} {
				_, err := c.WriteTo(bytes.Repeat([]byte("x"), size), pc.LocalAddr())
				require.NoError(t, err)
				n, _, err := c.ReadFrom(b)
				require.NoError(t, err)
				require.Equal(t, size, n)
			}
			require.NoError(t, pc.Close())
			<-ended
		})
	}
}
