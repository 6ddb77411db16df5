package integration

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// A reverse proxy goes through twenty versions under 1,000 POST/s. Every one is answered, and reaches the backend once.
func TestProxySurvivesTwentyHandoffs(t *testing.T) {
	const handoffs = 20
	s := newService(t)
	b := newBackend(t)
	first := s.serving("v1", "--proxy", b.url)
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 50, Rate: 700},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 100},
		load.Stream{Kind: load.H2C, Address: addr, Conns: 4, Rate: 200},
	)
	s.answers(run, 1, 500)
	var chain []*proc.Adopted
	for g := uint64(2); g < 2+handoffs; g++ {
		_, successor := s.upgrade(fmt.Sprintf("v%d", g), []string{"--wait=released"}, "--proxy", b.url)
		chain = append(chain, successor)
		s.answers(run, g, 300)
	}
	s.exits(first, 0, "generation 1")
	for i, old := range chain[:handoffs-1] {
		s.exits(old, 0, fmt.Sprintf("generation %d", i+2))
	}
	rep := s.noLoss(run)
	t.Logf("%s", rep)
	require.Equal(t, rep.Answered, b.posts.Load(), "each POST reaches the backend once, and none that was refused by GOAWAY does")
}

// stream is one answer that is read as it comes.
type stream struct {
	generation string
	resp       *http.Response
	lines      *bufio.Reader
}

func (s *service) stream(addr, path, accept string) *stream {
	s.t.Helper()
	req, err := http.NewRequestWithContext(s.ctx(), http.MethodGet, "http://"+addr+path, nil)
	require.NoError(s.t, err)
	req.Header.Set("Accept", accept)
	resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { resp.Body.Close() })
	require.Equal(s.t, http.StatusOK, resp.StatusCode)
	return &stream{generation: resp.Header.Get("X-Handoff-Generation"), resp: resp, lines: bufio.NewReader(resp.Body)}
}

// event reads one event.
func (st *stream) event(t *testing.T) string {
	t.Helper()
	line, err := st.lines.ReadString('\n')
	require.NoError(t, err)
	blank, err := st.lines.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "\n", blank)
	return strings.TrimSpace(line)
}

// Events pass through a proxy as they come. A browser's stream ends between two of them at a handoff, and goes on at the
// next generation; any other stream is finished by the old one, for it may have an end that counts.
func TestProxiedEvents(t *testing.T) {
	s := newService(t)
	b := newBackend(t)
	say := func(text string) {
		// Who has gone must not take what is said.
		require.Eventually(t, func() bool { return b.readers.Load() == 1 }, patience, waitTick)
		select {
		case b.say <- text:
		case <-s.ctx().Done():
			t.Fatal("nobody reads the events")
		}
	}
	first := s.serving("v1", "--proxy", b.url)
	addr := s.address(web)

	browser := s.stream(addr, "/events", "text/event-stream")
	require.Equal(t, "1", browser.generation)
	say("one")
	require.Equal(t, "data: one", browser.event(t))
	_, second := s.upgrade("v2", []string{"--wait=released"}, "--proxy", b.url)
	rest, err := io.ReadAll(browser.lines)
	require.NoError(t, err, "it ends as an answer ends, and is not cut")
	require.Empty(t, rest)
	s.exits(first, 0, "generation 1")

	other := s.stream(addr, "/events", "*/*")
	require.Equal(t, "2", other.generation)
	s.upgrade("v3", []string{"--wait=released"}, "--proxy", b.url)
	s.waitStatus("2 drains", func(st proc.Status) bool { return st.Of(2).State == "draining" })
	say("two")
	require.Equal(t, "data: two", other.event(t))
	other.resp.Body.Close()
	s.exits(second, 0, "generation 2")
}
