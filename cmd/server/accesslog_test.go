package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/internal/leak"
)

const (
	goodTrace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
	madeTrace = `^00-[0-9a-f]{32}-[0-9a-f]{16}-00$`
)

// logged serves handler with an access log, and lines has what it says.
func logged(t *testing.T, handler http.Handler) (s *httptest.Server, lines func() []map[string]any) {
	t.Helper()
	leak.Check(t)
	log := &syncBuffer{}
	var handlers sync.WaitGroup
	h := newAccessLog(handler, info, slog.New(slog.NewJSONHandler(log, nil)))
	s = httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		handlers.Add(1)
		defer handlers.Done()
		h.ServeHTTP(w, r)
	}))
	s.Config.Protocols = new(http.Protocols)
	s.Config.Protocols.SetHTTP1(true)
	s.Config.Protocols.SetUnencryptedHTTP2(true)
	s.Start()
	t.Cleanup(s.Close)
	return s, func() []map[string]any {
		s.Close()
		handlers.Wait() // those of hijacked connections and of HTTP/2 are nobody else's
		var all []map[string]any
		for line := range strings.Lines(log.String()) {
			var fields map[string]any
			require.NoError(t, json.Unmarshal([]byte(line), &fields))
			all = append(all, fields)
		}
		return all
	}
}

func TestAccessLine(t *testing.T) {
	var seen *http.Request
	s, lines := logged(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		seen = r
		w.WriteHeader(http.StatusEarlyHints)
		w.WriteHeader(http.StatusCreated)
		io.WriteString(w, "hello")
	}))
	req, err := http.NewRequest("PUT", s.URL+"/path%20x?token=secret", nil)
	require.NoError(t, err)
	req.Host = "app.example"
	req.Header.Set("X-Request-Id", "id-1")
	req.Header.Set("Traceparent", goodTrace)
	req.Header.Set("Tracestate", "a=1")
	resp, err := http.DefaultTransport.RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, "id-1", resp.Header.Get("X-Request-Id"))
	require.Equal(t, "id-1", seen.Header.Get("X-Request-Id"))
	require.Equal(t, goodTrace, seen.Header.Get("Traceparent"))
	require.Equal(t, "a=1", seen.Header.Get("Tracestate"))

	all := lines()
	require.Len(t, all, 1)
	line := all[0]
	require.Positive(t, line["duration"])
	require.Regexp(t, `^127\.0\.0\.1:\d+$`, line["remote"])
	for _, name := range []string{"time", "duration", "remote"} {
		require.Contains(t, line, name)
		delete(line, name)
	}
	require.Equal(t, map[string]any{
		"level": "INFO", "msg": "request", "method": "PUT", "path": "/path x", "status": 201.0, "bytes": 5.0, "protocol": "HTTP/1.1",
		"host": "app.example", "generation": 7.0, "request_id": "id-1", "traceparent": goodTrace, "draining": false,
	}, line)
}

// What is cut off at the drain's deadline before it was answered must not look
// like a success.
func TestAccessLineOfNoAnswer(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	cancel(handoff.ErrDrainDeadline)
	log := &syncBuffer{}
	newAccessLog(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}), info, slog.New(slog.NewJSONHandler(log, nil))).
		ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil).WithContext(ctx))
	var line map[string]any
	require.NoError(t, json.Unmarshal([]byte(log.String()), &line))
	require.Equal(t, 0.0, line["status"])
	require.Equal(t, true, line["aborted"])
}

func TestAccessLineOfHandlers(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "f"), make([]byte, 100_000), 0o600))
	mux := http.NewServeMux()
	mux.HandleFunc("/nothing", func(http.ResponseWriter, *http.Request) {})
	mux.HandleFunc("/string", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "abc") })
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		if _, ok := w.(io.ReaderFrom); !ok {
			t.Error("no ReadFrom: files are not sent by sendfile")
		}
		http.ServeFile(w, r, filepath.Join(dir, "f"))
	})
	mux.HandleFunc("/flush", func(w http.ResponseWriter, _ *http.Request) { w.(http.Flusher).Flush() })
	mux.HandleFunc("/abort", func(w http.ResponseWriter, _ *http.Request) { w.Write([]byte("x")); panic(http.ErrAbortHandler) })
	mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
		c, _, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\n\r\n")
		c.Close()
	})
	s, lines := logged(t, mux)
	want := []map[string]any{
		{"path": "/nothing", "status": 200.0, "bytes": 0.0},
		{"path": "/string", "status": 200.0, "bytes": 3.0},
		{"path": "/file", "status": 200.0, "bytes": 100_000.0},
		{"path": "/flush", "status": 200.0, "bytes": 0.0},
		{"path": "/abort", "status": 200.0, "bytes": 1.0, "aborted": true},
		{"path": "/hijack", "status": 101.0, "bytes": 0.0},
		{"path": "/missing", "status": 404.0, "bytes": 19.0},
	}
	for _, w := range want {
		tr := &http.Transport{DisableKeepAlives: true}
		req, err := http.NewRequest("GET", s.URL+w["path"].(string), nil)
		require.NoError(t, err)
		if resp, err := tr.RoundTrip(req); err == nil {
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
		}
	}
	byPath := map[string]map[string]any{} // a line is written when the answer may have been read already
	for _, line := range lines() {
		byPath[line["path"].(string)] = line
	}
	for _, w := range want {
		line := byPath[w["path"].(string)]
		for name, value := range w {
			require.Equal(t, value, line[name], "%s of %s", name, w["path"])
		}
		require.Equal(t, w["aborted"], line["aborted"])
	}
}

