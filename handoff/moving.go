package handoff

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"
)

// Idle HTTP connections on their way out: while this process drains, they go to
// whoever serves now. That is asked for anew whenever it has changed, over a
// connection of its own to the control socket: the successor may have handed over in
// turn while a request here was still under way, and an incumbent that took back is
// no successor at all.
//
// A batch is on its way until the other end has said that it got it, and there is one
// at a time. Who has it when that word does not come is decided as follows. †
//
//   - The taker says `got` before it reads a byte, and may read only if `got` was sent.
//   - The giver that waits no longer says `keep`, then shuts its reading side, so that
//     `got` can't be sent any more, and reads what was sent before. Without a `got` there
//     the batch is its own again.
//   - The taker that could not send `got` reads on: after `keep` it closes what it has;
//     at the end of the connection without that word the giver is dead, and it keeps it.

// moving is what this process gives away while it drains. It is nil where it gives
// nothing.
type moving struct {
	p      *Process
	k      *carrier
	drains []*httpDrain
	until  time.Time // then what is busy is told to close after all
	ctx    context.Context
	halted context.CancelFunc
	done   chan struct{}
	warned bool                      // the taker had no room
	told   map[*trackedListener]bool // that its connections are not taken
}

const (
	// moveRetry is the first pause before it is looked again for somebody who serves;
	// it doubles up to moveSweep.
	moveRetry = 5 * time.Millisecond

	// moveSweep is how often it is looked again for connections that could not leave,
	// and for how long those of a listener are left alone that were not taken: at
	// first, then twice as long each time.
	moveSweep = time.Second
)

var errNoMoves = errors.New("whoever serves takes no connections")

// startMoving begins to give away the connections of those of all that are HTTP
// servers. They must not have begun to drain.
func (p *Process) startMoving(run drainRun, all []drainer) *moving {
	if run.plain || p.moveOff() != "" {
		return nil
	}
	m := &moving{p: p, drains: httpDrains(all), done: make(chan struct{}), told: map[*trackedListener]bool{}, until: run.began.Add(p.cfg.DrainTimeout / 2)}
	if len(m.drains) == 0 {
		return nil
	}
	m.k = newCarrier(m.soon())
	stay := map[string]int{}
	for _, d := range m.drains {
		d.moveBy(m.k)
		add(stay, d.cannotMove())
	}
	if len(stay) > 0 {
		p.Logger().Info("connections that can't move; they are told to close", "connections", stay)
	}
	m.ctx, m.halted = context.WithCancel(p.life)
	p.work.Go(m.run)
	return m
}

// soon is until when it may take to find somebody who serves.
func (m *moving) soon() time.Time {
	t := time.Now().Add(m.p.cfg.StepTimeout)
	if t.After(m.until) {
		return m.until
	}
	return t
}

// halt ends the moving. When it returns, every connection is somebody's: what was on
// its way and was not taken is open here again.
func (m *moving) halt() {
	if m != nil {
		m.halted()
		<-m.done
	}
}

func (m *moving) run() {
	defer close(m.done)
	defer m.halted()
	told := false
	for pause := moveRetry; m.ctx.Err() == nil; pause = min(2*pause, moveSweep) {
		before := m.p.moved.Load()
		c, err := m.meet()
		switch {
		case err == nil:
			m.carry(c)
			if m.p.moved.Load() > before {
				pause = moveRetry
			}
		case errors.Is(err, errNoMoves):
			m.k.hopeUntil(time.Time{})
			if !told {
				told = true
				m.p.Logger().Info("idle connections stay here", "reason", err)
			}
		default:
			m.p.Logger().Debug("nobody takes idle connections yet", "error", err)
		}
		select {
		case <-time.After(pause):
		case <-m.ctx.Done():
		}
	}
	m.resume(m.k.end())
}

