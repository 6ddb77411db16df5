package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Idle HTTP connections on their way in: from a generation that drains to this
// process, which serves. moving.go says who has them at each moment.

// adopters are the connections over which they come. The zero value is none.
type adopters struct {
	mu    sync.Mutex
	conns []*conn
	ended bool // this process serves no more
}

func (a *adopters) add(c *conn) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.ended {
		a.conns = append(a.conns, c)
	}
	return !a.ended
}

func (a *adopters) remove(c *conn) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.conns = slices.DeleteFunc(a.conns, func(k *conn) bool { return k == c })
}

// end has each of them closed once no batch is on its way: whoever gives finds the
// one who serves then.
func (a *adopters) end() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ended = true
	for _, c := range a.conns {
		c.interrupt()
	}
}

func (a *adopters) hasEnded() bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.ended
}

// adoptFrom takes connections over c from the generation that drains and has said f,
// until one of the two has no more.
func (p *Process) adoptFrom(c *conn, f *frame) {
	if no := p.takesNone(); no != nil {
		say(c, no)
		return
	}
	if !p.adopters.add(c) {
		say(c, refusal("busy", "this process serves no more", "ask again"))
		return
	}
	defer p.adopters.remove(c)
	if err := c.takeRights(); err != nil || say(c, p.okFrame("connections are taken")) != nil {
		return
	}
	take, from := taker{p: p, c: c}, f.Generation
	defer func() {
		if take.served > 0 {
			p.Logger().Info("idle connections came", "from", from, "connections", take.served)
		}
	}()
	for take.phase != takingNone || !p.adopters.hasEnded() {
		b, fds, err := c.receive()
		switch {
		case errors.Is(err, errInterrupted), errors.Is(err, errReset):
			continue
		case errors.Is(err, ErrTruncated):
			// The limit of open files, as a rule. Nothing of the batch is left here.
			say(c, refusal("truncated", "generation "+fmt.Sprint(p.Generation())+" has no room for more descriptors", "raise its limit of open files (ulimit -n)"))
			continue
		case errors.Is(err, io.EOF):
			take.on(moveEnd)
			return
		case err != nil: // closed here
			take.drop()
			return
		}
		f, err := decode(b)
		switch {
		case err == nil && f.Type == msgConnections && take.phase == takingNone && len(fds) == len(f.Moved):
			haltAt("read", f.Type)
			take.batch(f, fds)
		case err == nil && f.Type == msgKeep:
			haltAt("read", f.Type)
			closeAll(fds)
			take.on(moveKept)
		default:
			p.Logger().Warn("closed a connection: what came through it are no connections to take", "socket", c.path(), "from", from, "descriptors", len(fds), "error", err)
			say(c, refusal("bad_request", "connections or keep is expected here", ""))
			closeAll(fds)
			take.drop()
			return
		}
	}
}

// taker is what this process has of the batch that is on its way to it over c.
type taker struct {
	p     *Process
	c     *conn
	phase taking
	held  []*movedConn

	served int // connections so far
}

func (t *taker) on(ev moveEvent) {
	switch t.phase.on(ev) {
	case moveOwn:
		t.served += t.p.adopt(t.held)
		t.held = nil
	case moveDrop:
		t.drop()
	}
}

// drop closes what is not this process's.
func (t *taker) drop() {
	for _, a := range t.held {
		a.d.Close()
		a.from.drain.arrived()
	}
	t.held = nil
}

// batch says which of a batch are taken, and serves them as soon as that is said.
func (t *taker) batch(f *frame, fds []*descriptor) {
	t.phase.on(moveBatch)
	listeners := make([]*trackedListener, len(f.Sockets))
	for i := range f.Sockets {
		listeners[i] = t.p.servedAs(&f.Sockets[i])
	}
	// A process that has just handed over serves no listener, which says nothing of
	// these: whoever serves now may take what came through them.
	over := slices.Contains(listeners, nil) && t.p.adopters.hasEnded()
	got := &frame{Type: msgGot, N: len(fds)}
	for i, m := range f.Moved {
		l := listeners[m.Listener]
		err := checkMoved(l, fds[i])
		over = over || err == nil && !l.drain.expect()
		if over || err != nil {
			fds[i].Close()
			got.Rejected = append(got.Rejected, rejection{Index: i, Reason: clip(fmt.Sprint(err))})
			continue
		}
		since := time.Now().Add(-time.Duration(min(m.IdleMS, maxIdleMillis)) * time.Millisecond)
		t.held = append(t.held, &movedConn{from: l, fresh: m.Fresh, since: since, d: fds[i]})
	}
	if over {
		t.on(moveRefused)
		say(t.c, refusal("busy", "this process serves no more", "ask again"))
		return
	}
	ev := moveSaid
	if sayMove(t.c, got) != nil {
		ev = moveUnsaid // closed here, for one: reading tells what it means
	}
	t.on(ev)
}

// maxIdleMillis bounds for how long a connection may have been idle: a year.
const maxIdleMillis = 365 * 24 * 60 * 60 * 1000

// spareFiles is how many descriptors are left for the rest of the program: backends,
// log files, connections that are new.
const spareFiles = 64

