package handoff

import "time"

// drainTick is how often the clock of a drain looks whether this process runs.
const drainTick = 100 * time.Millisecond

// drainClock says when the time of a drain is over. Time in which this process was
// itself stopped (SIGSTOP, a frozen container) does not count: clients have waited
// for it, and what they sent waits in the sockets' buffers.
type drainClock struct {
	until time.Time
	seen  time.Time // the last look
	tick  *time.Ticker
	due   *time.Timer
}

func newDrainClock(until time.Time) *drainClock {
	return &drainClock{until: until, seen: time.Now(), tick: time.NewTicker(drainTick), due: time.NewTimer(time.Until(until))}
}

func (c *drainClock) stop() {
	c.tick.Stop()
	c.due.Stop()
}

// look is for whenever tick or due fires. moved says that until is another now.
func (c *drainClock) look(now time.Time) (over, moved bool) {
	lost := now.Sub(c.seen) - drainTick
	c.seen = now
	if lost <= drainTick {
		return !now.Before(c.until), false
	}
	if c.until = c.until.Add(lost); c.until.Before(now.Add(lateAfter)) {
		c.until = now.Add(lateAfter) // enough to answer what waits
	}
	c.due.Reset(c.until.Sub(now))
	return false, true
}
