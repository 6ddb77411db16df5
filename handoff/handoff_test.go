package handoff

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// testLog sends a Process's lines to the test's log.
func testLog(t testing.TB, name string) *slog.Logger {
	return slog.New(slog.NewTextHandler(testWriter{t}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("proc", name)
}

type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

func testConfig(t testing.TB, name string) Config {
	return Config{Label: name, Logger: testLog(t, name), Probation: -1, DrainTimeout: 5 * time.Second, StepTimeout: 5 * time.Second}
}

func testContext(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

func fetch(t testing.TB, addr string) string {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	fmt.Fprintf(c, "GET / HTTP/1.0\r\n\r\n")
	b, err := io.ReadAll(c)
	require.NoError(t, err)
	_, body, _ := strings.Cut(string(b), "\r\n\r\n")
	return body
}

func TestFirst(t *testing.T) {
	dir := t.TempDir()
	ctx := testContext(t)
	var addr string
	var prev *Process
	for i := range 5 {
		cfg := testConfig(t, fmt.Sprintf("v%d", i+1))
		cfg.Socket = filepath.Join(dir, "s")
		p, err := Start(ctx, cfg)
		require.NoError(t, err)
		ln, err := p.Listen(ctx, "tcp", "127.0.0.1:0")
		require.NoError(t, err)
		addr = ln.Addr().String()
		h := NewHTTPServer(p, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, p.Generation())
		})})
		go h.Serve(ln)
		require.NoError(t, p.Ready(ctx))
		require.Equal(t, fmt.Sprint(i+1), fetch(t, addr))
		if prev != nil {
			r, err := prev.Wait(ctx)
			require.NoError(t, err)
			require.Equal(t, "handed_over", r.Reason)
		}
		prev = p
	}
	prev.Stop()
	_, err := prev.Wait(ctx)
	require.NoError(t, err)
}
