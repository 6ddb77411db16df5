package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync"
	"time"
)

// Answering the control socket: successors, draining generations and operators
// come through it. Every connection has a goroutine of its own, so that a slow
// or silent one delays nobody.

const (
	maxConns     = 64               // connections that are answered at a time
	operatorIdle = 60 * time.Second // between two questions of one operator, if StepTimeout is not less
)

// controlSocket is this process's hold on the control socket.
type controlSocket struct {
	path string
	d    *descriptor
	file fileID       // of the file at path, recorded at bind
	ln   net.Listener // while this process answers

	mu    sync.Mutex
	conns map[*conn]bool
}

// item is the control listener's line in the manifest.
func (s *controlSocket) item() manifestItem {
	facts, _ := s.d.facts()
	return manifestItem{
		Name: "control", Kind: kindControl, Network: "unixpacket", Asked: s.path, Local: facts.local,
		Domain: facts.domain, Type: facts.typ, Protocol: facts.protocol, File: s.file,
	}
}

// close stops answering and lets go of the socket; the path stays.
func (s *controlSocket) close() {
	if s.ln != nil {
		s.ln.Close()
		s.ln = nil
	}
	if s.d != nil {
		s.d.Close()
		s.d = nil
	}
}

// remove is close for the last owner: the path goes first, so that whoever
// comes next finds nobody instead of a socket that is about to close.
func (s *controlSocket) remove() {
	if s.d != nil {
		removeSocketFile(s.path, s.file)
	}
	s.close()
}

func (s *controlSocket) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		c.Close()
	}
}

// track keeps c to be closed at the end; false means that there are too many.
func (s *controlSocket) track(c *conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns {
		return false
	}
	if s.conns == nil {
		s.conns = map[*conn]bool{}
	}
	s.conns[c] = true
	return true
}

func (s *controlSocket) untrack(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
}

// beginAnswering takes over the control socket. Calling listen(2) again keeps
// what is queued and makes SO_PEERCRED name this process to whoever connects.
func (p *Process) beginAnswering() {
	s := &p.control
	if s.ln != nil || s.d == nil {
		return
	}
	err := relisten(s.d)
	if err == nil {
		s.ln, err = s.d.listener()
	}
	if err != nil {
		p.Logger().Error("can't answer the control socket", "socket", s.path, "error", err)
		return
	}
	ln := s.ln.(*net.UnixListener)
	p.work.Go(func() { p.answerAll(ln) })
}

func (p *Process) answerAll(ln *net.UnixListener) {
	for {
		uc, err := ln.AcceptUnix()
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			// Out of descriptors, for instance: others may close some.
			p.Logger().Error("control socket: accept", "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-p.gone:
				return
			}
			continue
		}
		c := newConn(uc)
		if !p.control.track(c) {
			say(c, &frame{Type: msgError, Code: "busy", Text: fmt.Sprintf("%d connections are being answered already", maxConns)})
			c.Close()
			continue
		}
		p.work.Go(func() {
			defer p.control.untrack(c)
			p.answerOne(c)
		})
	}
}

func say(c *conn, f *frame) error {
	b, err := f.encode()
	if err != nil {
		return err
	}
	return c.send(b)
}

