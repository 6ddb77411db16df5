package handoff

import (
	"errors"
	"fmt"
	"net"
	"slices"
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
	path  string
	d     *descriptor
	file  fileID       // of the file at path, recorded at bind
	ln    net.Listener // while this process answers
	owned bool         // nobody succeeds this process: the path goes with it

	mu    sync.Mutex
	conns []trackedControl // oldest first
}

type trackedControl struct {
	c    *conn
	stay bool // does not make room: a link, reports of an older generation, or a stop that waits for its end
	stop bool // an operator waits for this process's end
}

// item is the control listener's line in the manifest.
func (s *controlSocket) item() manifestItem {
	facts, _ := s.d.facts()
	return manifestItem{
		Name: "control", Kind: kindControl, Network: "unixpacket", Asked: s.path, Local: facts.local,
		Domain: facts.domain, Type: facts.typ, Protocol: facts.protocol, File: s.file,
	}
}

// hold takes the control listener, inherited or fresh.
func (s *controlSocket) hold(path string, d *descriptor, file fileID) {
	s.path, s.d, s.file = path, d, file
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

// removeIfOwned is close for the last owner: the path goes first, so that
// whoever comes next finds nobody instead of a socket that is about to close.
func (s *controlSocket) removeIfOwned() {
	if !s.owned || s.d == nil {
		return
	}
	removeSocketFile(s.path, s.file)
	s.close()
}

func (s *controlSocket) closeConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.conns {
		t.c.Close()
	}
}

// track keeps c to be closed at the end. Where too many are open the oldest that
// is no link makes room, so that nobody who stays connected delays a handoff; an
// operator's tool asks again.
func (s *controlSocket) track(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.conns) >= maxConns {
		oldest := slices.IndexFunc(s.conns, func(t trackedControl) bool { return !t.stay })
		if oldest >= 0 {
			s.conns[oldest].c.Close()
			s.conns = slices.Delete(s.conns, oldest, oldest+1)
		} else if len(s.conns) >= 2*maxConns {
			c.Close() // reports of more generations than can live
		}
	}
	s.conns = append(s.conns, trackedControl{c: c})
}

// keep says that c does not make room for others: it has become a link, carries
// a generation's reports, or waits for the end that it asked for (stop).
func (s *controlSocket) keep(c *conn, stop bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.find(c); i >= 0 {
		s.conns[i].stay, s.conns[i].stop = true, stop
	}
}

// sayBye tells operators who wait for this process's end what was cut.
func (s *controlSocket) sayBye(cut map[string]int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, t := range s.conns {
		if t.stop {
			say(t.c, &frame{Type: msgBye, Cut: cut})
		}
	}
}

func (s *controlSocket) find(c *conn) int {
	return slices.IndexFunc(s.conns, func(t trackedControl) bool { return t.c == c })
}

func (s *controlSocket) untrack(c *conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if i := s.find(c); i >= 0 {
		s.conns = slices.Delete(s.conns, i, i+1)
	}
}

// beginAnswering takes over the control socket. Calling listen(2) again keeps
// what is queued and makes SO_PEERCRED name this process to whoever connects.
func (p *Process) beginAnswering() {
	s := &p.control
	p.answers = s.d != nil
	if s.ln != nil || s.d == nil {
		return
	}
	err := relisten(s.d)
	if err == nil {
		s.ln, err = s.d.listener()
	}
	if err != nil {
		p.Logger().Error("can't answer the control socket yet, it is tried again", "socket", s.path, "error", err)
		p.mendLater()
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
		p.control.track(c)
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
	for stopped := false; ; {
		if !stopped {
			c.setReadDeadline(time.Now().Add(min(p.cfg.StepTimeout, operatorIdle)))
		}
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
			p.control.keep(c, false)
			link = p.admitOrNot(c, f)
			return
		case msgRegister:
			c.setReadDeadline(time.Time{})
			p.control.keep(c, false)
			p.hearRegistered(c, f)
			return
		case msgError:
			continue // never answered
		}
		// Where it is about this process's end, the connection tells by its own end
		// that it has come.
		if f.Type == msgDrain {
			if p.takeOut(c) {
				stopped = true
				c.setReadDeadline(time.Time{})
			}
			continue
		}
		answer := p.answerOperator(f)
		err = say(c, answer)
		if f.Type == msgStop && answer.Type == msgOK && answer.Generation == p.Generation() {
			stopped = true
			p.control.keep(c, true)
			c.setReadDeadline(time.Time{})
			p.Stop() // after the answer: it may be gone at once
		}
		if err != nil {
			return
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
