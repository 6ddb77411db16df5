package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// operatorConn is an operator's connection: questions and answers in turn, none
// of them with descriptors. One goroutine at a time may use it.
type operatorConn struct{ c *net.UnixConn }

// dialOperator connects to whoever answers the control socket at path. A full
// backlog (EAGAIN) means that somebody lives there, and is tried again until ctx
// ends.
func dialOperator(ctx context.Context, path string, uids []uint32) (*operatorConn, error) {
	_ = uids
	if len(path) > 107 {
		return nil, ErrPathTooLong
	}
	for pause := firstPause; ; pause = min(2*pause, lastPause) {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: path, Net: "unixpacket"})
		if err == nil {
			return &operatorConn{c: c}, nil
		}
		if !errors.Is(err, syscall.EAGAIN) {
			return nil, classifyDial(path, err)
		}
		if !sleep(ctx, pause) {
			return nil, ctx.Err()
		}
	}
}

// classifyDial says which of the few answers a failed connect is. ECONNREFUSED
// alone does not tell a stale socket from any other file.
func classifyDial(path string, err error) error {
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return ErrNobody
	case errors.Is(err, syscall.ECONNREFUSED):
		if st, e := os.Lstat(path); e == nil && st.Mode().Type() != fs.ModeSocket {
			return ErrNotSocket
		}
		return ErrNobody
	case errors.Is(err, syscall.EPROTOTYPE):
		return ErrNotHandoff
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%w: %w", ErrPermission, err)
	}
	return err
}

func (o *operatorConn) Close() error { return o.c.Close() }

// exchange sends one frame and returns the one that answers it. After an error
// the connection is of no more use.
func (o *operatorConn) exchange(ctx context.Context, ask []byte) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = o.c.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	answer, err := o.roundTrip(ask)
	if err != nil && ctx.Err() != nil {
		return nil, ctx.Err()
	}
	return answer, err
}

func (o *operatorConn) roundTrip(ask []byte) ([]byte, error) {
	// A peer that refuses says so and closes without reading: the write fails
	// then, or the read is reset, and its word is in the queue all the same.
	if _, err := o.c.Write(ask); err != nil && !isHangup(err) {
		return nil, err
	}
	b := make([]byte, maxFrame+1)
	for resets := 0; ; resets++ {
		n, err := o.c.Read(b) // descriptors are not asked for, so the kernel closes them
		switch {
		case err == nil && n > maxFrame:
			return nil, fmt.Errorf("%w: %w", ErrBadAnswer, errFrameTooLong)
		case err == nil:
			return b[:n], nil
		case errors.Is(err, io.EOF), isHangup(err) && resets > 0:
			return nil, ErrNoAnswer
		case !isHangup(err):
			return nil, err
		}
	}
}

func isHangup(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
