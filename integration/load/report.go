package load

import (
	"cmp"
	"fmt"
	"maps"
	"math"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// Report says what a run saw. It is a copy; the caller may do with it what it likes.
type Report struct {
	Seed           uint64 // of what was left to chance
	Started, Ended time.Time
	Counts         // over all kinds
	ByKind         map[Kind]Counts
	Losses         []Loss // the first 1,000; Lost counts all
	Breaks         []Loss // the first 1,000 broken connections; Broken counts all
	samples        []sample
}

// Answer is one request that was answered.
type Answer struct {
	Kind       Kind
	Due        time.Time // when it was to be sent; a NewConn's connection was begun then
	Time       time.Time // when the whole answer was there
	Generation uint64    // that gave it; 0 where the server states none
}

// Answers returns every answer to a request due in [from, to), of the given kinds, or of all, in no order. The zero
// time leaves a side open.
func (r Report) Answers(from, to time.Time, kinds ...Kind) (all []Answer) {
	for _, s := range r.samples {
		if s.in(from, to, kinds) {
			all = append(all, Answer{Kind: s.kind, Due: s.due, Time: s.due.Add(s.latency), Generation: s.generation})
		}
	}
	return all
}

func (s sample) in(from, to time.Time, kinds []Kind) bool {
	if !from.IsZero() && s.due.Before(from) || !to.IsZero() && !s.due.Before(to) {
		return false
	}
	return len(kinds) == 0 || slices.Contains(kinds, s.kind)
}

// Latency is the distribution of the time from a request's due time to its whole answer. Zero when N is 0.
type Latency struct {
	N                   int
	P50, P99, P999, Max time.Duration
}

// Latency returns the distribution over the requests due in [from, to), of the given kinds, or of all. The zero time
// leaves a side open.
func (r Report) Latency(from, to time.Time, kinds ...Kind) Latency {
	var picked []time.Duration
	for _, s := range r.samples {
		if s.in(from, to, kinds) {
			picked = append(picked, s.latency)
		}
	}
	if len(picked) == 0 {
		return Latency{}
	}
	slices.Sort(picked)
	rank := func(q float64) time.Duration { return picked[int(math.Ceil(q*float64(len(picked))))-1] }
	return Latency{N: len(picked), P50: rank(0.50), P99: rank(0.99), P999: rank(0.999), Max: picked[len(picked)-1]}
}

func (l Latency) String() string {
	return fmt.Sprintf("p50 %s  p99 %s  p99.9 %s  max %s  (%d answers)",
		Millis(l.P50), Millis(l.P99), Millis(l.P999), Millis(l.Max), l.N)
}

// Millis writes a duration in milliseconds with two decimals.
func Millis(d time.Duration) string {
	return fmt.Sprintf("%.2f ms", float64(d)/float64(time.Millisecond))
}

// shownLosses bounds how many losses String shows.
const shownLosses = 12

// String is the report as a table, with the first losses and breaks below it.
func (r Report) String() string {
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', tabwriter.AlignRight)
	fmt.Fprintln(w, "\tsent\tanswered\trefused\tlost\tbroken\tdials\tevents\t")
	row := func(name string, c Counts) {
		fmt.Fprintf(w, "%s\t%d\t%d\t%d\t%d\t%d\t%d\t%d\t\n", name, c.Sent, c.Answered, c.Refused, c.Lost, c.Broken, c.Dials, c.Events)
	}
	for _, k := range slices.Sorted(maps.Keys(r.ByKind)) {
		row(string(k), r.ByKind[k])
	}
	row("all", r.Counts)
	w.Flush() // into memory: it cannot fail
	fmt.Fprintf(&b, "answers by generation: %s\n", r.GenerationsText())
	fmt.Fprintf(&b, "latency: %s\n", r.Latency(time.Time{}, time.Time{}))
	if _, ok := r.ByKind[Pipelined]; ok {
		fmt.Fprintf(&b, "seed: %d\n", r.Seed)
	}
	r.list(&b, "lost", r.Losses, r.Lost)
	r.list(&b, "broken", r.Breaks, r.Broken)
	return b.String()
}

// GenerationsText is how many answers each generation gave, oldest first.
func (r Report) GenerationsText() string {
	var parts []string
	for _, g := range slices.Sorted(maps.Keys(r.Generations)) {
		parts = append(parts, fmt.Sprintf("%d: %d", g, r.Generations[g]))
	}
	return cmp.Or(strings.Join(parts, ", "), "none")
}

func (r Report) list(b *strings.Builder, name string, losses []Loss, total uint64) {
	for i, l := range losses {
		if i == shownLosses {
			break
		}
		fmt.Fprintf(b, "%s: %s at %s: %s: %s (last answer from generation %d)\n",
			name, l.Kind, l.Time.Sub(r.Started).Round(time.Millisecond/10), l.Cause, l.Error, l.Generation)
	}
	if total > shownLosses {
		fmt.Fprintf(b, "%s: and %d more\n", name, total-shownLosses)
	}
}
