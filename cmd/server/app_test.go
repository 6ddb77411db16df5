package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

const patience = 10 * time.Second

func info() (uint64, string) { return 7, `<b>"blue"</b>` }

// never is for applications that do not drain.
func never(context.Context) <-chan struct{} { return nil }

func serveApp(t *testing.T, handler http.Handler) *httptest.Server {
	t.Helper()
	leak.Check(t)
	s := httptest.NewUnstartedServer(handler)
	s.Config.DisableGeneralOptionsHandler = true
	s.Start()
	t.Cleanup(s.Close)
	return s
}

func do(t *testing.T, method, url string, body io.Reader) (*http.Response, string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, url, body)
	require.NoError(t, err)
	resp, err := http.DefaultTransport.RoundTrip(req)
	require.NoError(t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp, string(text)
}

func TestEveryAnswerCarriesTheGeneration(t *testing.T) {
	s := serveApp(t, newApp(info))
	for _, tc := range []struct {
		method, path string
		want         int
	}{
		{"GET", "/", 200},
		{"HEAD", "/", 200},
		{"POST", "/", 405},
		{"GET", "/echo", 200},
		{"DELETE", "/echo", 200},
		{"GET", "/whoami", 200},
		{"POST", "/whoami", 405},
		{"GET", "/ws", 426},
		{"HEAD", "/events", 200},
		{"POST", "/events", 405},
		{"GET", "/slow?for=0s", 200},
		{"GET", "/slow?for=soon", 400},
		{"GET", "/missing", 404},
		{"GET", "//echo", 307},
	} {
		resp, _ := do(t, tc.method, s.URL+tc.path, nil)
		require.Equal(t, tc.want, resp.StatusCode, "%s %s", tc.method, tc.path)
		require.Equal(t, "7", resp.Header.Get("X-Handoff-Generation"), "%s %s", tc.method, tc.path)
	}

	c, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "7", resp.Header.Get("X-Handoff-Generation"))
}

func TestGenerationIsAskedForAtEachRequest(t *testing.T) {
	var generation uint64
	s := serveApp(t, newApp(func() (uint64, string) { return generation, "" }))
	for _, want := range []string{"1", "2"} {
		generation++
		resp, _ := do(t, "GET", s.URL, nil)
		require.Equal(t, want, resp.Header.Get("X-Handoff-Generation"))
	}
}

func TestPage(t *testing.T) {
	s := serveApp(t, newApp(info))
	resp, page := do(t, "GET", s.URL, nil)
	require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
	require.Contains(t, page, `<b id="generation">7</b>`)
	require.Contains(t, page, "&lt;b&gt;&#34;blue&#34;&lt;/b&gt;")
	require.NotContains(t, page, `<b>"blue"`)
}

func TestEcho(t *testing.T) {
	s := serveApp(t, newApp(info))
	for _, size := range []int{0, 1, echoInMemory - 1, echoInMemory, echoInMemory + 1, 8 << 20} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			sent := make([]byte, size)
			rand.Read(sent)
			for _, body := range []io.Reader{bytes.NewReader(sent), io.MultiReader(bytes.NewReader(sent))} { // with a length, and in chunks
				resp, got := do(t, "PUT", s.URL+"/echo", body)
				require.Equal(t, http.StatusOK, resp.StatusCode)
				require.EqualValues(t, size, resp.ContentLength)
				require.Equal(t, "application/octet-stream", resp.Header.Get("Content-Type"))
				require.True(t, bytes.Equal(sent, []byte(got)))
			}
		})
	}
}

// TestEchoForAClientThatReadsLate sends more than all buffers hold before it
// reads the first byte.
func TestEchoForAClientThatReadsLate(t *testing.T) {
	s := serveApp(t, newApp(info))
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(3*patience)))
	const size = 32 << 20
	fmt.Fprintf(c, "POST /echo HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n", size)
	_, err = c.Write(bytes.Repeat([]byte("x"), size))
	require.NoError(t, err)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	n, err := io.Copy(io.Discard, resp.Body)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
}

