package handoff

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"golang.org/x/sys/unix"
)

// The new side: finding the incumbent, taking what it offers, saying what was
// taken.

// busyRetryMS is how long a successor that was told busy waits before it asks
// again, in milliseconds.
const busyRetryMS = 100

// noticeAfter is how long joining may wait before it says so.
const noticeAfter = 2 * time.Second

// attempt is how one attempt to join ended.
type attempt struct {
	err   error
	again bool
	why   string // it must be tried again
}

// intake is what arrived of the incumbent's offer so far.
type intake struct {
	n     int // descriptors in the last batch
	total int // items so far
	want  int // items announced
}

// join finds the incumbent and returns once its sockets are here, or once this
// process is the first.
func (p *Process) join(ctx context.Context) error {
	why := "" // it was told busy, if it was
	blame := func(err error) error {
		if why == "" || ctx.Err() == nil {
			return err
		}
		return opError("start", p.cfg.Socket, fmt.Errorf("%w: the incumbent was busy all the time: %s", context.Cause(ctx), why))
	}
	for {
		waits := time.AfterFunc(noticeAfter, func() {
			p.Logger().Warn("still waiting at the control socket: its lock is held, or its backlog is full", "socket", p.cfg.Socket)
		})
		ln, file, c, err := meet(ctx, p.cfg.Socket, p.allow())
		waits.Stop()
		if err != nil {
			outOfTime(ctx, err) // so that blame can tell
			return blame(err)
		}
		done := make(chan attempt, 1)
		switch {
		case ln != nil:
			d, err := dupConn(ln)
			if err == nil && !p.post(func() { p.first(d, file); done <- attempt{} }) {
				err = errors.Join(ErrStopped, d.Close())
			}
			if err != nil {
				// While it is open, so that the inode can't be another's yet.
				removeSocketFile(p.cfg.Socket, file)
			}
			ln.Close()
			if err != nil {
				return opError("start", p.cfg.Socket, err)
			}
		case p.cfg.Takeover == Never:
			who, _ := c.peer()
			c.Close()
			return opError("start", p.cfg.Socket, fmt.Errorf("%w (%s)", ErrIncumbent, who.where()))
		default:
			if !p.post(func() { p.hello(c, done) }) {
				c.Close()
				return opError("start", p.cfg.Socket, ErrStopped)
			}
		}
		var a attempt
		select {
		case a = <-done:
		case <-ctx.Done():
			select {
			case a = <-done: // what the attempt ended with says more than that this process ended
			default:
				return blame(opError("start", p.cfg.Socket, context.Cause(ctx)))
			}
		}
		if !a.again {
			return opError("start", p.cfg.Socket, a.err)
		}
		why = a.why
		select {
		case <-time.After(busyRetryMS * time.Millisecond):
		case <-ctx.Done():
			return blame(opError("start", p.cfg.Socket, context.Cause(ctx)))
		}
	}
}

func (p *Process) allow() allow {
	return allow{UIDs: p.cfg.AllowUIDs, GIDs: p.cfg.AllowGIDs, Key: p.cfg.Key, Patience: p.cfg.StepTimeout}
}

// first makes this process generation 1.
func (p *Process) first(d *descriptor, file fileID) {
	if p.m.state == StateGone {
		removeSocketFile(p.cfg.Socket, file)
		d.Close()
		return
	}
	p.control.hold(p.cfg.Socket, d, file)
	// A spare that outlived its chain goes on counting.
	p.next = max(p.next, p.Generation()) + 1
	p.setGeneration(p.next, "")
	p.Logger().Info("no incumbent at the path: this is the first generation", "socket", p.cfg.Socket)
	if p.cfg.Takeover != Auto {
		p.Logger().Info("nothing to wait for, it serves as soon as it is ready", "takeover", p.cfg.Takeover.String())
	}
	if err := p.refill(); err != nil {
		p.fault = err
		p.feed(event{kind: evClose})
		return
	}
	p.feed(event{kind: evNobody})
}

// refill gives a spare that had to let go its sockets again.
func (p *Process) refill() error {
	ctx, cancel := context.WithTimeout(p.life, p.cfg.StepTimeout)
	defer cancel()
	return p.sockets.refill(ctx)
}

func (p *Process) setGeneration(n uint64, handoff string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.generation, p.handoff = n, handoff
	p.program.Generation = n
}

// hello asks to become the successor of whoever answers on c.
func (p *Process) hello(c *conn, done chan attempt) {
	if p.m.state == StateGone {
		c.Close()
		return
	}
	l := &link{p: p, c: c, side: sideElder}
	if who, err := c.peer(); err == nil {
		l.peer.PID, p.incumbent = who.PID, who.PID
	}
	p.elder, p.attempt, p.intake = l, done, intake{}
	p.feed(event{kind: evDialed})
	me := p.program
	l.send(&frame{
		Type: msgHello, Versions: &versionRange{minVersion, maxVersion}, Mode: p.cfg.Takeover,
		Program: &me, Files: p.cfg.Files,
	})
	p.work.Go(l.read)
}

