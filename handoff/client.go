package handoff

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Client is the operator's side of the control socket: it asks whoever answers
// there, and changes something only by the verbs Handover, Rollback, Stop, Drain
// and Withdraw.
//
// Each call connects anew and closes what it opened, so a Client needs no
// closing, may be copied, and may be used by several goroutines at once. ctx
// bounds each call, and should have a deadline: a process that is alive but
// silent is waited for until ctx ends. An answer "busy" is asked again until
// then, and so is a question that the answering process took with it when it
// ended; a verb is repeated only where asking twice does nothing twice.
//
// Errors are an *OpError around ErrNobody, ErrPermission, ErrNotHandoff,
// ErrNotSocket, ErrPathTooLong, ErrNoAnswer, ErrBadAnswer, a *RemoteError where
// the process that answered said no, or ctx's error.
type Client struct {
	// Socket is the path of the control socket, or of one process's self socket,
	// which answers Status, Watch and Sockets.
	Socket string
	// AllowUIDs are the users whose process may answer, besides this process's
	// own user and root; nil means nobody else. What Config.AllowUIDs says of 65534
	// is true here too.
	AllowUIDs []uint32
	// Key is Config.Key of the service, for an operator who is in another user
	// namespace than the service; nil is none. It is read by each call, and must not
	// be changed meanwhile.
	Key []byte
	// Progress, if set, is called by StopAndWait, DrainAndWait and
	// StopGenerationAndWait while they wait: at each change, and about twice a
	// second, with the status as the process tells it that they wait for, also
	// when that one answers the control socket no more. It is called by the
	// goroutine that waits.
	Progress func(*Status)
}

var (
	// ErrNoAnswer means that the process at the control socket ended the
	// connection before it answered: it is gone, does not talk to this user, or
	// made room for other connections.
	// Whether a verb was heard is unknown; Status tells.
	ErrNoAnswer = errors.New("the connection ended without an answer: the process ended just then, or does not answer this user (its log says)")
	// ErrBadAnswer means that what came back is not an answer of this protocol,
	// or is of a version that this program does not know.
	ErrBadAnswer = errors.New("the answer can't be understood")
)

// Codes of a RemoteError that a program may want to tell apart.
const (
	CodeNoStandby  = "no_standby"
	CodeNotNow     = "not_now"
	CodePermission = "permission"
	CodeBusy       = "busy"
	CodeSilent     = "silent"      // the process that decides, or the standby, is alive but does not answer
	CodeSelfSocket = "self_socket" // what was asked is for the control socket
)

// RemoteError is a no from the process that answers the control socket. What it
// refused did not happen.
type RemoteError struct {
	Code string // for programs: no_standby, not_now, permission, ...
	Text string // for people: what and why
	Hint string // what to do about it, or ""
}

func (e *RemoteError) Error() string {
	if e.Text == "" {
		return "refused: " + e.Code
	}
	return e.Text
}

const (
	pollTime  = 10 * time.Second // one long poll; then the question is put again
	pollGrace = 5 * time.Second  // beyond it, after which a silent process is dialled anew

	firstPause = 10 * time.Millisecond // before a question is repeated; doubles
	lastPause  = 500 * time.Millisecond
)

// Status asks for the present state.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	f, err := c.call(ctx, "status", &frame{Type: msgStatus}, msgStatus, true)
	if err != nil {
		return nil, err
	}
	return f.Status, nil
}

