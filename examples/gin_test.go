package examples

import (
	"net/http"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// A request is under way while the version changes from pong to pong1: it gets the old answer, the next one gets the
// new, and no request fails.
func TestGin(t *testing.T) {
	s := newService(t, "GIN_MODE=release")
	pong, pong1 := s.build("gin"), s.build("gin", "-ldflags", "-X main.answer=pong1")

	old := s.start(pong)
	s.serves(old)
	addr := s.address()
	first := s.ping(addr)
	s.waitStatus("the first request is under way", func(st proc.Status) bool { return st.Of(1).Open["active"] == 1 })

	// Others keep coming while the versions change.
	crowd := s.crowd(addr)
	next := s.start(pong1)
	s.serves(next)
	second := s.ping(addr)
	require.False(t, first.ended(), "the first request is to be under way still when the second is sent")
	answers := crowd.stop()

	require.Equal(t, answer{status: http.StatusOK, body: "pong"}, first.wait(t))
	require.Equal(t, answer{status: http.StatusOK, body: "pong1"}, second.wait(t))
	require.NotEmpty(t, answers)
	for _, a := range answers {
		require.NoError(t, a.err)
		require.Equal(t, http.StatusOK, a.status)
		require.Contains(t, []string{"pong", "pong1"}, a.body)
	}
	s.exits(old)
	s.stop(next)
}

// pending is a request under way.
type pending chan answer

// ping sends a request to the gin example.
func (s *service) ping(addr string) pending {
	p, ctx := make(pending, 1), s.ctx()
	go func() { p <- request(ctx, addr, http.MethodGet, "/ping") }()
	return p
}

func (p pending) ended() bool { return len(p) > 0 }

func (p pending) wait(t *testing.T) answer {
	t.Helper()
	select {
	case a := <-p:
		return a
	case <-time.After(patience):
		require.Fail(t, "no answer")
		return answer{}
	}
}

// crowd sends requests all the time.
type crowd struct {
	end     chan struct{}
	sending sync.WaitGroup
	sent    []pending
}

// crowd begins to send a request every 20 ms, each over a connection of its own.
func (s *service) crowd(addr string) *crowd {
	c := &crowd{end: make(chan struct{})}
	c.sending.Go(func() {
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			c.sent = append(c.sent, s.ping(addr))
			select {
			case <-tick.C:
			case <-c.end:
				return
			}
		}
	})
	return c
}

// stop sends no more and returns what became of those that were sent.
func (c *crowd) stop() (answers []answer) {
	close(c.end)
	c.sending.Wait()
	for _, p := range c.sent {
		answers = append(answers, <-p) // bounded by the context of the request
	}
	return answers
}
