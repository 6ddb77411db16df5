package handoff

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// solo is a job that several generations have, and notices when two run it.
type solo struct {
	t       testing.TB
	running atomic.Int32
	most    atomic.Int32

	mu     sync.Mutex
	runs   []string // who began, in order
	causes []error  // why runs ended
}

// add registers the job.
func (s *solo) add(p *Process, who string) {
	p.Singleton("solo", func(ctx context.Context) {
		s.mu.Lock()
		s.runs = append(s.runs, who)
		s.mu.Unlock()
		for n := s.running.Add(1); ; {
			most := s.most.Load()
			if n <= most || s.most.CompareAndSwap(most, n) {
				break
			}
		}
		<-ctx.Done()
		time.Sleep(time.Millisecond) // work that takes a moment to stop
		s.mu.Lock()
		s.causes = append(s.causes, context.Cause(ctx))
		s.mu.Unlock()
		s.running.Add(-1)
	})
}

func (s *solo) ran() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.runs...)
}

// waitRuns waits until the job has begun so often, and returns who began.
func (s *solo) waitRuns(c *chain, n int) []string {
	c.t.Helper()
	c.until(fmt.Sprintf("run %d has begun", n), func() bool { return len(s.ran()) >= n })
	return s.ran()
}

func (s *solo) serve(c *chain, label string, change ...func(*Config)) *Process {
	c.t.Helper()
	p := c.start(label, change...)
	s.add(p, label)
	greet(p, c.listen(p, "tcp", "127.0.0.1:0"))
	c.ready(p)
	return p
}

func TestSingletonRunsWhereItServes(t *testing.T) {
	c := newChain(t)
	s := &solo{t: t}
	one := c.start("one", probation)
	s.add(one, "one")
	require.Empty(t, s.ran(), "it does not serve yet")
	greet(one, c.listen(one, "tcp", "127.0.0.1:0"))
	c.ready(one)
	s.waitRuns(c, 1)

	// Handed over, and taken back by an operator; then released.
	two := s.serve(c, "two", probation)
	s.waitRuns(c, 2)
	_, err := c.client().Rollback(c.ctx)
	require.NoError(t, err)
	s.waitRuns(c, 3)
	_, err = two.Wait(c.ctx)
	require.ErrorIs(t, err, ErrRevoked)

	three := s.serve(c, "three")
	s.waitRuns(c, 4)
	one.Stop()
	c.wait(one)
	require.Equal(t, []string{"one", "two", "one", "three"}, s.ran())

	three.Stop()
	r := c.wait(three)
	require.Empty(t, r.Open)
	require.Zero(t, s.running.Load())
	require.EqualValues(t, 1, s.most.Load())
	for _, cause := range s.causes {
		require.ErrorIs(t, cause, ErrNotServing)
	}
	s.add(three, "too late")
	require.Len(t, s.ran(), 4)
}

func TestSingletonNeverRunsTwice(t *testing.T) {
	c := newChain(t)
	s := &solo{t: t}
	incumbent := s.serve(c, "first", probation)
	rounds := 10
	if testing.Short() {
		rounds = 3
	}
	for i := range rounds {
		for _, end := range []func(*Process){
			func(*Process) { c.client().Rollback(c.ctx) },
			(*Process).Stop, // gives back
			func(p *Process) { p.Close() },
		} {
			bad := s.serve(c, fmt.Sprint("bad ", i), probation)
			runs := len(s.ran())
			end(bad)
			s.waitRuns(c, runs+1)
			bad.Wait(c.ctx)
			c.reach(incumbent, StateServing)
		}
		good := s.serve(c, fmt.Sprint("good ", i), probation)
		incumbent.Stop()
		c.wait(incumbent)
		incumbent = good
	}
	require.EqualValues(t, 1, s.most.Load())
	require.NoError(t, incumbent.Close())
	require.Zero(t, s.running.Load())
}