// Watch returns the first status that differs from after, or the present one if
// after is nil. It survives the end of the process that it asks, if another one
// answers the socket; if nobody does, that is ErrNobody at once.
func (c *Client) Watch(ctx context.Context, after *Status) (*Status, error) {
	if after == nil {
		return c.Status(ctx)
	}
	ask := &frame{Type: msgStatus, After: &revision{Instance: after.Instance, Revision: after.Revision}}
	for {
		ask.WaitMS = int(pollTime / time.Millisecond)
		if end, ok := ctx.Deadline(); ok {
			ask.WaitMS = int(min(pollTime, max(0, time.Until(end))) / time.Millisecond)
		}
		asked := time.Now()
		poll, cancel := context.WithTimeout(ctx, pollTime+pollGrace)
		f, err := c.call(poll, "watch", ask, msgStatus, true)
		expired := poll.Err() != nil
		cancel()
		switch {
		case err == nil && (f.Status.Instance != after.Instance || f.Status.Revision != after.Revision):
			return f.Status, nil
		case ctx.Err() != nil:
			return nil, c.fail("watch", ctx.Err())
		case err != nil && !expired:
			return nil, err
		case err == nil && time.Since(asked) < lastPause:
			sleep(ctx, lastPause) // it does not hold the question back, so the pace is kept here
		}
	}
}

// Sockets lists what the answering process holds, in the order of the manifest.
// More than 64 are asked for page by page: what changes meanwhile may be missing
// or listed twice.
func (c *Client) Sockets(ctx context.Context) ([]SocketInfo, error) {
	var all []SocketInfo
	for {
		f, err := c.call(ctx, "sockets", &frame{Type: msgListSockets, Offset: len(all)}, msgSocketList, true)
		if err != nil {
			return nil, err
		}
		if all = append(all, f.List...); len(all) >= f.Total {
			return all, nil
		}
		if len(f.List) == 0 {
			return nil, c.fail("sockets", fmt.Errorf("%w: the list ends after %d of %d", ErrBadAnswer, len(all), f.Total))
		}
	}
}

// Handover tells the incumbent to hand over to its standby. An accepted one is
// carried out although the caller goes away; Status shows how it ends, under the
// answer's request id or generation. With a request id it may be repeated: an id
// that was handed over, or is about to be, is answered Already. With request ""
// a second call may hand over to a second standby.
func (c *Client) Handover(ctx context.Context, request string) (Answer, error) {
	return c.verb(ctx, &frame{Type: msgHandover, Request: request}, request != "")
}

// Rollback tells the incumbent to take back, which it can until it has released;
// after that, and where it is not parked, the answer is a RemoteError with
// CodeNotNow. If the last handoff was rolled back already, the answer says so.
func (c *Client) Rollback(ctx context.Context) (Answer, error) {
	return c.verb(ctx, &frame{Type: msgRollback}, false)
}

// RollbackBecause is Rollback, with a sentence for the incumbent's log, of which the
// first 512 bytes get there.
func (c *Client) RollbackBecause(ctx context.Context, why string) (Answer, error) {
	return c.verb(ctx, &frame{Type: msgRollback, Text: clip(why)}, false)
}

// Stop does what SIGTERM does to the process that answers: it hands over if it
// has a successor, and otherwise drains and ends. It does not wait for that.
func (c *Client) Stop(ctx context.Context) (Answer, error) {
	return c.verb(ctx, &frame{Type: msgStop}, false)
}

// StopAndWait is Stop, and returns when the connection that it asked on ends,
// which is when that process's part is over. Where the process serves on because
// its successor failed, that is not before ctx ends. If ctx ends first the error
// is ctx's and the Answer, if it came, is returned too: the process goes on.
func (c *Client) StopAndWait(ctx context.Context) (Answer, error) {
	return c.untilItsEnd(ctx, &frame{Type: msgStop})
}

// StopGeneration stops the living generation n, whichever process answers: the
// answering one as Stop does; one that drains, or was revoked, cuts what it has
// open at once; a successor that does not serve yet is sent away. For a
// successor in probation, and for a generation that is not known, the answer is
// a RemoteError with CodeNotNow. It does not wait for the end.
func (c *Client) StopGeneration(ctx context.Context, n uint64) (Answer, error) {
	return c.verb(ctx, &frame{Type: msgStop, Generation: n}, false)
}

// Drain takes the service out: the incumbent takes no successor, sends away one
// that waits or starts, and stops as by Stop with nobody to succeed it. In
// probation the answer is a RemoteError with CodeNotNow. It does not wait for
// the end.
func (c *Client) Drain(ctx context.Context) (Answer, error) {
	return c.verb(ctx, &frame{Type: msgDrain}, true)
}

