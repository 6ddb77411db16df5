package handoff

import (
	"context"
	"errors"
	"slices"
	"time"
)

// Waiting for the end of a process that an operator asked for.

// progressPause is how long a process whose end is waited for may hold back the
// status that Client.Progress is called with.
const progressPause = 500 * time.Millisecond

// untilItsEnd puts a verb that ends the answering process, and waits for that.
func (c *Client) untilItsEnd(ctx context.Context, verb *frame) (Answer, error) {
	op := verb.Type.String()
	conn, err := dialOperator(ctx, c.Socket, c.allow())
	if err != nil {
		return Answer{}, c.fail(op, err)
	}
	defer conn.Close()
	f, err := conn.question(ctx, verb, msgOK)
	if err != nil {
		return Answer{}, c.fail(op, err)
	}
	answer := answerOf(f)
	answer.Cut, err = c.lastWord(ctx, conn, verb.Generation)
	if !errors.Is(err, ErrNoAnswer) {
		return answer, c.fail(op, err)
	}
	return answer, nil
}

// lastWord reads conn to its end, which comes with the end of the process at the
// other end: long after the path is free, where a plain stop drains. The error,
// which is never nil, is ErrNoAnswer then, and also where the process is not
// generation want; 0 is any. Meanwhile it asks the process how it gets on.
func (c *Client) lastWord(ctx context.Context, conn *operatorConn, want uint64) (cut map[string]int, err error) {
	ask := &frame{Type: msgStatus, WaitMS: int(progressPause / time.Millisecond)}
	for asking := c.Progress != nil || want != 0; ; {
		if asking {
			b, err := ask.encode()
			if err != nil {
				return cut, err
			}
			_ = conn.c.send(b) // where it is gone, the read below says so
			asking = false
		}
		b, err := conn.next(ctx)
		if err != nil {
			return cut, err
		}
		f, bad := decode(b)
		switch {
		case bad != nil: // not for this program
		case f.Type == msgBye:
			cut = f.Cut
		case f.Type == msgStatus && f.Status != nil:
			if want != 0 && f.Status.Generation != want {
				return cut, ErrNoAnswer
			}
			if c.Progress != nil {
				c.Progress(f.Status)
			}
			ask.After = &revision{Instance: f.Status.Instance, Revision: f.Status.Revision}
			asking = true
		}
	}
}

// StopGenerationAndWait is StopGeneration, and returns when generation n is gone:
// where it is the one that answers, as StopAndWait does, and otherwise when the
// process that answers lists it no more. If ctx ends first the error is ctx's.
func (c *Client) StopGenerationAndWait(ctx context.Context, n uint64) (Answer, error) {
	st, err := c.Status(ctx)
	if err != nil {
		return Answer{}, err
	}
	if st.Generation == n {
		answer, err := c.untilItsEnd(ctx, &frame{Type: msgStop, Generation: n})
		if err != nil {
			return answer, err
		}
		// Where it handed over just before, another one was asked.
		st, err = c.Status(ctx)
		if errors.Is(err, ErrNobody) {
			return answer, nil
		}
		return answer, c.untilGone(ctx, n, st, err)
	}
	answer, err := c.StopGeneration(ctx, n)
	if err != nil {
		return answer, err
	}
	st, err = c.Status(ctx)
	return answer, c.untilGone(ctx, n, st, err)
}

// untilGone watches from st on until n is not in the status.
func (c *Client) untilGone(ctx context.Context, n uint64, st *Status, err error) error {
	for err == nil && slices.ContainsFunc(st.Generations, func(g GenerationStatus) bool { return g.Generation == n }) {
		if c.Progress != nil {
			c.Progress(st)
		}
		st, err = c.Watch(ctx, st)
	}
	return err
}