// The link ends without a word, as it does where the incumbent dies: in one
// program its job must be taken for dead with it, so only what the standby does
// is looked at.
func TestSingletonBeginsWhenTheIncumbentDies(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one")
	s := &solo{t: t}
	two := c.start("two", mode(Standby))
	s.add(two, "two")
	c.listen(two, "tcp", "127.0.0.1:0")
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)
	require.Empty(t, s.ran(), "a standby runs nothing")
	one.ask(func() { one.younger.c.Close() })
	require.NoError(t, <-ready)
	s.waitRuns(c, 1)
	require.NoError(t, two.Close())
	require.Zero(t, s.running.Load())
}

// A successor that does not confirm that it was revoked may run the job still:
// neither the incumbent nor another successor may begin it.
func TestSingletonWaitsForARevokedSuccessor(t *testing.T) {
	for _, tc := range []struct {
		name string
		mine bool // the incumbent has the job too
	}{{"the incumbent's too", true}, {"the successor's alone", false}} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			s := &solo{t: t}
			one := c.start("one", probation)
			if tc.mine {
				s.add(one, "one")
			}
			greet(one, c.listen(one, "tcp", "127.0.0.1:0"))
			c.ready(one)
			two := s.serve(c, "two", probation)
			before := 1
			if tc.mine {
				before = 2
			}
			s.waitRuns(c, before)
			c.reach(one, StateParked)

			// two hangs: what it reads is not acted on until it goes on.
			hung, goOn := make(chan struct{}), make(chan struct{})
			wake := sync.OnceFunc(func() { close(goOn) })
			t.Cleanup(wake)
			two.post(func() { close(hung); <-goOn })
			<-hung
			_, err := c.client().Rollback(c.ctx)
			require.NoError(t, err)
			require.Equal(t, StateServing, one.State(), "listeners do not wait")
			ctx, cancel := context.WithCancel(c.ctx)
			defer cancel()
			ended := c.waits(ctx, "three")
			cancel()
			require.ErrorContains(t, <-ended, busyText(whyRevoking))
			require.Len(t, s.ran(), before)

			wake()
			three := s.serve(c, "three", probation)
			runs := s.waitRuns(c, before+1)
			if tc.mine {
				runs = s.waitRuns(c, before+2)
				require.Equal(t, "one", runs[before])
			}
			require.Equal(t, "three", runs[len(runs)-1])
			require.EqualValues(t, 1, s.most.Load())
			three.Close()
		})
	}
}

// Both have it only since the successor is a standby, which ready did not tell: a
// take-back waits all the same.
func TestSingletonOfAServingProcessBeginsAtOnce(t *testing.T) {
	c := newChain(t)
	s := &solo{t: t}
	one, _ := c.serve("one", probation)
	two := c.start("two", mode(Standby))
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)
	s.add(one, "one")
	s.waitRuns(c, 1)
	s.add(two, "two")
	_, err := c.client().Handover(c.ctx, "")
	require.NoError(t, err)
	require.NoError(t, <-ready)
	s.waitRuns(c, 2)
	c.reach(one, StateParked)

	hung, goOn := make(chan struct{}), make(chan struct{})
	wake := sync.OnceFunc(func() { close(goOn) })
	t.Cleanup(wake)
	two.post(func() { close(hung); <-goOn })
	<-hung
	_, err = c.client().Rollback(c.ctx)
	require.NoError(t, err)
	require.Len(t, s.ran(), 2)
	wake()
	require.Equal(t, []string{"one", "two", "one"}, s.waitRuns(c, 3))
	require.EqualValues(t, 1, s.most.Load())
	one.Close()
}

func TestSingletonThatReturnsIsCalledTheNextTime(t *testing.T) {
	c := newChain(t)
	one := c.start("one", probation)
	ran := make(chan struct{}, 10)
	one.Singleton("once", func(context.Context) { ran <- struct{}{} })
	greet(one, c.listen(one, "tcp", "127.0.0.1:0"))
	c.ready(one)
	<-ran
	two, _ := c.serve("two")
	require.NoError(t, two.Close())
	<-ran // after the take-back
	one.Stop()
	c.wait(one)
	require.Empty(t, ran)
}

