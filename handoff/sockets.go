package handoff

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
)

// socket is one member of the named set: a socket or file that is handed over.
// Its descriptor is a duplicate outside the poller, from opening to closing;
// what a program reads from is made of it while this process serves.
type socket struct {
	item     manifestItem
	d        *descriptor // nil while a spare is between two incumbents
	want     Socket      // as the program asked; zero for an unclaimed one
	reuse    bool        // member of an SO_REUSEPORT group
	index    int         // in the manifest it came by; -1 if opened here
	deaf     bool        // a stream socket that is bound, but listen(2) was not called yet
	netns    uint64      // cookie of the network namespace it lives in; 0 if that does not matter, or is not known
	foreign  bool        // that is not this process's
	gone     string      // why clients do not reach it any more, if it is foreign and they don't
	rejected bool        // the present successor did not take it, or was not offered it
	listener *listener   // kindStream, claimed
	packet   *packetConn // kindPacket, claimed
}

// socketSet is everything that this process can hand over, by name.
type socketSet struct {
	mu        sync.Mutex
	claimed   []*socket       // asked for by the program, in that order
	unclaimed []*socket       // inherited, and not asked for yet
	givenUp   []*socket       // inherited, asked for, and closed again before Ready
	writing   []*socket       // packet sockets that another process reads now: what was read here is still answered
	serving   bool            // new ones accept at once
	parked    bool            // new ones too, and are not the successor's
	outside   map[uint64]bool // cookies of namespaces of which an interface led outside
	detached  chan struct{}   // closed when a spare that had to let go has its sockets again; nil: it has not
	closed    bool
}

func (it *manifestItem) family() string {
	return family(it.Network)
}

// family is tcp, udp, unix or unixgram.
func family(network string) string { return strings.TrimRight(network, "46") }

func (s *socket) String() string {
	if s.item.Kind == kindFile {
		return "file " + s.item.Name
	}
	if s.item.Name == s.item.Local {
		return s.item.family() + " " + s.item.Name
	}
	return fmt.Sprintf("%s %s (%s)", s.item.family(), s.item.Name, s.item.Local)
}

func socketNames(all []*socket) (names []string) {
	for _, s := range all {
		names = append(names, s.String())
	}
	return names
}

// exclusive says whether some socket must never have two owners.
func (set *socketSet) exclusive() bool {
	set.mu.Lock()
	defer set.mu.Unlock()
	return slices.ContainsFunc(set.claimed, func(s *socket) bool { return s.item.Exclusive })
}

// enter puts all into the set and makes what the program holds.
func (set *socketSet) enter(all []*socket, giveUp func(*socket)) error {
	set.mu.Lock()
	defer set.mu.Unlock()
	if set.closed {
		return ErrNotServing
	}
	for _, s := range all {
		if s.item.Kind == kindStream {
			s.listener = newListener(func() { giveUp(s) })
			s.listener.of = s.item
		} else {
			s.packet = newPacketConn(func() { giveUp(s) })
		}
		if err := s.refresh(); err != nil {
			return err
		}
		if set.serving || set.parked {
			s.rejected = set.parked
			if err := s.accept(); err != nil {
				return err
			}
		}
	}
	set.claimed = append(set.claimed, all...)
	return nil
}

// refresh tells what the program holds about a new descriptor.
func (s *socket) refresh() error {
	facts, err := s.d.facts()
	switch {
	case err != nil:
		return err
	case s.listener != nil:
		s.listener.change(func() { s.listener.addr, s.listener.netns = facts.addr, facts.cookie })
	case s.packet != nil:
		s.packet.change(func() { s.packet.addr, s.packet.held = facts.addr, s.d })
	}
	return nil
}

// accept makes s what a program reads from again: nonblocking, and listening.
func (s *socket) accept() error {
	switch s.item.Kind {
	case kindStream:
		facts, err := s.d.facts()
		if err != nil {
			return err
		}
		// Deaf, or somebody's shutdown(2) has taken the listening away.
		if !facts.accepting {
			if err := s.d.listen(); err != nil {
				return fmt.Errorf("handoff: listen %v: %w", s, err)
			}
		}
		inner, err := s.d.listener()
		if err != nil {
			return fmt.Errorf("handoff: listen %v: %w", s, err)
		}
		s.deaf = false
		s.listener.accept(inner)
	case kindPacket:
		inner, err := s.d.packetConn()
		if err != nil {
			return fmt.Errorf("handoff: listen %v: %w", s, err)
		}
		s.packet.accept(inner)
	}
	return nil
}

func (s *socket) park() {
	if s.listener != nil {
		s.listener.park()
	}
	if s.packet != nil {
		s.packet.park()
	}
}

// close closes this process's copy. A fresh Unix socket that nobody else has
// leaves no file.
func (s *socket) close(removeFile bool) {
	if s.listener != nil {
		s.listener.end()
	}
	if s.packet != nil {
		s.packet.end()
	}
	s.closeDescriptor(removeFile)
}

func (s *socket) closeDescriptor(removeFile bool) {
	if s.d == nil {
		return
	}
	if removeFile && s.item.File != (fileID{}) {
		removeSocketFile(s.item.Local, s.item.File)
	}
	s.d.Close()
	s.d = nil
}

// giveUp: the program closed a listener or packet connection.
func (p *Process) giveUp(s *socket) {
	p.sockets.mu.Lock()
	defer p.sockets.mu.Unlock()
	if i := slices.Index(p.sockets.writing, s); i >= 0 {
		p.sockets.writing = slices.Delete(p.sockets.writing, i, i+1)
		s.closeDescriptor(false)
	}
	if i := slices.Index(p.sockets.claimed, s); i >= 0 {
		p.sockets.claimed = slices.Delete(p.sockets.claimed, i, i+1)
		p.sockets.noteGivenUp(s)
		s.closeDescriptor(p.sockets.serving || s.rejected || s.index < 0)
	}
}