// fromElder takes what a frame of the incumbent carries.
func (p *Process) fromElder(l *link, f *frame, fds []*descriptor) error {
	switch f.Type {
	case msgWelcome, msgBusy, msgRefuse:
		// Answers to hello. Later they must leave no trace, since this process
		// may be serving.
		if p.m.elder != phaseHello {
			return fmt.Errorf("%w: %s", errLink, f.Type)
		}
	case msgRevoke:
		if p.m.elder == phaseHello {
			return fmt.Errorf("%w: %s", errLink, f.Type)
		}
	case msgDraining:
		if p.m.elder != phaseReleased && p.m.elder != phaseDraining {
			return fmt.Errorf("%w: %s", errLink, f.Type)
		}
	}
	switch f.Type {
	case msgWelcome:
		for _, d := range fds { // one at most
			err := l.watchLife(d)
			if errors.Is(err, unix.EMFILE) { // the sockets, behind it in the queue, have taken what there was
				return fmt.Errorf("%w: welcome: %w", ErrTruncated, err)
			}
			if err != nil {
				return fmt.Errorf("%w: welcome: %w", errLink, err)
			}
		}
		if f.Version < minVersion || f.Version > maxVersion {
			return fmt.Errorf("%w: version %d was not offered", errLink, f.Version)
		}
		l.peer, l.id, l.number = *f.Program, f.Handoff, f.Program.Generation
		p.setGeneration(f.Generation, f.Handoff)
		p.next = f.Generation
		p.ledger.merge(f.Requests)
		p.intake.want = f.Total
		p.mu.Lock()
		p.coming = f.Open
		p.mu.Unlock()
		p.Logger().Info("the incumbent offers its sockets", "sockets", f.Total-1,
			"incumbent", l.number, "incumbent_pid", l.peer.PID, "incumbent_label", l.peer.Label)
	case msgBusy:
		level := slog.LevelDebug
		if p.busy != f.Text {
			level = slog.LevelInfo // once for each reason
		}
		p.busy = f.Text
		p.noteNumber(f.Generation)
		p.Logger().Log(p.life, level, "the incumbent is busy, asking again", "reason", string(f.Reason), "text", f.Text)
	case msgRefuse:
		p.fault = fmt.Errorf("%w: %s", ErrRefused, f.Text)
	case msgSockets:
		return p.take(f, fds)
	case msgRelease:
		p.ledger.merge(f.Requests)
	case msgRevoke:
		p.Logger().Warn("revoked by the incumbent", "reason", string(f.Reason), "text", f.Text)
		p.noteNumber(f.Generation)
		if p.m.state != StateServing {
			p.fault = fmt.Errorf("%w: %s", ErrRevoked, f.Text)
			if p.m.mode == Spare && f.Reason == whyDisplaced {
				p.fault = nil // it registers again
			}
		}
	case msgDraining:
		p.reported(l, f)
	case msgBye:
		if p.last != nil && p.last.From == l.number {
			last := *p.last // the old one may be on its way to an operator
			last.Cut = f.Cut
			p.last = &last
		}
	}
	return nil
}

// noteNumber remembers the highest number that the incumbent has given: a spare may
// have to go on counting.
func (p *Process) noteNumber(n uint64) {
	if p.Generation() > 0 {
		p.next = max(p.next, n)
	}
}

// take checks a batch against its manifest and keeps it. On error everything is
// closed; nothing of it was used.
func (p *Process) take(f *frame, fds []*descriptor) (err error) {
	defer func() {
		if err != nil {
			closeAll(fds)
		}
	}()
	if p.m.elder != phaseOffer {
		return fmt.Errorf("%w: sockets", errLink)
	}
	if len(fds) != len(f.Sockets) || f.First != p.intake.total {
		return fmt.Errorf("%w: the batch names %d items from index %d and carries %d descriptors; %d were received before",
			errLink, len(f.Sockets), f.First, len(fds), p.intake.total)
	}
	own, err := ownNetns()
	if err != nil {
		return fmt.Errorf("%w: %w", errLocal, err)
	}
	came := make([]socket, len(fds))
	for i := range f.Sockets {
		it := &f.Sockets[i]
		if (it.Kind == kindControl) != (f.First+i == 0) {
			return fmt.Errorf("%w: the control listener must come first, and once", errLink)
		}
		facts, err := p.checkItem(it, fds[i])
		if err != nil {
			return fmt.Errorf("%s %q: %w", it.Kind, it.Name, err)
		}
		came[i] = socket{item: *it, d: fds[i], index: f.First + i, netns: facts.netns()}
		came[i].foreign = facts.isForeign(own)
		if came[i].foreign && !p.cfg.AllowForeignNetns {
			return fmt.Errorf("%s %q: %w: it is bound to %s there", it.Kind, it.Name, ErrForeignNetns, facts.local)
		}
	}
	p.intake.n, p.intake.total = len(fds), p.intake.total+len(fds)
	if p.intake.total == 0 {
		return fmt.Errorf("%w: the control listener is missing", errLink)
	}
	if f.Last && p.intake.total != p.intake.want {
		return fmt.Errorf("%w: %d items were announced and %d sent", errLink, p.intake.want, p.intake.total)
	}
	p.keep(came)
	if f.Last {
		if err := p.refill(); err != nil {
			return fmt.Errorf("%w: %w", errLocal, err)
		}
	}
	return nil
}

