package main

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/internal/leak"
	"github.com/fdhandoff/handoff/internal/refusing"
)

// proxied is a proxy in front of a backend.
type proxied struct {
	url   string
	proxy *proxy
	log   *syncBuffer
	conns atomic.Int64 // that the backend accepted
}

// syncBuffer is a log that several goroutines may write to.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// serveProxy puts a proxy in front of handler. The proxy also speaks HTTP/2 without TLS.
func serveProxy(t *testing.T, handler http.HandlerFunc) *proxied {
	t.Helper()
	leak.Check(t)
	p := &proxied{}
	back := httptest.NewUnstartedServer(handler)
	back.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			p.conns.Add(1)
		}
	}
	back.Start()
	t.Cleanup(back.Close)
	p.front(t, back.URL)
	return p
}

func (p *proxied) front(t *testing.T, backend string) {
	t.Helper()
	u, err := parseBackend(backend)
	require.NoError(t, err)
	p.log = &syncBuffer{}
	p.proxy = newProxy(u, info, slog.New(slog.NewTextHandler(p.log, nil)))
	front := httptest.NewUnstartedServer(p.proxy)
	front.Config.Protocols = new(http.Protocols)
	front.Config.Protocols.SetHTTP1(true)
	front.Config.Protocols.SetUnencryptedHTTP2(true)
	front.Config.DisableGeneralOptionsHandler = true
	front.Start()
	t.Cleanup(func() { front.Close(); p.proxy.reverse.Transport.(*http.Transport).CloseIdleConnections() })
	p.url = front.URL
}

// transports are the two ways to ask a proxy.
func transports(t *testing.T) map[string]*http.Transport {
	all := map[string]*http.Transport{"HTTP/1.1": {}, "HTTP/2": {Protocols: new(http.Protocols)}}
	all["HTTP/2"].Protocols.SetUnencryptedHTTP2(true)
	for _, tr := range all {
		t.Cleanup(tr.CloseIdleConnections)
	}
	return all
}

func TestParseBackend(t *testing.T) {
	for _, text := range []string{"http://localhost:1", "http://localhost", "https://[::1]:1/base", "unix:/run/app.sock"} {
		u, err := parseBackend(text)
		require.NoError(t, err, text)
		require.Equal(t, text, u.String())
	}
	for _, text := range []string{
		"", "localhost:80", ":80", "//host", "ftp://host", "http://", "http:///path", "unix:relative", "unix:", "unix://host/path",
		"http://user@host", "http://host?q", "http://host?q=1", "http://host#f", "http://a b", "http://[::1",
	} {
		_, err := parseBackend(text)
		require.Error(t, err, text)
	}
}

func TestProxyPassesTheRequest(t *testing.T) {
	var got *http.Request
	p := serveProxy(t, func(w http.ResponseWriter, r *http.Request) { got = r; w.WriteHeader(http.StatusTeapot) })
	req, err := http.NewRequest("PATCH", p.url+"/a%2Fb//c?x=1;y=2&z=%zz", strings.NewReader("body"))
	require.NoError(t, err)
	req.Host = "app.example"
	for name, value := range map[string]string{
		"X-Forwarded-For": "192.0.2.1", "X-Forwarded-Host": "evil", "X-Forwarded-Proto": "https", "Forwarded": "for=evil",
		"X-Forwarded-Port": "1", "X-Forwarded-Prefix": "/evil",
		"Connection": "X-Hop", "X-Hop": "1", "Proxy-Authorization": "secret",
		"X-Request-Id": "id-1", "Traceparent": "00-1-2-3", "Cookie": "a=b",
	} {
		req.Header.Set(name, value)
	}
	resp, err := transports(t)["HTTP/1.1"].RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusTeapot, resp.StatusCode)
	require.Equal(t, "PATCH", got.Method)
	require.Equal(t, "app.example", got.Host)
	require.Equal(t, "/a%2Fb//c?x=1;y=2&z=%zz", got.RequestURI)
	require.Equal(t, "127.0.0.1", got.Header.Get("X-Forwarded-For"))
	require.Equal(t, "app.example", got.Header.Get("X-Forwarded-Host"))
	require.Equal(t, "http", got.Header.Get("X-Forwarded-Proto"))
	require.Empty(t, got.Header.Get("X-Forwarded-Port")+got.Header.Get("X-Forwarded-Prefix"), "not known here, so not passed on")
	require.Equal(t, "id-1", got.Header.Get("X-Request-Id"))
	require.Equal(t, "00-1-2-3", got.Header.Get("Traceparent"))
	require.Equal(t, "a=b", got.Header.Get("Cookie"))
	for _, name := range []string{"Forwarded", "X-Hop", "Proxy-Authorization"} {
		require.Empty(t, got.Header.Values(name), name)
	}
}

