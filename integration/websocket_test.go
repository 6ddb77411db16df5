package integration

import (
	"context"
	"fmt"
	"net/http"
	"strconv"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// dialWebSocket opens a WebSocket, and tells which generation answered.
func dialWebSocket(ctx context.Context, addr string) (*websocket.Conn, uint64, error) {
	transport := &http.Transport{DisableKeepAlives: true}
	conn, resp, err := websocket.Dial(ctx, "ws://"+addr+"/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: transport}})
	if err != nil {
		return nil, 0, err
	}
	generation, err := strconv.ParseUint(resp.Header.Get("X-Handoff-Generation"), 10, 64)
	return conn, generation, err
}

// exchange sends one message and wants it back.
func exchange(ctx context.Context, conn *websocket.Conn, text string) error {
	if err := conn.Write(ctx, websocket.MessageText, []byte(text)); err != nil {
		// The server's goodbye may be here already: it is what counts.
		if _, _, bye := conn.Read(ctx); websocket.CloseStatus(bye) != -1 {
			return bye
		}
		return err
	}
	_, got, err := conn.Read(ctx)
	if err == nil && string(got) != text {
		err = fmt.Errorf("sent %q, got %q", text, got)
	}
	return err
}

// chatter is clients that exchange messages all the time, each over one WebSocket at a time. A goodbye with 1012 means
// that the message was not taken: it is sent again over a new connection. Anything else is an error.
type chatter struct {
	clients
	n        int
	answers  map[uint64]map[int]int // by generation and client
	restarts int
}

func (s *service) chatter(n int, addr string) *chatter {
	c := &chatter{n: n, answers: map[uint64]map[int]int{}}
	c.begin(s, n, func(ctx context.Context, number int) error { return c.chat(ctx, number, addr) })
	return c
}

func (c *chatter) chat(ctx context.Context, number int, addr string) error {
	pace := time.NewTicker(2 * time.Millisecond)
	defer pace.Stop()
	last := uint64(0)
	for serial := 0; ; {
		conn, generation, err := dialWebSocket(ctx, addr)
		if err != nil {
			return err
		}
		if generation < last {
			return fmt.Errorf("generation %d after %d", generation, last)
		}
		last = generation
		for {
			if err = exchange(ctx, conn, fmt.Sprintf("client %d, message %d", number, serial)); err != nil {
				break
			}
			serial++
			c.note(func() {
				if c.answers[generation] == nil {
					c.answers[generation] = map[int]int{}
				}
				c.answers[generation][number]++
			})
			select {
			case <-pace.C:
			case <-ctx.Done():
			}
		}
		conn.CloseNow()
		if websocket.CloseStatus(err) != websocket.StatusServiceRestart {
			return err
		}
		c.note(func() { c.restarts++ })
	}
}

// answered waits until a generation has answered n messages of each client.
func (c *chatter) answered(ctx context.Context, generation uint64, n int) error {
	return c.wait(ctx, func() bool {
		for _, answers := range c.answers[generation] {
			if answers < n {
				return false
			}
		}
		return len(c.answers[generation]) == c.n
	})
}

// WebSockets are told to come back, and meet the next generation. No message stays without an answer.
func TestWebSocketsAreToldToComeBack(t *testing.T) {
	const clients, handoffs = 20, 5
	s := newService(t)
	const spread = "500ms" // not all at once, and not for long
	old := waiter(s.serving("v1", "--drain-spread", spread))
	c := s.chatter(clients, s.address(web))
	require.NoError(t, c.answered(s.ctx(), 1, 5))
	for g := uint64(2); g < 2+handoffs; g++ {
		_, next := s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=released"}, "--drain-spread", spread)
		require.NoError(t, c.answered(s.ctx(), g, 5))
		s.exits(old, 0, fmt.Sprintf("generation %d, whose clients have gone", g-1))
		old = next
	}
	require.NoError(t, c.stop())
	require.Equal(t, clients*handoffs, c.restarts, "every client was told at each handoff")
}

// A WebSocket that is passed on to a backend can't be told: it lives on until it ends by itself.
func TestProxiedWebSocketOutlivesTheHandoff(t *testing.T) {
	s := newService(t)
	b := newBackend(t)
	first := s.serving("v1", "--proxy", b.url)
	addr := s.address(web)
	conn, generation, err := dialWebSocket(s.ctx(), addr)
	require.NoError(t, err)
	defer conn.CloseNow()
	require.EqualValues(t, 1, generation)
	require.NoError(t, exchange(s.ctx(), conn, "before"))
	s.upgrade("v2", []string{"--wait=released"}, "--proxy", b.url)
	s.waitStatus("1 drains, and one connection is open", func(st proc.Status) bool {
		return st.Of(1).State == "draining" && st.Of(1).Open["hijacked"] == 1
	})
	require.NoError(t, exchange(s.ctx(), conn, "after"))
	again, generation, err := dialWebSocket(s.ctx(), addr)
	require.NoError(t, err)
	defer again.CloseNow()
	require.EqualValues(t, 2, generation)
	require.NoError(t, exchange(s.ctx(), again, "again"))
	require.NoError(t, conn.Close(websocket.StatusNormalClosure, ""))
	s.exits(first, 0, "generation 1")
}
