package handoff

import (
	"context"
	"encoding/json"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"
)

// Hold keeps this process while it drains, until release is called or the drain
// deadline comes: for work that must not be cut off, and that nobody else waits
// for. Holds are counted by name in the status and, where they are left at the
// deadline, in the Report; several may have one name.
//
// The context that is returned is derived from ctx. It is cancelled by release
// and, with cause ErrDrainDeadline, at the deadline; the process ends up to a
// second later then, and sooner if all are released. That ctx ends releases
// nothing. A hold that is taken while the process drains counts as long as
// something else keeps it. Where the drain has ended, or Close was called, the
// context is cancelled already, with cause ErrNotServing, and release does nothing.
//
// release may be called any number of times, from any goroutine. In a name what
// can't stand in a log line is replaced, and what is beyond 128 bytes left out.
func (p *Process) Hold(ctx context.Context, name string) (held context.Context, release func()) {
	held, cancel := context.WithCancelCause(ctx)
	return held, p.holds.take(printable(name), cancel)
}

// printable makes of s what checkName admits.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if unicode.IsControl(r) {
			return unicode.ReplacementChar
		}
		return r
	}, strings.ToValidUTF8(s, string(unicode.ReplacementChar)))
	if s == "" {
		return "unnamed"
	}
	if len(s) > maxNameLen {
		s = strings.ToValidUTF8(s[:maxNameLen], "")
	}
	return s
}

// holdSet is what holds a process by name. It is a drainer that a Process
// drains after all others, because what those finish may take holds until then.
type holdSet struct {
	done chan struct{} // closed when it has ended

	mu       sync.Mutex
	all      map[*hold]struct{}
	draining bool           // ends when nothing is held
	over     error          // why new holds do nothing; ErrNotServing: done is closed
	left     map[string]int // by name, at the deadline
}

type hold struct {
	name   string
	cancel context.CancelCauseFunc
}

func newHoldSet() *holdSet {
	return &holdSet{done: make(chan struct{}), all: map[*hold]struct{}{}}
}

// take adds a hold and returns what releases it.
func (s *holdSet) take(name string, cancel context.CancelCauseFunc) (release func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.over != nil {
		cancel(s.over)
		return func() {}
	}
	h := &hold{name: name, cancel: cancel}
	s.all[h] = struct{}{}
	return func() {
		cancel(context.Canceled)
		s.mu.Lock()
		defer s.mu.Unlock()
		delete(s.all, h)
		s.checkDoneLocked()
	}
}

// names counts what is held, by name.
func (s *holdSet) names() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.namesLocked()
}

func (s *holdSet) namesLocked() map[string]int {
	if len(s.all) == 0 {
		return nil
	}
	names := map[string]int{}
	for h := range s.all {
		names[h.name]++
	}
	return names
}

// leftAtDeadline is what names was when cut was called; nil if it was not.
func (s *holdSet) leftAtDeadline() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.left
}

func (s *holdSet) beginDrain(time.Duration, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.draining = true
	s.checkDoneLocked()
}

func (s *holdSet) drained() <-chan struct{} { return s.done }

func (s *holdSet) open() map[string]int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.countLocked()
}

func (s *holdSet) countLocked() map[string]int {
	if len(s.all) == 0 {
		return nil
	}
	return map[string]int{"hold": len(s.all)}
}

// cut counts what is held at the deadline, ends its contexts and gives whoever
// holds a moment to see it. It can't be forced: the end of the process does that.
func (s *holdSet) cut() map[string]int {
	s.mu.Lock()
	cut := s.countLocked()
	if s.over == nil {
		s.left, s.over = s.namesLocked(), ErrDrainDeadline
		s.cancelLocked(ErrDrainDeadline)
		s.draining = true
		s.checkDoneLocked()
	}
	s.mu.Unlock()
	grace := time.NewTimer(cutGrace)
	defer grace.Stop()
	select {
	case <-s.done:
	case <-grace.C:
		s.end()
	}
	return cut
}

// end cancels what is held still, and makes every later hold one that does nothing.
func (s *holdSet) end() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.cancelLocked(ErrNotServing)
	s.endLocked()
}

func (s *holdSet) cancelLocked(why error) {
	for h := range s.all {
		h.cancel(why)
	}
}

func (s *holdSet) checkDoneLocked() {
	if s.draining && len(s.all) == 0 {
		s.endLocked()
	}
}

func (s *holdSet) endLocked() {
	if s.over != ErrNotServing {
		s.over = ErrNotServing
		close(s.done)
	}
}

// clipCounts bounds what a status or report carries of counts by name: at most
// maxListed names and maxHoldsSize bytes of JSON, in the order of the names.
// The last one stands for the rest.
func clipCounts(counts map[string]int) map[string]int {
	const rest = "others"
	clipped, size := map[string]int{}, len(rest)+32
	for _, name := range slices.Sorted(maps.Keys(counts)) {
		b, err := json.Marshal(name)
		if size += len(b) + 32; err != nil || size > maxHoldsSize || len(clipped) >= maxListed-1 {
			clipped[rest] += counts[name]
			continue
		}
		clipped[name] += counts[name]
	}
	return clipped
}
