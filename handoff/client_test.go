package handoff

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// operatorScript answers one connection after the other, each by the next of
// its steps; the last one is repeated.
type operatorScript []func(c *net.UnixConn, asked string)

func utter(s string) func(*net.UnixConn, string) {
	return func(c *net.UnixConn, _ string) { _, _ = c.Write([]byte(s)) }
}

func hangUp(*net.UnixConn, string) {}

// serveScript listens at a new path until the test ends, and returns it with
// what was asked.
func serveScript(t *testing.T, script operatorScript) (path string, asked func() []string) {
	t.Helper()
	path = filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	require.NoError(t, err)
	heard := make(chan string, 1000)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := 0; ; i++ {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			b := make([]byte, maxFrame)
			n, _ := c.Read(b)
			heard <- string(b[:n])
			script[min(i, len(script)-1)](c, string(b[:n]))
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	return path, func() (all []string) {
		for len(heard) > 0 {
			all = append(all, <-heard)
		}
		return all
	}
}

const someStatus = `{"type":"status","status":{"schema":1,"instance":"a","revision":7,"generation":2,` +
	`"generations":[{"generation":2,"state":"serving","age_seconds":1.5,"new_field":1}]}}`

func bounded(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

func TestClientAsks(t *testing.T) {
	tests := []struct {
		name  string
		call  func(context.Context, *Client) (any, error)
		reply string
		asks  string
		want  any
	}{
		{
			name:  "handover",
			call:  func(ctx context.Context, c *Client) (any, error) { return c.Handover(ctx, "id") },
			reply: `{"type":"ok","already":true,"generation":3,"request":"id","text":"done"}`,
			asks:  `{"type":"handover","request":"id"}`,
			want:  Answer{Already: true, Generation: 3, Request: "id", Text: "done"},
		},
		{
			name:  "rollback",
			call:  func(ctx context.Context, c *Client) (any, error) { return c.Rollback(ctx) },
			reply: `{"type":"ok"}`, asks: `{"type":"rollback"}`, want: Answer{},
		},
		{
			name:  "stop",
			call:  func(ctx context.Context, c *Client) (any, error) { return c.Stop(ctx) },
			reply: `{"type":"ok","generation":1}`, asks: `{"type":"stop"}`, want: Answer{Generation: 1},
		},
		{
			name:  "stop of another generation",
			call:  func(ctx context.Context, c *Client) (any, error) { return c.StopGeneration(ctx, 3) },
			reply: `{"type":"ok","generation":3}`, asks: `{"type":"stop","generation":3}`, want: Answer{Generation: 3},
		},
		{
			name:  "drain",
			call:  func(ctx context.Context, c *Client) (any, error) { return c.Drain(ctx) },
			reply: `{"type":"ok","generation":1}`, asks: `{"type":"drain"}`, want: Answer{Generation: 1},
		},
		{
			name:  "withdraw",
			call:  func(ctx context.Context, c *Client) (any, error) { return c.Withdraw(ctx, "id") },
			reply: `{"type":"ok"}`, asks: `{"type":"withdraw","request":"id"}`, want: Answer{},
		},
		{
			name: "status",
			call: func(ctx context.Context, c *Client) (any, error) {
				st, err := c.Status(ctx)
				if err != nil {
					return nil, err
				}
				return st.Generations, nil
			},
			reply: someStatus, asks: `{"type":"status"}`,
			want: []GenerationStatus{{Generation: 2, State: "serving", AgeSeconds: 1.5}},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.CheckExact(t)
			path, asked := serveScript(t, operatorScript{utter(tt.reply)})
			got, err := tt.call(bounded(t, 10*time.Second), &Client{Socket: path})
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			all := asked()
			require.Len(t, all, 1)
			require.JSONEq(t, trimZero(t, tt.asks), trimZero(t, all[0]))
		})
	}
}

// trimZero drops what stands for nothing, such as the mode of a frame that has none.
func trimZero(t *testing.T, frame string) string {
	t.Helper()
	var m map[string]any
	require.NoError(t, json.Unmarshal([]byte(frame), &m))
	delete(m, "mode")
	b, err := json.Marshal(m)
	require.NoError(t, err)
	return string(b)
}

func TestClientErrors(t *testing.T) {
	status := func(ctx context.Context, c *Client) error { _, err := c.Status(ctx); return err }
	handover := func(ctx context.Context, c *Client) error { _, err := c.Handover(ctx, ""); return err }
	again := func(ctx context.Context, c *Client) error { _, err := c.Handover(ctx, "id"); return err }
	no := `{"type":"error","code":"not_now","text":"no","hint":"later"}`
	busy := utter(`{"type":"error","code":"busy","text":"busy"}`)
	ok := utter(`{"type":"ok"}`)
	tests := []struct {
		name   string
		call   func(context.Context, *Client) error
		script operatorScript
		time   time.Duration
		want   error // nil: none
		asked  int   // 0: does not matter
	}{
		{name: "refused", call: handover, script: operatorScript{utter(no)}, want: &RemoteError{Code: "not_now", Text: "no", Hint: "later"}, asked: 1},
		{name: "busy is asked again", call: handover, script: operatorScript{busy, busy, ok}, asked: 3},
		{name: "busy for ever", call: handover, script: operatorScript{busy}, time: time.Second, want: &RemoteError{Code: "busy", Text: "busy"}},
		{name: "a question is repeated", call: status, script: operatorScript{hangUp, hangUp, utter(someStatus)}, asked: 3},
		{name: "a verb is not", call: handover, script: operatorScript{hangUp, ok}, want: ErrNoAnswer, asked: 1},
		{name: "a verb with an id is", call: again, script: operatorScript{hangUp, ok}, asked: 2},
		{name: "never an answer", call: status, script: operatorScript{hangUp}, time: time.Second, want: ErrNoAnswer},
		{name: "not JSON", call: status, script: operatorScript{utter("HTTP/1.1 400 Bad Request")}, want: ErrBadAnswer, asked: 1},
		{name: "of another type", call: handover, script: operatorScript{utter(someStatus)}, want: ErrBadAnswer, asked: 1},
		{name: "of an unknown type", call: handover, script: operatorScript{utter(`{"type":"yes"}`)}, want: ErrBadAnswer, asked: 1},
		{name: "without a status", call: status, script: operatorScript{utter(`{"type":"status"}`)}, want: ErrBadAnswer, asked: 1},
		{name: "of a newer schema", call: status, script: operatorScript{utter(`{"type":"status","status":{"schema":2}}`)}, want: ErrBadAnswer, asked: 1},
		{name: "too long", call: status, script: operatorScript{utter(`{"type":"status","text":"` + strings.Repeat("x", maxFrame) + `"}`)}, want: ErrBadAnswer, asked: 1},
		{
			name: "silent", call: status, time: time.Second, want: context.DeadlineExceeded, asked: 1,
			script: operatorScript{func(c *net.UnixConn, _ string) { _, _ = c.Read(make([]byte, 1)) }},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.CheckExact(t)
			path, asked := serveScript(t, tt.script)
			if tt.time == 0 {
				tt.time = 10 * time.Second
			}
			err := tt.call(bounded(t, tt.time), &Client{Socket: path})
			var no *RemoteError
			switch {
			case tt.want == nil:
				require.NoError(t, err)
			case errors.As(tt.want, &no):
				var got *RemoteError
				require.ErrorAs(t, err, &got)
				require.Equal(t, no, got)
			default:
				require.ErrorIs(t, err, tt.want)
			}
			if err != nil {
				var op *OpError
				require.ErrorAs(t, err, &op)
				require.Equal(t, path, op.Path)
			}
			if n := len(asked()); tt.asked != 0 {
				require.Equal(t, tt.asked, n)
			}
		})
	}
}