// DrainAndWait is Drain, and returns as StopAndWait does.
func (c *Client) DrainAndWait(ctx context.Context) (Answer, error) {
	return c.untilItsEnd(ctx, &frame{Type: msgDrain})
}

// Withdraw takes a request back before it is committed: its successor is sent
// away, and refused however late it comes, as long as the id is among the 32 that
// are remembered. It may be repeated. After commit the answer is a RemoteError
// with CodeNotNow.
func (c *Client) Withdraw(ctx context.Context, request string) (Answer, error) {
	return c.verb(ctx, &frame{Type: msgWithdraw, Request: request}, true)
}

func (c *Client) verb(ctx context.Context, ask *frame, again bool) (Answer, error) {
	f, err := c.call(ctx, ask.Type.String(), ask, msgOK, again)
	if err != nil {
		return Answer{}, err
	}
	return answerOf(f), nil
}

func answerOf(f *frame) Answer {
	return Answer{Already: f.Already, Generation: f.Generation, Request: f.Request, Text: f.Text}
}

// call puts one question and returns the answer, which is of type want. again
// says that the question may be put once more if its answer was lost.
func (c *Client) call(ctx context.Context, op string, ask *frame, want msgType, again bool) (*frame, error) {
	pause := firstPause
	for {
		f, err := c.once(ctx, ask, want)
		if err == nil {
			return f, nil
		}
		if !mayRepeat(err, again) || !sleep(ctx, pause) {
			return nil, c.fail(op, err)
		}
		pause = min(2*pause, lastPause)
	}
}

// mayRepeat: a process that is busy did nothing.
func mayRepeat(err error, lost bool) bool {
	var no *RemoteError
	if errors.As(err, &no) {
		return no.Code == CodeBusy
	}
	return lost && errors.Is(err, ErrNoAnswer)
}

func (c *Client) allow() allow { return allow{UIDs: c.AllowUIDs, Key: c.Key} }

func (c *Client) once(ctx context.Context, ask *frame, want msgType) (*frame, error) {
	conn, err := dialOperator(ctx, c.Socket, c.allow())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	return conn.question(ctx, ask, want)
}

// question puts one question and reads the answer, which is of type want.
func (o *operatorConn) question(ctx context.Context, ask *frame, want msgType) (*frame, error) {
	b, err := ask.encode()
	if err != nil {
		return nil, err
	}
	if b, err = o.exchange(ctx, b); err != nil {
		return nil, err
	}
	return decodeAnswer(b, want)
}

// fail adds what was asked and where, once.
func (c *Client) fail(op string, err error) error {
	var done *OpError
	if errors.As(err, &done) {
		return err
	}
	return &OpError{Op: op, Path: c.Socket, Err: err}
}

// decodeAnswer reads the answer to a question whose answer is of type want. What
// it returns without an error has all that the type promises.
func decodeAnswer(b []byte, want msgType) (*frame, error) {
	f, err := decode(b)
	switch {
	case err != nil:
		return nil, fmt.Errorf("%w: %w", ErrBadAnswer, err)
	case f.Type == msgError:
		return nil, &RemoteError{Code: f.Code, Text: f.Text, Hint: f.Hint}
	case f.Type != want:
		return nil, fmt.Errorf("%w: it is of type %s instead of %s", ErrBadAnswer, f.Type, want)
	case want == msgStatus && f.Status == nil:
		return nil, fmt.Errorf("%w: a status without a status in it", ErrBadAnswer)
	case want == msgStatus && f.Status.Schema != StatusSchema:
		return nil, fmt.Errorf("%w: status of schema %d, known is %d: use the tool of the service's version", ErrBadAnswer, f.Status.Schema, StatusSchema)
	}
	return f, nil
}

// sleep waits for d; false means that ctx ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		// Both may be over where this process was stopped, or had no time.
		return !timeIsUp(ctx) && ctx.Err() == nil
	}
}
