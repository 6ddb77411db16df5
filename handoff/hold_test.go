package handoff

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func drainTimeout(d time.Duration) func(*Config) {
	return func(cfg *Config) { cfg.DrainTimeout = d }
}

// statusOf returns what the service's status says of one generation.
func (c *chain) statusOf(generation uint64) *GenerationStatus {
	c.t.Helper()
	s, err := c.client().Status(c.ctx)
	require.NoError(c.t, err)
	for _, g := range s.Generations {
		if g.Generation == generation {
			return &g
		}
	}
	return nil
}

// ended begins to wait for p, and returns what its report comes by.
func (c *chain) ended(p *Process) <-chan Report {
	reports := make(chan Report, 1)
	go func() {
		r, err := p.Wait(c.ctx)
		if err != nil {
			c.t.Error(err)
		}
		reports <- r
	}()
	return reports
}

func TestHoldKeepsTheProcess(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one")
	ctx, release := one.Hold(c.ctx, "mail")
	_, second := one.Hold(c.ctx, "mail")
	require.Equal(t, map[string]int{"mail": 2}, c.statusOf(1).Holds)

	two, _ := c.serve("two")
	<-one.Done()
	reports := c.ended(one)
	second()
	c.until("the successor is told of the hold that is left", func() bool {
		g := c.statusOf(1)
		return g != nil && g.State == "draining" && g.Holds["mail"] == 1
	})
	require.Equal(t, StateDraining, one.State())
	require.NoError(t, ctx.Err())

	// While one holds, others may join.
	_, third := one.Hold(c.ctx, "late")
	release()
	require.ErrorIs(t, context.Cause(ctx), context.Canceled)
	require.Equal(t, map[string]int{"late": 1}, one.holds.names())
	require.Equal(t, StateDraining, one.State())
	third()
	third() // once more is once too often, and does nothing

	r := <-reports
	require.Equal(t, "handed_over", r.Reason)
	require.Equal(t, map[string]int{"hold": 2}, r.Open, "when the drain began")
	require.Empty(t, r.Cut)
	require.Empty(t, r.Holds)
	require.Equal(t, StateServing, two.State())

	after, release := one.Hold(c.ctx, "too late")
	require.ErrorIs(t, context.Cause(after), ErrNotServing)
	release()
	require.Empty(t, one.holds.names())
}

func TestHoldsLeftAtTheDeadline(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(c *chain, p *Process)
		want string
	}{
		{"handed over", func(c *chain, _ *Process) { c.serve("two") }, "handed_over"},
		{"stopped", func(_ *chain, p *Process) { p.Stop() }, "stopped"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			one, _ := c.serve("one", drainTimeout(50*time.Millisecond))
			heeds, release := one.Hold(c.ctx, "heeds")
			_, never := one.Hold(c.ctx, "never")
			defer never()
			heeded := make(chan error, 1)
			go func() { <-heeds.Done(); release(); heeded <- context.Cause(heeds) }()
			tc.end(c, one)
			r := c.wait(one)
			require.Equal(t, tc.want, r.Reason)
			require.ErrorIs(t, <-heeded, ErrDrainDeadline)
			require.Equal(t, map[string]int{"heeds": 1, "never": 1}, r.Holds)
			require.Equal(t, map[string]int{"hold": 2}, r.Cut)
			require.GreaterOrEqual(t, r.Duration, cutGrace, "a moment to see it")
		})
	}
}

func TestReleasedAtTheDeadlineEndsSooner(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", drainTimeout(10*time.Millisecond))
	ctx, release := one.Hold(c.ctx, "job")
	released := make(chan time.Time, 1)
	defer context.AfterFunc(ctx, func() { released <- time.Now(); release() })()
	one.Stop()
	r := c.wait(one)
	require.Less(t, time.Since(<-released), cutGrace)
	require.Equal(t, map[string]int{"job": 1}, r.Holds)
}

func TestHoldsEndWithClose(t *testing.T) {
	c := newChain(t)
	p, _ := c.serve("one")
	ctx, release := p.Hold(c.ctx, "job")
	defer release()
	require.NoError(t, p.Close())
	require.ErrorIs(t, context.Cause(ctx), ErrNotServing)
}

func TestHoldContextIsDerived(t *testing.T) {
	c := newChain(t)
	p, _ := c.serve("one")
	type key struct{}
	parent, cancel := context.WithCancelCause(context.WithValue(c.ctx, key{}, "value"))
	ctx, release := p.Hold(parent, "job")
	require.Equal(t, "value", ctx.Value(key{}))
	enough := errors.New("enough")
	cancel(enough)
	require.ErrorIs(t, context.Cause(ctx), enough)
	require.Equal(t, map[string]int{"job": 1}, p.holds.names(), "only release releases")
	release()
	require.Empty(t, p.holds.names())
}

func TestHoldByManyAtOnce(t *testing.T) {
	c := newChain(t)
	p, _ := c.serve("one")
	const n = 50
	var wg sync.WaitGroup
	for i := range n {
		_, release := p.Hold(c.ctx, fmt.Sprint("job ", i%5))
		for range 3 {
			wg.Go(release)
		}
		wg.Go(func() { _, release := p.Hold(c.ctx, "other"); release() })
	}
	p.Stop()
	wg.Wait()
	r := c.wait(p)
	require.Empty(t, r.Cut)
}

// The names are the program's, and stand in logs, frames and tables.
func TestHoldNames(t *testing.T) {
	for _, tc := range []struct{ name, hold, want string }{
		{"as it is", "mail", "mail"},
		{"empty", "", "unnamed"},
		{"control characters", "a\nb\x1b", "a\ufffdb\ufffd"},
		{"no UTF-8", "a\xffb", "a\ufffdb"},
		{"long", strings.Repeat("é", 100), strings.Repeat("é", 64)},
		{"cut at a rune's boundary", "x" + strings.Repeat("é", 100), "x" + strings.Repeat("é", 63)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			require.Equal(t, tc.want, printable(tc.hold))
			require.NoError(t, checkName(printable(tc.hold)))
		})
	}
}

func TestManyHoldsFitAStatus(t *testing.T) {
	c := newChain(t)
	p, _ := c.serve("one")
	const n = 1000
	for i := range n {
		_, release := p.Hold(c.ctx, fmt.Sprintf("%03d", i)+strings.Repeat("<", maxNameLen)) // < is six bytes as JSON
		defer release()
	}
	holds := c.statusOf(1).Holds
	require.LessOrEqual(t, len(holds), maxListed)
	sum := 0
	for _, n := range holds {
		sum += n
	}
	require.Equal(t, n, sum)
	require.Greater(t, holds["others"], n-maxListed)
}
