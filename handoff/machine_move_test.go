package handoff

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// moveWorld is a giver and a taker with one connection of the control socket between
// them, and one HTTP connection that is to move. It is comparable.
type moveWorld struct {
	giver, taker end
	giving       giving
	taking       taking
	down         [3]moveEvent // frames on their way to the taker, oldest first
	downs        int
	up           moveEvent // to the giver
	ups          int
	shut         bool // the giver's reading side
	shutting     bool // `keep` was sent, and the reading side is still to be shut
	keptWord     bool // `keep` was sent
	offered      bool // the batch was sent
	gaveUp       bool // the giver let go
	giverServes  bool
	takerServes  bool
	dropped      bool
	refused      bool // the taker serves nothing any more
}

type end uint8

const (
	endAlive end = iota
	endLeft      // has closed the connection, and lives
	endDead
)

// moveRules are what a walk does without.
type moveRules struct {
	noShut    bool // `keep` without shutting the reading side
	readLater bool // the giver takes the batch back without reading what was sent before
	eager     bool // the taker serves before it says `got`
	deadIsNo  bool // the taker closes what it has at the end of the connection
	unsaidIs  bool // the taker serves although `got` could not be sent
	wordLater bool // the reading side is shut although `keep` could not be said
}

// steps are all worlds that can come next.
func (w moveWorld) steps(r moveRules) (next []moveWorld) {
	add := func(f func(w *moveWorld)) {
		n := w
		f(&n)
		next = append(next, n)
	}
	if w.giver == endAlive {
		add(func(w *moveWorld) { w.giver = endDead })
		switch {
		case w.shutting:
			if !w.keptWord {
				// The taker reads nothing, and there is no room for the word.
				add(func(w *moveWorld) {
					w.shutting = false
					if w.shut = r.wordLater; !w.shut {
						w.giverDoes(w.giving.on(moveUnkept), r)
					}
				})
				add(func(w *moveWorld) { w.say(moveKept) })
				break
			}
			add(func(w *moveWorld) {
				w.shutting = false
				w.shut = !r.noShut
				if r.readLater {
					w.giverDoes(w.giving.on(moveEnd), r)
					w.giver = endLeft
				}
			})
		case !w.offered:
			add(func(w *moveWorld) {
				w.offered = true
				w.giverDoes(w.giving.on(moveSent), r)
				w.say(moveBatch)
			})
		default:
			if w.ups > 0 {
				add(func(w *moveWorld) { w.ups--; w.giverDoes(w.giving.on(w.up), r) })
			} else if w.shut || w.taker != endAlive {
				add(func(w *moveWorld) { w.giverDoes(w.giving.on(moveEnd), r); w.giver = endLeft })
			} else if r.noShut && w.keptWord {
				// It finds nothing to read, and closes the connection some time after.
				add(func(w *moveWorld) { w.giverDoes(w.giving.on(moveEnd), r) })
			}
			if w.giving == givingSent {
				add(func(w *moveWorld) { w.giverDoes(w.giving.on(moveDue), r) })
				add(func(w *moveWorld) { w.giverDoes(w.giving.on(moveAbandoned), r); w.giver = endLeft })
			}
		}
	}
	if w.taker == endAlive {
		add(func(w *moveWorld) { w.taker = endDead })
		switch {
		case w.taking == takingRead:
			add(func(w *moveWorld) {
				w.refused = true
				if w.giver == endAlive && !w.shut {
					w.up, w.ups = moveNone, w.ups+1
				}
				w.takerDoes(w.taking.on(moveRefused), r)
				w.taker = endLeft
			})
			add(func(w *moveWorld) {
				ev := moveUnsaid
				if w.giver == endAlive && !w.shut {
					ev = moveSaid
					w.up, w.ups = moveGot, w.ups+1
				}
				w.takerDoes(w.taking.on(ev), r)
				if r.unsaidIs && ev == moveUnsaid {
					w.takerServes = true
				}
			})
		case w.downs > 0:
			add(func(w *moveWorld) {
				ev := w.down[0]
				w.downs--
				copy(w.down[:], w.down[1:])
				w.takerDoes(w.taking.on(ev), r)
			})
		case w.giver != endAlive:
			add(func(w *moveWorld) {
				w.takerDoes(w.taking.on(moveEnd), r)
				w.taker = endLeft
			})
		}
	}
	return next
}