// noteGivenUp remembers an inherited socket that is not taken after all.
func (set *socketSet) noteGivenUp(s *socket) {
	if s.index >= 0 {
		set.givenUp = append(set.givenUp, s)
	}
}

// each calls f for each claimed socket and joins the errors.
func (set *socketSet) each(f func(*socket) error) error {
	set.mu.Lock()
	defer set.mu.Unlock()
	var errs []error
	for _, s := range set.claimed {
		if err := f(s); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

func (set *socketSet) setServing(serving, parked bool) {
	set.mu.Lock()
	defer set.mu.Unlock()
	set.serving, set.parked = serving, parked
}

// acceptMissing accepts on what should be served and is not yet.
func (set *socketSet) acceptMissing(exclusiveHeld bool) error {
	return set.each(func(s *socket) error {
		if s.item.Exclusive && exclusiveHeld || s.accepts() {
			return nil
		}
		return s.accept()
	})
}

// accepts says whether the program reads from s now.
func (s *socket) accepts() bool {
	switch {
	case s.listener != nil:
		return s.listener.accepts()
	case s.packet != nil:
		return s.packet.accepts()
	}
	return true
}

// accept begins to serve everything.
func (set *socketSet) accept() error {
	set.setServing(true, false)
	return set.each((*socket).accept)
}

// forgetRejected: the successor that did not take them has ended before it was
// told to serve. After that it is resume that has to know.
func (set *socketSet) forgetRejected() {
	set.mu.Lock()
	defer set.mu.Unlock()
	if !set.serving {
		return
	}
	for _, s := range set.claimed {
		s.rejected = false
	}
}

// park stops accepting on everything that the successor took.
func (set *socketSet) park() {
	set.each(func(s *socket) error {
		if !s.rejected {
			s.park()
		}
		return nil
	})
}

// resume accepts again, on exclusive sockets or on the others.
func (set *socketSet) resume(exclusive bool) error {
	set.setServing(true, false)
	return set.each(func(s *socket) error {
		if s.item.Exclusive != exclusive {
			return nil
		}
		if s.rejected {
			s.rejected = false // it was never parked
			return nil
		}
		return s.accept()
	})
}

// stop closes everything; the files of sockets that were opened here go, those
// of inherited ones are the incumbent's.
func (set *socketSet) stop() {
	set.end(func(s *socket) { s.close(s.index < 0) })
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.writing {
		s.close(false)
	}
	set.writing = nil
}

// stopAccepting is stop for a process that has answers under way. If it handed
// its sockets over, what it opened has another owner now.
func (set *socketSet) stopAccepting(handedOver bool) {
	set.end(func(s *socket) {
		if s.index < 0 && !handedOver {
			s.close(true)
			return
		}
		set.letGo(s)
	})
}

// letGo gives up s, which another process serves from here on. A packet socket
// is kept for the answers to what was read from it, unless it must have one
// owner. Under mu.
func (set *socketSet) letGo(s *socket) {
	if s.packet == nil || s.item.Exclusive {
		s.close(false)
		return
	}
	s.packet.stopReading()
	set.writing = append(set.writing, s)
}

// release lets go of what was handed over and shuts what was not.
func (set *socketSet) release() []*listener {
	var shut []*listener
	set.end(func(s *socket) {
		if !s.rejected {
			set.letGo(s)
			return
		}
		shut = append(shut, s.shutDown()...)
	})
	return shut
}

// shutDown ends every socket after what is queued on it was accepted, and
// removes the files. It returns the listeners to wait for.
func (set *socketSet) shutDown() []*listener {
	var shut []*listener
	set.end(func(s *socket) { shut = append(shut, s.shutDown()...) })
	return shut
}

func (s *socket) shutDown() []*listener {
	var shut []*listener
	if s.listener != nil {
		s.listener.shutDown()
		shut = append(shut, s.listener)
	}
	if s.packet != nil {
		s.packet.end()
	}
	s.closeDescriptor(true)
	return shut
}

// end empties the set for good.
func (set *socketSet) end(f func(*socket)) {
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.claimed {
		f(s)
	}
	for _, u := range set.unclaimed {
		u.closeDescriptor(false)
	}
	set.claimed, set.unclaimed, set.serving, set.parked, set.closed = nil, nil, false, false, true
}

// detach lets go of every descriptor and keeps what the program holds, so that
// a spare can be filled again.
func (set *socketSet) detach() {
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.claimed {
		if s.packet != nil {
			s.packet.change(func() { s.packet.held = nil })
		}
		s.closeDescriptor(s.index < 0)
	}
	for _, u := range set.unclaimed {
		u.closeDescriptor(false)
	}
	set.unclaimed, set.givenUp = nil, nil
	if set.detached == nil {
		set.detached = make(chan struct{})
	}
}

// refill is detach's other half: what the program asked for once is claimed or
// opened again.
func (set *socketSet) refill(ctx context.Context) error {
	err := set.each(func(s *socket) error {
		if s.d != nil {
			return nil
		}
		k := s.item.Kind
		if set.inherit(s, k); s.d == nil {
			home, err := set.home(s.want, nil)
			if err != nil {
				return opError("bind", s.want.Address, err)
			}
			err = s.bind(ctx, s.want.Address, k, home)
			if home != nil {
				home.Close()
			}
			if err != nil {
				return err
			}
		}
		return s.refresh()
	})
	set.mu.Lock()
	defer set.mu.Unlock()
	if err == nil && set.detached != nil {
		close(set.detached)
		set.detached = nil
	}
	return err
}
