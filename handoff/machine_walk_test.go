package handoff

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"
)

// The walk: two and three instances of the real machine, joined by links that
// delay, are taken through every order of events: frames, timers, crashes,
// stops (SIGSTOP), continues and operator verbs. After every step the rules of
// the design are checked (world.check), and from every state the world is run to
// rest without further faults, to see that somebody serves (world.settle).
//
// What the walk does not model: the sockets themselves. A process holds "the
// sockets" as one plain and one exclusive one.

const maxWorld = 3

// word is a frame under way.
type word struct {
	msg             msgType
	last, displaced bool
}

type queue struct {
	words [6]word
	n     uint8
	reset bool // ECONNRESET comes before what is queued
	eof   bool // the other end is closed: EOF comes after what is queued
}

// role is what a link is at its older end.
type role uint8

const (
	roleNone    role = iota
	roleQueued       // in the control listener's queue
	roleYounger      //
	roleRetired      //
	roleClosed       //
)

// walkLink is the link whose younger end is the process of the same index.
type walkLink struct {
	open     bool // the younger end
	role     role // the older end
	elder    int8
	up, down queue
	batches  uint8
}

type walkProc struct {
	m                   machine
	born, dead          bool
	stopped, wasStopped bool
	holds               bool // copies of the sockets, and of the control listener
	plain, exclusive    bool // accepts
	answers             bool
	standsIn            bool // answers questions in its silent elder's stead
	knowsRevoked        bool // it read revoke
	dialing             bool // it looks for the incumbent
}

// world is comparable: equal worlds are one state of the walk.
type world struct {
	procs [maxWorld]walkProc
	links [maxWorld]walkLink
	owner int8 // who must serve; -1 once the last owner was crashed or stopped on purpose

	crashes, stops, verbs int8 // what may still be done to it

	most int8 // of older ones may drain at the same time; 0: any number
}

func (w *world) runs(i int) bool {
	p := &w.procs[i]
	return p.born && !p.dead && !p.stopped
}

func (w *world) lives(i int) bool { return w.procs[i].born && !w.procs[i].dead }

// walker holds what is the same for a whole walk.
type walker struct {
	n       int
	step    func(*machine, event) []action // the machine, or a mutation of it
	broken  string                         // the first rule that was broken
	account string                         // how it came to that
	asked   bool                           // the event under way is SIGTERM, hammer, Close or that it is unhealthy
	slow    bool                           // a process that runs may miss heartbeats, too
	seen    map[actionKind]int             // how often each action was obeyed; nil: not counted
}

func (k *walker) fail(format string, args ...any) {
	if k.broken == "" {
		k.broken = fmt.Sprintf(format, args...)
	}
}

func (k *walker) feed(w *world, i int, ev event) {
	p := &w.procs[i]
	if ev.kind == evFrame && ev.side == sideElder && ev.msg == msgRevoke && p.m.elder >= phaseOffer && p.m.elder != phaseDraining {
		p.knowsRevoked = true
	}
	k.asked = ev.kind == evStop || ev.kind == evClose || ev.kind == evHammer || ev.kind == evUnhealthy
	for _, a := range k.step(&p.m, ev) {
		if k.seen != nil {
			k.seen[a.kind]++
		}
		k.obey(w, i, a)
	}
	k.asked = false
	if ev.kind == evFrame && w.procs[i].m.expects(ev.side) {
		k.feed(w, i, event{kind: evHeard, side: ev.side})
	}
}

// younger finds the link whose older end is i and has the given role.
func (w *world) younger(i int, r role) *walkLink {
	for j := range w.links {
		if l := &w.links[j]; l.role == r && l.elder == int8(i) {
			return l
		}
	}
	return nil
}

func (q *queue) put(k *walker, x word) {
	if int(q.n) == len(q.words) {
		k.fail("a link holds more than %d frames", len(q.words))
		return
	}
	q.words[q.n] = x
	q.n++
}

