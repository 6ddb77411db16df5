package handoff

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// TestLameDuckLosesNothing replaces a server under 200 keep-alive clients
// that send POSTs without a pause and retry nothing. The same is done with
// http.Server.Shutdown in place of the drain, and must lose requests: where
// it does not, this test shows nothing.
func TestLameDuckLosesNothing(t *testing.T) {
	t.Run("lame duck", func(t *testing.T) {
		leak.CheckExact(t)
		lost := replaceUnderLoad(t, func(t *testing.T, ln net.Listener, handler http.Handler) func() {
			s := serveHTTPOn(t, ln, &http.Server{Handler: handler}, nil)
			return func() {
				s.beginDrain(false)
				s.waitDrained()
				require.Empty(t, s.drain.cut())
			}
		})
		require.Zero(t, lost)
	})
	t.Run("negative control: Shutdown", func(t *testing.T) {
		leak.CheckExact(t)
		lost := replaceUnderLoad(t, func(t *testing.T, ln net.Listener, handler http.Handler) func() {
			srv := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0)}
			served := make(chan error, 1)
			go func() { served <- srv.Serve(ln) }()
			return func() {
				require.NoError(t, srv.Shutdown(within(t)))
				require.ErrorIs(t, <-served, http.ErrServerClosed)
			}
		})
		t.Logf("Shutdown lost %d requests", lost)
		require.Positive(t, lost)
	})
}

const (
	loadClients  = 200
	loadRequests = 10 // of each client before the drain and, at least, after it
)

// replaceUnderLoad has the server that start makes replaced by another one on
// the same socket, by what start returned, and returns the requests lost.
func replaceUnderLoad(t *testing.T, start func(*testing.T, net.Listener, http.Handler) (drain func())) int64 {
	t.Helper()
	echo := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Server", name)
			io.Copy(w, r.Body)
		})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	addr := ln.Addr().String()
	duplicate := duplicateListener(t, ln)
	drain := start(t, ln, echo("old"))

	load := &load{addr: addr, stop: make(chan struct{})}
	var warm, moved, done sync.WaitGroup
	for range loadClients {
		warm.Add(1)
		moved.Add(1)
		done.Go(func() { load.client(warm.Done, moved.Done) })
	}
	warm.Wait()
	successor := serveHTTPOn(t, duplicate, &http.Server{Handler: echo("new")}, nil)
	drain()
	moved.Wait()
	close(load.stop)
	done.Wait()
	require.NoError(t, load.failure())
	require.GreaterOrEqual(t, load.answered.Load(), int64(2*loadRequests*loadClients))
	successor.beginDrain(false)
	return load.lost.Load()
}

// duplicateListener returns another listener for the same socket, as a
// successor receives one.
func duplicateListener(t *testing.T, ln net.Listener) net.Listener {
	t.Helper()
	f, err := ln.(*net.TCPListener).File()
	require.NoError(t, err)
	defer f.Close()
	duplicate, err := net.FileListener(f)
	require.NoError(t, err)
	return duplicate
}

// load counts what happens to the requests of many clients.
type load struct {
	addr           string
	stop           chan struct{}
	answered, lost atomic.Int64
	mu             sync.Mutex
	errs           []error // what no way of draining can be blamed for
}

func (l *load) fail(err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.errs = append(l.errs, err)
}

func (l *load) failure() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return errors.Join(l.errs...)
}

// client sends one request after the other. It calls warm after the first few
// answers, and moved after as many by the new server.
func (l *load) client(warm, moved func()) {
	answered, byNew := 0, 0
	warm, moved = sync.OnceFunc(warm), sync.OnceFunc(moved)
	defer warm()
	defer moved()
	var c net.Conn
	var r *bufio.Reader
	defer func() {
		if c != nil {
			c.Close()
		}
	}()
	for n := 0; ; n++ {
		select {
		case <-l.stop:
			return
		default:
		}
		if c == nil {
			var err error
			if c, err = net.Dial("tcp", l.addr); err != nil {
				l.fail(err)
				return
			}
			c.SetDeadline(time.Now().Add(6 * patience))
			r = bufio.NewReader(c)
		}
		server, keep, err := post(c, r, fmt.Sprint("request ", n))
		switch {
		case err != nil:
			l.lost.Add(1)
		case server == "new":
			byNew++
			fallthrough
		default:
			answered++
			l.answered.Add(1)
		}
		if !keep {
			c.Close()
			c = nil
		}
		if answered >= loadRequests {
			warm()
		}
		if byNew >= loadRequests {
			moved()
		}
	}
}

// post sends one request and reads its answer.
func post(c net.Conn, r *bufio.Reader, body string) (server string, keep bool, err error) {
	if _, err = fmt.Fprintf(c, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", len(body), body); err != nil {
		return "", false, err
	}
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return "", false, err
	}
	defer resp.Body.Close()
	echoed, err := io.ReadAll(resp.Body)
	if err == nil && string(echoed) != body {
		err = fmt.Errorf("sent %q, received %q", body, echoed)
	}
	return resp.Header.Get("X-Server"), err == nil && !resp.Close, err
}