func TestAccessLineOfAWebSocketComesAtItsEnd(t *testing.T) {
	s, lines := logged(t, newApp(info))
	conn, resp, err := websocket.Dial(t.Context(), s.URL+"/ws", nil)
	require.NoError(t, err)
	require.NotEmpty(t, resp.Header.Get("X-Request-Id"))
	require.NoError(t, conn.Write(t.Context(), websocket.MessageText, []byte("x")))
	_, _, err = conn.Read(t.Context())
	require.NoError(t, err)
	require.NoError(t, conn.Close(websocket.StatusNormalClosure, ""))
	all := lines()
	require.Len(t, all, 1)
	require.Equal(t, 101.0, all[0]["status"])
}

func TestAccessLineSaysDraining(t *testing.T) {
	var b bytes.Buffer
	a := newAccessLog(http.NotFoundHandler(), info, slog.New(slog.NewTextHandler(&b, nil)))
	draining := make(chan struct{})
	close(draining)
	a.draining = func(context.Context) <-chan struct{} { return draining }
	a.ServeHTTP(httptest.NewRecorder(), httptest.NewRequest("GET", "/", nil))
	require.Contains(t, b.String(), "draining=true")
}

// TestAccessLineIsBounded: a client decides about paths, hosts and ids.
func TestAccessLineIsBounded(t *testing.T) {
	var b bytes.Buffer
	a := newAccessLog(http.NotFoundHandler(), info, slog.New(slog.NewTextHandler(&b, nil)))
	r := httptest.NewRequest("GET", "/"+strings.Repeat("x", 100_000), nil)
	r.Host = strings.Repeat("h", 100_000)
	r.Header.Set("X-Request-Id", strings.Repeat("i", 100_000))
	r.Method = strings.Repeat("M", 100_000)
	a.ServeHTTP(httptest.NewRecorder(), r)
	require.Less(t, b.Len(), 5000)
	require.Equal(t, 1, strings.Count(b.String(), "\n"))
}

// TestAccessLogOfHTTP2 has a ResponseWriter that can do less.
func TestAccessLogOfHTTP2(t *testing.T) {
	s, lines := logged(t, newApp(info))
	tr := &http.Transport{Protocols: new(http.Protocols)}
	tr.Protocols.SetUnencryptedHTTP2(true)
	t.Cleanup(tr.CloseIdleConnections)
	req, err := http.NewRequest("GET", s.URL+"/events", nil)
	require.NoError(t, err)
	resp, err := tr.RoundTrip(req)
	require.NoError(t, err)
	_, err = bufio.NewReader(resp.Body).ReadString('\n') // it was flushed
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	tr.CloseIdleConnections()
	all := lines()
	require.Len(t, all, 1)
	require.Equal(t, "HTTP/2.0", all[0]["protocol"])
	require.Equal(t, 200.0, all[0]["status"])
}

func TestRequestIDs(t *testing.T) {
	for id, kept := range map[string]bool{
		"":                       false,
		"a":                      true,
		"3f2a-77.Z_~/+=:@":       true,
		strings.Repeat("x", 128): true,
		strings.Repeat("x", 129): false,
		"with space":             false,
		"tab\t":                  false,
		"line\nbreak":            false,
		"é":                      false,
		"\x7f":                   false,
	} {
		h := http.Header{"X-Request-Id": {id}}
		got, _ := identify(h)
		require.Equal(t, got, h.Get("X-Request-Id"))
		if kept {
			require.Equal(t, id, got)
		} else {
			require.Regexp(t, `^[0-9a-f]{32}$`, got, "%q", id)
		}
	}
	a, _ := identify(http.Header{})
	b, _ := identify(http.Header{})
	require.NotEqual(t, a, b)
}

func TestTraceContext(t *testing.T) {
	for trace, kept := range map[string]bool{
		goodTrace: true,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00":            true,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what-comes": true,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":            true,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01.what":       false,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-what comes": false,
		"":                        false,
		"00-4bf92f3577b34da6a3ce": false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more":                         false,
		"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":                              false,
		"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01":                              false,
		"00-00000000000000000000000000000000-00f067aa0ba902b7-01":                              false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01":                              false,
		"00-4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7-01":                              false,
		"0x-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01":                              false,
		"cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-" + strings.Repeat("x", 1000): false,
	} {
		h := http.Header{"Tracestate": {"a=1"}}
		h.Set("Traceparent", trace)
		_, got := identify(h)
		require.Equal(t, got, h.Get("Traceparent"))
		if kept {
			require.Equal(t, trace, got)
			require.Equal(t, "a=1", h.Get("Tracestate"))
		} else {
			require.Regexp(t, madeTrace, got, "%q", trace)
			require.Empty(t, h.Get("Tracestate"), "%q", trace)
		}
	}
	_, got := identify(http.Header{"Traceparent": {goodTrace, goodTrace}})
	require.Regexp(t, madeTrace, got, "two of them")
}
