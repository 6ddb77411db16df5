package handoff

import (
	"context"
	"fmt"
	"net"
	"os"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// What a program asks for: an inherited socket where one is meant, a fresh one
// otherwise.

// open claims inherited sockets and opens fresh ones for what is missing. n = 0
// is one socket without SO_REUSEPORT.
func (p *Process) open(ctx context.Context, want Socket, n int, k kind) ([]*socket, error) {
	if want.Name == "" {
		want.Name = want.Address
	}
	if err := checkName(want.Name); err != nil {
		return nil, fmt.Errorf("handoff: listen: %w", err)
	}
	if err := checkNetwork(want.Network, k); err != nil {
		return nil, err
	}
	all := make([]*socket, max(n, 1))
	for i := range all {
		all[i] = &socket{want: want, reuse: n > 0, index: -1}
	}
	for {
		wait, err := p.sockets.claim(all, k)
		if err != nil {
			return nil, err
		}
		if wait == nil {
			break
		}
		// A spare that gave way has nothing to claim from until it has met the
		// next incumbent, which has what would be opened afresh.
		select {
		case <-wait:
		case <-p.done:
			return nil, ErrNotServing
		case <-ctx.Done():
			return nil, context.Cause(ctx)
		}
	}
	// Names are resolved and locks waited for without holding up the handoff,
	// and not beyond this process's end.
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	defer context.AfterFunc(p.life, func() { cancel(ErrNotServing) })()
	if err := p.sockets.bindMissing(ctx, all, k); err != nil {
		p.sockets.abandon(all)
		return nil, err
	}
	if err := p.sockets.enter(all, p.giveUp); err != nil {
		p.sockets.abandon(all)
		return nil, err
	}
	if slices.ContainsFunc(all, func(s *socket) bool { return s.foreign }) {
		p.post(p.beginWatching) // it may have ended with the last of the others
	}
	return all, nil
}

// claim gives descriptors to as many of all as inherited sockets fit. Where the
// set is a spare's between two incumbents it does nothing, and returns what is
// closed when that is over.
func (set *socketSet) claim(all []*socket, k kind) (wait <-chan struct{}, err error) {
	set.mu.Lock()
	defer set.mu.Unlock()
	switch {
	case set.closed:
		return nil, ErrNotServing
	case set.detached != nil:
		return set.detached, nil
	case len(set.claimed)+len(all) > maxSockets:
		return nil, fmt.Errorf("handoff: listen %s: a process has at most %d sockets", all[0].want.Address, maxSockets)
	}
	for _, s := range all {
		set.inherit(s, k)
	}
	return nil, nil
}

// bindMissing opens fresh sockets for those of all that inherited none.
func (set *socketSet) bindMissing(ctx context.Context, all []*socket, k kind) error {
	if !slices.ContainsFunc(all, func(s *socket) bool { return s.d == nil }) {
		return nil
	}
	set.mu.Lock()
	home, err := set.home(all[0].want, all)
	set.mu.Unlock()
	if err != nil {
		return opError("bind", all[0].want.Address, err)
	}
	if home != nil {
		defer home.Close()
	}
	for _, s := range all {
		if s.d != nil {
			continue
		}
		address := s.want.Address
		if all[0].d != nil {
			address = all[0].item.Local // the port that the kernel chose for the first of a group
		}
		if err := s.bind(ctx, address, k, home); err != nil {
			return err
		}
	}
	return nil
}

// abandon undoes a half-done open.
func (set *socketSet) abandon(all []*socket) {
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range all {
		s.close(s.index < 0)
		set.noteGivenUp(s)
	}
}

func checkNetwork(network string, k kind) error {
	switch network {
	case "tcp", "tcp4", "tcp6", "unix":
		if k == kindStream {
			return nil
		}
	case "udp", "udp4", "udp6", "unixgram":
		if k == kindPacket {
			return nil
		}
	}
	if k == kindStream {
		return fmt.Errorf("handoff: listen: network %q is none of tcp, tcp4, tcp6, unix", network)
	}
	return fmt.Errorf("handoff: listen: network %q is none of udp, udp4, udp6, unixgram", network)
}

// inherit gives s an inherited descriptor that fits, if there is one.
func (set *socketSet) inherit(s *socket, k kind) {
	from := set.match(s.want, k)
	if from == nil {
		return
	}
	set.unclaimed = slices.DeleteFunc(set.unclaimed, func(u *socket) bool { return u == from })
	s.d, s.item, s.index, s.netns, s.foreign, s.gone = from.d, from.item, from.index, from.netns, from.foreign, from.gone
	s.item.Name, s.item.Asked = s.want.Name, s.want.Address
	s.item.Exclusive = s.item.Exclusive || s.want.Exclusive
}

// bind gives s a fresh descriptor, which lives where home does: see bindSocket.
func (s *socket) bind(ctx context.Context, address string, k kind, home *descriptor) error {
	d, file, err := bindSocket(ctx, s.want.Network, address, s.reuse, home)
	if err != nil {
		return err
	}
	facts, err := d.facts()
	if err != nil {
		d.Close()
		return err
	}
	s.d, s.index, s.deaf, s.netns, s.foreign, s.gone = d, -1, k == kindStream, facts.netns(), home != nil, ""
	s.item = manifestItem{
		Name: s.want.Name, Kind: k, Network: s.want.Network, Asked: s.want.Address, Local: facts.local,
		Domain: facts.domain, Type: facts.typ, Protocol: facts.protocol, Exclusive: s.want.Exclusive, File: file,
	}
	return nil
}

// match finds the inherited socket that is meant: by name, or, for one that was
// renamed, by the address it is bound to.
func (set *socketSet) match(want Socket, k kind) *socket {
	for _, byName := range []bool{true, false} {
		for _, u := range set.unclaimed {
			it := &u.item
			if it.Kind != k || !it.serves(want.Network) || byName != (it.Name == want.Name) {
				continue
			}
			if byName && it.Asked == want.Address || boundTo(want.Network, it.Local, want.Address, byName) {
				return u
			}
		}
	}
	return nil
}

// serves says whether the socket takes the clients that network asks for: those
// of IPv4, of IPv6, or both. Which of them a wildcard takes was decided when it
// was bound (IPV6_V6ONLY), and its address does not tell.
func (it *manifestItem) serves(network string) bool {
	if it.family() != family(network) {
		return false
	}
	if host, _, err := net.SplitHostPort(it.Local); err == nil && net.ParseIP(host).IsUnspecified() {
		return it.Network == network
	}
	switch network[len(network)-1] {
	case '4':
		return it.Domain == unix.AF_INET
	case '6':
		return it.Domain == unix.AF_INET6
	}
	return true
}

// boundTo says whether a socket bound to local is what listening on address
// means. Port 0 is any port where the name decides, and none where it does not.
func boundTo(network, local, address string, anyPort bool) bool {
	same := func(ip, boundIP net.IP, port, boundPort int) bool {
		return sameIP(ip, boundIP) && (port == boundPort || port == 0 && anyPort)
	}
	switch family(network) {
	case "tcp":
		a, err := net.ResolveTCPAddr(network, address)
		b, err2 := net.ResolveTCPAddr("tcp", local)
		return err == nil && err2 == nil && same(a.IP, b.IP, a.Port, b.Port)
	case "udp":
		a, err := net.ResolveUDPAddr(network, address)
		b, err2 := net.ResolveUDPAddr("udp", local)
		return err == nil && err2 == nil && same(a.IP, b.IP, a.Port, b.Port)
	}
	return local == address
}

func sameIP(a, b net.IP) bool {
	return a.Equal(b) || (len(a) == 0 || a.IsUnspecified()) && (len(b) == 0 || b.IsUnspecified())
}

// openFile is File.
func (p *Process) openFile(name string, open func() (*os.File, error)) (*os.File, error) {
	if !slices.Contains(p.cfg.Files, name) {
		return nil, fmt.Errorf("handoff: file %q: Config.Files does not list it", name)
	}
	set := &p.sockets
	set.mu.Lock()
	defer set.mu.Unlock()
	if set.closed {
		return nil, ErrNotServing
	}
	for i, u := range set.unclaimed {
		if u.item.Kind == kindFile && u.item.Name == name {
			f, err := u.d.file(name)
			if err != nil {
				return nil, err
			}
			set.unclaimed = slices.Delete(set.unclaimed, i, i+1)
			set.claimed = append(set.claimed, u)
			return f, nil
		}
	}
	f, err := open()
	if err != nil {
		return nil, err
	}
	d, err := dupConn(f)
	if err != nil {
		f.Close()
		return nil, err
	}
	set.claimed = append(set.claimed, &socket{item: manifestItem{Name: name, Kind: kindFile}, d: d, index: -1})
	return f, nil
}

// checkClaim refuses to succeed what is another service, as far as that can be told:
// everything that it serves would be closed.
func (p *Process) checkClaim() error {
	select {
	case <-p.done:
		return nil // its end says more
	default:
	}
	if p.cfg.AllowNoClaim {
		return nil
	}
	set := &p.sockets
	set.mu.Lock()
	defer set.mu.Unlock()
	if slices.ContainsFunc(set.claimed, func(s *socket) bool { return s.index >= 0 }) {
		return nil
	}
	if offered := slices.Concat(set.givenUp, set.unclaimed); len(offered) > 0 {
		return fmt.Errorf("%w: %s", ErrNoClaim, strings.Join(clipList(socketNames(offered)), ", "))
	}
	return nil
}