// meet connects to whoever serves now, and asks whether it takes connections.
func (m *moving) meet() (*conn, error) {
	ctx, cancel := context.WithTimeout(m.ctx, m.p.cfg.StepTimeout)
	defer cancel()
	c, err := dial(ctx, m.p.cfg.Socket, m.p.allow())
	if err != nil {
		return nil, err
	}
	if err := m.askToTake(ctx, c); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// askToTake returns nil where the other end of c takes connections.
func (m *moving) askToTake(ctx context.Context, c *conn) error {
	if err := say(c, &frame{Type: msgMove, Generation: m.p.Generation()}); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { c.setReadDeadline(longAgo()) })
	f, err := m.p.question(c)
	if !stop() {
		return errors.Join(context.Cause(ctx), err)
	}
	switch {
	case err != nil:
		return err
	case f.Type == msgOK:
		return nil
	case f.Type == msgError && (f.Code == "unknown_type" || f.Code == "moves_off"):
		return fmt.Errorf("%w: %s", errNoMoves, f.Text)
	}
	return fmt.Errorf("%s: %s", f.Type, f.Text)
}

// carry moves connections over c until that ends, or halt. It closes c.
func (m *moving) carry(c *conn) {
	const room = 2 * maxBatch // the next batch is collected while one is on its way
	replies := make(chan *frame)
	m.p.work.Go(func() { m.hear(c, replies) })
	m.k.open(room)
	m.k.hopeUntil(m.until)
	defer func() {
		c.Close()
		for range replies { // until the hearing has ended
		}
		m.resume(m.k.close(room))
		m.k.hopeUntil(m.soon())
	}()
	sweep := time.NewTicker(moveSweep)
	defer sweep.Stop()
	m.sweep()
	for m.ctx.Err() == nil {
		batch := m.k.take()
		if len(batch) == 0 {
			select {
			case <-m.k.changed:
				if m.k.arrived(0) {
					m.sweep()
				}
			case <-sweep.C:
				m.sweep()
			case _, ok := <-replies:
				if !ok {
					return
				}
			case <-m.ctx.Done():
			}
			continue
		}
		back, goOn := m.give(c, replies, batch)
		m.resume(back)
		if m.k.arrived(len(batch)) && goOn {
			m.sweep()
		}
		if !goOn {
			return
		}
	}
}

func (m *moving) sweep() {
	for _, d := range m.drains {
		d.sweep(m.k)
	}
}

// hear passes on what the other end says, and closes replies when it says no more.
// What is no frame is passed over: `got` may come after it, and until that can't be
// said any more a batch may be the other end's.
func (m *moving) hear(c *conn, replies chan<- *frame) {
	defer close(replies)
	for {
		b, fds, err := c.receive()
		closeAll(fds) // none belong here
		switch {
		case errors.Is(err, errReset), errors.Is(err, ErrTruncated), errors.Is(err, errEmptyFrame):
			continue
		case err != nil:
			return
		}
		f, err := decode(b)
		if err != nil {
			continue
		}
		haltAt("read", f.Type)
		replies <- f
	}
}

// give sends one batch, and returns what the other end did not take. goOn is false
// when c is of no more use.
func (m *moving) give(c *conn, replies <-chan *frame, batch []*movedConn) (back []*movedConn, goOn bool) {
	f, fds := movedFrame(batch)
	if err := sayMove(c, f, fds...); err != nil {
		m.p.Logger().Debug("connections not sent", "error", err)
		return batch, false
	}
	due := time.NewTimer(m.p.cfg.StepTimeout)
	defer due.Stop()
	var g giving
	g.on(moveSent)
	for kept, halted := false, m.ctx.Done(); ; {
		var r *frame
		ev, late := moveDue, false
		select {
		case r = <-replies:
			switch {
			case r == nil: // all that it said was read
				ev = moveEnd
			case r.Type == msgGot:
				ev = moveGot
			case r.Type == msgError:
				ev = moveNone
			default:
				continue
			}
		case <-due.C:
			late = true
		case <-halted:
			halted = nil
		}
		switch g.on(ev) {
		case moveLetGo:
			back, err := m.acknowledged(batch, r)
			return back, err == nil && !kept
		case moveResume:
			if ev == moveNone {
				m.refused(batch, r)
			}
			return batch, ev == moveNone && !kept && r.Code != CodeBusy
		case moveKeep:
			if late {
				m.p.Logger().Warn("whoever serves does not say that it got connections; they are served here again", "connections", len(batch),
					"hint", "look at that process: it may hang")
			}
			if kept = m.keep(c); !kept {
				g.on(moveUnkept)
				if m.ctx.Err() != nil && g.on(moveAbandoned) == moveLetGo {
					m.leave(batch)
					return nil, false
				}
			}
			due.Reset(m.p.cfg.StepTimeout)
		}
	}
}

