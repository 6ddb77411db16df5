package main

import (
	"context"
	"sync"
	"time"
)

// A machine that stands still for longer than maxStall makes processes miss deadlines that nothing here was about.
const maxStall = 3 * heartbeat / 2

const stallLook = 20 * time.Millisecond

// stalls notes when this process, and so probably the others, did not get to run.
type stalls struct {
	mu  sync.Mutex
	all []stall
}

type stall struct {
	end  time.Time
	took time.Duration
}

// watch notes stalls until ctx ends.
func (s *stalls) watch(ctx context.Context) {
	tick := time.NewTicker(stallLook)
	defer tick.Stop()
	last := time.Now()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		now := time.Now()
		if d := now.Sub(last); d > maxStall {
			s.mu.Lock()
			s.all = append(s.all, stall{now, d})
			s.mu.Unlock()
		}
		last = now
	}
}

// since is the longest one that ended after begin, 0 if none did.
func (s *stalls) since(begin time.Time) (longest time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, one := range s.all {
		if one.end.After(begin) {
			longest = max(longest, one.took)
		}
	}
	return longest
}
