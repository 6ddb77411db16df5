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

// talker is one keep-alive connection, on which the test asks when it likes. No two requests have the same body.
type talker struct {
	conn   net.Conn
	br     *bufio.Reader
	name   string
	serial int
	closed bool // the last answer said "Connection: close"
}

// keepAlives opens n connections, on which nothing is asked yet. They are closed with the test.
func (s *service) keepAlives(network, addr string, n int) []*talker {
	s.t.Helper()
	all := make([]*talker, n)
	for i := range all {
		conn, err := (&net.Dialer{}).DialContext(s.ctx(), network, addr)
		require.NoError(s.t, err)
		s.t.Cleanup(func() { conn.Close() })
		all[i] = &talker{conn: conn, br: bufio.NewReaderSize(conn, 512), name: fmt.Sprintf("%s-%d-of-%d", s.t.Name(), i, n)}
	}
	return all
}

// ask sends one request, once, and returns the generation that answered it.
func (k *talker) ask(ctx context.Context) (uint64, error) {
	defer context.AfterFunc(ctx, func() { k.conn.SetDeadline(time.Unix(1, 0)) })()
	k.serial++
	body := fmt.Sprintf("%s request %d", k.name, k.serial)
	_, err := fmt.Fprintf(k.conn, "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	if err != nil {
		return 0, err
	}
	resp, err := http.ReadResponse(k.br, nil)
	if err != nil {
		return 0, err
	}
	got, err := io.ReadAll(resp.Body)
	k.closed = resp.Close
	switch {
	case err != nil:
		return 0, err
	case resp.StatusCode != http.StatusOK, string(got) != body:
		return 0, wrong(fmt.Sprintf("%s, %q for %q", resp.Status, got, body))
	}
	return strconv.ParseUint(resp.Header.Get("X-Handoff-Generation"), 10, 64)
}

// wrong is an answer, and not the one to the request.
type wrong string

func (w wrong) Error() string { return string(w) }

// end says that nothing more will be asked, and wants nothing more to have been answered.
func (k *talker) end(ctx context.Context) error {
	defer context.AfterFunc(ctx, func() { k.conn.SetDeadline(time.Unix(1, 0)) })()
	if c, ok := k.conn.(interface{ CloseWrite() error }); ok && c.CloseWrite() != nil {
		return nil // it was closed, or its process was killed
	}
	rest, _ := io.ReadAll(k.br)
	if len(rest) > 0 {
		return wrong(fmt.Sprintf("bytes that nobody asked for: %q", rest))
	}
	return nil
}

// outcome counts what became of requests, one on each of many connections.
type outcome struct {
	mu      sync.Mutex
	by      map[uint64]int // answers, by generation
	failed  []error
	talking sync.WaitGroup
}

// answered is how many were, by any generation or by one.
func (o *outcome) answered(generation uint64) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	if generation != 0 {
		return o.by[generation]
	}
	n := 0
	for _, g := range o.by {
		n += g
	}
	return n
}

// askAll sends a request on each connection at once. Its outcome is complete when all have stopped talking.
func (s *service) askAll(all []*talker) *outcome {
	o := &outcome{by: make(map[uint64]int)}
	ctx := s.ctx()
	for _, k := range all {
		o.talking.Go(func() {
			generation, err := k.ask(ctx)
			o.mu.Lock()
			defer o.mu.Unlock()
			if err != nil {
				o.failed = append(o.failed, err)
				return
			}
			o.by[generation]++
		})
	}
	return o
}

// allAnsweredBy sends a request on each connection and wants one generation to answer them all.
func (s *service) allAnsweredBy(all []*talker, generation uint64) {
	s.t.Helper()
	o := s.askAll(all)
	o.talking.Wait()
	require.Empty(s.t, o.failed)
	require.Equal(s.t, map[uint64]int{generation: len(all)}, o.by)
}

// endAllTalk wants that nothing was answered twice.
func endAllTalk(t *testing.T, s *service, all []*talker) {
	t.Helper()
	ctx := s.ctx()
	for _, k := range all {
		require.NoError(t, k.end(ctx), k.name)
		k.conn.Close()
	}
}