// answerOne serves one connection. It owns c, unless it becomes a link.
func (p *Process) answerOne(c *conn) {
	link := false
	defer func() {
		if !link {
			c.Close()
		}
	}()
	who, err := c.peer()
	if err == nil {
		err = p.allow().check(who)
	}
	if err != nil {
		p.Logger().Warn("refused a connection to the control socket", "peer_pid", who.PID, "peer_uid", who.UID, "peer_gid", who.GID, "error", err)
		say(c, &frame{Type: msgError, Code: "permission", Text: clip(err.Error())})
		return
	}
	for {
		c.setReadDeadline(time.Now().Add(min(p.cfg.StepTimeout, operatorIdle)))
		f, err := p.question(c)
		if err != nil {
			if !errors.Is(err, errGone) {
				p.Logger().Warn("control socket: a connection was closed", "peer_pid", who.PID, "peer_uid", who.UID, "error", err)
				say(c, &frame{Type: msgError, Code: "bad_request", Text: clip(err.Error())})
			}
			return
		}
		switch f.Type {
		case msgHello:
			c.setReadDeadline(time.Time{})
			link = p.admitOrNot(c, f)
			return
		case msgRegister:
			c.setReadDeadline(time.Time{})
			p.hearRegistered(c, f)
			return
		}
		if f.Type == msgError {
			continue // is never answered
		}
		if say(c, p.answerOperator(f)) != nil {
			return
		}
		if f.Type == msgStop {
			p.Stop() // after the answer: this process may be gone at once
		}
	}
}

var errGone = errors.New("the peer has gone")

// question reads one frame, which must not carry descriptors.
func (p *Process) question(c *conn) (*frame, error) {
	b, fds, err := c.receive()
	switch {
	case errors.Is(err, ErrTruncated), errors.Is(err, errEmptyFrame):
		return nil, err
	case err != nil:
		return nil, fmt.Errorf("%w: %w", errGone, err)
	case len(fds) > 0:
		closeAll(fds)
		return nil, fmt.Errorf("a frame with %d descriptors, where none belong", len(fds))
	}
	f, err := decode(b)
	if errors.Is(err, errUnknownType) {
		return &frame{}, nil // answered with an error, as the protocol says
	}
	return f, err
}

// admitOrNot makes c a link if the hello is admitted, and reads it then.
func (p *Process) admitOrNot(c *conn, f *frame) bool {
	l := &link{p: p, c: c, side: sideAsker}
	admitted := false
	if !p.ask(func() { admitted = p.askToSucceed(l, f) }) || !admitted {
		return false
	}
	l.read()
	return true
}

// answerOperator answers one question.
func (p *Process) answerOperator(f *frame) *frame {
	var out *frame
	ok := true
	switch f.Type {
	case msgStatus:
		out, ok = p.answerStatus(f)
	case msgListSockets:
		out = p.answerSockets(f)
	case msgHandover:
		ok = p.ask(func() { out = p.answerHandover(f.Request) })
	case msgRollback:
		ok = p.ask(func() { out = p.answerRollback() })
	case msgWithdraw:
		ok = p.ask(func() { out = p.answerWithdraw(f.Request) })
	case msgStop:
		out = p.okFrame("stopping")
	default:
		out = &frame{Type: msgError, Code: "unknown_type", Text: "this process does not know that question", Hint: "is the tool newer than the server?"}
	}
	if !ok {
		return &frame{Type: msgError, Code: "not_now", Text: "this process has just ended", Hint: "ask again"}
	}
	return out
}

func (p *Process) okFrame(text string) *frame {
	return &frame{Type: msgOK, Generation: p.Generation(), Text: text}
}

func refusal(code, text, hint string) *frame {
	return &frame{Type: msgError, Code: code, Text: clip(text), Hint: hint}
}

// answerHandover is idempotent: a request id that was seen, or a handover that
// is under way, is answered with already.
func (p *Process) answerHandover(id string) *frame {
	if r, ok := p.ledger.find(id); ok && (r.Outcome == "committed" || r.Outcome == "released" || r.Outcome == "serving") {
		f := p.okFrame("this request is " + r.Outcome)
		f.Already, f.Request, f.Generation = true, id, r.Generation
		return f
	}
	before := p.ledger.verb
	p.ledger.verb = id
	l := p.younger
	p.feed(event{kind: evHandover})
	if p.answer != replyOK {
		p.ledger.verb = before
	}
	switch p.answer {
	case replyOK, replyAlready:
		f := p.okFrame("handing over")
		f.Request, f.Already = id, p.answer == replyAlready
		if l != nil {
			f.Generation = l.number
		}
		return f
	case replyNoStandby:
		return refusal("no_standby", fmt.Sprintf("generation %d serves and no successor is there", p.Generation()), "start the next version first, or use handoffctl upgrade")
	case replySpare:
		return refusal("no_standby", "only a spare is there, which waits for the incumbent's death", "start the next version with --takeover standby or auto")
	}
	return refusal("not_now", "this process does not serve: it is "+p.m.state.String(), "see handoffctl status")
}