func TestClientDial(t *testing.T) {
	tests := []struct {
		name string
		make func(t *testing.T, path string)
		long bool
		want error
	}{
		{name: "missing", make: func(*testing.T, string) {}, want: ErrNobody},
		{name: "too long", long: true, make: func(*testing.T, string) {}, want: ErrPathTooLong},
		{
			name: "stale", want: ErrNobody,
			make: func(t *testing.T, path string) {
				ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
				require.NoError(t, err)
				ln.SetUnlinkOnClose(false)
				require.NoError(t, ln.Close())
			},
		},
		{
			name: "stream", want: ErrNotHandoff,
			make: func(t *testing.T, path string) {
				ln, err := net.Listen("unix", path)
				require.NoError(t, err)
				t.Cleanup(func() { ln.Close() })
			},
		},
		{
			name: "file", want: ErrNotSocket,
			make: func(t *testing.T, path string) { require.NoError(t, os.WriteFile(path, nil, 0o600)) },
		},
		{
			name: "directory", want: ErrNotSocket,
			make: func(t *testing.T, path string) { require.NoError(t, os.Mkdir(path, 0o700)) },
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.CheckExact(t)
			path := filepath.Join(t.TempDir(), "s")
			if tt.long {
				path = "/tmp/" + strings.Repeat("x", 103)
			}
			tt.make(t, path)
			_, err := (&Client{Socket: path}).Status(bounded(t, 10*time.Second))
			require.ErrorIs(t, err, tt.want)
		})
	}
}

