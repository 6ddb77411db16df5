package integration

import (
	"bufio"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// keptConn is a connection that a client keeps open.
type keptConn struct {
	net.Conn
	answers *bufio.Reader
}

func (s *service) keep(addr string) *keptConn {
	s.t.Helper()
	c, err := (&net.Dialer{}).DialContext(s.ctx(), "tcp", addr)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { c.Close() })
	return &keptConn{c, bufio.NewReader(c)}
}

// say sends a request and returns the answer and its body.
func (k *keptConn) say(t *testing.T) (*http.Response, string) {
	t.Helper()
	require.NoError(t, k.SetDeadline(time.Now().Add(patience)))
	_, err := fmt.Fprint(k, "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nkept")
	require.NoError(t, err)
	resp, err := http.ReadResponse(k.answers, nil)
	require.NoError(t, err)
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(body)
}

// ask returns which generation of the server answers, and whether it says that this was the connection's last answer.
func (k *keptConn) ask(t *testing.T) (generation string, last bool) {
	t.Helper()
	resp, body := k.say(t)
	require.Equal(t, "kept", body)
	return resp.Header.Get("X-Handoff-Generation"), resp.Close
}

// movement is what the status of a generation says of moving.
type movement struct {
	Generation uint64 `json:"generation"`
	Moved      uint64 `json:"moved"`
	Adopted    uint64 `json:"adopted"`
	MoveOff    string `json:"move_off"`
}

// movement is asked for through handoffctl, as an operator would.
func (s *service) movement(generation uint64) movement {
	s.t.Helper()
	var st struct {
		Generations []movement `json:"generations"`
	}
	r := s.must("status", "--json")
	require.NoError(s.t, json.Unmarshal([]byte(r.Stdout), &st), "%s", r.Stdout)
	for _, g := range st.Generations {
		if g.Generation == generation {
			return g
		}
	}
	require.Fail(s.t, "no such generation", "%d in %s", generation, r.Stdout)
	return movement{}
}

// A connection that is idle when the version changes goes on with the next one, and the operator sees that.
func TestIdleConnectionMoves(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	c := s.keep(s.address(web))
	generation, last := c.ask(t)
	require.Equal(t, "1", generation)
	require.False(t, last)
	require.Empty(t, s.movement(1).MoveOff)

	second := s.serving("v2")
	s.exits(first, 0, "its only connection has moved")
	require.EqualValues(t, 1, lastRecord(t, first)["moved"])
	generation, last = c.ask(t)
	require.Equal(t, "2", generation)
	require.False(t, last)
	// It is counted just after it is served.
	require.Eventually(t, func() bool { return s.movement(2) == movement{Generation: 2, Adopted: 1} }, patience, waitTick)
	require.Regexp(t, `(?m)^last handoff: 1 to 2 released .* ago; 1 connection moved to 2$`, s.must("status").Stdout)

	require.NoError(t, c.Close())
	s.must("stop")
	s.exits(second, 0, "stopped")
	require.EqualValues(t, 0, lastRecord(t, second)["moved"])
}

// A rollback gives back what the next version had accepted, and the old one's connections have never left it.
func TestIdleConnectionMovesBack(t *testing.T) {
	s := newService(t)
	s.serving("v1", "--probation", "5m")
	addr := s.address(web)
	early := s.keep(addr)
	early.ask(t)
	second := s.serving("v2")
	late := s.keep(addr)
	generation, _ := late.ask(t)
	require.Equal(t, "2", generation)
	s.must("rollback")
	s.exits(second, 7, "taken back from")
	require.EqualValues(t, 1, lastRecord(t, second)["moved"])
	for _, c := range []*keptConn{early, late} {
		generation, last := c.ask(t)
		require.Equal(t, "1", generation)
		require.False(t, last)
	}
	require.Eventually(t, func() bool { return s.movement(1) == movement{Generation: 1, Adopted: 1} }, patience, waitTick)
}

// Where either version has --move-idle=false, the connection stays with the old one, which answers on it once more and
// says that it was the last time.
func TestIdleConnectionsThatMayNotMove(t *testing.T) {
	for _, tt := range []struct {
		name            string
		first, second   []string
		firstOff        bool
		tellsItsClients bool // from the first answer on: it need not ask anybody
	}{
		{name: "the old one gives none", first: []string{"--move-idle=false"}, firstOff: true, tellsItsClients: true},
		{name: "the next one takes none", second: []string{"--move-idle=false"}},
		{name: "neither", first: []string{"--move-idle=false"}, second: []string{"--move-idle=false"}, firstOff: true, tellsItsClients: true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(t)
			first := s.serving("v1", tt.first...)
			c := s.keep(s.address(web))
			generation, last := c.ask(t)
			require.Equal(t, "1", generation)
			require.False(t, last)
			off := s.movement(1).MoveOff
			require.Equal(t, tt.firstOff, off != "", "%q", off)

			second := s.serving("v2", tt.second...)
			s.waitStatus("it drains", func(st proc.Status) bool { return st.Of(1).State == "draining" })
			require.Equal(t, len(tt.second) > 0, s.movement(2).MoveOff != "")
			if tt.firstOff {
				require.Contains(t, s.must("status").Stdout, "\ngeneration 1 does not move idle connections: "+off+"\n")
			}
			generation, last = c.ask(t)
			for n := 1; !last; n++ { // the next version has not said yet that it takes none
				require.False(t, tt.tellsItsClients, "%d answers", n)
				require.Equal(t, "1", generation)
				generation, last = c.ask(t)
			}
			require.Equal(t, "1", generation)
			s.exits(first, 0, "its only connection has ended")
			require.EqualValues(t, 0, lastRecord(t, first)["moved"])
			require.Zero(t, s.movement(2).Adopted)
			s.must("stop")
			s.exits(second, 0, "stopped")
		})
	}
}
