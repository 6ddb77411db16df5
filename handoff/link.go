package handoff

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"sync/atomic"
)

// link is one end of the connection between an incumbent and its successor. Its
// reader turns what arrives into functions for run, in the order of arrival.
type link struct {
	p       *Process
	c       *conn
	side    side // owned by run
	closed  bool // owned by run
	peer    program
	mode    Takeover
	files   []string // names of files that the successor asked for
	id      string   // of the handoff
	version int      // of the protocol, as negotiated
	number  uint64   // the other end's generation

	singletons bool // the successor has some

	pulse pulse       // owned by run
	life  lifeline    // the other end's process, if it is known; owned by run
	dead  atomic.Bool // that process has ended
}

// errLink is what a frame that can't be believed is reported as.
var errLink = errors.New("frame out of place")

// errLocal marks what is not the peer's fault.
var errLocal = errors.New("here")

// read runs until the link ends or is closed.
func (l *link) read() {
	for {
		b, fds, err := l.c.receive()
		switch {
		case err == nil:
			l.deliver(b, fds)
		case errors.Is(err, errInterrupted):
			if !l.readEmpty() {
				return
			}
		case !l.broken(err):
			return
		}
	}
}

// readEmpty delivers what is queued and then says that nothing is. It runs in
// the reader, so nothing that was read before is still on its way.
func (l *link) readEmpty() (goOn bool) {
	for {
		b, fds, ok, err := l.c.receiveNow()
		switch {
		case err != nil:
			if !l.broken(err) {
				l.p.post(func() { l.p.feedFrom(l, event{kind: evEmpty}) })
				return false
			}
		case !ok && l.dead.Load():
			// Somebody else has its end of the link. Nothing of its own can follow.
			l.p.post(func() { l.p.feedFrom(l, event{kind: evEOF}) })
			return false
		case !ok:
			l.p.post(func() { l.p.feedFrom(l, event{kind: evEmpty}) })
			return true
		default:
			l.deliver(b, fds)
		}
	}
}

// broken reports a read error; false means that there is nothing more to read.
func (l *link) broken(err error) (goOn bool) {
	switch {
	case errors.Is(err, net.ErrClosed):
		// By this process's machine; or it made room for others (connTable) before it
		// was known to be a link: then nobody else would tell that it has ended.
		l.p.post(func() { l.p.feedFrom(l, event{kind: evEOF}) })
		return false
	case errors.Is(err, errReset):
		l.p.post(func() { l.p.feedFrom(l, event{kind: evReset}) })
		return true
	case errors.Is(err, io.EOF):
		l.p.post(func() { l.p.feedFrom(l, event{kind: evEOF}) })
		return false
	case errors.Is(err, ErrTruncated), errors.Is(err, errEmptyFrame):
		l.p.post(func() { l.p.badFrame(l, err) })
		return true
	}
	l.p.post(func() {
		if !l.closed {
			l.p.Logger().Error("a link can't be read", "error", err)
		}
		l.p.feedFrom(l, event{kind: evEOF})
	})
	return false
}

// deliver decodes one message and hands it to run, which owns fds from then on.
func (l *link) deliver(b []byte, fds []*descriptor) {
	f, err := decode(b)
	posted := l.p.post(func() {
		switch {
		case l.closed:
			closeAll(fds)
		case errors.Is(err, errUnknownType):
			closeAll(fds)
			l.answerUnknown()
		case err != nil:
			closeAll(fds)
			l.p.badFrame(l, err)
		default:
			haltAt("read", f.Type)
			l.p.frameArrived(l, f, fds)
		}
		if !l.closed {
			l.p.heardOn(l, err == nil && (f.Type == msgPong || f.Type == msgError))
		}
	})
	if !posted {
		closeAll(fds)
	}
}

// where says which process is at the other end, for people: by the pid that it
// calls itself, unless that means nothing here.
func (l *link) where() string {
	if who, err := l.c.peer(); err == nil && who.PID == 0 {
		return who.where()
	}
	return pidText(l.peer.PID)
}

// poll makes the reader read the link empty and say so.
func (l *link) poll() { l.c.interrupt() }

// send sends one frame. An error is no news: a peer that is gone is noticed by
// reading, because its last words may still be there to read.
func (l *link) send(f *frame, fds ...*descriptor) { l.trySend(f, fds...) }

func (l *link) trySend(f *frame, fds ...*descriptor) error {
	b, err := f.encode()
	if err != nil {
		l.p.Logger().Error("a frame can't be encoded", "frame", f.Type.String(), "error", err)
		return err
	}
	haltAt("before", f.Type)
	err = l.c.send(b, fds...)
	haltAt("sent", f.Type)
	if err != nil {
		l.p.Logger().Debug("frame not sent", "frame", f.Type.String(), "error", err)
	}
	return err
}

// answerUnknown answers a frame of an unknown type. A peer that asks for more
// answers than it reads would hold up everything here, for as long as a send may
// take each time; it is not listened to any more.
func (l *link) answerUnknown() {
	if l.side == sideRetired {
		return
	}
	err := l.trySend(&frame{Type: msgError, Code: "unknown_type", Text: "this frame's type is not known here"})
	if errors.Is(err, os.ErrDeadlineExceeded) {
		l.p.badFrame(l, fmt.Errorf("%w: it does not read what it asks for", errLink))
	}
}

func (l *link) close() {
	if l != nil && !l.closed {
		l.closed = true
		l.c.Close()
		l.life.Close()
	}
}

