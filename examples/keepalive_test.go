package examples

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// kept is a connection that is kept open.
type kept struct {
	net.Conn
	answers *bufio.Reader
}

func dial(ctx context.Context, t *testing.T, addr string) *kept {
	t.Helper()
	c, err := (&net.Dialer{}).DialContext(ctx, "tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	return &kept{c, bufio.NewReader(c)}
}

// ask sends a request and returns the answer, which must not be the connection's last.
func (k *kept) ask(t *testing.T, method, path string) (a answer, generation string) {
	t.Helper()
	require.NoError(t, k.SetDeadline(time.Now().Add(patience)))
	_, err := fmt.Fprintf(k, "%s %s HTTP/1.1\r\nHost: test\r\nContent-Length: 0\r\n\r\n", method, path)
	require.NoError(t, err)
	resp, err := http.ReadResponse(k.answers, nil)
	require.NoError(t, err, "the connection is gone")
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.False(t, resp.Close, "the server says that it closes the connection")
	return answer{status: resp.StatusCode, body: string(body)}, resp.Header.Get("X-Handoff-Generation")
}

// A connection that is kept open goes on with the next version, whatever the handler is made with: it is the same TCP
// connection, no answer announces its end, and the next request is answered by the next version.
func TestKeepAliveConnections(t *testing.T) {
	tests := []struct {
		*service
		example     string
		flags       []string // of the next version
		method      string
		first, next string // paths
		old, new    answer
		generations bool // are in the answers

		conn         *kept
		before, then *proc.Process
	}{
		// Its ping takes 5 s, what it does not know takes no time.
		{
			example: "gin", flags: []string{"-ldflags", "-X main.answer=pong1"}, method: http.MethodGet, first: "/nothing", next: "/ping",
			old: answer{status: http.StatusNotFound, body: "404 page not found"}, new: answer{status: http.StatusOK, body: "pong1"},
		},
		{
			example: "chi", flags: []string{"-ldflags", "-X main.version=v2"}, method: http.MethodGet, first: "/version", next: "/version",
			old: answer{status: http.StatusOK, body: "v1"}, new: answer{status: http.StatusOK, body: "v2"},
		},
		{
			example: "echo", flags: []string{"-ldflags", "-X main.version=v2"}, method: http.MethodGet, first: "/version", next: "/version",
			old: answer{status: http.StatusOK, body: "v1"}, new: answer{status: http.StatusOK, body: "v2"},
		},
		{
			example: "nethttp", method: http.MethodPost, first: "/echo", next: "/echo",
			old: answer{status: http.StatusOK}, new: answer{status: http.StatusOK}, generations: true,
		},
	}
	// All at the same time, because each has a probation of 5 s.
	for i := range tests {
		tests[i].service = newService(t, "GIN_MODE=release")
	}
	for i := range tests {
		tt := &tests[i]
		tt.before = tt.start(tt.build(tt.example))
		tt.serves(tt.before)
		tt.conn = dial(tt.ctx(), t, tt.address())
		a, generation := tt.conn.ask(t, tt.method, tt.first)
		require.Equal(t, tt.old, a, tt.example)
		if tt.generations {
			require.Equal(t, "1", generation, tt.example)
		}
	}
	for i := range tests {
		tt := &tests[i]
		tt.then = tt.start(tt.build(tt.example, tt.flags...))
		tt.serves(tt.then)
	}
	for i := range tests {
		tt := &tests[i]
		tt.exits(tt.before) // which has no connection left then
		a, generation := tt.conn.ask(t, tt.method, tt.next)
		require.Equal(t, tt.new, a, tt.example)
		if tt.generations {
			require.Equal(t, "2", generation, tt.example)
		}
		require.NoError(t, tt.conn.Close())
		tt.stop(tt.then)
	}
}
