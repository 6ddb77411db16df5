package handoff

import (
	"context"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// TestNoticeIsSpread: of many connections each learns of the drain at a moment
// of its own within the spread, and none after it.
func TestNoticeIsSpread(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n, spread = 200, 10 * time.Second
		notices := make([]*notice, n)
		for i := range notices {
			notices[i] = newNotice()
			notices[i].begin(spread)
		}
		told := func() (n int) {
			synctest.Wait()
			for _, c := range notices {
				if isClosed(c.draining) {
					n++
				}
			}
			return n
		}
		require.Less(t, told(), n/10)
		time.Sleep(spread / 2)
		half := told()
		require.InDelta(t, n/2, half, n/4)
		time.Sleep(spread / 2)
		require.Equal(t, n, told())
	})
}

func TestNotice(t *testing.T) {
	for _, tc := range []struct {
		name  string
		do    func(*notice)
		told  bool
		cause error
	}{
		{"nothing yet", func(*notice) {}, false, nil},
		{"at once", func(n *notice) { n.begin(0) }, true, nil},
		{"its time is over already", func(n *notice) { n.begin(-1) }, true, nil},
		{"at its turn", func(n *notice) { n.begin(time.Hour) }, false, nil},
		{"deadline before its turn", func(n *notice) { n.begin(time.Hour); n.deadline() }, true, ErrDrainDeadline},
		{"deadline", (*notice).deadline, true, ErrDrainDeadline},
		{"closed", func(n *notice) { n.end(context.Canceled) }, false, context.Canceled},
		{"closed after the deadline", func(n *notice) { n.deadline(); n.end(context.Canceled) }, true, ErrDrainDeadline},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := newNotice()
			ctx := before.context(t.Context())
			tc.do(before)
			require.Equal(t, tc.told, isClosed(before.draining))
			require.Equal(t, tc.cause, context.Cause(ctx))
			after := newNotice()
			tc.do(after)
			require.Equal(t, tc.cause, context.Cause(after.context(t.Context())), "asked for late")
		})
	}
}

func TestDrainSpread(t *testing.T) {
	for _, tc := range []struct {
		name                string
		timeout, set, wants time.Duration
	}{
		{"default", 0, 0, 3 * time.Second},
		{"a tenth", time.Minute, 0, 6 * time.Second},
		{"at once", 0, -1, 0},
		{"as it is", 0, time.Second, time.Second},
		{"never later than the deadline", time.Second, time.Minute, time.Second},
		{"no drain", -1, time.Minute, 0},
	} {
		t.Run(tc.name, func(t *testing.T) {
			cfg, err := Config{Socket: "s", DrainTimeout: tc.timeout, DrainSpread: tc.set}.withDefaults()
			require.NoError(t, err)
			require.Equal(t, tc.wants, cfg.DrainSpread)
		})
	}
}

// TestDrainingIsSpread: the lame duck begins at once, and so does a plain stop's
// word to those that have no end by themselves; only after a handover are they
// told one by one.
func TestDrainingIsSpread(t *testing.T) {
	leak.CheckExact(t)
	asked := make(chan (<-chan struct{}), 1)
	handler := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/stream" {
			asked <- Draining(r.Context())
		}
	})
	for _, tc := range []struct {
		name   string
		spread time.Duration
	}{{"at once", 0}, {"at its turn", time.Hour}} {
		t.Run(tc.name, func(t *testing.T) {
			s := serveHTTP(t, handler, nil)
			c := s.dial()
			c.get("/stream", false)
			draining := <-asked
			s.drain.beginDrain(tc.spread, false)
			require.NoError(t, <-s.served)
			s.served <- nil
			require.Equal(t, tc.spread == 0, isClosed(draining))
			c.get("/", true) // the lame duck
			s.drain.cut()
		})
	}
}

// A connection that an accept loop had in its hands when the drain began is told too.
func TestLateHTTPConnectionIsTold(t *testing.T) {
	d := newHTTPDrain(&http.Server{})
	require.True(t, d.addListener(&trackedListener{onceListener: onceListener{Listener: failingListener{}}, drain: d}))
	d.begun = time.Now() // what beginDrain does but for closing the listener
	ours, theirs := net.Pipe()
	defer theirs.Close()
	c := d.track(ours, nil).(*trackedConn)
	defer c.Close()
	require.True(t, isClosed(c.notice.draining))
}

func TestPlainStopTellsAllAtOnce(t *testing.T) {
	for _, plain := range []bool{true, false} {
		c := newChain(t)
		one := c.start("one", func(cfg *Config) { cfg.DrainSpread, cfg.DrainTimeout = time.Hour, time.Hour })
		ln := one.Track(c.listen(one, "tcp", "127.0.0.1:0"))
		c.ready(one)
		conn, _ := trackPair(t, ln)
		if plain {
			one.Stop()
		} else {
			c.serve("two")
		}
		if plain {
			waitClosed(t, "not told", conn.Draining())
		} else {
			c.until("the drain has begun", func() bool { ln.mu.Lock(); defer ln.mu.Unlock(); return !ln.begun.IsZero() })
			require.False(t, isClosed(conn.Draining()), "its turn is within the hour")
		}
		require.NoError(t, conn.Close())
		c.wait(one)
	}
}