func TestProxyPutsItsPathBeforeTheRequests(t *testing.T) {
	leak.Check(t)
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RequestURI) }))
	t.Cleanup(back.Close)
	var p proxied
	p.front(t, back.URL+"/base/")
	_, body := do(t, "GET", p.url+"/x?q", nil)
	require.Equal(t, "/base/x?q", body)
}

func TestProxyToAUnixSocket(t *testing.T) {
	leak.Check(t)
	dir, err := os.MkdirTemp("", "px")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	ln, err := net.Listen("unix", filepath.Join(dir, "s"))
	require.NoError(t, err)
	back := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host+r.URL.Path) }))
	back.Listener.Close()
	back.Listener = ln
	back.Start()
	t.Cleanup(back.Close)
	var p proxied
	p.front(t, "unix:"+filepath.Join(dir, "s"))
	_, body := do(t, "GET", p.url+"/x", nil)
	require.Equal(t, strings.TrimPrefix(p.url, "http://")+"/x", body)
}

func TestProxyStatesItsOwnGeneration(t *testing.T) {
	p := serveProxy(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set(generationHeader, "99")
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		w.Header().Set("X-Backend", "yes")
	})
	resp, _ := do(t, "GET", p.url, nil)
	require.Equal(t, []string{"7"}, resp.Header.Values(generationHeader))
	require.Equal(t, "yes", resp.Header.Get("X-Backend"))
	require.Empty(t, resp.Header.Get("Link"), "it belongs to the answer before")

	resp, _ = do(t, "CONNECT", p.url, nil)
	require.Equal(t, http.StatusMethodNotAllowed, resp.StatusCode)
	require.Equal(t, "7", resp.Header.Get(generationHeader))

	c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n")
	resp, err = http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "7", resp.Header.Get(generationHeader))
	require.Empty(t, resp.Header.Get("X-Backend"))
}

func TestProxyPassesTrailers(t *testing.T) {
	p := serveProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Sum")
		io.Copy(w, r.Body)
		w.Header().Set("X-Sum", "got "+r.Trailer.Get("X-Sum"))
		w.Header().Set(http.TrailerPrefix+"X-Late", "unannounced")
	})
	for name, tr := range transports(t) {
		for _, length := range []int64{-1, 4} {
			t.Run(fmt.Sprint(name, ", length ", length), func(t *testing.T) {
				if name == "HTTP/1.1" && length >= 0 {
					t.SkipNow() // not in that protocol
				}
				req, err := http.NewRequest("POST", p.url, io.MultiReader(strings.NewReader("body")))
				require.NoError(t, err)
				req.ContentLength = length
				req.Trailer = http.Header{"X-Sum": {"12"}}
				resp, err := tr.RoundTrip(req)
				require.NoError(t, err)
				defer resp.Body.Close()
				body, err := io.ReadAll(resp.Body)
				require.NoError(t, err)
				require.Equal(t, "body", string(body))
				require.Equal(t, "got 12", resp.Trailer.Get("X-Sum"))
				require.Equal(t, "unannounced", resp.Trailer.Get("X-Late"))
			})
		}
	}
}