func (p *Process) answerRollback() *frame {
	from := p.younger
	p.feed(event{kind: evRollback})
	if p.answer == replyOK {
		f := p.okFrame(fmt.Sprintf("generation %d serves again", p.Generation()))
		if from != nil {
			p.Logger().Warn("rolled back by an operator", "from", from.number)
		}
		return f
	}
	if p.m.state == StateServing && p.younger == nil && p.last != nil && p.last.Outcome == "rolled_back" && p.last.From == p.Generation() {
		f := p.okFrame(fmt.Sprintf("generation %d was rolled back already", p.last.To))
		f.Already = true
		return f
	}
	if p.m.state == StateServing && p.younger != nil {
		return refusal("not_now", "the successor does not serve yet: there is nothing to roll back", "see handoffctl status")
	}
	return refusal("not_now", "nothing to roll back: no handoff is in probation", "after release, go back by deploying the older version again")
}

// answerWithdraw refuses a request before it is committed, however late its
// hello comes.
func (p *Process) answerWithdraw(id string) *frame {
	if id == "" {
		return refusal("bad_request", "withdraw needs a request id", "")
	}
	f := p.okFrame("request " + id + " is withdrawn")
	f.Request = id
	if p.ledger.withdrawn(id) {
		f.Already = true
		return f
	}
	if p.younger != nil && p.younger.peer.Request == id {
		p.feed(event{kind: evWithdraw})
		if p.answer != replyOK {
			return refusal("not_now", "request "+id+" is committed already", "handoffctl rollback takes back during probation")
		}
	} else if r, ok := p.ledger.find(id); ok && (r.Outcome == "committed" || r.Outcome == "released" || r.Outcome == "serving") {
		return refusal("not_now", "request "+id+" is "+r.Outcome+" already", "")
	}
	p.ledger.set(RequestStatus{ID: id, Outcome: outcomeWithdrawn, Time: time.Now()})
	p.changed()
	return f
}

// answerStatus answers at once, or when something has changed since what the
// operator has seen.
func (p *Process) answerStatus(f *frame) (*frame, bool) {
	until := time.NewTimer(time.Duration(min(f.WaitMS, maxPollMillis)) * time.Millisecond)
	defer until.Stop()
	for expired := false; ; {
		var s *Status
		var wake chan struct{}
		ok := p.ask(func() {
			s = p.status()
			if f.After != nil && f.After.Instance == p.instance && f.After.Revision == p.revision && !expired {
				s, wake = nil, make(chan struct{})
				p.watchers = append(p.watchers, wake)
			}
		})
		if !ok || s != nil {
			return &frame{Type: msgStatus, Status: s}, ok
		}
		select {
		case <-wake:
		case <-until.C:
			expired = true
		case <-p.gone:
			return nil, false
		}
	}
}

// changed wakes whoever watches the status.
func (p *Process) changed() {
	p.revision++
	for _, w := range p.watchers {
		close(w)
	}
	p.watchers = nil
}

// answerSockets lists one page of the named set.
func (p *Process) answerSockets(f *frame) *frame {
	all := p.sockets.list(p.State())
	first := min(f.Offset, len(all))
	page := all[first:min(first+socketsPage, len(all))]
	return &frame{Type: msgSocketList, Total: len(all), Offset: first, List: page}
}

// dialOwn connects to whoever answers this service's control socket now.
func (p *Process) dialOwn() (*conn, error) {
	ctx, cancel := context.WithTimeout(p.life, p.cfg.StepTimeout)
	defer cancel()
	return dial(ctx, p.cfg.Socket, p.allow())
}
