package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"syscall"
	"time"
)

// operatorConn is an operator's connection: questions and answers in turn, none
// of them with descriptors. One goroutine at a time may use it.
type operatorConn struct{ c *conn }

// dialOperator connects to whoever answers the control socket at path and is
// trusted by a.
func dialOperator(ctx context.Context, path string, a allow) (*operatorConn, error) {
	if err := a.checkLists(); err != nil {
		return nil, fmt.Errorf("%w: %w", ErrPermission, err)
	}
	if err := checkKey(a.Key); err != nil {
		return nil, err
	}
	c, err := dial(ctx, path, a)
	if outOfTime(ctx, err) {
		return nil, ctx.Err()
	}
	if err != nil {
		return nil, err
	}
	return &operatorConn{c: c}, nil
}

func (o *operatorConn) Close() error { return o.c.Close() }

// exchange sends one frame and returns the one that answers it. After an error
// the connection is of no more use.
func (o *operatorConn) exchange(ctx context.Context, ask []byte) ([]byte, error) {
	// A peer that refuses says so and closes without reading: the send fails
	// then, or the read is reset, and its word is in the queue all the same.
	if err := o.c.send(ask); err != nil && !isHangup(err) {
		return nil, err
	}
	return o.next(ctx)
}

// next reads one frame. ErrNoAnswer means that the other end is closed.
func (o *operatorConn) next(ctx context.Context) ([]byte, error) {
	stop := context.AfterFunc(ctx, func() { _ = o.c.setReadDeadline(time.Unix(1, 0)) })
	defer stop()
	for resets := 0; ; resets++ {
		b, fds, err := o.c.receive()
		closeAll(fds) // none belong here
		switch {
		case err == nil:
			return b, nil
		case ctx.Err() != nil:
			return nil, ctx.Err()
		case errors.Is(err, io.EOF), errors.Is(err, errReset) && resets > 0:
			return nil, ErrNoAnswer
		case errors.Is(err, ErrTruncated), errors.Is(err, errEmptyFrame):
			return nil, fmt.Errorf("%w: %w", ErrBadAnswer, err)
		case !errors.Is(err, errReset):
			return nil, err
		}
	}
}

func isHangup(err error) bool {
	return errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE)
}
