package load

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// generationHeader names the process that answered.
const generationHeader = "X-Handoff-Generation"

// body returns the next body of this worker. No two requests of a run have the same, so that an answer meant for
// another request shows.
func (w *worker) body() []byte {
	w.serial++
	b := make([]byte, 0, w.cfg.body()+32)
	b = fmt.Appendf(b, "%s %d %d ", w.stream.Kind, w.id, w.serial)
	for i := byte(0); len(b) < w.cfg.body(); i++ {
		b = append(b, 'a'+(i+byte(w.serial))%26)
	}
	return b[:w.cfg.body()]
}

// request is a POST of body to /echo as it goes over the wire.
func request(body []byte, last bool) []byte {
	b := make([]byte, 0, len(body)+160)
	b = append(b, "POST /echo HTTP/1.1\r\nHost: load\r\nContent-Type: application/octet-stream\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(len(body)), 10)
	if last {
		b = append(b, "\r\nConnection: close"...)
	}
	b = append(b, "\r\n\r\n"...)
	return append(b, body...)
}

// failure is why a request is lost.
type failure struct {
	cause Cause
	err   error
}

func (f *failure) Error() string { return string(f.cause) + ": " + f.err.Error() }
func (f *failure) Unwrap() error { return f.err }

// textOf is an error without its cause, which a Loss holds apart.
func textOf(err error) string {
	var f *failure
	if errors.As(err, &f) {
		return f.err.Error()
	}
	return err.Error()
}

// causeOf tells how a connection failed while a request was outstanding on it.
func causeOf(err error) Cause {
	var f *failure
	switch {
	case errors.As(err, &f):
		return f.cause
	case errors.Is(err, os.ErrDeadlineExceeded):
		return CauseTimeout
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return CauseReset
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return CauseClosed
	default:
		return CauseProtocol
	}
}

// readAnswer reads one whole answer and checks that it is the echo of body. The header is returned also when the
// answer is wrong, nil when there was none.
func readAnswer(br *bufio.Reader, body []byte) (*http.Response, error) {
	resp, err := http.ReadResponse(br, postRequest)
	if err != nil {
		return nil, err
	}
	return resp, checkEcho(resp, body)
}

// postRequest tells http.ReadResponse that the answer is to a POST; it is only read.
var postRequest = &http.Request{Method: http.MethodPost}

// checkEcho reads the answer's body to its end and compares.
func checkEcho(resp *http.Response, body []byte) error {
	got, err := io.ReadAll(io.LimitReader(resp.Body, int64(len(body))+1<<16))
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &failure{CauseStatus, fmt.Errorf("%s: %q", resp.Status, got[:min(len(got), 80)])}
	}
	if !bytes.Equal(got, body) {
		return &failure{CauseEcho, fmt.Errorf("sent %q, got %q", body[:min(len(body), 40)], got[:min(len(got), 40)])}
	}
	return nil
}

// generationOf is the answer's generation, 0 where the server states none.
func generationOf(h http.Header) uint64 {
	g, err := strconv.ParseUint(h.Get(generationHeader), 10, 64)
	if err != nil {
		return 0
	}
	return g
}

var errSurplus = &failure{CauseProtocol, errors.New("bytes nobody asked for")}

// peek looks at what waits on an idle connection: nil means nothing, io.EOF that the server closed it, errSurplus that
// it sent bytes nobody asked for. It does not block.
func peek(c syscall.RawConn) error {
	var state error
	if err := c.Control(func(fd uintptr) { state = peekOnce(int(fd)) }); err != nil {
		return err
	}
	if errors.Is(state, unix.EAGAIN) {
		return nil
	}
	return state
}

// peekOnce is peek on a descriptor, with EAGAIN for nothing there.
func peekOnce(fd int) error {
	var b [1]byte
	for {
		n, _, err := unix.Recvfrom(fd, b[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EINTR):
			continue
		case err != nil:
			return err
		case n == 0:
			return io.EOF
		default:
			return errSurplus
		}
	}
}

// watch waits until the connection's read deadline or until something happens on it; what, is said as by peek.
// At the deadline it returns nil.
func watch(c syscall.RawConn) error {
	var state error
	err := c.Read(func(fd uintptr) bool {
		state = peekOnce(int(fd))
		return !errors.Is(state, unix.EAGAIN)
	})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil
	case err != nil:
		return err
	}
	return state
}

// rawConn is what TCP and Unix connections have in common.
type rawConn interface {
	net.Conn
	syscall.Conn
}
