package main

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// previewOf serves handler as a preview.
func previewOf(t *testing.T, handler http.Handler) *previewServer {
	t.Helper()
	leak.Check(t)
	s, err := preview{"tcp", "127.0.0.1:0"}.open(&http.Server{Handler: handler}, slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	t.Cleanup(s.close)
	return s
}

func TestPreviewIsMarked(t *testing.T) {
	s := previewOf(t, newApp(info))
	resp, _ := do(t, "GET", "http://"+s.addr.String()+"/", nil)
	require.Equal(t, "7", resp.Header.Get("X-Handoff-Generation"))
	require.Equal(t, "1", resp.Header.Get("X-Handoff-Preview"))
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
	s.close()
	_, err := net.Dial("tcp", s.addr.String())
	require.Error(t, err, "nobody listens any more")
}

// TestPreviewFinishesWhatIsUnderWay: the answer is whole although the preview
// ended meanwhile.
func TestPreviewFinishesWhatIsUnderWay(t *testing.T) {
	begun, finish := make(chan struct{}), make(chan struct{})
	s := previewOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		close(begun)
		<-finish
		io.WriteString(w, "whole")
	}))
	s.grace = time.Minute
	c, err := net.Dial("tcp", s.addr.String())
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	fmt.Fprint(c, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	<-begun
	closed := make(chan struct{})
	go func() { defer close(closed); s.close() }()
	require.Eventually(t, func() bool {
		c, err := net.Dial("tcp", s.addr.String())
		if err == nil {
			c.Close()
		}
		return err != nil
	}, patience, time.Millisecond, "it accepts no more")
	close(finish)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	require.Equal(t, "whole", string(text))
	<-closed
}

// TestPreviewEndsWhatHasNoEnd: streams, and connections that were taken over,
// do not keep it.
func TestPreviewEndsWhatHasNoEnd(t *testing.T) {
	begun, ended := make(chan struct{}, 2), make(chan struct{}, 2)
	s := previewOf(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer func() { ended <- struct{}{} }()
		if r.URL.Path == "/stream" {
			begun <- struct{}{}
			<-r.Context().Done()
			return
		}
		c, _, err := http.NewResponseController(w).Hijack()
		begun <- struct{}{}
		if err == nil {
			c.Read(make([]byte, 1))
		}
	}))
	s.grace = time.Millisecond
	for _, path := range []string{"/stream", "/hijack"} {
		c, err := net.Dial("tcp", s.addr.String())
		require.NoError(t, err)
		defer c.Close()
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path)
		<-begun
	}
	s.close()
	for range 2 {
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatal("a handler goes on")
		}
	}
}

func TestPreviewAddressInUse(t *testing.T) {
	leak.Check(t)
	ln, err := net.Listen("unix", filepath.Join(t.TempDir(), "s"))
	require.NoError(t, err)
	defer ln.Close()
	_, err = preview{"unix", ln.Addr().String()}.open(&http.Server{}, slog.New(slog.DiscardHandler))
	require.ErrorContains(t, err, "address already in use")
}
