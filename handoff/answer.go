package handoff

import (
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// Answering the control socket: successors, draining generations and operators
// come through it. Every connection has a goroutine of its own, so that a slow
// or silent one delays nobody.

// operatorIdle is the most between two questions of one operator, if StepTimeout
// is not less.
const operatorIdle = 60 * time.Second

// controlSocket is this process's hold on the control socket.
type controlSocket struct {
	path  string
	d     *descriptor
	file  fileID   // of the file at path, recorded at bind
	ln    *os.File // while this process answers
	owned bool     // nobody succeeds this process: the path goes with it
	stead bool     // ln answers questions in the stead of a silent incumbent

	connTable
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
		s.ln, s.stead = nil, false
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

// beginAnswering takes over the control socket. Calling listen(2) again keeps
// what is queued and makes SO_PEERCRED name this process to whoever connects.
func (p *Process) beginAnswering() {
	p.standAside()
	s := &p.control
	p.answers = s.d != nil
	if s.ln != nil || s.d == nil {
		return
	}
	err := relisten(s.d)
	if err == nil {
		s.ln, err = s.d.polled("control socket")
	}
	if err != nil {
		p.Logger().Error("can't answer the control socket yet, it is tried again", "socket", s.path, "error", err)
		p.mendLater()
		return
	}
	p.answerControl()
}

// answerControl answers whoever connects to the control socket, whose listener is there.
func (p *Process) answerControl() {
	s := &p.control
	ln, path, file := s.ln, s.path, s.file
	p.work.Go(func() { p.answerAll(ln, path, &s.connTable, func(c *conn) { p.answerOne(c, file) }) })
}

// standIn answers questions while the incumbent, whose it is to answer, does not.
// listen(2) is not called: the credentials of the socket stay the incumbent's.
func (p *Process) standIn() {
	s := &p.control
	if s.ln != nil || s.d == nil {
		return
	}
	var err error
	if s.ln, err = s.d.polled("control socket"); err != nil {
		p.Logger().Error("can't answer for the silent incumbent", "socket", s.path, "error", err)
		return
	}
	s.stead = true
	p.answerControl()
}

// standAside leaves the questions to whoever has to answer them; who asked here
// asks again.
func (p *Process) standAside() {
	s := &p.control
	if !s.stead {
		return
	}
	s.ln.Close()
	s.ln, s.stead = nil, false
	s.hangUp()
}

// notMine refuses what only the process can do that decides who serves. A
// successor that is not on its own yet answers in its silent incumbent's stead,
// or has just ceased to.
func (p *Process) notMine(f *frame) (no *frame) {
	asks := f.Type == msgStatus || f.Type == msgListSockets
	p.ask(func() {
		switch {
		case p.m.silent && asks:
		case p.m.silent:
			l := p.elder
			no = refusal("silent", fmt.Sprintf("generation %d (%s), which decides, is alive but silent: generation %d answers questions for it, and nothing else", l.number, l.where(), p.Generation()),
				"look at that process: let it continue (SIGCONT); or end it: what it has accepted is lost then, and generation "+strconv.FormatUint(p.Generation(), 10)+" serves")
		case p.m.watches(timerElderSilent):
			no = refusal("busy", "the incumbent answers again", "ask again")
		}
	})
	return no
}

// answerAll keeps what comes through ln, the socket at path, in t, and has each answered by one in a
// goroutine of its own, until ln is closed.
func (p *Process) answerAll(ln *os.File, path string, t *connTable, one func(*conn)) {
	for {
		// A process that hangs leaves the queue to whoever stands in for it.
		if !waitToRead(ln) || !p.ask(func() {}) {
			return
		}
		uc, err := acceptNow(ln)
		switch {
		case errors.Is(err, unix.EAGAIN):
			continue // somebody else took it
		case err != nil && !waitToRead(ln): // closed just now
			return
		case err != nil:
			// Out of descriptors, for instance: others may close some.
			p.Logger().Error("can't accept a connection now, it is tried again", "socket", path, "error", err)
			select {
			case <-time.After(50 * time.Millisecond):
			case <-p.gone:
				return
			}
			continue
		}
		c := newConn(uc.(*net.UnixConn))
		who, err := c.peer()
		t.track(c, err != nil || p.allow().check(who) != nil)
		p.work.Go(func() {
			defer t.untrack(c)
			one(c)
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

// answerOne serves one connection to the control socket, whose file is file. It owns
// c, unless it becomes a link.
func (p *Process) answerOne(c *conn, file fileID) {
	link := false
	defer func() {
		if !link {
			c.Close()
		}
	}()
	stopped := false
	next := func() (*frame, bool) {
		if stopped {
			return p.heard(c, false)
		}
		return p.nextQuestion(c)
	}
	f, ok := p.firstQuestion(c, &p.control.connTable, file)
	for ; ok; f, ok = next() {
		switch f.Type {
		case msgHello:
			c.setReadDeadline(time.Time{})
			link = p.control.keep(c, false) && p.admitOrNot(c, f)
			return
		case msgRegister:
			c.setReadDeadline(time.Time{})
			if p.control.keep(c, false) {
				p.hearRegistered(c, f)
			}
			return
		case msgMove:
			c.setReadDeadline(time.Time{})
			if p.control.keep(c, false) {
				p.adoptFrom(c, f)
			}
			return
		case msgError:
			continue // never answered
		case msgProve, msgProof:
			if say(c, p.proofOutOfPlace()) != nil {
				return
			}
			continue
		}
		if no := p.notMine(f); no != nil {
			if say(c, no) != nil {
				return
			}
			continue
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
		// What is asked for may end this process before the answer is out.
		c.answering.Lock()
		answer := p.answerOperator(f)
		err := say(c, answer)
		c.answering.Unlock()
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

// firstQuestion finds out whether whoever is at the other end of c, which came
// through the socket whose file is file, may ask here, and returns what it asks
// first. Who may not is told so.
func (p *Process) firstQuestion(c *conn, t *connTable, file fileID) (f *frame, ok bool) {
	p.limitPause(c)
	who, err := c.peer()
	if errors.Is(err, net.ErrClosed) { // it has made room for others
		return nil, false
	}
	if err == nil {
		err = p.allow().check(who)
	}
	if p.cfg.Key == nil {
		if err != nil {
			p.refuse(c, err)
			return nil, false
		}
		return p.heard(c, false)
	}
	f, ok = p.heard(c, err != nil)
	switch {
	case !ok:
		return nil, false
	case f.Type == msgProve:
		if err := p.answerProof(c, t, f, file, err); err != nil {
			if !errors.Is(err, errGone) {
				p.refuse(c, fmt.Errorf("%w: %w", ErrPermission, err))
			}
			return nil, false
		}
		return p.nextQuestion(c)
	case err != nil:
		p.refuse(c, fmt.Errorf("%w; nor has it proven the shared key", err))
		return nil, false
	}
	return f, true
}

// refuse tells whoever is at the other end of c, and the log, that it may not ask.
func (p *Process) refuse(c *conn, err error) {
	if log := p.strangerLog(c); log != nil {
		log.Warn("refused a connection: this user may not ask", "error", err)
	}
	say(c, &frame{Type: msgError, Code: "permission", Text: clip(err.Error())})
}

// limitPause bounds how long the next question may stay away.
func (p *Process) limitPause(c *conn) {
	c.setReadDeadline(time.Now().Add(min(p.cfg.StepTimeout, operatorIdle)))
}

// nextQuestion reads the next question of somebody who may ask.
func (p *Process) nextQuestion(c *conn) (f *frame, ok bool) {
	p.limitPause(c)
	return p.heard(c, false)
}

// heard reads the next question. false means that there is none: who sent
// something else is told what is wrong with it.
func (p *Process) heard(c *conn, stranger bool) (f *frame, ok bool) {
	f, err := p.question(c)
	if err == nil || errors.Is(err, errGone) {
		return f, err == nil
	}
	who, _ := c.peer()
	log := p.Logger().With("socket", c.path(), "peer_pid", who.PID, "peer_uid", who.UID)
	if stranger {
		log = p.strangerLog(c)
	}
	if log != nil {
		log.Warn("closed a connection: what came through it is no question", "error", err)
	}
	say(c, &frame{Type: msgError, Code: "bad_request", Text: clip(err.Error())})
	return nil, false
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
