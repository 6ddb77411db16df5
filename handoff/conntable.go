package handoff

import (
	"slices"
	"sync"
)

// maxConns is how many connections of one table are answered at a time.
const maxConns = 64

// connTable knows the connections that came through one socket and are answered
// now. The zero value is empty. It is safe for concurrent use.
type connTable struct {
	mu    sync.Mutex
	conns []tableEntry // oldest first
	ended bool         // what still comes is closed at once
}

type tableEntry struct {
	c    *conn
	stay bool // does not make room: a link, reports of an older generation, or a stop that waits for its end
	stop bool // an operator waits for this process's end
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

// track keeps c to be closed at the end. Where too many are open the oldest that
// is no link makes room, so that nobody who stays connected delays a handoff; an
// operator's tool asks again.
func (t *connTable) track(c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.ended {
		c.Close()
	}
	if len(t.conns) >= maxConns {
		oldest := slices.IndexFunc(t.conns, func(k tableEntry) bool { return !k.stay })
		if oldest >= 0 {
			t.conns[oldest].c.Close()
			t.conns = slices.Delete(t.conns, oldest, oldest+1)
		} else if len(t.conns) >= 2*maxConns {
			c.Close() // reports of more generations than can live
		}
	}
	t.conns = append(t.conns, tableEntry{c: c})
}

// keep says that c does not make room for others: it has become a link, carries
// a generation's reports, or waits for the end that it asked for (stop). false: it
// has made room already, and is closed.
func (t *connTable) keep(c *conn, stop bool) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	i := t.find(c)
	if i >= 0 {
		t.conns[i].stay, t.conns[i].stop = true, stop
	}
	return i >= 0
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