func (q *queue) get() word {
	x := q.words[0]
	copy(q.words[:], q.words[1:])
	q.n--
	q.words[q.n] = word{}
	return x
}

// send puts a frame on the link on side s of process i.
func (k *walker) send(w *world, i int, s side, x word) {
	switch s {
	case sideElder:
		l := &w.links[i]
		if !l.open {
			return
		}
		if l.role == roleClosed {
			l.down.reset = true // EPIPE
			return
		}
		l.up.put(k, x)
	case sideYounger, sideAsker:
		r := roleYounger
		if s == sideAsker {
			r = roleQueued
		}
		l := w.younger(i, r)
		if l == nil {
			return
		}
		if !l.open {
			l.up.reset = true
			return
		}
		l.down.put(k, x)
	}
}

// closeYoung closes the younger end of link i, closeOld the older one. Unread
// frames make the other end see ECONNRESET first.
func (l *walkLink) closeYoung() {
	if !l.open {
		return
	}
	l.open = false
	l.up.eof = true
	if l.down.n > 0 {
		l.up.reset = true
	}
	l.down = queue{}
}

func (l *walkLink) closeOld() {
	if l.role == roleNone || l.role == roleClosed {
		return
	}
	l.role = roleClosed
	l.down.eof = true
	if l.up.n > 0 {
		l.down.reset = true
	}
	l.up = queue{}
	l.batches = 0
}

// clean forgets a link that is closed on both ends.
func (l *walkLink) clean() {
	if !l.open && l.role == roleClosed {
		*l = walkLink{}
	}
}

func (k *walker) obey(w *world, i int, a action) {
	p := &w.procs[i]
	switch a.kind {
	case actSend:
		x := word{msg: a.msg, displaced: a.why == whyDisplaced}
		if a.msg == msgGot {
			x.last = p.m.elder == phaseHeld || w.links[i].batches == 2
		}
		k.send(w, i, a.side, x)
	case actCloseLink:
		if a.side == sideElder {
			w.links[i].closeYoung()
		} else if l := w.younger(i, roleYounger); l != nil {
			l.closeOld()
		}
	case actAdmit:
		w.younger(i, roleQueued).role = roleYounger
	case actOffer:
		l := w.younger(i, roleYounger)
		l.batches = 1
		k.send(w, i, sideYounger, word{msg: msgSockets})
	case actRetire:
		if l := w.younger(i, roleYounger); l != nil {
			l.role = roleRetired
		}
	case actAccept:
		p.plain, p.exclusive, p.holds = true, true, true
	case actPark:
		p.plain, p.exclusive = false, false
	case actResume:
		p.plain = true
		if w.owner >= 0 {
			w.owner = int8(i)
		}
	case actResumeExclusive:
		p.exclusive = true
	case actStopAccepting, actRelease, actDropSockets:
		p.plain, p.exclusive, p.holds, p.answers, p.standsIn = false, false, false, false, false
		if a.kind == actRelease && w.owner == int8(i) {
			if w.owner = w.heir(i); w.owner < 0 {
				k.fail("process %d gave up its sockets, and nobody has them: total loss", i)
			}
		}
		if k.asked && w.owner == int8(i) {
			w.owner = w.heir(i) // it was told to go
		}
	case actShut:
		p.plain, p.exclusive, p.holds, p.answers = false, false, false, false
		if w.owner == int8(i) {
			w.owner = -1
		}
	case actAnswer:
		p.answers, p.holds, p.standsIn = true, true, false
	case actStandIn:
		p.standsIn = true
	case actStandAside:
		p.standsIn = false
	case actStopAnswering:
		p.answers = false
	case actRetry:
		p.dialing, p.knowsRevoked = true, false
	case actKill:
		if e := w.links[i].elder; w.lives(int(e)) {
			if !w.procs[e].stopped {
				k.fail("process %d killed its incumbent %d, which was not silent", i, e)
			}
			if w.exit(int(e)); w.owner < 0 {
				w.owner = int8(i) // whoever kills the owner must serve
			}
		}
	case actPoll:
		k.poll(w, i, a.side)
	case actEnd:
		if w.owner == int8(i) {
			k.fail("process %d ended while it had to serve: total loss", i)
		}
		w.exit(i)
	}
}