// keep takes back what was sent and not acknowledged, unless `got` was sent before
// it returns: then that is read still.
func (m *moving) keep(c *conn) bool {
	if err := sayMove(c, &frame{Type: msgKeep}); errors.Is(err, os.ErrDeadlineExceeded) {
		return false // it can't be told: what it has may still be acknowledged
	}
	return c.c.CloseRead() == nil
}

// leave ends the waiting for a taker that neither reads nor can be told to: at the
// end of the connection without `keep` the batch is its own, if it ever looks.
func (m *moving) leave(batch []*movedConn) {
	m.p.Logger().Warn("connections were sent to whoever serves, which reads nothing: they are left to it", "connections", len(batch),
		"hint", "look at that process: it hangs")
	for _, c := range batch {
		m.letGo(c)
	}
}

// letGo: c is another process's now.
func (m *moving) letGo(c *movedConn) {
	c.d.Close()
	m.p.moved.Add(1)
	c.from.drain.arrived()
}

// sayMove sends a frame on which it depends who has a batch.
func sayMove(c *conn, f *frame, fds ...*descriptor) error {
	b, err := f.encode()
	if err != nil {
		return err
	}
	haltAt("before", f.Type)
	defer haltAt("sent", f.Type)
	return c.send(b, fds...)
}

// movedFrame is a batch as it is sent.
func movedFrame(batch []*movedConn) (*frame, []*descriptor) {
	f := &frame{Type: msgConnections}
	fds := make([]*descriptor, 0, len(batch))
	index := map[*trackedListener]int{}
	for _, c := range batch {
		i, ok := index[c.from]
		if !ok {
			i = len(f.Sockets)
			index[c.from] = i
			f.Sockets = append(f.Sockets, c.from.Listener.(*listener).item())
		}
		f.Moved = append(f.Moved, movedItem{Listener: i, Fresh: c.fresh, IdleMS: max(0, time.Since(c.since).Milliseconds())})
		fds = append(fds, c.d)
	}
	return f, fds
}

// acknowledged lets go of what was taken, and returns the rest.
func (m *moving) acknowledged(batch []*movedConn, got *frame) (back []*movedConn, err error) {
	rejected := make([]string, len(batch))
	for _, r := range got.Rejected {
		if r.Index < 0 || r.Index >= len(batch) || rejected[r.Index] != "" {
			err = errLink
			continue
		}
		rejected[r.Index] = r.Reason + " "
	}
	if got.N != len(batch) {
		err = errLink
	}
	if err != nil {
		// Two that read from one connection would be worse than none.
		m.p.Logger().Error("whoever serves took connections and says something else than was sent; they are closed here", "sent", len(batch), "got", got.N)
	}
	for i, c := range batch {
		if rejected[i] != "" && err == nil {
			m.k.refuse(c.from)
			if !m.told[c.from] {
				m.told[c.from] = true
				it := c.from.Listener.(*listener).item()
				m.p.Logger().Warn("connections of a listener are not taken; they are told to close", "listener", it.Name, "address", it.Local,
					"reason", strings.TrimSpace(rejected[i]))
			}
			back = append(back, c)
			continue
		}
		m.letGo(c)
	}
	m.p.post(m.p.changed)
	return back, err
}

// refused: the other end could not take the batch, and has closed what it got of it.
func (m *moving) refused(batch []*movedConn, r *frame) {
	if r.Code == CodeBusy { // it has just handed over, and another one serves
		return
	}
	for _, c := range batch {
		m.k.refuse(c.from)
	}
	if !m.warned {
		m.warned = true
		m.p.Logger().Warn("whoever serves can't take connections; they are served here, and told to close", "text", r.Text, "hint", r.Hint)
	}
}

// resume serves connections here again.
func (m *moving) resume(all []*movedConn) {
	for _, c := range all {
		c.adopt()
		c.from.drain.arrived()
	}
}

// movableConnections counts what the successor may get.
func (p *Process) movableConnections() (n int) {
	if p.moveOff() != "" {
		return 0
	}
	p.drainers.Lock()
	defer p.drainers.Unlock()
	for _, d := range httpDrains(p.drainers.all) {
		n += d.canMove()
	}
	return n
}

// moveOff says why this process moves no connections; "" if it does.
func (p *Process) moveOff() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.noMoves
}
