package handoff

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"time"
)

// http1Response is what net/http gives a handler for an HTTP/1 request.
type http1Response interface {
	httpResponse
	io.ReaderFrom
	http.Hijacker
}

// http2Response is what net/http gives a handler for an HTTP/2 request.
type http2Response interface {
	httpResponse
	http.Pusher
}

// httpResponse is what both have in common. Handlers find all of it by type
// assertion, or by http.ResponseController.
type httpResponse interface {
	http.ResponseWriter
	io.StringWriter
	http.Flusher
	FlushError() error
	CloseNotify() <-chan bool
	SetReadDeadline(time.Time) error
	SetWriteDeadline(time.Time) error
	EnableFullDuplex() error
}

// announcer puts "Connection: close" into one answer, where the drain has
// begun by the time that the handler gives its header, and the connection can't
// count on moving to the next process. net/http closes an
// HTTP/1 connection after such an answer, and makes of it a GOAWAY for an
// HTTP/2 connection, which never sees the header.
//
// Like the ResponseWriter that it looks after it is for one goroutine at a time.
type announcer struct {
	drain *httpDrain
	conn  *trackedConn // nil by HTTP/2, and where the connection is not one of ours
	given bool         // the handler has given the header
}

// before is called ahead of whatever may give the header.
func (a *announcer) before(w http.ResponseWriter, code int) {
	if a.given || code < 200 && code != http.StatusSwitchingProtocols {
		return // informational answers come before the one that counts
	}
	a.given = true
	if code != http.StatusSwitchingProtocols && a.drain.announces(a.conn) {
		announceClose(w.Header())
	}
}

// announceClose adds close to the Connection header. net/http looks at its
// first value only, and compares it as a whole, so close comes first and
// alone; what else the handler put there stays, except for keep-alive.
func announceClose(h http.Header) {
	values := []string{"close"}
	for _, value := range h["Connection"] {
		for option := range strings.SplitSeq(value, ",") {
			option = strings.TrimSpace(option)
			if option != "" && !strings.EqualFold(option, "close") && !strings.EqualFold(option, "keep-alive") {
				values = append(values, option)
			}
		}
	}
	h["Connection"] = slices.Clip(values)
	h.Del("Keep-Alive")
}

// wrapResponse returns what the handler is given in place of w, and what
// looks after its header. A handler can do with it all that it could with
// the original, found by the same type assertions, with one exception that
// every wrapper shares: http.MaxBytesReader asks its ResponseWriter by an
// unexported method to close the connection where a body is too large. With
// a wrapper net/http still does so, when more than 256 KiB are left unread.
func wrapResponse(w http.ResponseWriter, c *trackedConn, d *httpDrain) (http.ResponseWriter, *announcer) {
	switch r := w.(type) {
	case http1Response:
		w := &http1Writer{http1Response: r, announcer: announcer{drain: d, conn: c}}
		return w, &w.announcer
	case http2Response:
		w := &http2Writer{http2Response: r, announcer: announcer{drain: d}}
		return w, &w.announcer
	default: // not from this package's server, nor net/http's
		w := &plainWriter{ResponseWriter: r, announcer: announcer{drain: d}}
		return w, &w.announcer
	}
}

// http1Writer is the http.ResponseWriter of an HTTP/1 request.
type http1Writer struct {
	http1Response
	announcer
}

func (w *http1Writer) Unwrap() http.ResponseWriter { return w.http1Response }

func (w *http1Writer) WriteHeader(code int) {
	w.before(w.http1Response, code)
	w.http1Response.WriteHeader(code)
}

func (w *http1Writer) Write(p []byte) (int, error) {
	w.before(w.http1Response, http.StatusOK)
	return w.http1Response.Write(p)
}

func (w *http1Writer) WriteString(s string) (int, error) {
	w.before(w.http1Response, http.StatusOK)
	return w.http1Response.WriteString(s)
}

func (w *http1Writer) ReadFrom(r io.Reader) (int64, error) {
	w.before(w.http1Response, http.StatusOK)
	return w.http1Response.ReadFrom(r)
}

func (w *http1Writer) Flush() { w.FlushError() }

func (w *http1Writer) FlushError() error {
	w.before(w.http1Response, http.StatusOK)
	return w.http1Response.FlushError()
}

func (w *http1Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	nc, buf, err := w.http1Response.Hijack()
	if err != nil {
		return nil, nil, err
	}
	w.given = true // whatever is answered, the handler writes it itself
	if w.conn != nil {
		nc = w.conn.hijacked(nc)
	}
	return nc, buf, nil
}

// http2Writer is the http.ResponseWriter of an HTTP/2 request.
type http2Writer struct {
	http2Response
	announcer
}

func (w *http2Writer) Unwrap() http.ResponseWriter { return w.http2Response }

func (w *http2Writer) WriteHeader(code int) {
	w.before(w.http2Response, code)
	w.http2Response.WriteHeader(code)
}

func (w *http2Writer) Write(p []byte) (int, error) {
	w.before(w.http2Response, http.StatusOK)
	return w.http2Response.Write(p)
}

func (w *http2Writer) WriteString(s string) (int, error) {
	w.before(w.http2Response, http.StatusOK)
	return w.http2Response.WriteString(s)
}

func (w *http2Writer) Flush() { w.FlushError() }

func (w *http2Writer) FlushError() error {
	w.before(w.http2Response, http.StatusOK)
	return w.http2Response.FlushError()
}

// plainWriter is the http.ResponseWriter of a server that is neither.
// http.ResponseController finds what else it can do by Unwrap.
type plainWriter struct {
	http.ResponseWriter
	announcer
}

func (w *plainWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

func (w *plainWriter) WriteHeader(code int) {
	w.before(w.ResponseWriter, code)
	w.ResponseWriter.WriteHeader(code)
}

func (w *plainWriter) Write(p []byte) (int, error) {
	w.before(w.ResponseWriter, http.StatusOK)
	return w.ResponseWriter.Write(p)
}
