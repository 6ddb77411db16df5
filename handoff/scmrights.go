package handoff

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

const (
	// maxFrame is the most bytes in one frame. The default send buffer takes
	// three of them.
	maxFrame = 60 << 10

	// maxBatch is the most descriptors that go with one frame.
	maxBatch = 128

	// kernelMaxFDs is SCM_MAX_FD: the most descriptors that the kernel lets
	// anyone put in one message (unix(7)).
	kernelMaxFDs = 253

	// sendTimeout bounds a send to a peer that does not read.
	sendTimeout = time.Second
)

var (
	// errReset: the peer closed with messages of ours unread. It is not the
	// end: the kernel reports it before what the peer had sent, so the caller
	// has to receive again until io.EOF.
	errReset = fmt.Errorf("peer left messages unread: %w", unix.ECONNRESET)

	// errInterrupted: interrupt was called.
	errInterrupted = errors.New("receive interrupted")

	// errEmptyFrame: the peer sent a message of no bytes, which no side of
	// this protocol does.
	errEmptyFrame = errors.New("empty frame")

	errFrameSize = fmt.Errorf("frame must have 1 to %d bytes", maxFrame)
	errBatchSize = fmt.Errorf("frame carries more than %d descriptors", maxBatch)
)

// conn is one end of a control connection. A frame is one SOCK_SEQPACKET
// message and carries its own descriptors: a stream would glue frames together
// and give descriptors with whatever bytes come first.
//
// All methods are safe for concurrent use, but only one goroutine at a time
// should receive. Whoever made the conn closes it.
type conn struct {
	c *net.UnixConn

	sendMu sync.Mutex // one send at a time: they share the write deadline

	mu          sync.Mutex
	frame, oob  []byte    // where the kernel puts a message; made when first used
	deadline    time.Time // as the caller of setReadDeadline wants it
	interrupted bool      // a receive has to return errInterrupted

	answering sync.Mutex // held from an operator's question to the end of its answer
}

// newConn takes ownership of c, which must be a "unixpacket" connection.
//
// With SO_TIMESTAMP every message brings a control message along, even one of
// no bytes, and the end of the connection does not; recvmsg returns 0 for
// either. (On Unix sockets the option has no cost for others: it does not turn
// on the kernel's time stamping of packets.) Where a kernel did not know it, an
// empty message would look like the end, which it may as well be.
func newConn(c *net.UnixConn) *conn {
	if raw, err := c.SyscallConn(); err == nil {
		_ = raw.Control(func(fd uintptr) {
			_ = messageStamps.try(func() error { return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_TIMESTAMP, 1) })
		})
	}
	return &conn{c: c}
}

// Close closes the connection; a blocked receive returns net.ErrClosed. The
// peer still gets what was sent.
func (c *conn) Close() error { return c.c.Close() }

// path is that of the socket that the connection came through, or "" at the end
// that dialled.
func (c *conn) path() string { return c.c.LocalAddr().String() }

// send sends one frame with the descriptors fds, or nothing at all; it blocks
// for at most sendTimeout and then returns os.ErrDeadlineExceeded. The caller
// still owns fds: what the peer gets are duplicates, and a peer without room
// for them drops them silently, so keep them until it said what it got.
func (c *conn) send(frame []byte, fds ...*descriptor) error {
	if len(frame) == 0 || len(frame) > maxFrame {
		return errFrameSize
	}
	if len(fds) > maxBatch {
		return errBatchSize
	}
	raw, err := c.c.SyscallConn()
	if err != nil {
		return err
	}
	c.sendMu.Lock()
	defer c.sendMu.Unlock()
	if err := c.c.SetWriteDeadline(time.Now().Add(sendTimeout)); err != nil {
		return err
	}
	werr := raw.Write(func(fd uintptr) bool {
		err = sendmsg(int(fd), frame, fds)
		return !errors.Is(err, unix.EAGAIN)
	})
	if werr != nil {
		return werr
	}
	return err
}

func sendmsg(fd int, frame []byte, fds []*descriptor) error {
	numbers := make([]int, 0, len(fds))
	for _, d := range fds {
		n, err := d.acquire()
		if err != nil {
			return err
		}
		defer d.release()
		numbers = append(numbers, n)
	}
	var oob []byte
	if len(numbers) > 0 {
		oob = unix.UnixRights(numbers...)
	}
	for {
		_, err := unix.SendmsgN(fd, frame, oob, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
		if err == unix.EINTR {
			continue
		}
		return os.NewSyscallError("sendmsg", err)
	}
}

// receive waits for the next frame and returns it with its descriptors, which
// the caller then owns; they are close-on-exec, and may be up to 253 from a
// peer that keeps to no rule. With any error there are none. Errors:
//
//   - io.EOF: the peer is gone, and all it sent was received.
//   - errReset: not the end; receive again.
//   - ErrTruncated, errEmptyFrame: the peer or this process broke a rule, the
//     message is lost; close the connection.
//   - errInterrupted, os.ErrDeadlineExceeded: nothing is lost; receive again.
//   - net.ErrClosed: Close was called.
func (c *conn) receive() (frame []byte, fds []*descriptor, err error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return nil, nil, err
	}
	werr := raw.Read(func(fd uintptr) bool {
		frame, fds, err = c.recvmsg(int(fd))
		return !errors.Is(err, unix.EAGAIN)
	})
	if werr == nil {
		return frame, fds, err
	}
	// The runtime reports a deadline only instead of calling the function
	// again, so no message was taken.
	if errors.Is(werr, os.ErrDeadlineExceeded) && c.takeInterrupt() {
		return nil, nil, errInterrupted
	}
	return nil, nil, werr
}