// heir is who must serve when the owner i goes: a successor that holds sockets
// and was not told revoke.
func (w *world) heir(i int) int8 {
	for j := range w.links {
		l := &w.links[j]
		if l.role != roleYounger || l.elder != int8(i) || !w.lives(j) || !w.procs[j].m.got {
			continue
		}
		for x := range l.down.n {
			if l.down.words[x].msg == msgRevoke {
				return -1
			}
		}
		if w.procs[j].m.state <= StateServing {
			return int8(j)
		}
	}
	return -1
}

// exit is the end of process i, crashed or by itself: the kernel closes its links.
func (w *world) exit(i int) {
	p := &w.procs[i]
	if w.owner == int8(i) {
		w.owner = w.heir(i)
	}
	for j := range w.links {
		if w.links[j].elder == int8(i) {
			w.links[j].closeOld()
		}
	}
	w.links[i].closeYoung()
	w.procs[i] = walkProc{born: true, dead: true}
	p.m = machine{state: StateGone}
}

// listening says whether the control socket lives: a process holds it, or it is
// in flight to one.
func (w *world) listening() bool {
	for i := range w.procs {
		if !w.lives(i) {
			continue
		}
		if w.procs[i].holds || w.procs[i].m.got {
			return true
		}
		for _, x := range w.links[i].down.words {
			if x.msg == msgSockets {
				return true
			}
		}
	}
	return false
}

// next delivers the next thing that waits in q to process i; false if nothing does.
func (k *walker) next(w *world, i int, s side, l *walkLink, q *queue) bool {
	switch {
	case q.reset:
		q.reset = false
		k.feed(w, i, event{kind: evReset, side: s})
	case q.n > 0:
		x := q.get()
		k.feed(w, i, event{kind: evFrame, side: s, msg: x.msg, last: x.last, why: map[bool]reason{true: whyDisplaced}[x.displaced]})
		if s == sideRetired && (x.msg == msgRevoked || x.msg == msgAbort || x.msg == msgBye) {
			l.closeOld() // as link.go does: its end counts once
		}
		if s == sideYounger && x.msg == msgGot && !x.last && l.role == roleYounger {
			l.batches = 2
			k.send(w, i, sideYounger, word{msg: msgSockets, last: true})
		}
	case q.eof:
		q.eof = false
		k.feed(w, i, event{kind: evEOF, side: s})
		if s == sideElder {
			l.closeYoung()
		} else {
			l.closeOld()
		}
	default:
		return false
	}
	l.clean()
	return true
}

// inbound lists what process i may read from.
func (k *walker) inbound(w *world, i int, visit func(s side, l *walkLink, q *queue)) {
	if l := &w.links[i]; l.open {
		visit(sideElder, l, &l.down)
	}
	for j := range w.links {
		l := &w.links[j]
		if l.elder != int8(i) {
			continue
		}
		switch l.role {
		case roleYounger:
			visit(sideYounger, l, &l.up)
		case roleRetired:
			visit(sideRetired, l, &l.up)
		}
	}
}

// poll reads the link on side s empty, in one go, as actPoll demands.
func (k *walker) poll(w *world, i int, s side) {
	for more := true; more; {
		more = false
		k.inbound(w, i, func(at side, l *walkLink, q *queue) {
			if at == s && !more {
				more = k.next(w, i, at, l, q)
			}
		})
	}
	k.feed(w, i, event{kind: evEmpty, side: s})
}