// TestProxyBuffersNothing: each side sees a part of what the other says before that says the next.
func TestProxyBuffersNothing(t *testing.T) {
	p := serveProxy(t, func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		control.EnableFullDuplex()
		control.Flush() // an answer that has begun is seen
		b := make([]byte, 5)
		for {
			if _, err := io.ReadFull(r.Body, b); err != nil {
				return
			}
			w.Write(bytes.ToUpper(b))
			control.Flush()
		}
	})
	for name, tr := range transports(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			r, w := io.Pipe()
			req, err := http.NewRequestWithContext(ctx, "POST", p.url, r)
			require.NoError(t, err)
			resp, err := tr.RoundTrip(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			b := make([]byte, 5)
			for _, text := range []string{"hello", "again", "third"} {
				_, err = io.WriteString(w, text)
				require.NoError(t, err)
				_, err = io.ReadFull(resp.Body, b)
				require.NoError(t, err)
				require.Equal(t, strings.ToUpper(text), string(b))
			}
			require.NoError(t, w.Close())
			rest, err := io.ReadAll(resp.Body)
			require.NoError(t, err)
			require.Empty(t, rest)
		})
	}
}

// TestProxySendsAtOnce what it has of a body whose length is known.
func TestProxySendsAtOnce(t *testing.T) {
	gate := make(chan struct{})
	p := serveProxy(t, func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "10")
		w.Write([]byte("hello"))
		http.NewResponseController(w).Flush()
		select {
		case <-gate:
		case <-r.Context().Done():
		}
		w.Write([]byte("world"))
	})
	for name, tr := range transports(t) {
		t.Run(name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), patience)
			defer cancel()
			req, err := http.NewRequestWithContext(ctx, "GET", p.url, nil)
			require.NoError(t, err)
			resp, err := tr.RoundTrip(req)
			require.NoError(t, err)
			defer resp.Body.Close()
			b := make([]byte, 5)
			_, err = io.ReadFull(resp.Body, b)
			require.NoError(t, err)
			require.Equal(t, "hello", string(b))
			gate <- struct{}{}
			_, err = io.ReadFull(resp.Body, b)
			require.NoError(t, err)
			require.Equal(t, "world", string(b))
		})
	}
}

// TestProxyKeepsItsConnections: many clients at once, again and again, need hardly more connections than clients.
func TestProxyKeepsItsConnections(t *testing.T) {
	const clients, requests = 200, 10
	var wg sync.WaitGroup
	gate := make(chan struct{})
	p := serveProxy(t, func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/first" {
			<-gate
		}
	})
	tr := &http.Transport{MaxIdleConnsPerHost: clients}
	t.Cleanup(tr.CloseIdleConnections)
	codes := make([]int, clients)
	begun := make(chan struct{}, clients)
	for i := range clients {
		wg.Go(func() {
			for n := range requests {
				path := "/"
				if n == 0 {
					path = "/first"
					begun <- struct{}{}
				}
				req, err := http.NewRequest("POST", p.url+path, strings.NewReader("x"))
				if err != nil {
					return
				}
				resp, err := tr.RoundTrip(req)
				if err != nil {
					return
				}
				resp.Body.Close()
				if resp.StatusCode == http.StatusOK {
					codes[i]++
				}
			}
		})
	}
	for range clients {
		<-begun
	}
	close(gate)
	wg.Wait()
	for _, n := range codes {
		require.Equal(t, requests, n)
	}
	// net/http's client dials a few for nothing, where one becomes free meanwhile.
	require.Less(t, p.conns.Load(), int64(2*clients))
}

type slowError struct{}

func (slowError) Error() string   { return "too slow" }
func (slowError) Timeout() bool   { return true }
func (slowError) Temporary() bool { return true }