// feedFrom feeds an event that came from a link, unless it was closed here.
func (p *Process) feedFrom(l *link, ev event) {
	ev.side = l.side
	if l.closed {
		return
	}
	if l.side == sideRetired && ev.kind == evEOF {
		defer p.forget(l)
	}
	p.feed(ev)
}

// forget closes a retired link that has ended.
func (p *Process) forget(l *link) {
	delete(p.retired, l)
	l.close()
}

// badFrame: the peer sent what can't be believed.
func (p *Process) badFrame(l *link, err error) {
	if l.closed {
		return
	}
	// What this process can't take is no lie of the peer's.
	protocol := !errors.Is(err, errLocal) && !errors.Is(err, ErrForeignNetns)
	what := "the peer broke the protocol"
	if !protocol {
		what = "what the peer sent can't be taken"
	}
	p.Logger().Error(what, "peer_pid", l.peer.PID, "peer_generation", l.number, "error", err)
	if l.side == sideElder && p.fault == nil && (p.m.state == StateStarting || p.m.state == StateStandby) {
		p.fault = err
		if protocol {
			p.fault = fmt.Errorf("%w: %w", ErrProtocol, err)
		}
	}
	why := whyNone
	if errors.Is(err, ErrForeignNetns) {
		why = whyForeign
	}
	p.feed(event{kind: evBad, side: l.side, why: why})
}

// frameArrived looks at what a frame carries, then tells the machine.
func (p *Process) frameArrived(l *link, f *frame, fds []*descriptor) {
	if f.Type != msgSockets && !(f.Type == msgWelcome && f.Pidfd && len(fds) == 1) && len(fds) > 0 {
		closeAll(fds)
		p.badFrame(l, fmt.Errorf("%w: %s carries %d descriptors", errLink, f.Type, len(fds)))
		return
	}
	if f.Type == msgHurry && l.side == sideYounger && p.m.younger == phaseDraining {
		p.hurried(f.Generation)
		return
	}
	var err error
	ev := event{kind: evFrame, side: l.side, msg: f.Type, why: f.Reason, last: f.Last}
	switch l.side {
	case sideElder:
		err = p.fromElder(l, f, fds)
	case sideYounger:
		ev.last, err = p.fromYounger(l, f)
	}
	switch {
	case err != nil:
		p.badFrame(l, err)
	case f.Type == msgError && f.Code == CodeBusy && l.side == sideElder && p.m.elder == phaseHello:
		p.busy = f.Text // too many connections: nobody has read the hello
		p.feed(event{kind: evFrame, side: sideElder, msg: msgBusy})
	case f.Type == msgError && l.side == sideElder && p.m.elder == phaseHello:
		p.fault = fmt.Errorf("%w: %s", ErrRefused, f.Text)
		if f.Code == CodePermission {
			p.fault = fmt.Errorf("%w: %s", ErrPermission, f.Text)
		}
		p.feed(event{kind: evFrame, side: sideElder, msg: msgRefuse})
	case f.Type == msgError && f.Code == "unknown_type" && l.pulse.asked:
		// It does not know heartbeats, and is there.
	case f.Type == msgError:
		// An error is never answered, and changes nothing.
		p.Logger().Warn("the peer reports an error", "code", f.Code, "text", f.Text)
	case f.Type == msgRejected && l.side != sideElder:
		// Part of ready, which follows.
	default:
		p.expectRevoked(l, f)
		p.feed(ev)
		if l.side == sideRetired && (f.Type == msgRevoked || f.Type == msgAbort || f.Type == msgBye) {
			p.forget(l)
		}
	}
}

// closeLink drops the link on side s.
func (p *Process) closeLink(s side) {
	l := p.link(s)
	l.close()
	switch s {
	case sideElder:
		p.reporterGone(l)
		p.elder = nil
	case sideYounger:
		p.younger = nil
		p.sockets.forgetRejected()
		if p.m.state == StateDraining {
			p.work.Go(p.register)
		}
	}
}

// sendFrame gives the machine's words what they carry.
func (p *Process) sendFrame(a action) {
	l := p.link(a.side)
	if l == nil {
		return
	}
	f := &frame{Type: a.msg, Reason: a.why}
	switch a.msg {
	case msgBusy:
		f.RetryMS, f.Generation = busyRetryMS, p.next
		f.Text = p.busyText(a.why)
		p.noteWaiting(l, a.why, f.Text)
	case msgRefuse:
		f.Code, f.Text = string(a.why), revokeText(a.why)
	case msgWelcome:
		p.welcome(f)
		if d, err := ownPidfd(); err == nil {
			f.Pidfd = true
			l.send(f, d)
			d.Close()
			return
		}
	case msgAbort:
		fault := ""
		if p.fault != nil {
			fault = p.fault.Error()
		}
		p.mu.Lock()
		f.Text = clip(cmp.Or(p.complaint, p.unready, fault))
		p.mu.Unlock()
	case msgGot:
		f.N = p.intake.n
	case msgReady:
		p.readyFrame(l, f)
	case msgRelease:
		f.Requests = p.ledger.list()
	case msgRevoke:
		f.Text, f.Generation = revokeText(a.why), p.next
		if a.why == whyDisplaced {
			f.Generation = p.nextNumber() // whoever displaces it gets that next
		}
		p.Logger().Warn("the successor is told to stop", "reason", string(a.why), "successor_pid", l.peer.PID)
	case msgBye:
		p.mu.Lock()
		f.Cut = p.report.Cut
		p.mu.Unlock()
	case msgDraining:
		f.Self, f.Older = p.self(), p.living.older()
	}
	l.send(f)
}
