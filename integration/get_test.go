package integration

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// answer is what became of one request, sent once.
type answer struct {
	status     int
	generation uint64
	body       string
	err        error
}

// get sends one request over a connection of its own and reads the whole answer.
func get(ctx context.Context, network, addr, path string) answer {
	conn, err := (&net.Dialer{}).DialContext(ctx, network, addr)
	if err != nil {
		return answer{err: err}
	}
	defer conn.Close()
	if err := ask(conn, path); err != nil {
		return answer{err: err}
	}
	return readAnswer(ctx, conn)
}

// ask writes one request.
func ask(conn net.Conn, path string) error {
	_, err := fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path)
	return err
}

// readAnswer reads one whole answer.
func readAnswer(ctx context.Context, conn net.Conn) answer {
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return answer{err: err}
	}
	body, err := io.ReadAll(resp.Body)
	generation, _ := strconv.ParseUint(resp.Header.Get("X-Handoff-Generation"), 10, 64)
	return answer{status: resp.StatusCode, generation: generation, body: string(body), err: err}
}

// pending are requests under way.
type pending struct {
	wg      sync.WaitGroup
	mu      sync.Mutex
	answers []answer
}

// requests sends n requests for path at once, each over a connection of its own.
func (s *service) requests(n int, network, addr, path string) *pending {
	p := &pending{}
	ctx := s.ctx()
	for range n {
		p.wg.Go(func() {
			a := get(ctx, network, addr, path)
			p.mu.Lock()
			defer p.mu.Unlock()
			p.answers = append(p.answers, a)
		})
	}
	return p
}

// all waits for the answers and wants each to be a 200 of the generation; 0 stands for any.
func (p *pending) all(t *testing.T, generation uint64) {
	t.Helper()
	p.wg.Wait()
	for _, a := range p.answers {
		require.NoError(t, a.err)
		require.Equal(t, http.StatusOK, a.status)
		if generation != 0 {
			require.Equal(t, generation, a.generation)
		}
	}
}

// answeredBy wants a new connection to be answered, and by that generation.
func (s *service) answeredBy(addr string, generation uint64) {
	s.t.Helper()
	a := get(s.ctx(), "tcp", addr, "/")
	require.NoError(s.t, a.err)
	require.Equal(s.t, http.StatusOK, a.status)
	require.Equal(s.t, generation, a.generation)
}

// asked opens n connections and sends a request on each; they are closed with the test.
func (s *service) asked(addr string, n int) []net.Conn {
	s.t.Helper()
	conns := make([]net.Conn, n)
	for i := range conns {
		c, err := net.Dial("tcp", addr)
		require.NoError(s.t, err)
		s.t.Cleanup(func() { c.Close() })
		require.NoError(s.t, ask(c, "/"))
		conns[i] = c
	}
	return conns
}

// answer wants an answer on each connection, by that generation.
func (s *service) answer(conns []net.Conn, generation uint64) {
	s.t.Helper()
	ctx := s.ctx()
	for i, c := range conns {
		a := readAnswer(ctx, c)
		require.NoError(s.t, a.err, "connection %d", i)
		require.Equal(s.t, http.StatusOK, a.status)
		require.Equal(s.t, generation, a.generation)
	}
}