func (w *moveWorld) say(ev moveEvent) {
	w.keptWord = w.keptWord || ev == moveKept
	if w.taker == endAlive {
		w.down[w.downs], w.downs = ev, w.downs+1
	}
}

func (w *moveWorld) giverDoes(a moveAction, r moveRules) {
	switch a {
	case moveLetGo:
		w.gaveUp = true
	case moveResume:
		w.giverServes = true
	case moveKeep:
		w.shutting = true
	}
}

func (w *moveWorld) takerDoes(a moveAction, r moveRules) {
	switch a {
	case moveSay:
		w.takerServes = r.eager
	case moveOwn:
		if r.deadIsNo && w.giver == endDead && w.ups == 0 {
			w.dropped = true
			return
		}
		w.takerServes = true
	case moveDrop:
		w.dropped = true
	}
}

// wrong says what has gone wrong, "" if nothing; last is true where nothing more can
// happen but that somebody dies.
func (w moveWorld) wrong(last bool) string {
	switch giver, taker := w.giver != endDead, w.taker != endDead; {
	case giver && taker && w.giverServes && w.takerServes:
		return "two read from one connection"
	case !last || !w.offered:
		return ""
	case giver && taker && !w.giverServes && !w.takerServes && !(w.refused && w.gaveUp):
		return "nobody has it"
	case giver && !taker && !w.giverServes && !w.gaveUp:
		return "the taker is dead, and the giver has not taken it back"
	case !giver && taker && !w.takerServes && !w.keptWord && !w.refused:
		return "the giver is dead, and the taker does not serve it"
	}
	return ""
}

// walkMove looks at every world that can come about, and returns what went wrong in
// some of them, and how many there are.
func walkMove(r moveRules) (wrong map[string]moveWorld, worlds int) {
	wrong = map[string]moveWorld{}
	seen := map[moveWorld]bool{{}: true}
	for queue := []moveWorld{{}}; len(queue) > 0; queue = queue[1:] {
		w := queue[0]
		next := w.steps(r)
		// Deaths are always possible: what else is not?
		deaths := 0
		for _, e := range []end{w.giver, w.taker} {
			if e == endAlive {
				deaths++
			}
		}
		quiet := len(next) == deaths || w.giving == givingNone && w.taking == takingNone && w.downs == 0 && w.ups == 0
		if what := w.wrong(quiet); what != "" {
			wrong[what] = w
		}
		for _, n := range next {
			if !seen[n] {
				seen[n] = true
				queue = append(queue, n)
			}
		}
	}
	return wrong, len(seen)
}

func TestWalkOfAMove(t *testing.T) {
	wrong, worlds := walkMove(moveRules{})
	require.Empty(t, wrong)
	require.Greater(t, worlds, 50)
	t.Logf("%d worlds", worlds)
}

// Without one of its rules the walk must find something wrong, or it shows nothing.
func TestWalkOfAMoveWithoutARule(t *testing.T) {
	for _, tc := range []struct {
		name string
		r    moveRules
	}{
		{"the reading side is shut after keep", moveRules{noShut: true}},
		{"what was sent before is read first", moveRules{readLater: true}},
		{"nothing is served before got", moveRules{eager: true}},
		{"the end without keep is the giver's death", moveRules{deadIsNo: true}},
		{"what can't be acknowledged is not served", moveRules{unsaidIs: true}},
		{"nothing is shut where keep could not be said", moveRules{wordLater: true}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			wrong, _ := walkMove(tc.r)
			require.NotEmpty(t, wrong)
			for what := range wrong {
				t.Log(what)
			}
		})
	}
}
