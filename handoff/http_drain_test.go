package handoff

import (
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"golang.org/x/sys/unix"
)

// quickSilence makes a plain stop close silent connections after a moment.
func quickSilence(h *HTTPServer) { h.drain.silence = 50 * time.Millisecond }

func TestPlainStopClosesSilentConnections(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, tell("hello"), quickSilence)
	fresh, idle := s.dial(), s.dial()
	idle.get("/", false)
	s.waitOpen(map[string]int{"new": 1, "idle": 1})
	s.beginDrain(true)
	fresh.eof()
	idle.eof()
	s.waitDrained()
	require.Empty(t, s.drain.cut(), "closing a silent connection cuts nothing off")
}

func TestSilenceIsCountedFromTheLastActivity(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, tell("hello"), nil)
	c := s.dial()
	c.get("/", false)
	waitReading(t, s) // idle, it may be a moment before

	// Before the drain nobody takes the time: it began with the drain.
	s.beginDrain(false)
	begun := s.drain.begun
	silent, next := s.drain.silent(begun.Add(s.drain.silence - time.Millisecond))
	require.Empty(t, silent)
	require.Equal(t, time.Millisecond, next)
	silent, _ = s.drain.silent(begun.Add(s.drain.silence))
	require.Len(t, silent, 1)

	// One that became idle later is silent from then on.
	later := silent[0]
	later.setState(later, http.StateIdle)
	later.mu.Lock()
	later.reads, later.deadlines, later.asked = 1, 1, netHTTPReadSize // as it was waiting
	since := later.since
	later.mu.Unlock()
	require.True(t, since.After(begun))
	silent, next = s.drain.silent(since.Add(s.drain.silence - time.Millisecond))
	require.Empty(t, silent)
	require.Equal(t, time.Millisecond, next)
}

// TestSilentOnlyAtBoundary holds against net/http what the drain believes of
// it: a connection with a part of a request, wherever net/http keeps it, must
// not be taken for a silent one.
func TestSilentOnlyAtBoundary(t *testing.T) {
	for _, tc := range boundaryCases {
		t.Run(tc.name, func(t *testing.T) {
			leak.CheckExact(t)
			mux := http.NewServeMux()
			g := newGate(tell("first"))
			mux.Handle("/{$}", g)
			mux.HandleFunc("/next", tell("next"))
			s := serveHTTP(t, mux, quickSilence)

			c := s.dial()
			c.send(tc.before)
			part := tc.before + tc.during + tc.after
			if rest, asked := strings.CutPrefix(part, checkRequest); asked {
				part = rest
				g.waitEntered(t)
				c.send(tc.during)
				if tc.during != "" {
					// net/http's background read takes one byte, no more.
					waitUnread(t, s, len(tc.during)-1)
				}
				close(g.open)
				require.Equal(t, "first", c.ok(false))
			}
			c.send(tc.after)
			waitReading(t, s)
			if !tc.movable {
				waitNoted(t, s)
			}

			s.beginDrain(true)
			if tc.movable {
				c.eof()
				s.waitDrained()
				return
			}
			// As soon as silence was enough for others, it must not be for this one.
			s.drain.mu.Lock()
			begun := s.drain.begun
			s.drain.mu.Unlock()
			silent, _ := s.drain.silent(begun.Add(time.Hour))
			require.Empty(t, silent)
			c.send(strings.TrimPrefix(nextRequest, part))
			require.Equal(t, "next", c.ok(true))
			s.waitDrained()
		})
	}
}

// waitUnread waits until so many bytes are left in the kernel for the
// server's only connection.
func waitUnread(t *testing.T, s *testServer, want int) {
	t.Helper()
	require.Eventually(t, func() bool { return unreadBytes(onlyConn(t, s)) == want }, patience, time.Millisecond)
}

// unreadBytes is how many bytes wait in the kernel for c, -1 if that can't be told.
func unreadBytes(c syscall.Conn) (n int) {
	raw, err := c.SyscallConn()
	if err != nil {
		return -1
	}
	if raw.Control(func(fd uintptr) { n, err = unix.IoctlGetInt(int(fd), unix.SIOCINQ) }) != nil || err != nil {
		return -1
	}
	return n
}

// waitReading waits until the server's only connection has read all that was
// sent, and waits for more.
func waitReading(t *testing.T, s *testServer) {
	t.Helper()
	require.Eventually(t, func() bool { return len(s.drain.open()) == 1 }, patience, time.Millisecond)
	waitUnread(t, s, 0)
	c := onlyConn(t, s)
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return c.state != http.StateActive && c.reads > 0
	}, patience, time.Millisecond)
}

// waitNoted waits until it is noted that something was read, which is a moment after the
// kernel has it no more.
func waitNoted(t *testing.T, s *testServer) {
	t.Helper()
	c := onlyConn(t, s)
	require.Eventually(t, func() bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		return !c.atBoundary()
	}, patience, time.Millisecond)
}

func onlyConn(t *testing.T, s *testServer) *trackedConn {
	t.Helper()
	s.drain.mu.Lock()
	defer s.drain.mu.Unlock()
	require.Len(t, s.drain.conns, 1)
	for c := range s.drain.conns {
		return c
	}
	return nil
}