// dial: a process that looks for the incumbent connects, or finds nobody.
func (k *walker) dial(w *world, i int) bool {
	p, l := &w.procs[i], &w.links[i]
	if !p.dialing || l.open || l.role != roleNone {
		return false
	}
	p.dialing = false
	if !w.listening() {
		if w.owner < 0 {
			w.owner = int8(i)
		}
		p.holds = true
		k.feed(w, i, event{kind: evNobody})
		return true
	}
	*l = walkLink{open: true, role: roleQueued, elder: -1}
	l.up.put(k, word{msg: msgHello})
	k.feed(w, i, event{kind: evDialed})
	return true
}

// admit: whoever answers the control socket reads the hello of process j.
func (k *walker) admit(w *world, i, j int) bool {
	l := &w.links[j]
	if l.role != roleQueued || l.elder >= 0 || !w.procs[i].answers && !w.procs[i].standsIn || l.up.n == 0 {
		return false
	}
	standsIn := w.procs[i].standsIn
	l.elder = int8(i)
	l.up.get()
	full := w.most > 0 && w.draining() >= w.most
	mode := w.procs[j].m.mode
	younger := w.younger(i, roleYounger)
	k.feed(w, i, event{kind: evHello, mode: mode, full: full})
	if full && mode != Spare && (l.role != roleQueued || w.younger(i, roleYounger) != younger) {
		k.fail("process %d let another one succeed, or sent its spare away, where %d drain already", i, w.most)
	}
	if l.role == roleQueued { // busy
		l.closeOld()
	} else if standsIn {
		k.fail("process %d admitted a successor in its incumbent's stead", i)
	}
	l.clean()
	return true
}

// draining counts those that finish what they have.
func (w *world) draining() (n int8) {
	for i := range w.procs {
		if s := w.procs[i].m.state; w.lives(i) && (s == StateDraining || s == StateRevoked) {
			n++
		}
	}
	return n
}

// refuse: the control socket has no living holder any more, its queue is reset.
func (w *world) refuse() {
	if w.listening() {
		return
	}
	for j := range w.links {
		if l := &w.links[j]; l.role == roleQueued && l.elder < 0 {
			l.closeOld()
		}
	}
}

// edge is how the walk came to a state; it makes the account of a broken rule.
type edge struct {
	from int32
	what string
}

// walk visits states breadth first, at most limit of them, and returns how many.
func (k *walker) walk(start world, limit int) int {
	seen := map[world]bool{start: true}
	states := []world{start}
	edges := []edge{{from: -1, what: "A serves"}}
	at := 0
	broke := func(last string) bool {
		if k.broken == "" {
			return false
		}
		k.account = account(edges, at) + last
		return true
	}
	for ; at < len(states); at++ {
		w := states[at]
		k.check(&w)
		k.settle(w, false)
		k.settle(w, true)
		if broke("") {
			break
		}
		last := ""
		k.moves(w, func(next world, what string) {
			if k.broken != "" && last == "" {
				last = "; " + what
			}
			if len(seen) < limit && !seen[next] {
				seen[next] = true
				states = append(states, next)
				edges = append(edges, edge{int32(at), what})
			}
		})
		if broke(last) {
			break
		}
	}
	return len(seen)
}

// account tells the shortest way to a state.
func account(edges []edge, at int) string {
	if at < 0 {
		return ""
	}
	e := edges[at]
	if before := account(edges, int(e.from)); before != "" {
		return before + "; " + e.what
	}
	return e.what
}

// walkSetup is one kind of world to walk.
type walkSetup struct {
	name  string
	modes []Takeover
	w     world
	limit int
	kill  bool
	prob  bool
	delay bool // of a plain stop
	slow  bool // heartbeats may be missed by who runs
}

