package integration

import (
	"net"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

func message(text string) func(proc.Line) bool {
	return func(l proc.Line) bool { return l.Field("msg") == text }
}

// A standby can be tried out before it serves; then its private address is gone.
func TestPreview(t *testing.T) {
	s := newService(t)
	first := s.serving("v1", "--preview", "127.0.0.1:0")
	_, err := first.WaitLog(s.ctx(), message("no preview: nobody serves yet, so this process will at once"))
	require.NoError(t, err)
	addr := s.address(web)
	second := s.server("v2", "--takeover", "standby", "--preview", "127.0.0.1:0")
	s.waitStatus("a standby", func(st proc.Status) bool { return st.In("standby").PID == second.PID() })
	line, err := second.WaitLog(s.ctx(), message("preview"))
	require.NoError(t, err, "the address is there once it is a standby")
	private := line.Field("address")
	resp, err := http.DefaultTransport.RoundTrip(httpGet(s.ctx(), t, "http://"+private+"/slow?for=0s"))
	require.NoError(t, err)
	resp.Body.Close()
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "2", resp.Header.Get("X-Handoff-Generation"))
	require.Equal(t, "1", resp.Header.Get("X-Handoff-Preview"))
	s.answeredBy(addr, 1)
	require.NotContains(t, s.must("sockets").Stdout, private, "it is not handed over")

	conn, err := net.Dial("tcp", private)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, ask(conn, "/slow?for=1s"))
	s.must("handover")
	s.exits(first, 0, "handed over")
	s.answeredBy(addr, 2)
	under := readAnswer(s.ctx(), conn)
	require.NoError(t, under.err)
	require.Equal(t, http.StatusOK, under.status)
	_, err = second.WaitLog(s.ctx(), message("preview closed"))
	require.NoError(t, err)
	require.Error(t, get(s.ctx(), "tcp", private, "/").err)
}

// A private address that somebody has is an error before the successor is ready.
func TestPreviewAddressInUse(t *testing.T) {
	s := newService(t)
	s.serving("v1")
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	second := s.server("v2", "--preview", ln.Addr().String())
	s.exits(second, 1, "the address is in use")
	require.Contains(t, lastRecord(t, second)["error"], "--preview: listen tcp")
	s.answeredBy(s.address(web), 1)
	require.EqualValues(t, 1, s.status().Serving().Generation)
}