// receiveNow is receive without waiting: ok is false and err nil when nothing
// is queued. It works whatever the deadline is and leaves an interrupt pending,
// so that a timer can look whether the answer is there already.
func (c *conn) receiveNow() (frame []byte, fds []*descriptor, ok bool, err error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return nil, nil, false, err
	}
	cerr := raw.Control(func(fd uintptr) { frame, fds, err = c.recvmsg(int(fd)) })
	switch {
	case cerr != nil:
		return nil, nil, false, cerr
	case errors.Is(err, unix.EAGAIN):
		return nil, nil, false, nil
	}
	return frame, fds, err == nil, err
}

// recvmsg takes one message off the queue. Every read of a conn comes here.
//
// The kernel installs descriptors before recvmsg returns, also where it
// truncates or fails later, so they are collected before anything else is
// looked at, and either returned or closed. The room for them is always
// kernelMaxFDs: a smaller buffer has padding in which one more than asked for
// can arrive.
func (c *conn) recvmsg(fd int) ([]byte, []*descriptor, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.frame == nil {
		c.frame = make([]byte, maxFrame)
		c.oob = make([]byte, unix.CmsgSpace(kernelMaxFDs*4)+unix.CmsgSpace(16))
	}
	var n, oobn, flags int
	err := error(unix.EINTR)
	for err == unix.EINTR {
		n, oobn, flags, _, err = unix.Recvmsg(fd, c.frame, c.oob, unix.MSG_CMSG_CLOEXEC|unix.MSG_DONTWAIT)
	}
	numbers := rightsIn(c.oob[:max(oobn, 0)])
	fds := make([]*descriptor, 0, len(numbers))
	for _, n := range numbers {
		fds = append(fds, newDescriptor(n))
	}
	switch {
	case err == unix.ECONNRESET:
		err = errReset
	case err != nil:
		err = os.NewSyscallError("recvmsg", err)
	case flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0:
		err = ErrTruncated // recvmsg itself reports no error
	case n == 0 && oobn == 0:
		err = io.EOF
	case n == 0:
		err = errEmptyFrame
	}
	if err != nil {
		closeAll(fds)
		return nil, nil, err
	}
	return bytes.Clone(c.frame[:n]), fds, nil
}

// rightsIn returns the descriptors in the control messages of one message. The
// kernel merges those of several SCM_RIGHTS into one, but need not.
func rightsIn(oob []byte) []int {
	var numbers []int
	for len(oob) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		if h.Level == unix.SOL_SOCKET && h.Type == unix.SCM_RIGHTS {
			// Not unix.ParseUnixRights: it panics at an odd length.
			for ; len(data) >= 4; data = data[4:] {
				numbers = append(numbers, int(int32(binary.NativeEndian.Uint32(data))))
			}
		}
		oob = rest
	}
	return slices.Clip(numbers)
}

// interrupt makes the receive that is blocked, or else the next one, return
// errInterrupted, once; several calls before that count as one. What is queued
// stays queued.
func (c *conn) interrupt() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.interrupted = true
	_ = c.c.SetReadDeadline(longAgo())
}

// longAgo is a deadline that has passed.
func longAgo() time.Time { return time.Unix(1, 0) }

func (c *conn) takeInterrupt() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.interrupted {
		return false
	}
	c.interrupted = false
	_ = c.c.SetReadDeadline(c.deadline)
	return true
}

// setReadDeadline makes a receive that gets nothing until t return
// os.ErrDeadlineExceeded; the zero time means never. Like a net.Conn's, a
// deadline that has passed comes before what is queued: receiveNow reads that.
func (c *conn) setReadDeadline(t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.deadline = t
	if c.interrupted {
		return nil // takeInterrupt sets it
	}
	return c.c.SetReadDeadline(t)
}

// peer says who is at the other end: who called connect(2), or, seen from that
// side, who last called listen(2). It does not change while the connection
// lives, whoever holds the other end.
func (c *conn) peer() (peer, error) {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return peer{}, err
	}
	var cred *unix.Ucred
	cerr := raw.Control(func(fd uintptr) {
		cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if cerr != nil {
		return peer{}, cerr
	}
	if err != nil {
		return peer{}, os.NewSyscallError("getsockopt", err)
	}
	return peer{PID: int(cred.Pid), UID: cred.Uid, GID: cred.Gid}, nil
}
