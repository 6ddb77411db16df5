package handoff

import (
	"slices"
	"time"
)

// Sockets that live in another network namespace than this process. When the
// container goes that the namespace was made for, its interfaces are taken away, and
// the sockets live on, for this process holds them: nothing fails, and no client
// comes. So the interfaces are looked at.

// networkEvery is how often.
const networkEvery = time.Second

// noteForeign says which of the sockets that came live elsewhere, once for each
// namespace, and begins to watch over them.
func (p *Process) noteForeign() {
	at := map[uint64][]*socket{}
	p.sockets.mu.Lock()
	for _, s := range p.sockets.foreign() {
		at[s.netns] = append(at[s.netns], s)
	}
	p.sockets.mu.Unlock()
	for cookie, all := range at {
		p.Logger().Warn("sockets live in another network namespace, and only for as long as its network; they are served", "sockets", clipList(socketNames(all)), "netns", cookie)
	}
	if len(at) > 0 {
		p.beginWatching()
	}
}

// beginWatching has the networks of foreign sockets looked at, of which there are some.
func (p *Process) beginWatching() {
	if !p.watching {
		p.watching = true
		p.work.Go(p.watchNetworks)
	}
}

// foreign are the inet sockets that live elsewhere. Under mu.
func (set *socketSet) foreign() (all []*socket) {
	for _, s := range slices.Concat(set.claimed, set.unclaimed) {
		if s.foreign && s.d != nil {
			all = append(all, s)
		}
	}
	return all
}

// watchNetworks looks until no such socket is held any more.
func (p *Process) watchNetworks() {
	tick := time.NewTicker(networkEvery)
	defer tick.Stop()
	for more := true; more; {
		p.lookAtNetworks()
		p.ask(func() {
			p.sockets.mu.Lock()
			defer p.sockets.mu.Unlock()
			more = len(p.sockets.foreign()) > 0
			p.watching = more
		})
		select {
		case <-tick.C:
		case <-p.life.Done():
			return
		}
	}
}

// lookAtNetworks looks once, without holding up anybody: the kernel may make whoever
// asks for interfaces wait for whoever changes some.
func (p *Process) lookAtNetworks() {
	type held struct {
		netns uint64
		d     *descriptor
	}
	var all []held
	p.sockets.mu.Lock()
	for _, s := range p.sockets.foreign() {
		all = append(all, held{s.netns, s.d})
	}
	p.sockets.mu.Unlock()
	seen := map[uint64]network{}
	for _, h := range all {
		if _, ok := seen[h.netns]; ok {
			continue
		}
		// One that was closed meanwhile sees nothing; another may.
		if n, err := h.d.network(); err == nil {
			seen[h.netns] = n
		}
	}
	p.ask(func() { p.noteNetworks(seen) })
}

// noteNetworks takes what was seen, and says what has changed.
func (p *Process) noteNetworks(seen map[uint64]network) {
	lost, back := map[string][]*socket{}, []*socket(nil)
	p.sockets.mu.Lock()
	dark := map[uint64]int{}
	for cookie, n := range seen {
		p.sockets.noteOutside(cookie, n.outside)
		if !n.carrier {
			dark[cookie] = p.dark[cookie] + 1
		}
	}
	p.dark = dark
	for _, s := range p.sockets.foreign() {
		n, ok := seen[s.netns]
		if !ok {
			continue
		}
		before := s.gone
		s.gone = n.gone(s.item.Local, p.sockets.outside[s.netns], dark[s.netns])
		switch {
		case before == "" && s.gone != "":
			lost[s.gone] = append(lost[s.gone], s)
		case before != "" && s.gone == "":
			back = append(back, s)
		}
	}
	p.sockets.mu.Unlock()
	for why, all := range lost {
		p.Logger().Error("the network of sockets is gone: clients do not reach them any more", "sockets", clipList(socketNames(all)), "reason", why,
			"hint", networkRemedy)
	}
	if len(back) > 0 {
		p.Logger().Info("the network of sockets is back", "sockets", clipList(socketNames(back)))
	}
	if len(lost)+len(back) > 0 {
		p.changed()
	}
}

// networkRemedy: a successor would inherit them.
const networkRemedy = "stop the service, and start it where its clients are: a successor would take the same sockets"

// gone says why clients do not reach a socket bound to local any more; "" if they may.
// That nothing leads outside counts only where something did: some namespaces are made
// so. dark is at how many looks in a row there was no carrier.
func (n *network) gone(local string, did bool, dark int) string {
	switch {
	case did && !n.outside:
		return "no interface there is up but loopback"
	case did && dark >= darkLooks:
		return "no interface there has a carrier"
	}
	return n.missing(local)
}

// darkLooks is how often that is seen before it is believed: the kernel tells of a new
// carrier up to a second late.
const darkLooks = 3

// noteOutside remembers that an interface of a namespace led outside. It outlives the
// process (manifestItem.Outside), or a successor would take a network that is gone for
// one that is meant to be so. Under mu.
func (set *socketSet) noteOutside(cookie uint64, yes bool) {
	if !yes || cookie == 0 {
		return
	}
	if set.outside == nil {
		set.outside = map[uint64]bool{}
	}
	set.outside[cookie] = true
}

// goneListed is how many names of sockets that nobody reaches a status has.
const goneListed = 8

// abroad is how many of the sockets live elsewhere, and which of them no client
// reaches any more.
func (set *socketSet) abroad() (n int, gone []string) {
	set.mu.Lock()
	defer set.mu.Unlock()
	for _, s := range set.claimed {
		if s.foreign {
			n++
			if s.gone != "" {
				gone = append(gone, s.String())
			}
		}
	}
	return n, clipTo(gone, goneListed)
}
