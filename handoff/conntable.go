package handoff

import (
	"slices"
	"sync"
)

const (
	// maxConns is how many connections of one table may ask at a time.
	maxConns = 64

	// maxStaying is how many may stay besides.
	maxStaying = 2 * (maxOlder + 1)
)

// connTable knows the connections that came through one socket and are answered
// now. The zero value is empty. It is safe for concurrent use.
type connTable struct {
	mu    sync.Mutex
	conns []tableEntry // oldest first
	ended bool         // what still comes is closed at once
}

type tableEntry struct {
	c        *conn
	stranger bool // has not shown yet that it may ask
	stay     bool // does not make room: see keep
	stop     bool // an operator waits for this process's end
}

// closeConns closes all, each when the answer under way on it is out.
func (t *connTable) closeConns() {
	t.mu.Lock()
	t.ended = true
	all := slices.Clone(t.conns)
	t.mu.Unlock()
	for _, k := range all {
		k.c.answering.Lock()
		k.c.Close()
		k.c.answering.Unlock()
	}
}

// hangUp closes what is open now; whoever asked asks again.
func (t *connTable) hangUp() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.conns {
		k.c.Close()
	}
}

// track keeps c to be closed at the end. Where too many ask the oldest of them makes
// room, so that nobody who stays connected delays a handoff; an operator's tool asks
// again. Strangers go first, and nobody but a stranger makes room for one. Those that
// stay are counted apart (keep).
func (t *connTable) track(c *conn, stranger bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		c.Close()
	}
	if len(t.conns)-t.staying() >= maxConns {
		oldest := slices.IndexFunc(t.conns, func(k tableEntry) bool { return k.stranger })
		switch {
		case oldest < 0 && stranger:
			c.Close()
			return
		case oldest < 0:
			oldest = slices.IndexFunc(t.conns, func(k tableEntry) bool { return !k.stay })
		}
		t.conns[oldest].c.Close()
		t.conns = slices.Delete(t.conns, oldest, oldest+1)
	}
	t.conns = append(t.conns, tableEntry{c: c, stranger: stranger})
}

// trust says that c may ask: it has proven the shared key.
func (t *connTable) trust(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.find(c); i >= 0 {
		t.conns[i].stranger = false
	}
}

// keep says that c does not make room for others: it has become a link, carries
// a generation's reports or connections, or waits for the end that it asked for
// (stop). false: it has made room already, and is closed; or there are more that stay
// than generations can live, each with two.
func (t *connTable) keep(c *conn, stop bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.find(c)
	if i < 0 || t.staying() >= maxStaying {
		return false
	}
	t.conns[i].stay, t.conns[i].stop = true, stop
	return true
}

func (t *connTable) staying() (n int) {
	for _, k := range t.conns {
		if k.stay {
			n++
		}
	}
	return n
}

// sayBye tells operators who wait for this process's end what was cut.
func (t *connTable) sayBye(cut map[string]int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, k := range t.conns {
		if k.stop {
			say(k.c, &frame{Type: msgBye, Cut: cut})
		}
	}
}

func (t *connTable) find(c *conn) int {
	return slices.IndexFunc(t.conns, func(k tableEntry) bool { return k.c == c })
}

func (t *connTable) untrack(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if i := t.find(c); i >= 0 {
		t.conns = slices.Delete(t.conns, i, i+1)
	}
}
