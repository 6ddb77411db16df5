package integration

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// A reverse proxy goes through twenty versions under 1,000 POST/s. Every one is answered, and reaches the backend once.
func TestProxySurvivesTwentyHandoffs(t *testing.T) {
	const handoffs = 20
	s := newService(t)
	if raceEnabled { // with it two processors are not enough for this rate
		plain, err := proc.Build(t.Context(), t.TempDir(), false)
		require.NoError(t, err)
		s.binary = plain.Server
	}
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
	rep := run.Stop()
	t.Logf("%s", rep)
	require.Equal(t, rep.Answered, b.posts.Load(), "each POST reaches the backend once, and none that was refused by GOAWAY does")
	s.noLoss(run)
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

// What a backend has not answered by the drain's deadline is answered by the proxy, and a WebSocket is cut and counted.
func TestProxyAtTheDrainDeadline(t *testing.T) {
	s := newService(t)
	b := newBackend(t)
	first := s.serving("v1", "--proxy", b.url, "--drain-timeout", "500ms")
	addr := s.address(web)
	conn, _, err := dialWebSocket(s.ctx(), addr)
	require.NoError(t, err)
	defer conn.CloseNow()
	require.NoError(t, exchange(s.ctx(), conn, "before"))
	unanswered := make(chan error, 1)
	go func() {
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(httptest.NewRequestWithContext(s.ctx(), "POST", "http://"+addr+"/never", nil))
		if err == nil {
			resp.Body.Close()
			err = errors.New(resp.Status)
		}
		unanswered <- err
	}()
	s.waitStatus("both are under way", func(st proc.Status) bool { return st.Of(1).Open["active"] == 1 && st.Of(1).Open["hijacked"] == 1 })
	s.upgrade("v2", []string{"--wait=released"}, "--proxy", b.url)
	require.EqualError(t, <-unanswered, "503 Service Unavailable")
	_, _, err = conn.Read(s.ctx())
	require.Equal(t, websocket.StatusCode(-1), websocket.CloseStatus(err), "no goodbye: %v", err)
	s.exits(first, 6, "generation 1, which says that a connection was cut")
	line, err := first.WaitLog(s.ctx(), func(l proc.Line) bool { return l.Field("msg") == "drained" })
	require.NoError(t, err)
	require.Equal(t, map[string]any{"hijacked": 1.0}, line.Fields["cut"])
}
