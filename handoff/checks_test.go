package handoff

import (
	"context"
	"errors"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func checks(all ...Check) func(*Config) {
	return func(cfg *Config) { cfg.Checks = all }
}

func TestReadyRunsTheChecksTogether(t *testing.T) {
	c := newChain(t)
	runs := atomic.Int32{}
	met := make(chan struct{})
	together := func(ctx context.Context) error {
		if runs.Add(1) == 2 {
			close(met)
		}
		select {
		case <-met: // only if the other one runs too
			return nil
		case <-ctx.Done():
			return ctx.Err()
		}
	}
	p := c.start("one", checks(Check{Name: "a", Run: together}, Check{Name: "b", Run: together}))
	c.ready(p)
	c.ready(p)
	require.EqualValues(t, 2, runs.Load(), "what has passed is not run again")
}

func TestReadyNamesEveryCheckThatFailed(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one")
	broken, cold := errors.New("broken"), errors.New("cold")
	var failing atomic.Bool
	failing.Store(true)
	check := func(name string, err error) Check {
		return Check{Name: name, Run: func(context.Context) error {
			if failing.Load() {
				return err
			}
			return nil
		}}
	}
	two := c.start("two", checks(check("db", broken), check("good", nil), check("cache", cold)))
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	err := two.Ready(c.ctx)
	require.ErrorIs(t, err, ErrCheck)
	require.ErrorIs(t, err, broken)
	require.ErrorIs(t, err, cold)
	require.ErrorContains(t, err, ": db: broken; cache: cold")
	require.Equal(t, StateStarting, two.State(), "nothing was told")
	require.Equal(t, "1", asked(t, ln.Addr()))

	failing.Store(false)
	c.ready(two)
	require.Equal(t, "2", asked(t, ln.Addr()))
	c.wait(one)
}

func TestCloseAfterFailedChecksLeavesTheIncumbent(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one")
	two := c.start("two", checks(Check{Name: "db", Run: func(context.Context) error { return errors.New("broken") }}))
	require.ErrorIs(t, two.Ready(c.ctx), ErrCheck)
	require.NoError(t, two.Close())
	require.Equal(t, "1", asked(t, ln.Addr()))
	require.Equal(t, StateServing, one.State())
}

func TestTheFirstGenerationIsGatedToo(t *testing.T) {
	c := newChain(t)
	p := c.start("one", checks(Check{Name: "db", Run: func(context.Context) error { return errors.New("broken") }}))
	require.ErrorIs(t, p.Ready(c.ctx), ErrCheck)
	require.Equal(t, StateStarting, p.State())
}

func TestChecksAreBounded(t *testing.T) {
	t.Run("one that ignores its context", func(t *testing.T) {
		c := newChain(t)
		release, left := make(chan struct{}), make(chan struct{})
		stuck := func(context.Context) error { defer close(left); <-release; return nil }
		p := c.start("one", checks(Check{Name: "stuck", Timeout: 10 * time.Millisecond, Run: stuck}))
		err := p.Ready(c.ctx)
		require.ErrorIs(t, err, ErrCheck)
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "stuck: no answer within 10ms")
		close(release)
		<-left
	})
	t.Run("each by its own time", func(t *testing.T) {
		c := newChain(t)
		deadline := func(name string, timeout, want time.Duration) Check {
			return Check{Name: name, Timeout: timeout, Run: func(ctx context.Context) error {
				at, ok := ctx.Deadline()
				if left := time.Until(at); !ok || left > want || left < want/2 {
					return errors.New(left.String())
				}
				return nil
			}}
		}
		p := c.start("one", checks(
			deadline("zero", 0, 10*time.Second), deadline("own", time.Minute, time.Minute), deadline("negative", -1, 24*time.Hour)))
		require.NoError(t, p.Ready(context.Background()))
	})
	t.Run("by Ready's context", func(t *testing.T) {
		c := newChain(t)
		began, ended := make(chan struct{}), make(chan struct{})
		p := c.start("one", checks(Check{Name: "waits", Run: func(ctx context.Context) error {
			defer close(ended)
			close(began)
			<-ctx.Done()
			return ctx.Err()
		}}))
		ctx, cancel := context.WithCancelCause(c.ctx)
		enough := errors.New("enough")
		go func() { <-began; cancel(enough) }()
		err := p.Ready(ctx)
		require.ErrorIs(t, err, enough)
		require.NotErrorIs(t, err, ErrCheck)
		<-ended
	})
	t.Run("by the end of this process's part", func(t *testing.T) {
		c := newChain(t)
		one, _ := c.serve("one", func(cfg *Config) { cfg.ReadyTimeout = 50 * time.Millisecond })
		ended := make(chan struct{})
		two := c.start("two", checks(Check{Name: "slow", Run: func(ctx context.Context) error {
			defer close(ended)
			<-ctx.Done()
			return nil
		}}))
		require.ErrorIs(t, two.Ready(c.ctx), ErrRevoked)
		<-ended
		require.Equal(t, StateServing, one.State())
	})
}

func TestListenAndServeReturnsFailedChecks(t *testing.T) {
	c := newChain(t)
	_, ln := c.serve("one")
	cfg := c.config("two")
	checks(Check{Name: "db", Run: func(context.Context) error { return errors.New("broken") }})(&cfg)
	err := ListenAndServe(c.ctx, cfg, &http.Server{Addr: "127.0.0.1:0"})
	require.ErrorIs(t, err, ErrCheck)
	require.Equal(t, "1", asked(t, ln.Addr()))
}
