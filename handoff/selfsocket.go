package handoff

import (
	"context"
	"errors"
	"os"
	"path/filepath"
)

// The self socket: at the control socket whoever serves answers, here this very
// process and no other, from the beginning of Start to its end. It is how a probe
// learns whether the process it was started for is a standby, serves, or drains.

// selfSocket is this process's own socket; the zero value is none.
type selfSocket struct {
	path string
	file fileID
	ln   *os.File
	connTable
}

// openSelf binds the self socket, if there is to be one, and begins to answer it.
func (p *Process) openSelf(ctx context.Context) error {
	path := p.cfg.SelfSocket
	if path == "" {
		return nil
	}
	bound, file, err := listenAlone(ctx, path, p.allow())
	if err != nil {
		return err
	}
	defer bound.Close()
	d, err := dupConn(bound)
	if err != nil {
		return opError("listen", path, errors.Join(err, removeSocketFile(path, file)))
	}
	defer d.Close()
	ln, err := d.polled("self socket")
	if err != nil {
		return opError("listen", path, errors.Join(err, removeSocketFile(path, file)))
	}
	held := false
	p.ask(func() {
		if p.m.state == StateGone {
			return
		}
		held = true
		p.own.path, p.own.file, p.own.ln = path, file, ln
		p.work.Go(func() { p.answerAll(ln, path, &p.own.connTable, func(c *conn) { p.answerSelf(c, file) }) })
	})
	if !held { // told to stop meanwhile
		removeSocketFile(path, file)
		ln.Close()
		return opError("start", path, ErrStopped)
	}
	return nil
}

// remove ends the answering and takes the file away.
func (s *selfSocket) remove() {
	if s.ln == nil {
		return
	}
	removeSocketFile(s.path, s.file)
	s.ln.Close()
	s.ln = nil
}

// answerSelf serves one connection to the self socket, whose file is file, and owns
// it.
func (p *Process) answerSelf(c *conn, file fileID) {
	defer c.Close()
	f, ok := p.firstQuestion(c, &p.own.connTable, file)
	for ; ok; f, ok = p.nextQuestion(c) {
		answer := refusal("self_socket", "this is the self socket of one process, which answers only what it is asked about itself", "ask at the control socket: "+p.cfg.Socket)
		switch f.Type {
		case msgStatus, msgListSockets:
			answer = p.answerOperator(f)
		case msgProve, msgProof:
			answer = p.proofOutOfPlace()
		case msgError:
			continue // never answered
		}
		if say(c, answer) != nil {
			return
		}
	}
}

// sameFile says whether two paths name the same directory entry, as far as that
// can be told before there is one.
func sameFile(a, b string) bool {
	if filepath.Clean(a) == filepath.Clean(b) {
		return true
	}
	inA, errA := os.Stat(filepath.Dir(a))
	inB, errB := os.Stat(filepath.Dir(b))
	return errA == nil && errB == nil && os.SameFile(inA, inB) && filepath.Base(a) == filepath.Base(b)
}
