package handoff

import (
	"context"
	"fmt"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// tells answers like a process that ends: what it was asked first, then as many
// questions as there are states, and then its last words.
func tells(states ...string) func(*net.UnixConn, string) {
	return func(c *net.UnixConn, _ string) {
		b := make([]byte, maxFrame)
		_, _ = c.Write([]byte(`{"type":"ok","generation":2}`))
		for i, state := range states {
			n, err := c.Read(b)
			if err != nil || !strings.Contains(string(b[:n]), `"status"`) {
				return
			}
			fmt.Fprintf(c, `{"type":"status","status":{"schema":1,"instance":"a","revision":%d,"generation":2,"generations":[{"generation":2,"state":%q}]}}`, i+1, state)
		}
		_, _ = c.Write([]byte(`{"type":"error","code":"busy"}`))
		_, _ = c.Write([]byte(`{"type":"bye","cut":{"h2":3}}`))
	}
}

func TestClientWaitsForTheEnd(t *testing.T) {
	of := func(n uint64, state string) string {
		return fmt.Sprintf(`{"type":"status","status":{"schema":1,"instance":"b","revision":%d,"generation":3,"generations":[{"generation":%d,"state":%q},{"generation":3,"state":"serving"}]}}`, n, n, state)
	}
	const alone = `{"type":"status","status":{"schema":1,"instance":"b","revision":9,"generation":3,"generations":[{"generation":3,"state":"serving"}]}}`
	tests := []struct {
		name   string
		script operatorScript
		call   func(context.Context, *Client) (Answer, error)
		want   Answer
		seen   string
		verb   string // which of the questions is the verb
	}{
		{
			name: "drain", script: operatorScript{tells("serving", "draining")}, call: func(ctx context.Context, c *Client) (Answer, error) { return c.DrainAndWait(ctx) },
			want: Answer{Generation: 2, Cut: map[string]int{"h2": 3}}, seen: "serving draining", verb: `{"type":"drain"}`,
		},
		{
			name: "stop", script: operatorScript{tells("draining")}, call: func(ctx context.Context, c *Client) (Answer, error) { return c.StopAndWait(ctx) },
			want: Answer{Generation: 2, Cut: map[string]int{"h2": 3}}, seen: "draining", verb: `{"type":"stop"}`,
		},
		{
			name: "the generation that answers", script: operatorScript{utter(someStatus), tells("draining"), utter(alone)},
			call: func(ctx context.Context, c *Client) (Answer, error) { return c.StopGenerationAndWait(ctx, 2) },
			want: Answer{Generation: 2, Cut: map[string]int{"h2": 3}}, seen: "draining", verb: `{"generation":2,"type":"stop"}`,
		},
		{
			name: "an older one", script: operatorScript{utter(of(1, "draining")), utter(`{"type":"ok","generation":1}`), utter(of(1, "draining")), utter(alone)},
			call: func(ctx context.Context, c *Client) (Answer, error) { return c.StopGenerationAndWait(ctx, 1) },
			want: Answer{Generation: 1}, seen: "draining", verb: `{"generation":1,"type":"stop"}`,
		},
		{
			// What answers is not the one any more that was to be stopped: the
			// connection's end is not that one's.
			name: "one that handed over just then", script: operatorScript{utter(someStatus), func(c *net.UnixConn, _ string) {
				_, _ = c.Write([]byte(`{"type":"ok","generation":2}`))
				_, _ = c.Read(make([]byte, maxFrame))
				_, _ = c.Write([]byte(of(2, "draining")))
				_, _ = c.Read(make([]byte, maxFrame)) // returns when the client hangs up
			}, utter(of(2, "draining")), utter(alone)},
			call: func(ctx context.Context, c *Client) (Answer, error) { return c.StopGenerationAndWait(ctx, 2) },
			want: Answer{Generation: 2}, seen: "draining", verb: `{"generation":2,"type":"stop"}`,
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.CheckExact(t)
			path, asked := serveScript(t, tt.script)
			var seen []string
			c := &Client{Socket: path, Progress: func(st *Status) { seen = append(seen, st.Generations[0].State) }}
			got, err := tt.call(bounded(t, 10*time.Second), c)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			require.Equal(t, tt.seen, strings.Join(seen, " "))
			var all []string
			for _, q := range asked() {
				all = append(all, trimZero(t, q))
			}
			require.Contains(t, all, tt.verb)
		})
	}
}

// TestClientWaitsInVain: the answer is returned although the end does not come.
func TestClientWaitsInVain(t *testing.T) {
	leak.CheckExact(t)
	ctx, cancel := context.WithCancel(bounded(t, 10*time.Second))
	path, _ := serveScript(t, operatorScript{func(c *net.UnixConn, _ string) {
		_, _ = c.Write([]byte(`{"type":"ok","generation":2}`))
		_, _ = c.Read(make([]byte, maxFrame)) // how it gets on: so the answer was read
		cancel()
		_, _ = c.Read(make([]byte, maxFrame)) // returns when the client hangs up
	}})
	got, err := (&Client{Socket: path, Progress: func(*Status) {}}).DrainAndWait(ctx)
	require.ErrorIs(t, err, context.Canceled)
	require.Equal(t, Answer{Generation: 2}, got)
}