func TestProxyErrors(t *testing.T) {
	errOther := errors.New("connection refused")
	for _, tc := range []struct {
		name   string
		cause  error // of the request's context
		err    error
		want   int
		logged bool
	}{
		{"backend away", nil, errOther, 502, true},
		{"too slow", nil, fmt.Errorf("dial: %w", slowError{}), 504, true},
		{"drain deadline", handoff.ErrDrainDeadline, context.Canceled, 503, true},
		{"client gone", context.Canceled, context.Canceled, 499, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var log bytes.Buffer
			u, err := parseBackend("http://backend:1")
			require.NoError(t, err)
			p := newProxy(u, info, slog.New(slog.NewTextHandler(&log, nil)))
			ctx, cancel := context.WithCancelCause(t.Context())
			defer cancel(nil)
			if tc.cause != nil {
				cancel(tc.cause)
			}
			ctx = context.WithValue(ctx, exchangeKey{}, &exchange{})
			rec := httptest.NewRecorder()
			p.fail(rec, httptest.NewRequest("POST", "/path?secret", nil).WithContext(ctx), tc.err)
			require.Equal(t, tc.want, rec.Code)
			require.Equal(t, "7", rec.Header().Get(generationHeader))
			if !tc.logged {
				require.Empty(t, log.String())
				return
			}
			require.Equal(t, 1, strings.Count(log.String(), "\n"))
			for _, text := range []string{fmt.Sprintf("status=%d", tc.want), "path=/path ", "backend=http://backend:1", "level=WARN"} {
				require.Contains(t, log.String(), text)
			}
			require.NotContains(t, log.String(), "secret")
			require.NotContains(t, rec.Body.String(), "backend:1", "what is no client's business")
		})
	}
}

func TestProxyOfABackendThatIsAway(t *testing.T) {
	leak.Check(t)
	var p proxied
	p.front(t, "http://"+refusing.Address(t))
	resp, body := do(t, "POST", p.url+"/x", strings.NewReader("body"))
	require.Equal(t, http.StatusBadGateway, resp.StatusCode)
	require.Equal(t, "the backend did not answer\n", body)
	require.Contains(t, p.log.String(), "connection refused")
}

// TestProxyAndAClientThatGoes: the backend is told, and the log is not.
func TestProxyAndAClientThatGoes(t *testing.T) {
	begun, ended := make(chan struct{}, 2), make(chan struct{}, 2)
	p := serveProxy(t, func(w http.ResponseWriter, r *http.Request) {
		begun <- struct{}{}
		if r.URL.Path == "/begun" {
			http.NewResponseController(w).Flush()
		}
		<-r.Context().Done()
		ended <- struct{}{}
	})
	for _, path := range []string{"/", "/begun"} {
		c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
		require.NoError(t, err)
		fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: test\r\n\r\n", path)
		<-begun
		if path == "/begun" {
			_, err = http.ReadResponse(bufio.NewReader(c), nil)
			require.NoError(t, err)
		}
		require.NoError(t, c.Close())
		select {
		case <-ended:
		case <-time.After(patience):
			t.Fatal("the backend was not told")
		}
	}
	require.NotContains(t, p.log.String(), "level=WARN")
}

// TestProxyOfAnAnswerThatBreaksOff: the client must not take a part for the whole.
func TestProxyOfAnAnswerThatBreaksOff(t *testing.T) {
	p := serveProxy(t, func(w http.ResponseWriter, _ *http.Request) {
		w.Write([]byte("half"))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	resp, err := http.Get(p.url)
	require.NoError(t, err)
	defer resp.Body.Close()
	_, err = io.ReadAll(resp.Body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF)
}

// TestProxyOfAnEarlyAnswer: the answer to what was not read is the last of its connection, and every request is answered.
func TestProxyOfAnEarlyAnswer(t *testing.T) {
	leak.Check(t)
	var p proxied
	p.front(t, "http://"+refusing.Address(t))
	tr := transports(t)["HTTP/1.1"]
	for range 50 {
		req, err := http.NewRequest("POST", p.url, strings.NewReader("not read"))
		require.NoError(t, err)
		resp, err := tr.RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		require.Equal(t, http.StatusBadGateway, resp.StatusCode)
		require.True(t, resp.Close)
	}
}

func TestProxyOfABodyThatBreaksOff(t *testing.T) {
	p := serveProxy(t, func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body) })
	c, err := net.Dial("tcp", strings.TrimPrefix(p.url, "http://"))
	require.NoError(t, err)
	defer c.Close()
	fmt.Fprint(c, "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10\r\n\r\nhalf")
	require.NoError(t, c.(*net.TCPConn).CloseWrite())
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	require.NoError(t, err)
	require.Equal(t, http.StatusBadRequest, resp.StatusCode)
	require.NotContains(t, p.log.String(), "level=WARN")
}

