package handoff

import (
	"sync"
	"time"
)

// movedConn is an idle HTTP/1 connection that no http.Server has: on its way to
// another process, or back. Whoever has it closes d.
type movedConn struct {
	from  *trackedListener // of its HTTP server here: from.drain
	fresh bool             // nothing was asked on it yet
	since time.Time        // when it was accepted, or became idle
	d     *descriptor
}

// carrier is where the HTTPServers of a process that drains put connections that
// are idle, and where the goroutine that moves them takes them from. There is room
// in it for as many as can be on their way; the others go on being served here, so
// that none waits for the next process longer than two batches take.
//
// Its methods may be called by several goroutines.
type carrier struct {
	mu      sync.Mutex
	room    int                            // how many more may come now; negative while some come that have no room any more
	short   bool                           // one could not come for want of room
	waiting []*movedConn                   // to be taken
	taking  bool                           // somebody takes them
	ended   bool                           //
	hope    time.Time                      // until then those that are not idle may still move
	refused map[*trackedListener]leftAlone // its connections are not taken
	changed chan struct{}                  // something is waiting, or room was given back
}

// leftAlone says until when, and how long that was.
type leftAlone struct {
	until time.Time
	pause time.Duration
}

func newCarrier(hope time.Time) *carrier {
	return &carrier{hope: hope, refused: map[*trackedListener]leftAlone{}, changed: make(chan struct{}, 1)}
}

// open makes room for n more.
func (k *carrier) open(n int) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.room += n
	k.taking = true
}

// reserve says whether a connection of l may come; then put or decline follows.
func (k *carrier) reserve(l *trackedListener) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	switch {
	case k.ended || k.isRefused(l):
		return false
	case k.room <= 0:
		k.short = true
		return false
	}
	k.room--
	return true
}

// isFull says whether nothing may come now. Whoever is told so is missed.
func (k *carrier) isFull() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.short = k.short || k.room <= 0
	return k.ended || k.room <= 0
}

func (k *carrier) isRefused(l *trackedListener) bool {
	r, ok := k.refused[l]
	return ok && time.Now().Before(r.until)
}

// decline gives back what was reserved.
func (k *carrier) decline() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.room++
	k.wake()
}

// put hands m over; false means that nobody takes connections now, and m stays the
// caller's: nobody would serve it until somebody does.
func (k *carrier) put(m *movedConn) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.taking {
		return false
	}
	k.waiting = append(k.waiting, m)
	k.wake()
	return true
}

func (k *carrier) wake() {
	select {
	case k.changed <- struct{}{}:
	default:
	}
}

// maxListeners is how many listeners one batch may name, so that it fits a frame.
const maxListeners = 16

// take returns at most one batch of what is waiting.
func (k *carrier) take() (batch []*movedConn) {
	k.mu.Lock()
	defer k.mu.Unlock()
	seen := map[*trackedListener]bool{}
	for len(batch) < len(k.waiting) && len(batch) < maxBatch {
		l := k.waiting[len(batch)].from
		if seen[l] = true; len(seen) > maxListeners {
			break
		}
		batch = append(batch, k.waiting[len(batch)])
	}
	k.waiting = k.waiting[len(batch):]
	return batch
}

// arrived makes room again for n that have reached an end of their way. It says
// whether some stayed where they were for want of it.
func (k *carrier) arrived(n int) (short bool) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.room += n
	short, k.short = k.short && k.room > 0, k.short && k.room <= 0
	return short
}

// close takes away n of the room, and returns what waits. What was on its way here
// stays where it is.
func (k *carrier) close(n int) []*movedConn {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.taking = false
	k.room -= n
	rest := k.waiting
	k.waiting, k.short = nil, false
	k.room += len(rest)
	return rest
}

// end is close for good.
func (k *carrier) end() []*movedConn {
	k.mu.Lock()
	k.ended, k.hope = true, time.Time{}
	k.mu.Unlock()
	return k.close(0)
}

// refuse has l's connections left alone for a while, twice as long each time. It is
// called for each that was not taken.
func (k *carrier) refuse(l *trackedListener) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.isRefused(l) {
		return
	}
	pause := max(2*k.refused[l].pause, moveSweep)
	k.refused[l] = leftAlone{time.Now().Add(pause), pause}
}

// hopeUntil says until when a connection that is busy may count on moving.
func (k *carrier) hopeUntil(t time.Time) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if !k.ended {
		k.hope = t
	}
}

// hopes says whether a connection of l that is busy may count on moving when it is
// idle.
func (k *carrier) hopes(l *trackedListener) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return time.Now().Before(k.hope) && !k.isRefused(l)
}