// keep puts a batch that was checked into the set.
func (p *Process) keep(came []socket) {
	p.sockets.mu.Lock()
	defer p.sockets.mu.Unlock()
	for i := range came {
		s := &came[i]
		if s.item.Kind == kindControl {
			p.control.hold(p.cfg.Socket, s.d, s.item.File)
			continue
		}
		p.sockets.noteOutside(s.netns, s.item.Outside)
		p.sockets.unclaimed = append(p.sockets.unclaimed, s)
	}
}

// checkItem compares what the manifest says with what the kernel says. A peer
// is not believed, and a descriptor of the wrong kind is not touched further.
func (p *Process) checkItem(it *manifestItem, d *descriptor) (facts socketFacts, err error) {
	if it.Kind == kindFile {
		if !slices.Contains(p.cfg.Files, it.Name) {
			return facts, errors.New("a file that was not asked for")
		}
		return facts, nil
	}
	if facts, err = d.facts(); err != nil {
		return facts, err
	}
	return facts, facts.differFrom(it)
}

// differFrom says in what a socket is not what the manifest says.
func (f *socketFacts) differFrom(it *manifestItem) error {
	switch {
	case !f.isSocket:
		return errors.New("not a socket")
	case f.domain != it.Domain || f.typ != it.Type || f.protocol != it.Protocol:
		return fmt.Errorf("domain, type, protocol are %d, %d, %d instead of %d, %d, %d",
			f.domain, f.typ, f.protocol, it.Domain, it.Type, it.Protocol)
	case !f.serves(it.Kind, it.Network):
		return fmt.Errorf("domain %d, type %d is no %s socket of network %q", f.domain, f.typ, it.Kind, it.Network)
	case f.accepting != (it.Kind != kindPacket):
		return fmt.Errorf("listening is %t", f.accepting)
	case f.local != it.Local:
		return fmt.Errorf("it is bound to %s instead of %s", f.local, it.Local)
	case !f.nonblock:
		return errors.New("O_NONBLOCK is off")
	}
	return nil
}

// readyFrame says what was claimed. What was not is closed here before.
func (p *Process) readyFrame(l *link, f *frame) {
	rejects := p.dropUnclaimed()
	f.Singletons = len(p.jobs.all) > 0
	p.sockets.mu.Lock()
	for _, s := range p.sockets.claimed {
		if s.index < 0 {
			continue
		}
		f.N++
		if s.item.Exclusive && len(f.Exclusive) < maxExclusive {
			f.Exclusive = append(f.Exclusive, s.index)
		}
	}
	p.sockets.mu.Unlock()
	for page := range slices.Chunk(rejects, maxRejects) {
		l.send(&frame{Type: msgRejected, Rejected: page})
	}
}

// dropUnclaimed closes what the program did not ask for, so that no listener
// stays open that nobody accepts on, and says what it was.
func (p *Process) dropUnclaimed() []rejection {
	p.sockets.mu.Lock()
	var rejects []rejection
	var names []string
	reject := func(s *socket, reason string) {
		rejects = append(rejects, rejection{Index: s.index, Reason: reason})
		names = append(names, s.String())
	}
	for _, s := range p.sockets.givenUp {
		reject(s, "closed again by this version")
	}
	for _, u := range p.sockets.unclaimed {
		reject(u, "not asked for by this version")
		u.closeDescriptor(false)
	}
	p.sockets.unclaimed, p.sockets.givenUp = nil, nil
	p.sockets.mu.Unlock()
	if len(names) > 0 {
		p.mu.Lock()
		p.unclaimed = names
		p.mu.Unlock()
		p.Logger().Warn("inherited sockets that this version does not use were closed", "unclaimed", clipList(names))
	}
	return rejects
}

// clipList keeps a log line readable.
func clipList(names []string) []string { return clipTo(names, 20) }

func clipTo(names []string, most int) []string {
	if len(names) <= most {
		return names
	}
	return append(slices.Clone(names[:most]), fmt.Sprintf("and %d more", len(names)-most))
}