func TestIsEventSource(t *testing.T) {
	for _, tc := range []struct {
		name, method, accept, kind string
		want                       bool
	}{
		{"a browser", "GET", "text/event-stream", "text/event-stream", true},
		{"with a charset", "GET", "text/event-stream", "text/event-stream;charset=utf-8", true},
		{"an answer in pieces", "POST", "text/event-stream", "text/event-stream", false},
		{"some other client", "GET", "*/*", "text/event-stream", false},
		{"no events", "GET", "text/event-stream", "text/plain", false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp := &http.Response{StatusCode: 200, Header: http.Header{"Content-Type": {tc.kind}}, Request: httptest.NewRequest(tc.method, "/", nil)}
			resp.Request.Header.Set("Accept", tc.accept)
			require.Equal(t, tc.want, isEventSource(resp))
		})
	}
}

// TestEventStreamEndsBetweenEvents: whatever the parts it comes in, and whenever the drain begins.
func TestEventStreamEndsBetweenEvents(t *testing.T) {
	for _, blank := range []string{"\n\n", "\r\n\r\n", "\r\r"} {
		one, two := "data: one"+blank, "data: two"+blank
		for _, tc := range []struct {
			name          string
			before, after []string // parts that come before and after the drain begins
			want          string
		}{
			{"waiting for the first", nil, nil, ""},
			{"waiting", []string{one}, nil, one},
			{"within an event", []string{one, "data: t"}, []string{"wo" + blank, "data: three" + blank}, one + two},
			{"within, and the next in one go", []string{"data: o"}, []string{"ne" + blank + "data: t", "wo" + blank}, one},
			{"between the bytes of the end", []string{"data: one" + blank[:1]}, []string{blank[1:] + two}, one + two},
			{"the last event is under way when its source ends", []string{one, "data: t"}, []string{"wo"}, one + "data: two"},
		} {
			t.Run(fmt.Sprintf("%q, %s", blank, tc.name), func(t *testing.T) {
				leak.Check(t)
				r, w := io.Pipe()
				draining := make(chan struct{})
				s := newEventStream(r, draining)
				var got bytes.Buffer
				read := make(chan error, 1)
				seen := make(chan struct{})
				go func() {
					_, err := io.Copy(&got, readerOnly{&noticing{s, seen}})
					read <- err
				}()
				for _, part := range tc.before {
					_, err := io.WriteString(w, part)
					require.NoError(t, err)
					<-seen
				}
				close(draining)
				require.Eventually(t, func() bool { s.mu.Lock(); defer s.mu.Unlock(); return s.drain }, patience, time.Millisecond)
				go func() {
					for _, part := range tc.after {
						io.WriteString(w, part) // what the stream has no use for is refused
					}
					w.Close()
				}()
				go func() {
					for range seen {
					}
				}()
				require.NoError(t, <-read)
				close(seen)
				require.Equal(t, tc.want, got.String())
				require.NoError(t, s.Close())
			})
		}
	}
}

// noticing tells of each part that was read.
type noticing struct {
	io.Reader
	seen chan<- struct{}
}

func (n *noticing) Read(p []byte) (int, error) {
	m, err := n.Reader.Read(p)
	if m > 0 {
		n.seen <- struct{}{}
	}
	return m, err
}

// A status that net/http would panic at is answered with 502.
func TestProxyOfAStatusThatIsNone(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	go func() {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		defer c.Close()
		http.ReadRequest(bufio.NewReader(c))
		io.WriteString(c, "HTTP/1.1 099 No\r\nContent-Length: 0\r\n\r\n")
	}()
	backend, err := url.Parse("http://" + ln.Addr().String())
	require.NoError(t, err)
	rec := httptest.NewRecorder()
	newProxy(backend, info, slog.New(slog.DiscardHandler)).ServeHTTP(rec, httptest.NewRequest("GET", "/", nil))
	require.Equal(t, http.StatusBadGateway, rec.Code)
}