// TestClientReadsLastWord: who refuses says so and closes without reading what
// was asked, which makes the kernel report the write or the first read as reset.
func TestClientReadsLastWord(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	require.NoError(t, err)
	defer ln.Close()
	conn, err := dialOperator(t.Context(), path, allow{})
	require.NoError(t, err)
	defer conn.Close()
	c, err := ln.AcceptUnix()
	require.NoError(t, err)
	_, err = c.Write([]byte(`{"type":"error","code":"permission","text":"not you"}`))
	require.NoError(t, err)
	require.NoError(t, c.Close())
	b, err := conn.exchange(t.Context(), []byte(`{"type":"status"}`))
	require.NoError(t, err)
	_, err = decodeAnswer(b, msgStatus)
	require.Equal(t, &RemoteError{Code: CodePermission, Text: "not you"}, err)
}

// TestClientClosesDescriptors: an answer that carries descriptors leaves none here.
func TestClientClosesDescriptors(t *testing.T) {
	leak.CheckExact(t)
	path, _ := serveScript(t, operatorScript{func(c *net.UnixConn, _ string) {
		_, _, _ = c.WriteMsgUnix([]byte(someStatus), syscall.UnixRights(0, 1, 2), nil)
	}})
	_, err := (&Client{Socket: path}).Status(bounded(t, 10*time.Second))
	require.NoError(t, err)
}

func TestClientCancel(t *testing.T) {
	leak.CheckExact(t)
	ctx, cancel := context.WithCancel(t.Context())
	path, _ := serveScript(t, operatorScript{func(c *net.UnixConn, _ string) {
		cancel()
		_, _ = c.Read(make([]byte, 1))
	}})
	_, err := (&Client{Socket: path}).Status(ctx)
	require.ErrorIs(t, err, context.Canceled)
}

func TestClientSockets(t *testing.T) {
	leak.CheckExact(t)
	page := func(c *net.UnixConn, asked string) {
		var q struct{ Offset int }
		_ = json.Unmarshal([]byte(asked), &q)
		list := make([]SocketInfo, min(64, 130-q.Offset))
		for i := range list {
			list[i] = SocketInfo{Index: q.Offset + i, Name: fmt.Sprint(q.Offset + i)}
		}
		b, _ := json.Marshal(map[string]any{"type": "socket_list", "total": 130, "list": list})
		_, _ = c.Write(b)
	}
	path, asked := serveScript(t, operatorScript{page})
	all, err := (&Client{Socket: path}).Sockets(bounded(t, 10*time.Second))
	require.NoError(t, err)
	require.Len(t, all, 130)
	require.Equal(t, 129, all[129].Index)
	require.Len(t, asked(), 3)

	path, _ = serveScript(t, operatorScript{utter(`{"type":"socket_list","total":130}`)})
	_, err = (&Client{Socket: path}).Sockets(bounded(t, 10*time.Second))
	require.ErrorIs(t, err, ErrBadAnswer, "a list that never ends")
}