// checkRoom says whether the connections that the incumbent has open will fit. What a
// handoff would be cut short by is an error before it. (Go itself raises the soft limit
// of open files to the hard one: rlimit.go of package syscall.)
func (p *Process) checkRoom() error {
	p.mu.Lock()
	coming := p.coming
	p.mu.Unlock()
	if coming == 0 || p.moveOff() != "" {
		return nil
	}
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &limit); err != nil {
		return os.NewSyscallError("getrlimit", err)
	}
	open, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return nil // it can't be told
	}
	if need := uint64(len(open) + coming + spareFiles); need > limit.Cur {
		return fmt.Errorf("%w: %d connections of the incumbent are to move here, for which %d are needed, and the limit is %d: raise it (ulimit -n, LimitNOFILE=), or turn MoveIdle off",
			ErrOpenFiles, coming, need, limit.Cur)
	}
	return nil
}

// takesNone says why no connections are taken here; nil if they are.
func (p *Process) takesNone() (no *frame) {
	if off := p.moveOff(); off != "" {
		return refusal("moves_off", "generation "+fmt.Sprint(p.Generation())+" takes no connections: "+off, "")
	}
	p.ask(func() {
		if s := p.m.state; s != StateServing && s != StateParked && s != StateReleasing {
			no = refusal("busy", "this process does not serve: it is "+s.String(), "ask again")
		}
	})
	return no
}

// takeRights lets descriptors come through c, which the control socket does not let
// (SO_PASSRIGHTS is inherited from the listener).
func (c *conn) takeRights() error {
	raw, err := c.c.SyscallConn()
	if err != nil {
		return err
	}
	cerr := raw.Control(func(fd uintptr) {
		err = rightsRefusal.try(func() error { return unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 1) })
	})
	if cerr != nil {
		return cerr
	}
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return os.NewSyscallError("setsockopt", err)
	}
	return nil
}

// adopt serves connections that are this process's now. Each was expected.
func (p *Process) adopt(all []*movedConn) (served int) {
	for _, a := range all {
		if a.adopt() {
			p.adopted.Add(1)
			served++
		}
		a.from.drain.arrived()
	}
	p.post(p.changed)
	return served
}

var errNotServed = errors.New("no HTTP server serves that listener here, or not as it is")

// checkMoved compares a connection with the listener that it is said to have come
// through. What is no such connection is not touched further.
func checkMoved(l *trackedListener, d *descriptor) error {
	if l == nil {
		return errNotServed
	}
	f, err := d.connFacts()
	_, local := f.addr.(*net.UnixAddr)
	switch {
	case errors.Is(err, unix.ENOTSOCK):
		return errors.New("not a socket")
	case err != nil:
		return err
	case f.typ != unix.SOCK_STREAM || f.accepting || f.protocol != 0 && f.protocol != unix.IPPROTO_TCP:
		return errors.New("not a stream connection")
	case !f.nonblock:
		return errors.New("O_NONBLOCK is off")
	case !cameThrough(f.addr, l.Addr()):
		return fmt.Errorf("its address here is %s, which is not the listener's", f.local)
	case !local && f.cookie != l.netns():
		return fmt.Errorf("it lives in another network namespace than the listener %s", f.local)
	}
	return nil
}

// cameThrough says whether a connection with this local address may have been
// accepted from a listener.
func cameThrough(local, listener net.Addr) bool {
	switch a := local.(type) {
	case *net.TCPAddr:
		l, ok := listener.(*net.TCPAddr)
		return ok && a.Port == l.Port && (len(l.IP) == 0 || l.IP.IsUnspecified() || l.IP.Equal(a.IP))
	case *net.UnixAddr:
		l, ok := listener.(*net.UnixAddr)
		return ok && a.Name == l.Name
	}
	return false
}

// servedAs finds what serves the listener it here: by its address, since names may have
// been exchanged, or else by its name. A program that has just begun may be about to serve it: that is
// waited for, for a moment. It is not waited for again and again, since what is on its
// way is served by nobody.
func (p *Process) servedAs(it *manifestItem) *trackedListener {
	p.mu.Lock()
	until := p.servesFrom.Add(moveSweep)
	p.mu.Unlock()
	ctx, cancel := context.WithDeadline(p.life, until)
	defer cancel()
	for {
		p.mu.Lock()
		more := p.httpServes
		p.mu.Unlock()
		if l := p.findServed(it); l != nil || !p.sockets.has(it) {
			return l
		}
		select {
		case <-more:
		case <-ctx.Done():
			return nil
		}
	}
}

func (p *Process) findServed(it *manifestItem) *trackedListener {
	p.drainers.Lock()
	all := httpDrains(p.drainers.all)
	p.drainers.Unlock()
	for _, match := range []func(*manifestItem) bool{
		func(o *manifestItem) bool {
			return o.Name == it.Name && o.Local == it.Local && o.family() == it.family()
		},
		func(o *manifestItem) bool { return o.Local == it.Local && o.family() == it.family() },
		func(o *manifestItem) bool { return o.Name == it.Name && o.family() == it.family() },
	} {
		for _, d := range all {
			if l := d.served(match); l != nil {
				return l
			}
		}
	}
	return nil
}

// has says whether the program holds a listener of that name or address.
func (set *socketSet) has(it *manifestItem) bool {
	set.mu.Lock()
	defer set.mu.Unlock()
	return slices.ContainsFunc(set.claimed, func(s *socket) bool {
		return s.item.Kind == kindStream && s.item.family() == it.family() && (s.item.Name == it.Name || s.item.Local == it.Local)
	})
}
