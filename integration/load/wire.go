package load

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// generationHeader names the process that answered.
const generationHeader = "X-Handoff-Generation"

// body returns the next body of this worker. No two requests of a run have the same, nor the same 8 bytes at any place
// but by chance, so that an answer shows that is, or has a part of, the one to another request.
func (w *worker) body() []byte { return w.appendBody(nil, w.cfg.body(w.stream)) }

// appendBody appends the next body, of n bytes: its name, and letters that follow from it.
func (w *worker) appendBody(b []byte, n int) []byte {
	w.serial++
	begin, end := len(b), len(b)+n
	b = slices.Grow(b, n+minBody)
	b = fmt.Appendf(b, "%s %d %d ", w.stream.Kind, w.id, w.serial)
	letters := rand.NewPCG(uint64(w.id), w.serial)
	for len(b) < end {
		const low, letterA = 0x0f0f0f0f0f0f0f0f, 0x6161616161616161
		b = binary.LittleEndian.AppendUint64(b, letters.Uint64()&low+letterA)
	}
	return b[:begin+n]
}

// request is the next POST to /echo as it goes over the wire, with a body of n bytes, which is its end. It is written
// into buf where there is room. header is empty or has further lines.
func (w *worker) request(buf []byte, n int, header string) (wire, body []byte) {
	b := slices.Grow(buf[:0], n+len(header)+160)
	b = append(b, "POST /echo HTTP/1.1\r\nHost: load\r\nContent-Type: application/octet-stream\r\nContent-Length: "...)
	b = strconv.AppendInt(b, int64(n), 10)
	b = append(b, "\r\n"...)
	b = append(b, header...)
	b = append(b, "\r\n"...)
	b = w.appendBody(b, n)
	return b, b[len(b)-n:]
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

// chunks are for reading answers: a large one is compared as it comes, and never in memory as a whole.
var chunks = sync.Pool{New: func() any { return new([32 << 10]byte) }}

// checkEcho reads the answer's body to its end and compares.
func checkEcho(resp *http.Response, body []byte) error {
	chunk := chunks.Get().(*[32 << 10]byte)
	defer chunks.Put(chunk)
	if resp.StatusCode != http.StatusOK {
		n, err := io.ReadFull(resp.Body, chunk[:80])
		if err != nil && err != io.EOF && err != io.ErrUnexpectedEOF {
			return err
		}
		return &failure{CauseStatus, fmt.Errorf("%s: %q", resp.Status, chunk[:n])}
	}
	for at := 0; ; {
		n, err := resp.Body.Read(chunk[:])
		if got := chunk[:n]; !bytes.HasPrefix(body[at:], got) {
			want := body[at:min(at+n, len(body))]
			same := 0
			for same < len(want) && want[same] == got[same] {
				same++
			}
			return &failure{CauseEcho, fmt.Errorf("at byte %d of %d: sent %q, got %q", at+same, len(body),
				want[same:min(same+40, len(want))], got[same:min(same+40, n)])}
		}
		at += n
		switch {
		case err == io.EOF && at < len(body):
			return &failure{CauseEcho, fmt.Errorf("sent %d bytes, got the first %d", len(body), at)}
		case err == io.EOF:
			return nil
		case err != nil:
			return err
		}
	}
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