// The service goes on while a singleton is waited for.
func TestSingletonEndsBeforeTheSocketsDo(t *testing.T) {
	for _, tc := range []struct {
		name string
		end  func(c *chain, p *Process)
	}{
		{"handed over", func(c *chain, _ *Process) { c.serve("two") }},
		{"stopped", func(_ *chain, p *Process) { p.Stop() }},
		{"closed", func(_ *chain, p *Process) { p.Close() }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			one := c.start("one")
			ln := c.listen(one, "tcp", "127.0.0.1:0")
			greet(one, ln)
			accepts := make(chan bool, 1)
			one.Singleton("job", func(ctx context.Context) {
				<-ctx.Done()
				accepts <- ln.(*listener).accepts() && !ln.(*listener).ending()
			})
			c.ready(one)
			tc.end(c, one)
			require.True(t, <-accepts)
			c.wait(one)
		})
	}
}

func (l *listener) ending() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.shut || l.ended
}

// A singleton that does not heed its context holds nothing up for more than a
// second, is said by name, and keeps the process as a hold does.
func TestSingletonThatDoesNotHeed(t *testing.T) {
	stubborn := func(p *Process) (begun, end chan struct{}) {
		begun, end = make(chan struct{}, 10), make(chan struct{}, 10)
		p.Singleton("stubborn", func(context.Context) { begun <- struct{}{}; <-end })
		return begun, end
	}
	t.Run("handed over", func(t *testing.T) {
		c := newChain(t)
		log := &book{}
		one := c.start("one", probation, func(cfg *Config) { cfg.Logger = slog.New(slog.NewTextHandler(log, nil)) })
		begun, end := stubborn(one)
		ln := c.listen(one, "tcp", "127.0.0.1:0")
		greet(one, ln)
		c.ready(one)
		<-begun
		at := time.Now()
		two, _ := c.serve("two")
		require.GreaterOrEqual(t, time.Since(at), singletonGrace)
		require.Contains(t, log.String(), `level=WARN msg="a singleton does not end, and is waited for no more: two may run now" generation=1`)
		require.Contains(t, log.String(), "singleton=stubborn")
		require.Equal(t, "2", asked(t, ln.Addr()))

		// Taken back: it is not begun beside itself, but after itself.
		require.NoError(t, two.Close())
		c.reach(one, StateServing)
		require.Empty(t, begun)
		require.Equal(t, map[string]int{"stubborn": 1}, c.statusOf(1).Holds)
		end <- struct{}{}
		<-begun
		require.Empty(t, c.statusOf(1).Holds)
		end <- struct{}{}
		require.NoError(t, one.Close())
	})
	t.Run("stopped", func(t *testing.T) {
		c := newChain(t)
		one := c.start("one")
		begun, end := stubborn(one)
		ln := c.listen(one, "tcp", "127.0.0.1:0")
		greet(one, ln)
		c.ready(one)
		<-begun
		one.Stop()
		require.Equal(t, "1", asked(t, ln.Addr()), "accepted while the job is waited for")
		reports := c.ended(one)
		c.until("it is held", func() bool { return one.holds.names()["stubborn"] == 1 })
		require.Equal(t, StateDraining, one.State())
		end <- struct{}{}
		require.Empty(t, (<-reports).Cut)
	})
	t.Run("beyond the drain deadline", func(t *testing.T) {
		c := newChain(t)
		one := c.start("one", drainTimeout(10*time.Millisecond))
		begun, end := stubborn(one)
		c.ready(one)
		<-begun
		one.Stop()
		r := c.wait(one)
		require.Equal(t, map[string]int{"stubborn": 1}, r.Holds)
		require.Equal(t, map[string]int{"hold": 1}, r.Cut)
		end <- struct{}{}
	})
}
