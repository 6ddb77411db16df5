package main

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

const (
	requestIDHeader = "X-Request-Id"
	traceHeader     = "Traceparent"

	maxRequestID  = 128  // bytes
	maxLoggedPath = 1024 // bytes; of a path or host, so that a client can't fill the log
)

// accessLog writes one line for each request when it has ended; for a
// connection that was taken over (WebSocket), when its handler has ended.
//
// A request goes on with an id (X-Request-Id) and a trace context (W3C
// traceparent): the client's where they are well-formed, new ones otherwise, so
// that the lines of everybody who sees the request can be joined. The answer
// carries the id. Queries are not logged: secrets are in them, often enough.
type accessLog struct {
	next     http.Handler
	id       identity
	draining func(context.Context) <-chan struct{}
	log      *slog.Logger
}

func newAccessLog(next http.Handler, id identity, log *slog.Logger) *accessLog {
	return &accessLog{next: next, id: id, draining: handoff.Draining, log: log}
}

func (a *accessLog) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	begin := time.Now()
	requestID, trace := identify(r.Header)
	seen := &accessWriter{ResponseWriter: w, requestID: requestID}
	aborted := true
	defer func() {
		if !aborted {
			seen.header(http.StatusOK) // net/http answers 200 for a handler that gave no answer
		}
		generation, _ := a.id()
		attrs := []slog.Attr{
			slog.String("method", shorten(r.Method, maxRequestID)),
			slog.String("path", shorten(r.URL.Path, maxLoggedPath)),
			slog.Int("status", seen.status),
			slog.Int64("bytes", seen.bytes),
			slog.Duration("duration", time.Since(begin)),
			slog.String("remote", r.RemoteAddr),
			slog.String("protocol", r.Proto),
			slog.String("host", shorten(r.Host, maxLoggedPath)),
			slog.Uint64("generation", generation),
			slog.String("request_id", requestID),
			slog.String("traceparent", trace),
			slog.Bool("draining", isClosed(a.draining(r.Context()))),
		}
		if aborted {
			attrs = append(attrs, slog.Bool("aborted", true)) // the answer was cut short
		}
		a.log.LogAttrs(context.Background(), slog.LevelInfo, "request", attrs...)
	}()
	if _, ok := w.(http1ResponseWriter); ok {
		w = http1AccessWriter{seen}
	} else {
		w = seen
	}
	a.next.ServeHTTP(w, r)
	// A handler that gives no answer at the drain's deadline has its connection closed.
	aborted = seen.status == 0 && context.Cause(r.Context()) == handoff.ErrDrainDeadline
}

// identify sees to it that the header has a request id and a trace context, and
// returns both. Headers are the handler's to change as long as nobody else
// looks at them; a copy of the request would lose its multipart files.
func identify(h http.Header) (requestID, trace string) {
	requestID = saneID(h.Get(requestIDHeader))
	if requestID == "" {
		requestID = randomHex(16)
	}
	h.Set(requestIDHeader, requestID)
	if all := h.Values(traceHeader); len(all) == 1 && validTrace(all[0]) {
		return requestID, all[0]
	}
	trace = "00-" + randomHex(16) + "-" + randomHex(8) + "-00"
	h.Set(traceHeader, trace)
	h.Del("Tracestate") // it belongs to the one that was not there, or not valid
	return requestID, trace
}

// saneID returns a request id that a client gave if it is fit for logs and
// headers: printable ASCII without spaces, at most 128 bytes. Otherwise "".
func saneID(id string) string {
	if len(id) > maxRequestID || strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' }) {
		return ""
	}
	return id
}

// validTrace tells whether a traceparent is one that W3C Trace Context, level 1,
// allows to pass on: version-traceid-parentid-flags, in lower-case hex. Later
// versions may be longer.
func validTrace(s string) bool {
	const size = 2 + 1 + 32 + 1 + 16 + 1 + 2
	if len(s) < size || len(s) > 256 || s[2] != '-' || s[35] != '-' || s[52] != '-' {
		return false
	}
	version, id, parent, flags, rest := s[:2], s[3:35], s[36:52], s[53:55], s[size:]
	switch {
	case !isHex(version) || !isHex(id) || !isHex(parent) || !isHex(flags):
		return false
	case version == "ff" || version == "00" && rest != "" || rest != "" && rest[0] != '-':
		return false
	}
	return strings.Trim(id, "0") != "" && strings.Trim(parent, "0") != "" && saneID(strings.TrimSuffix(rest, "-")+"-") != ""
}

func isHex(s string) bool { return strings.Trim(s, "0123456789abcdef") == "" }

func randomHex(bytes int) string {
	b := make([]byte, bytes)
	rand.Read(b) // it does not fail
	return hex.EncodeToString(b)
}

// shorten cuts off what is longer than a line of the log should hold.
func shorten(s string, most int) string {
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// accessWriter notes what is answered. http.ResponseController finds what the
// ResponseWriter inside can do.
type accessWriter struct {
	http.ResponseWriter
	requestID string
	status    int   // 0 before the header
	bytes     int64 // of the body
}

// header is called ahead of whatever gives the header.
func (w *accessWriter) header(code int) {
	if w.status != 0 || code < 200 && code != http.StatusSwitchingProtocols {
		return // informational answers come before the one that counts
	}
	w.status = code
	w.Header().Set(requestIDHeader, w.requestID)
}

func (w *accessWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *accessWriter) WriteHeader(code int) {
	w.header(code)
	w.ResponseWriter.WriteHeader(code)
}

func (w *accessWriter) Write(p []byte) (int, error) {
	w.header(http.StatusOK)
	n, err := w.ResponseWriter.Write(p)
	w.bytes += int64(n)
	return n, err
}

func (w *accessWriter) WriteString(s string) (int, error) {
	w.header(http.StatusOK)
	n, err := io.WriteString(w.ResponseWriter, s)
	w.bytes += int64(n)
	return n, err
}

func (w *accessWriter) Flush() { w.FlushError() }

func (w *accessWriter) FlushError() error {
	w.header(http.StatusOK)
	return http.NewResponseController(w.ResponseWriter).Flush()
}

// http1ResponseWriter is what a ResponseWriter can do by HTTP/1 only.
type http1ResponseWriter interface {
	io.ReaderFrom
	http.Hijacker
}

// http1AccessWriter is the accessWriter of an HTTP/1 request.
type http1AccessWriter struct{ *accessWriter }

// ReadFrom lets files be sent by sendfile(2).
func (w http1AccessWriter) ReadFrom(r io.Reader) (int64, error) {
	w.header(http.StatusOK)
	n, err := w.ResponseWriter.(io.ReaderFrom).ReadFrom(r)
	w.bytes += n
	return n, err
}

func (w http1AccessWriter) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, buf, err := w.ResponseWriter.(http.Hijacker).Hijack()
	if err == nil && w.status == 0 {
		// The handler writes its own header, and has taken this one's so far.
		w.header(http.StatusSwitchingProtocols)
	}
	return conn, buf, err
}