func TestHijackedConnectionsAreWaitedFor(t *testing.T) {
	leak.CheckExact(t)
	taken := make(chan net.Conn, 1)
	s := serveHTTP(t, http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		nc, buf, err := w.(http.Hijacker).Hijack()
		if err != nil {
			panic(err)
		}
		io.WriteString(buf, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: test\r\n\r\n")
		buf.Flush()
		taken <- nc
	}), quickSilence)
	c := s.dial()
	c.send(get("/"))
	nc := <-taken
	require.Equal(t, "Upgrade", connectionOptions(c.header()))
	s.waitOpen(map[string]int{"hijacked": 1})
	s.beginDrain(true)
	s.notDrained()
	_, err := io.WriteString(nc, "still here")
	require.NoError(t, err)
	require.NoError(t, nc.Close())
	rest, err := io.ReadAll(c.r)
	require.NoError(t, err)
	require.Equal(t, "still here", string(rest))
	s.waitDrained()
}

func TestCut(t *testing.T) {
	leak.CheckExact(t)
	mux := http.NewServeMux()
	mux.HandleFunc("/", tell("hello"))
	stuck := newGate(tell("too late"))
	mux.Handle("/stuck", stuck)
	finishes := newGate(tell("just in time"))
	mux.Handle("/finishes", finishes)
	taken := make(chan net.Conn, 2)
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		nc, _, _ := w.(http.Hijacker).Hijack()
		taken <- nc
	})
	s := serveHTTP(t, mux, func(h *HTTPServer) { h.drain.grace = 2 * time.Second }) // which what ends by itself may need
	// Shutdown is bounded, but waits for handlers that end: the last one does at the end of the test.
	t.Cleanup(func() { close(stuck.open) })

	idle, fresh, half, active, finishing, hijacked, released := s.dial(), s.dial(), s.dial(), s.dial(), s.dial(), s.dial(), s.dial()
	idle.get("/", false)
	half.get("/", false)
	s.waitOpen(map[string]int{"idle": 2, "new": 5})
	half.send("GET / HT")
	active.send(get("/stuck"))
	stuck.waitEntered(t)
	finishing.send(get("/finishes"))
	finishes.waitEntered(t)
	hijacked.send(get("/hijack"))
	<-taken
	released.send(get("/hijack"))
	ours := <-taken
	s.waitOpen(map[string]int{"idle": 1, "new": 1, "active": 3, "hijacked": 2})
	s.beginDrain(false)

	go func() {
		<-s.drain.cutBegun()
		close(finishes.open)
		ours.Close()
	}()
	require.Equal(t, map[string]int{"idle": 1, "new": 1, "active": 2, "hijacked": 1}, s.drain.cut())
	s.waitDrained()
	require.Empty(t, s.drain.open())
	require.Equal(t, "just in time", finishing.ok(true))
	for _, c := range []*rawClient{idle, fresh, half, active, hijacked} {
		_, err := c.r.ReadByte()
		require.Error(t, err)
	}
	require.Equal(t, map[string]int{"idle": 1, "new": 1, "active": 2, "hijacked": 1}, s.drain.cut(), "the same when asked again")
}

// cutBegun returns a channel that is closed when cut has counted what is open.
func (d *httpDrain) cutBegun() <-chan struct{} {
	begun := make(chan struct{})
	go func() {
		defer close(begun)
		for {
			d.mu.Lock()
			cutting := d.cutting
			d.mu.Unlock()
			if cutting {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return begun
}

func TestCutDoesNotCountWhoLeft(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, tell("hello"), nil)
	c, stays := s.dial(), s.dial()
	c.get("/", false)
	stays.get("/", false)
	s.waitOpen(map[string]int{"idle": 2})
	s.beginDrain(false)
	require.NoError(t, c.Close())
	s.waitOpen(map[string]int{"idle": 1})
	require.Equal(t, map[string]int{"idle": 1}, s.drain.cut())
}

func TestCutDoesNotWaitForTheHopeless(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, tell("hello"), func(h *HTTPServer) { h.drain.grace = time.Hour })
	s.dial() // Shutdown would wait for five seconds for this one
	s.waitOpen(map[string]int{"new": 1})
	require.Equal(t, map[string]int{"new": 1}, s.drain.cut())
	require.NoError(t, <-s.served)
}

// deafListener does not notice that it is closed.
type deafListener struct {
	net.Listener
	wake chan struct{}
}

func (l deafListener) Accept() (net.Conn, error) {
	<-l.wake
	return nil, net.ErrClosed
}

func TestCutIsBoundedByItself(t *testing.T) {
	leak.CheckExact(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	deaf := deafListener{ln, make(chan struct{})}
	s := serveHTTPOn(t, deaf, &http.Server{Handler: tell("hello")}, func(h *HTTPServer) { h.drain.grace = 10 * time.Millisecond })
	require.Eventually(t, func() bool {
		s.drain.mu.Lock()
		defer s.drain.mu.Unlock()
		return len(s.drain.listeners) == 1
	}, patience, time.Millisecond)
	s.drain.beginDrain(0, false)
	s.notDrained() // it might still accept
	require.Empty(t, s.drain.cut())
	s.waitDrained()
	close(deaf.wake)
	require.NoError(t, <-s.served)
}

func TestBeginDrainTwice(t *testing.T) {
	leak.CheckExact(t)
	s := serveHTTP(t, tell("hello"), nil)
	s.beginDrain(false)
	s.drain.beginDrain(0, true)
	s.waitDrained()
}
