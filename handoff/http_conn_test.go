package handoff

import (
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// watchedTCP is a TCP connection that tells what it was asked to do.
type watchedTCP struct {
	*net.TCPConn
	readFrom, closeWrite *atomic.Int64
}

func (c watchedTCP) ReadFrom(r io.Reader) (int64, error) {
	n, err := c.TCPConn.ReadFrom(r)
	c.readFrom.Add(n)
	return n, err
}

func (c watchedTCP) CloseWrite() error {
	c.closeWrite.Add(1)
	return c.TCPConn.CloseWrite()
}

type watchedListener struct {
	net.Listener
	readFrom, closeWrite atomic.Int64
}

func (l *watchedListener) Accept() (net.Conn, error) {
	nc, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	return watchedTCP{nc.(*net.TCPConn), &l.readFrom, &l.closeWrite}, nil
}

func TestFilesStillGoBySendfile(t *testing.T) {
	leak.CheckExact(t)
	const size = 1 << 20
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, make([]byte, size), 0o600))
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ln := &watchedListener{Listener: tcp}
	s := serveHTTPOn(t, ln, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.ServeFile(w, r, file)
	})}, nil)
	require.Len(t, s.dial().get("/", false), size)
	s.waitOpen(map[string]int{"idle": 1}) // what was sent is counted a moment after the client has it
	require.EqualValues(t, size, ln.readFrom.Load()+512, "all but what net/http looks at to tell the type")
}

func TestCloseWriteReachesTheConnection(t *testing.T) {
	leak.CheckExact(t)
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ln := &watchedListener{Listener: tcp}
	s := serveHTTPOn(t, ln, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Connection", "close")
	})}, nil)
	c := s.dial()
	c.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10000000\r\n\r\n")
	c.ok(true)
	require.EqualValues(t, 1, ln.closeWrite.Load())
}

// trackedPair returns a tracked connection and its other end.
func trackedPair(t *testing.T, network string) (*trackedConn, net.Conn, *httpDrain) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	require.NoError(t, err)
	defer ln.Close()
	drain := newHTTPDrain(&http.Server{})
	client, err := net.Dial(network, ln.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { client.Close() })
	nc, err := (&trackedListener{onceListener: onceListener{Listener: ln}, drain: drain}).Accept()
	require.NoError(t, err)
	t.Cleanup(func() { nc.Close() })
	deadline := time.Now().Add(patience)
	require.NoError(t, client.SetDeadline(deadline))
	require.NoError(t, nc.SetDeadline(deadline))
	return nc.(*trackedConn), client, drain
}

func TestTrackedConnPassesThrough(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			leak.CheckExact(t)
			c, client, drain := trackedPair(t, network)
			require.Equal(t, map[string]int{"new": 1}, drain.open())
			require.NotNil(t, c.NetConn())
			require.Equal(t, network, c.LocalAddr().Network())

			raw, err := c.SyscallConn()
			require.NoError(t, err)
			var kind int
			require.NoError(t, raw.Control(func(fd uintptr) {
				kind, err = syscall.GetsockoptInt(int(fd), syscall.SOL_SOCKET, syscall.SO_TYPE)
			}))
			require.NoError(t, err)
			require.Equal(t, syscall.SOCK_STREAM, kind)

			n, err := c.ReadFrom(strings.NewReader("hello"))
			require.NoError(t, err)
			require.EqualValues(t, 5, n)
			require.NoError(t, c.CloseWrite())
			got, err := io.ReadAll(client)
			require.NoError(t, err)
			require.Equal(t, "hello", string(got))

			_, err = io.WriteString(client, "and back")
			require.NoError(t, err)
			require.NoError(t, client.Close())
			var b strings.Builder
			_, err = io.Copy(&b, c)
			require.NoError(t, err)
			require.Equal(t, "and back", b.String())

			require.NoError(t, c.Close())
			require.ErrorIs(t, c.Close(), net.ErrClosed)
			require.Empty(t, drain.open())
		})
	}
}

func TestTrackedConnOverSomethingSimple(t *testing.T) {
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := newHTTPDrain(&http.Server{}).track(ours, nil).(*trackedConn)
	defer c.Close()
	go func() { c.ReadFrom(strings.NewReader("hello")) }()
	got := make([]byte, 5)
	_, err := io.ReadFull(theirs, got)
	require.NoError(t, err)
	require.Equal(t, "hello", string(got))
	require.Error(t, c.CloseWrite())
	_, err = c.SyscallConn()
	require.Error(t, err)
}

// BenchmarkConn compares the tracked connection with the bare one: a request
// and an answer of 100 bytes, read and written as net/http does.
func BenchmarkConn(b *testing.B) {
	for _, tracked := range []bool{false, true} {
		name := "bare"
		if tracked {
			name = "tracked"
		}
		b.Run(name, func(b *testing.B) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			require.NoError(b, err)
			defer ln.Close()
			client, err := net.Dial("tcp", ln.Addr().String())
			require.NoError(b, err)
			defer client.Close()
			nc, err := ln.Accept()
			require.NoError(b, err)
			drain := newHTTPDrain(&http.Server{})
			if tracked {
				nc = drain.track(nc, nil)
			}
			defer nc.Close()
			message, buf := make([]byte, 100), make([]byte, netHTTPReadSize)
			b.ReportAllocs()
			for b.Loop() {
				client.Write(message)
				nc.SetReadDeadline(time.Time{})
				nc.Read(buf)
				if tracked {
					drain.connState(nc, http.StateActive)
				}
				nc.Write(message)
				client.Read(buf)
				if tracked {
					drain.connState(nc, http.StateIdle)
				}
			}
		})
	}
}

var _ interface {
	net.Conn
	io.ReaderFrom
	io.WriterTo
	syscall.Conn
	CloseWrite() error
	NetConn() net.Conn
} = (*trackedConn)(nil)

// What comes on a connection after it has left is for whoever has it, however often net/http tries to read.
func TestNothingIsReadAfterLeaving(t *testing.T) {
	leak.CheckExact(t)
	c, client, _ := trackedPair(t, "tcp")
	c.mu.Lock()
	c.left = true
	c.mu.Unlock()
	_, err := client.Write([]byte("GET"))
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	for range 2 {
		n, err := c.Read(make([]byte, 8))
		require.Zero(t, n)
		require.ErrorIs(t, err, io.EOF)
	}
	b := make([]byte, 3)
	_, err = io.ReadFull(c.Conn, b)
	require.NoError(t, err)
	require.Equal(t, "GET", string(b))
}
