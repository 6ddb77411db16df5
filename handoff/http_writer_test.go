package handoff

import (
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// can lists by type assertion what a ResponseWriter can do.
func can(w http.ResponseWriter) map[string]bool {
	can := make(map[string]bool)
	_, can["Flusher"] = w.(http.Flusher)
	_, can["FlushError"] = w.(interface{ FlushError() error })
	_, can["Hijacker"] = w.(http.Hijacker)
	_, can["ReaderFrom"] = w.(io.ReaderFrom)
	_, can["StringWriter"] = w.(io.StringWriter)
	_, can["Pusher"] = w.(http.Pusher)
	_, can["CloseNotifier"] = w.(interface{ CloseNotify() <-chan bool })
	_, can["SetReadDeadline"] = w.(interface{ SetReadDeadline(time.Time) error })
	_, can["SetWriteDeadline"] = w.(interface{ SetWriteDeadline(time.Time) error })
	_, can["EnableFullDuplex"] = w.(interface{ EnableFullDuplex() error })
	return can
}

func TestResponseWritersCanDoWhatTheyCould(t *testing.T) {
	leak.CheckExact(t)
	type seen struct {
		wrapped, bare map[string]bool
		controller    error
		proto         int
	}
	got := make(chan seen, 1)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s := seen{wrapped: can(w), proto: r.ProtoMajor}
		s.bare = can(w.(interface{ Unwrap() http.ResponseWriter }).Unwrap())
		s.controller = http.NewResponseController(w).SetWriteDeadline(time.Now().Add(patience))
		io.WriteString(w, "hello")
		got <- s
	})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := serveHTTPOn(t, ln, h2cServer(handler), nil)
	for proto, request := range map[int]func(){
		1: func() { s.dial().get("/", false) },
		2: func() { dialH2(t, s.addr).get("/", false) },
	} {
		request()
		seen := <-got
		require.Equal(t, proto, seen.proto)
		require.Equal(t, seen.bare, seen.wrapped)
		require.NoError(t, seen.controller)
		require.Equal(t, proto == 1, seen.wrapped["Hijacker"])
		require.Equal(t, proto == 2, seen.wrapped["Pusher"])
	}
}

func TestAnotherServersResponseWriter(t *testing.T) {
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.WriteHeader(http.StatusTeapot)
		w.Write([]byte("hello"))
		http.NewResponseController(w).Flush()
	})}
	h := newHTTPServer(&fakeHost{}, srv)
	for _, want := range []string{"", "close"} {
		rec := httptest.NewRecorder()
		srv.Handler.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, "/", nil))
		require.Equal(t, http.StatusTeapot, rec.Code)
		require.Equal(t, "hello", rec.Body.String())
		require.True(t, rec.Flushed)
		require.Equal(t, want, rec.Header().Get("Connection"))
		h.drain.beginDrain(0, false)
	}
	<-h.drain.drained()
}

// BenchmarkHandler compares a request that goes by the drain's handler with
// one that does not.
func BenchmarkHandler(b *testing.B) {
	handler := tell("hello")
	drained := &drainHandler{drain: newHTTPDrain(&http.Server{}), answered: func() {}, next: handler}
	for name, handler := range map[string]http.Handler{"bare": handler, "drained": drained} {
		b.Run(name, func(b *testing.B) {
			r := httptest.NewRequest(http.MethodGet, "/", nil)
			b.ReportAllocs()
			for b.Loop() {
				handler.ServeHTTP(httptest.NewRecorder(), r)
			}
		})
	}
}
