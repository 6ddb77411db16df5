package handoff

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// The clock's looks are at given times, as they are when the process runs, is
// stopped for a while, or is slow.
func TestDrainClock(t *testing.T) {
	const ms = time.Millisecond
	for _, tc := range []struct {
		name  string
		looks []time.Duration // since the beginning of a drain of 1 s
		left  time.Duration   // at the last look; 0: it is over
	}{
		{name: "it runs", looks: []time.Duration{100 * ms, 200 * ms}, left: 800 * ms},
		{name: "its time is over", looks: []time.Duration{100 * ms, 200 * ms, 300 * ms, 400 * ms, 500 * ms, 600 * ms, 700 * ms, 800 * ms, 900 * ms, 1000 * ms}},
		{name: "a look that is a little late", looks: []time.Duration{100 * ms, 290 * ms}, left: 710 * ms},
		{name: "stopped within its time", looks: []time.Duration{100 * ms, 800 * ms}, left: 1000 * ms},
		{name: "stopped beyond its time", looks: []time.Duration{100 * ms, 5000 * ms}, left: 1000 * ms},
		{name: "stopped beyond its time by an instant", looks: []time.Duration{800 * ms, 900 * ms, 1101 * ms}, left: 1000 * ms},
		{name: "stopped, and its time is over", looks: []time.Duration{100 * ms, 5000 * ms, 5100 * ms, 5200 * ms, 5300 * ms, 5400 * ms, 5500 * ms, 5600 * ms, 5700 * ms, 5800 * ms, 5900 * ms, 6000 * ms}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newDrainClock(time.Now().Add(time.Second))
			defer c.stop()
			begin := c.seen
			c.until = begin.Add(time.Second)
			over := false
			for _, d := range tc.looks {
				require.False(t, over)
				over, _ = c.look(begin.Add(d))
			}
			require.Equal(t, tc.left == 0, over)
			if !over {
				require.Equal(t, tc.left, c.until.Sub(c.seen))
			}
		})
	}
}