// start is generation 1 serving, the others not yet born.
func (s walkSetup) start() world {
	w := s.w
	for i, mode := range s.modes {
		w.procs[i].m = machine{mode: mode, exclusive: true, probation: s.prob, kill: s.kill, delays: s.delay, seeking: true}
	}
	w.procs[0].born, w.procs[0].holds = true, true
	k := &walker{n: len(s.modes), step: (*machine).step}
	k.feed(&w, 0, event{kind: evNobody})
	k.feed(&w, 0, event{kind: evAppReady})
	return w
}

func walkSetups(three int) []walkSetup {
	var all []walkSetup
	for _, mode := range []Takeover{Auto, Standby, Spare} {
		for _, prob := range []bool{true, false} {
			for _, kill := range []bool{false, true} {
				all = append(all, walkSetup{
					name:  fmt.Sprintf("two, %v, probation %v, kill %v", mode, prob, kill),
					modes: []Takeover{Auto, mode}, prob: prob, kill: kill, limit: 1 << 30,
					w: world{crashes: 1, stops: 2, verbs: 2},
				})
			}
		}
	}
	for _, mode := range []Takeover{Auto, Standby, Spare} {
		all = append(all, walkSetup{
			name:  fmt.Sprintf("two, %v, slow heartbeats", mode),
			modes: []Takeover{Auto, mode}, prob: true, slow: true, limit: 1 << 30,
			w: world{crashes: 1, stops: 1, verbs: 1},
		})
	}
	for _, mode := range []Takeover{Auto, Standby} {
		all = append(all, walkSetup{
			name:  fmt.Sprintf("two, %v, stops delayed", mode),
			modes: []Takeover{Auto, mode}, prob: true, delay: true, limit: 1 << 30,
			w: world{crashes: 1, stops: 1, verbs: 2},
		})
	}
	all = append(all, walkSetup{
		name:  "three, standby auto, only silence",
		modes: []Takeover{Auto, Standby, Auto}, prob: true, limit: three, w: world{stops: 2},
	})
	all = append(all, walkSetup{
		name:  "three, standby standby, one crash and one verb",
		modes: []Takeover{Auto, Standby, Standby}, prob: true, limit: three, w: world{crashes: 1, verbs: 1},
	})
	for _, modes := range [][]Takeover{
		{Auto, Auto, Auto}, {Auto, Standby, Auto}, {Auto, Spare, Auto}, {Auto, Standby, Standby}, {Auto, Spare, Spare},
	} {
		all = append(all, walkSetup{
			name:  fmt.Sprintf("three, %v %v", modes[1], modes[2]),
			modes: modes, prob: true, limit: three, w: world{crashes: 1, stops: 1, verbs: 2},
		})
	}
	for _, modes := range [][]Takeover{{Auto, Auto, Auto}, {Auto, Spare, Auto}, {Auto, Standby, Spare}} {
		all = append(all, walkSetup{
			name:  fmt.Sprintf("three, %v %v, one may drain", modes[1], modes[2]),
			modes: modes, prob: true, limit: three, w: world{crashes: 1, stops: 1, verbs: 2, most: 1},
		})
	}
	return all
}

// TestWalk walks the machine as it is: no rule may break.
func TestWalk(t *testing.T) {
	total, seen, walked := 0, map[actionKind]int{}, map[string]bool{}
	step := func(m *machine, ev event) []action {
		before := m.state
		acts := m.step(ev)
		if m.state != before {
			walked[before.String()+" → "+m.state.String()] = true
		}
		return acts
	}
	for _, s := range walkSetups(walkLimit) {
		k := &walker{n: len(s.modes), step: step, slow: s.slow, seen: seen}
		n := k.walk(s.start(), s.limit)
		require.Empty(t, k.broken, "%s: %s", s.name, k.account)
		t.Logf("%-40s %8d states", s.name, n)
		total += n
	}
	t.Logf("%-40s %8d states", "all", total)
	for kind := range actionCount {
		require.NotZero(t, seen[kind], "the walk never comes to action %d", kind)
	}
	documentedTransitions(t, walked)
}
