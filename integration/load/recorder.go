package load

import (
	"context"
	"maps"
	"sync"
	"time"
)

// Counts says how many of what happened. Sent is Answered + Refused + Lost + what is outstanding.
type Counts struct {
	Sent        uint64
	Answered    uint64
	Refused     uint64 // not processed, for certain: the server said so
	Lost        uint64
	Broken      uint64 // connections closed by the server with nothing outstanding and nothing announced
	Announced   uint64 // connections closed after an answer with "Connection: close"
	Dials       uint64
	GivenUp     uint64            // connections that Go's client closed behind a right answer, without a reason of the server's
	Events      uint64            // server-sent events read
	Drained     uint64            // event streams that ended with "event: drain"
	Generations map[uint64]uint64 // answers by X-Handoff-Generation; 0 stands for answers without it
}

// Cause says what became of a lost request.
type Cause string

// The causes of a loss.
const (
	CauseDial     Cause = "dial"     // the connection was refused, reset or not made in time
	CauseTLS      Cause = "tls"      // the handshake failed
	CauseWrite    Cause = "write"    // the request could not be written
	CauseClosed   Cause = "closed"   // the connection ended with the request outstanding
	CauseReset    Cause = "reset"    // likewise, by a reset
	CauseTimeout  Cause = "timeout"  // no answer in time
	CauseStatus   Cause = "status"   // an answer other than 200
	CauseEcho     Cause = "echo"     // an answer that is not the request's body
	CauseProtocol Cause = "protocol" // no HTTP, or bytes nobody asked for
	CauseStream   Cause = "stream"   // an event stream ended without "event: drain"
)

// Loss is one request without its answer, or one connection broken.
type Loss struct {
	Kind       Kind
	Time       time.Time // when it was noticed
	Due        time.Time // when the request was to be sent; zero for a broken connection
	Dialed     time.Time // when its connection was begun; zero where the kind does not say
	Cause      Cause
	Error      string
	Generation uint64 // that this client saw last; 0 none
	// Fresh is whether the connection had not answered anything before: it may have ended in the server's queue,
	// never accepted.
	Fresh bool
}

// sample is one answer.
type sample struct {
	due        time.Time
	latency    time.Duration
	kind       Kind
	generation uint64
}

// maxLosses bounds how many losses are kept whole; all are counted.
const maxLosses = 1000

// recorder collects what the workers see.
type recorder struct {
	mu      sync.Mutex
	changed *sync.Cond
	seed    uint64
	started time.Time
	counts  map[Kind]*Counts
	all     Counts // over all kinds: whoever waits looks at each change, and must not have to add up
	lost    []Loss
	broken  []Loss
	samples []sample
	ended   time.Time // of the last record
}

func newRecorder(seed uint64) *recorder {
	r := &recorder{seed: seed, counts: make(map[Kind]*Counts)}
	r.all.Generations = make(map[uint64]uint64)
	r.changed = sync.NewCond(&r.mu)
	return r
}

// update runs f on a kind's counts, and on those over all kinds, and wakes those who wait.
func (r *recorder) update(k Kind, f func(c *Counts)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.updateLocked(k, f)
}

func (r *recorder) updateLocked(k Kind, f func(c *Counts)) {
	c := r.counts[k]
	if c == nil {
		c = &Counts{Generations: make(map[uint64]uint64)}
		r.counts[k] = c
	}
	f(c)
	f(&r.all)
	r.ended = time.Now()
	r.changed.Broadcast()
}

func (r *recorder) begin(t time.Time) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.started = t
}

func (r *recorder) sent(k Kind)      { r.update(k, func(c *Counts) { c.Sent++ }) }
func (r *recorder) dialed(k Kind)    { r.update(k, func(c *Counts) { c.Dials++ }) }
func (r *recorder) refused(k Kind)   { r.update(k, func(c *Counts) { c.Refused++ }) }
func (r *recorder) announced(k Kind) { r.update(k, func(c *Counts) { c.Announced++ }) }
func (r *recorder) event(k Kind)     { r.update(k, func(c *Counts) { c.Events++ }) }

func (r *recorder) answered(k Kind, due time.Time, generation uint64) {
	latency := time.Since(due)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.samples = append(r.samples, sample{due: due, latency: latency, kind: k, generation: generation})
	r.updateLocked(k, func(c *Counts) {
		c.Answered++
		c.Generations[generation]++
	})
}

func (r *recorder) loss(l Loss) {
	l.Time = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.lost) < maxLosses {
		r.lost = append(r.lost, l)
	}
	r.updateLocked(l.Kind, func(c *Counts) { c.Lost++ })
}

func (r *recorder) brokenConn(l Loss) {
	l.Time = time.Now()
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.broken) < maxLosses {
		r.broken = append(r.broken, l)
	}
	r.updateLocked(l.Kind, func(c *Counts) { c.Broken++ })
}

// total is the sum over all kinds, a copy.
func (r *recorder) total() Counts {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.totalLocked()
}

func (r *recorder) totalLocked() Counts {
	t := r.all
	t.Generations = maps.Clone(t.Generations)
	return t
}

func (r *recorder) wait(ctx context.Context, enough func(Counts) bool) error {
	stop := context.AfterFunc(ctx, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		r.changed.Broadcast()
	})
	defer stop()
	r.mu.Lock()
	defer r.mu.Unlock()
	for !enough(r.all) {
		if err := ctx.Err(); err != nil {
			return err
		}
		r.changed.Wait()
	}
	return nil
}

func (r *recorder) report() Report {
	r.mu.Lock()
	defer r.mu.Unlock()
	rep := Report{
		Seed:    r.seed,
		Started: r.started,
		Ended:   r.ended,
		ByKind:  make(map[Kind]Counts, len(r.counts)),
		Losses:  append([]Loss(nil), r.lost...),
		Breaks:  append([]Loss(nil), r.broken...),
		samples: append([]sample(nil), r.samples...),
	}
	for k, c := range r.counts {
		cc := *c
		cc.Generations = maps.Clone(c.Generations)
		rep.ByKind[k] = cc
	}
	rep.Counts = r.totalLocked()
	return rep
}
