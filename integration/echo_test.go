package integration

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// talkers are clients that send lines to a TCP echo, each the next one when the last has come back. Where a connection
// ends, it must end as a stream ends, with no part of a line on its way; the line that did not come back is sent again.
type talkers struct {
	clients
	lines []int // that came back, of each
	ends  int
}

func (s *service) talkers(n int, addr string) *talkers {
	t := &talkers{lines: make([]int, n)}
	t.begin(s, n, func(ctx context.Context, number int) error { return t.talk(ctx, number, addr) })
	return t
}

func (t *talkers) talk(ctx context.Context, number int, addr string) error {
	for serial := 0; ; {
		c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
		if err != nil {
			return err
		}
		stop := context.AfterFunc(ctx, func() { c.SetDeadline(time.Unix(1, 0)) })
		serial, err = t.lineByLine(ctx, c, number, serial)
		stop()
		c.Close()
		if !errors.Is(err, io.EOF) {
			return err
		}
		t.note(func() { t.ends++ })
	}
}

// lineByLine returns the first line that did not come back, and why: io.EOF where the echo had said all that it would.
func (t *talkers) lineByLine(ctx context.Context, c net.Conn, number, serial int) (int, error) {
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	r := bufio.NewReader(c)
	for ; ; serial++ {
		line := fmt.Sprintf("client %d, line %d\n", number, serial)
		if _, err := io.WriteString(c, line); err != nil {
			return serial, err
		}
		got, err := r.ReadString('\n')
		switch {
		case err != nil && got != "":
			return serial, fmt.Errorf("half a line, %q: %s", got, err)
		case err != nil:
			return serial, err
		case got != line:
			return serial, fmt.Errorf("sent %q, got %q", line, got)
		}
		t.note(func() { t.lines[number]++ })
		select {
		case <-pace.C:
		case <-ctx.Done():
			return serial, ctx.Err()
		}
	}
}

// more waits for n more lines of each client.
func (t *talkers) more(ctx context.Context, n int) error {
	t.mu.Lock()
	before := slices.Clone(t.lines)
	t.mu.Unlock()
	return t.wait(ctx, func() bool {
		for i, lines := range t.lines {
			if lines < before[i]+n {
				return false
			}
		}
		return true
	})
}

// Connections of a protocol that is not HTTP are told of the drain, finish what they have read, and come back.
func TestRawConnectionsAcrossHandoffs(t *testing.T) {
	const clients, handoffs = 20, 10
	s := newService(t)
	old := waiter(s.serving("v1", "--tcp-echo", web, "--drain-spread", "500ms"))
	all := s.talkers(clients, s.address(web))
	require.NoError(t, all.more(s.ctx(), 5))
	for g := 2; g < 2+handoffs; g++ {
		_, next := s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=released"}, "--tcp-echo", web, "--drain-spread", "500ms")
		s.exits(old, 0, fmt.Sprintf("generation %d, whose clients have gone", g-1))
		require.NoError(t, all.more(s.ctx(), 5)) // so each has noticed, and is at this generation
		old = next
	}
	require.NoError(t, all.stop())
	require.Equal(t, clients*handoffs, all.ends, "every client was told at each handoff")
}

// A client that does not go is cut at the drain's deadline, and counted.
func TestRawConnectionAtTheDrainDeadline(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--tcp-echo", web, "--drain-timeout", "500ms")
	c, err := net.Dial("tcp", s.address(web))
	require.NoError(t, err)
	defer c.Close()
	_, err = io.WriteString(c, "hello\n")
	require.NoError(t, err)
	r := bufio.NewReader(c)
	line, err := r.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "hello\n", line)
	s.upgrade("v2", []string{"--wait=released"}, "--tcp-echo", web, "--drain-spread", "500ms")
	_, err = r.ReadByte()
	require.ErrorIs(t, err, io.EOF, "it was told")
	s.exits(first, 6, "generation 1, whose client did not go")
	drained, err := first.WaitLog(s.ctx(), func(l proc.Line) bool { return l.Field("msg") == "drained" })
	require.NoError(t, err)
	require.Equal(t, map[string]any{"conn": 1.0}, drained.Fields["cut"])
}