func TestEchoOfABodyThatBreaksOff(t *testing.T) {
	rec := httptest.NewRecorder()
	broken := io.MultiReader(strings.NewReader("half"), brokenReader{})
	newApp(info).ServeHTTP(rec, httptest.NewRequest("POST", "/echo", broken))
	require.Equal(t, http.StatusBadRequest, rec.Code)
	require.Equal(t, "echo: unexpected EOF\n", rec.Body.String())
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, io.ErrUnexpectedEOF }

func TestEchoOfTooMuch(t *testing.T) {
	_, _, err := receive(http.MaxBytesReader(nil, io.NopCloser(strings.NewReader("1234")), 3))
	tooLarge := new(http.MaxBytesError)
	require.ErrorAs(t, err, &tooLarge)
}

func TestEvents(t *testing.T) {
	draining := make(chan struct{})
	a := newApp(func() (uint64, string) { return 3, "green" })
	a.draining, a.interval = func(context.Context) <-chan struct{} { return draining }, time.Millisecond
	s := serveApp(t, a)
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	fmt.Fprint(c, "GET /events HTTP/1.1\r\nHost: test\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	require.Equal(t, "text/event-stream", resp.Header.Get("Content-Type"))
	events := bufio.NewReader(resp.Body)
	for id := 1; id <= 3; id++ {
		require.Equal(t, fmt.Sprintf("id: %d\ndata: generation 3, \"green\"\n\n", id), event(t, events))
	}
	close(draining)
	for {
		text := event(t, events)
		if strings.HasPrefix(text, "event:") {
			require.Equal(t, "event: drain\ndata: generation 3, \"green\"\n\n", text)
			break
		}
	}
	rest, err := io.ReadAll(events)
	require.NoError(t, err)
	require.Empty(t, rest)
}

func TestFirstEventComesAtOnce(t *testing.T) {
	a := newApp(info)
	a.draining, a.interval = never, time.Hour
	s := serveApp(t, a)
	resp, err := http.Get(s.URL + "/events")
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(event(t, bufio.NewReader(resp.Body)), "id: 1\n"))
	resp.Body.Close() // the handler must see that, or closing the server hangs
}

func event(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	var b strings.Builder
	for {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		b.WriteString(line)
		if line == "\n" {
			return b.String()
		}
	}
}

func TestSlow(t *testing.T) {
	s := serveApp(t, newApp(info))
	for _, tc := range []struct {
		value string
		want  int
		text  string
	}{
		{"0s", 200, "waited 0s\n"},
		{"30ms", 200, "waited 30ms\n"},
		{"", 400, "slow: for=\"\" is not a duration from 0s to 1h; try /slow?for=2s\n"},
		{"soon", 400, "slow: for=\"soon\" is not a duration from 0s to 1h; try /slow?for=2s\n"},
		{"-1s", 400, "slow: for=\"-1s\" is not a duration from 0s to 1h; try /slow?for=2s\n"},
		{"61m", 400, "slow: for=\"61m\" is not a duration from 0s to 1h; try /slow?for=2s\n"},
	} {
		t.Run(tc.value, func(t *testing.T) {
			begin := time.Now()
			resp, text := do(t, "GET", s.URL+"/slow?for="+url.QueryEscape(tc.value), nil)
			require.Equal(t, tc.want, resp.StatusCode)
			require.Equal(t, tc.text, text)
			if wait, err := time.ParseDuration(tc.value); err == nil && tc.want == 200 {
				require.GreaterOrEqual(t, time.Since(begin), wait)
			}
		})
	}
}

func TestSlowEndsWhenTheClientGoes(t *testing.T) {
	ended := make(chan struct{})
	handler := newApp(info)
	s := serveApp(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(ended)
		handler.ServeHTTP(w, r)
	}))
	c, err := net.Dial("tcp", s.Listener.Addr().String())
	require.NoError(t, err)
	fmt.Fprint(c, "GET /slow?for=1h HTTP/1.1\r\nHost: test\r\n\r\n")
	require.NoError(t, c.Close())
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the handler waits on")
	}
}