func TestClientWatch(t *testing.T) {
	leak.CheckExact(t)
	same := utter(someStatus)
	other := utter(strings.Replace(someStatus, `"a"`, `"b"`, 1))
	path, asked := serveScript(t, operatorScript{same, hangUp, same, other})
	c := &Client{Socket: path}
	ctx := bounded(t, 20*time.Second)
	first, err := c.Watch(ctx, nil)
	require.NoError(t, err)
	require.Equal(t, uint64(7), first.Revision)
	// The process ends in the middle, comes back unchanged, and is replaced by one
	// whose revision happens to be the same.
	next, err := c.Watch(ctx, first)
	require.NoError(t, err)
	require.Equal(t, "b", next.Instance)
	questions := asked()
	require.Len(t, questions, 4)
	var q frame
	require.NoError(t, json.Unmarshal([]byte(questions[3]), &q))
	require.Equal(t, &revision{Instance: "a", Revision: 7}, q.After)
	require.InDelta(t, 10_000, q.WaitMS, 10)
}

func TestClientWatchEnds(t *testing.T) {
	leak.CheckExact(t)
	path, _ := serveScript(t, operatorScript{utter(someStatus)})
	after := &Status{Instance: "a", Revision: 7}
	_, err := (&Client{Socket: path}).Watch(bounded(t, 50*time.Millisecond), after)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = (&Client{Socket: path + "x"}).Watch(bounded(t, 10*time.Second), after)
	require.ErrorIs(t, err, ErrNobody)
}

// FuzzDecodeAnswer: whatever a hostile process answers is either refused, or has
// all that its type promises.
func FuzzDecodeAnswer(f *testing.F) {
	for _, s := range []string{
		someStatus, `{"type":"ok","generation":3}`, `{"type":"error","code":"busy"}`, `{"type":"socket_list","total":1,"list":[{"index":0}]}`,
		`{"type":"status"}`, `{"type":"status","status":null}`, `{"type":"socket_list","total":-1}`, `{}`, `null`, `[]`, "", "\x00",
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, want := range []msgType{msgStatus, msgSocketList, msgOK} {
			got, err := decodeAnswer(b, want)
			var no *RemoteError
			switch {
			case err == nil:
				if got.Type != want || want == msgStatus && (got.Status == nil || got.Status.Schema != StatusSchema) || got.Total < 0 {
					t.Errorf("%q was taken for an answer of type %s", b, want)
				}
			case got != nil:
				t.Errorf("%q: both an answer and %v", b, err)
			case errors.As(err, &no):
				if no.Error() == "" {
					t.Errorf("%q: an error without a text", b)
				}
			case !errors.Is(err, ErrBadAnswer):
				t.Errorf("%q: %v", b, err)
			}
		}
	})
}

// TestClientEndsWithItsContext: whoever asks tells the end of his time from a
// failure by his context, so that must have ended first. A dialer may be ahead.
func TestClientEndsWithItsContext(t *testing.T) {
	leak.CheckExact(t)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	require.NoError(t, err)
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := ln.AcceptUnix()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	t.Cleanup(func() { ln.Close(); <-done })
	for range 300 {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		for {
			c, err := dialOperator(ctx, path, allow{})
			if err != nil {
				ended := ctx.Err()
				require.ErrorIs(t, err, context.DeadlineExceeded)
				require.Error(t, ended)
				break
			}
			require.NoError(t, c.Close())
		}
		cancel()
	}
}
