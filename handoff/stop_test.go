package handoff

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stuck serves HTTP with one request under way that ends with the test, and
// returns the error with which its client sees it end.
func (c *chain) stuck(label string, change ...func(*Config)) (*Process, net.Listener, chan error) {
	c.t.Helper()
	p := c.start(label, change...)
	ln := c.listen(p, "tcp", "127.0.0.1:0")
	begun, end := make(chan struct{}), make(chan struct{})
	c.t.Cleanup(func() { close(end) })
	srv := &http.Server{Handler: http.HandlerFunc(func(http.ResponseWriter, *http.Request) {
		close(begun)
		<-end
	})}
	go NewHTTPServer(p, srv).Serve(ln)
	c.ready(p)
	ended := make(chan error, 1)
	conn, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(c.t, err)
	c.t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: test\r\n\r\n")
	require.NoError(c.t, err)
	go func() {
		_, err := io.ReadAll(conn)
		ended <- err
	}()
	<-begun
	return p, ln, ended
}

func TestStopDelay(t *testing.T) {
	c := newChain(t)
	var order []string
	called, goOn := make(chan struct{}), make(chan struct{})
	p, ln := c.serve("one", func(cfg *Config) {
		cfg.StopDelay = time.Millisecond
		cfg.BeforeStop = func(context.Context) error {
			order = append(order, "before stop")
			close(called)
			<-goOn
			return nil
		}
		cfg.AfterDrain = func(_ context.Context, r Report) error {
			order = append(order, "after drain: "+r.Reason)
			return nil
		}
	})
	require.False(t, p.Ending())
	p.Stop()
	<-called
	require.True(t, p.Ending(), "readiness turns false first")
	require.Equal(t, "1", asked(t, ln.Addr()), "and connections are accepted still")
	st, err := c.client().Status(c.ctx)
	require.NoError(t, err)
	require.Equal(t, "serving", st.Generations[0].State)
	require.True(t, st.Generations[0].Stopping)

	// Nothing else is begun for an operator.
	_, err = c.client().Handover(c.ctx, "")
	var no *RemoteError
	require.ErrorAs(t, err, &no)
	require.Equal(t, CodeNotNow, no.Code)

	close(goOn)
	require.Equal(t, "stopped", c.wait(p).Reason)
	require.Equal(t, []string{"before stop", "after drain: stopped"}, order)
	_, err = ask(ln.Addr())
	require.Error(t, err)
}

// Who comes while a stop is delayed is handed over to, whatever its mode, and nobody is refused.
func TestSuccessorInTheStopDelay(t *testing.T) {
	leaving := func(t *testing.T, change ...func(*Config)) (c *chain, one *Process, ln net.Listener) {
		c = newChain(t)
		one, ln = c.serve("one", append(change, func(cfg *Config) { cfg.StopDelay = time.Hour })...)
		one.Stop()
		c.until("it is ending", one.Ending)
		return c, one, ln
	}
	over := func(p *Process) { p.ask(func() { p.feed(event{kind: evDelayed}) }) }

	for _, m := range []Takeover{Auto, Standby, Spare} {
		t.Run("which is "+m.String(), func(t *testing.T) {
			c, one, ln := leaving(t)
			two := c.start("two", mode(m))
			greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
			c.ready(two)
			require.Equal(t, "handed_over", c.wait(one).Reason)
			require.Equal(t, "2", asked(t, ln.Addr()))
		})
	}
	t.Run("which is starting when the delay is over", func(t *testing.T) {
		c, one, ln := leaving(t)
		two := c.start("two")
		over(one)
		require.Equal(t, StateServing, one.State())
		require.Equal(t, "1", asked(t, ln.Addr()))
		greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
		c.ready(two)
		require.Equal(t, "handed_over", c.wait(one).Reason)
	})
	t.Run("which gives up", func(t *testing.T) {
		c, one, ln := leaving(t)
		require.NoError(t, c.start("two").Close())
		c.until("one has noticed", func() bool { return c.status().Last != nil })
		require.Equal(t, "1", asked(t, ln.Addr()), "the delay goes on")
		require.True(t, one.Ending())
		three := c.start("three")
		over(one)
		require.NoError(t, three.Close())
		require.Equal(t, "stopped", c.wait(one).Reason, "now it is over")
	})
	t.Run("which fails in probation", func(t *testing.T) {
		var stops atomic.Int32
		c, one, ln := leaving(t, probation, func(cfg *Config) {
			cfg.BeforeStop = func(context.Context) error { stops.Add(1); return nil }
		})
		two := c.start("two")
		greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
		c.ready(two)
		require.NoError(t, two.Close())
		c.reach(one, StateServing)
		require.True(t, c.status().Generations[0].StopOwed)
		require.False(t, one.Ending(), "it serves, until another one comes")
		require.Equal(t, "1", asked(t, ln.Addr()))
		one.Stop()
		c.until("it is ending again", one.Ending)
		c.until("its hook is called again", func() bool { return stops.Load() == 2 }) // or hammer time comes before it
		one.Hammer()
		require.Equal(t, "stopped", c.wait(one).Reason)
		require.EqualValues(t, 2, stops.Load(), "once for each stop")
	})
	t.Run("which an operator refuses", func(t *testing.T) {
		c, one, _ := leaving(t)
		two := c.start("two")
		answer, err := c.client().Drain(c.ctx)
		require.NoError(t, err)
		require.True(t, answer.Already)
		<-two.Done()
		_, err = two.Wait(c.ctx)
		require.ErrorIs(t, err, ErrRevoked)
		one.Hammer()
		require.Equal(t, "stopped", c.wait(one).Reason)
	})
	t.Run("which is starting at hammer time", func(t *testing.T) {
		c, one, ln := leaving(t)
		two := c.start("two")
		c.until("it has everything", func() (held bool) {
			one.ask(func() { held = one.m.younger == phaseHeld })
			return held
		})
		one.Hammer()
		require.Equal(t, "stopped", c.wait(one).Reason)
		greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
		c.ready(two)
		require.Equal(t, "2", asked(t, ln.Addr()), "clients waited in the queue")
	})
}

// A standby that is told to stop says so. If it comes to be handed over to at the same time, all of the service is
// taken down, as above.
func TestStopOfAStandby(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", func(cfg *Config) { cfg.ReadyTimeout = time.Second })
	two := c.start("two", mode(Standby))
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	go two.Ready(c.ctx)
	c.reach(two, StateStandby)
	one.ask(func() {
		two.Stop()
		<-two.Done() // its word is in the link now
		one.feed(event{kind: evStop})
	})
	require.Equal(t, "stopped", c.wait(one).Reason)
}

// An engine that replaces containers says SIGTERM once. If the version that was to
// succeed fails in probation, the next one that is ready is handed over to, though
// it waits to be told; after an operator's rollback it is not.
func TestStopThatIsOwed(t *testing.T) {
	for _, by := range []struct {
		name string
		fail func(c *chain, two *Process)
		owed bool
	}{
		{"the successor ends", func(c *chain, two *Process) { require.NoError(c.t, two.Close()) }, true},
		{"the successor is unhealthy", func(c *chain, two *Process) { two.ReportUnhealthy(errors.New("no backend")) }, true},
		{"an operator takes back", func(c *chain, two *Process) {
			_, err := c.client().Rollback(c.ctx)
			require.NoError(c.t, err)
		}, false},
	} {
		for _, m := range []Takeover{Standby, Spare} {
			t.Run(by.name+", then a "+m.String(), func(t *testing.T) {
				c := newChain(t)
				one, _ := c.serve("one", probation)
				two, ready := c.standby("two", Standby)
				one.Stop()
				require.NoError(t, await(t, ready))
				by.fail(c, two)
				c.reach(one, StateServing)
				require.Equal(t, by.owed, c.status().Generations[0].StopOwed)

				if by.owed {
					three := c.start("three", mode(m))
					greet(three, c.listen(three, "tcp", "127.0.0.1:0"))
					c.ready(three) // without a word from anybody
					one.Stop()     // the probation
					require.Equal(t, "handed_over", c.wait(one).Reason)
					return
				}
				_, ready = c.standby("three", m)
				require.Equal(t, StateServing, one.State())
				one.Stop()
				require.NoError(t, await(t, ready))
			})
		}
	}
}

// Where the successor was told to stop, too, either an engine replaces it or all of the
// service is taken down: who owes the stop waits for another one, but not for ever.
func TestStopOfBoth(t *testing.T) {
	for _, comes := range []bool{true, false} {
		t.Run(fmt.Sprintf("another comes %t", comes), func(t *testing.T) {
			c := newChain(t)
			within := 2 * time.Second
			if comes {
				within = time.Minute // it comes in time
			}
			one, _ := c.serve("one", probation, func(cfg *Config) { cfg.ReadyTimeout = within })
			two, ready := c.standby("two", Standby)
			one.Stop()
			require.NoError(t, await(t, ready))
			began := time.Now()
			two.Stop()
			require.Equal(t, "stopped", c.wait(two).Reason)
			c.reach(one, StateServing)
			if !comes {
				require.Equal(t, "stopped", c.wait(one).Reason)
				require.GreaterOrEqual(t, time.Since(began), within)
				return
			}
			three := c.start("three", mode(Standby))
			greet(three, c.listen(three, "tcp", "127.0.0.1:0"))
			c.ready(three)
			one.Stop() // the probation
			require.Equal(t, "handed_over", c.wait(one).Reason)
		})
	}
}

// A stop that is owed is so no more where a second one ends the service.
func TestStopIsOwedUntilTheNext(t *testing.T) {
	tests := []struct {
		name string
		stop func(c *chain, one *Process)
	}{
		{"stopped", func(_ *chain, one *Process) { one.Stop() }},
		{"taken out", func(c *chain, _ *Process) {
			_, err := c.client().Drain(c.ctx)
			require.NoError(c.t, err)
		}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			c := newChain(t)
			one, _, _ := c.stuck("one", probation)
			two, ready := c.standby("two", Standby)
			one.Stop()
			require.NoError(t, await(t, ready))
			require.NoError(t, two.Close())
			c.reach(one, StateServing)
			require.True(t, c.status().Generations[0].StopOwed)
			test.stop(c, one)
			c.reach(one, StateDraining)
			var self *GenerationStatus
			require.True(t, one.ask(func() { self = one.self() }))
			require.False(t, self.StopOwed)
		})
	}
}

func TestHandoverCallsNoStopHooks(t *testing.T) {
	for _, m := range []Takeover{Auto, Standby} {
		t.Run(m.String(), func(t *testing.T) {
			c := newChain(t)
			one, _ := c.serve("one", func(cfg *Config) {
				cfg.StopDelay = time.Hour
				cfg.BeforeStop = func(context.Context) error { t.Error("BeforeStop"); return nil }
				cfg.AfterDrain = func(context.Context, Report) error { t.Error("AfterDrain"); return nil }
			})
			two := c.start("two", mode(m))
			greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
			go two.Ready(c.ctx)
			if m == Standby {
				c.reach(two, StateStandby)
				one.Stop() // which is a handover then
			}
			require.Equal(t, "handed_over", c.wait(one).Reason)
			require.False(t, one.Ending())
		})
	}
}

func TestHookThatFails(t *testing.T) {
	for _, tc := range []struct {
		name string
		hook func(context.Context) error
		end  func(*Process)
	}{
		{"with an error", func(context.Context) error { return errors.New("registry away") }, func(*Process) {}},
		{"by hanging, and is hammered", func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() }, (*Process).Hammer},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			var log book
			p, _ := c.serve("one", log.use, func(cfg *Config) { cfg.BeforeStop = tc.hook })
			p.Stop()
			c.until("it is ending", p.Ending)
			tc.end(p)
			require.Equal(t, "stopped", c.wait(p).Reason)
			require.Contains(t, log.String(), "a hook did not do its work")
		})
	}
}

func TestHammer(t *testing.T) {
	for _, tc := range []struct {
		name   string
		config func(*Config)
		leave  func(*chain, *Process)
		reason string
	}{
		{"in the stop delay", func(cfg *Config) { cfg.StopDelay = time.Hour }, func(c *chain, p *Process) {
			p.Stop()
			c.until("it is ending", p.Ending)
		}, "stopped"},
		{"in the drain of a stop", nil, func(c *chain, p *Process) {
			p.Stop()
			c.reach(p, StateDraining)
		}, "stopped"},
		{"in the drain of a handover", nil, func(c *chain, p *Process) {
			c.serve("two")
			c.reach(p, StateDraining)
		}, "handed_over"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			hammers := 0
			p, _, ended := c.stuck("one", func(cfg *Config) {
				cfg.DrainTimeout = time.Hour
				cfg.OnHammer = func() { hammers++ }
				if tc.config != nil {
					tc.config(cfg)
				}
			})
			tc.leave(c, p)
			p.Hammer()
			p.Hammer()
			r := c.wait(p)
			require.Equal(t, tc.reason, r.Reason)
			require.Equal(t, map[string]int{"active": 1}, r.Cut)
			require.Equal(t, 1, hammers)
			<-ended
		})
	}
}

func TestHammerWhereNobodyStops(t *testing.T) {
	c := newChain(t)
	var log book
	p, ln := c.serve("one", log.use)
	p.Hammer()
	c.until("it says so", func() bool { return bytes.Contains([]byte(log.String()), []byte("not on its way out")) })
	require.Equal(t, StateServing, p.State())
	require.Equal(t, "1", asked(t, ln.Addr()))
}

// TestHammerInProbation: what can be taken back is taken back; hammer time is
// for what comes after.
func TestHammerInProbation(t *testing.T) {
	c := newChain(t)
	one, _, ended := c.stuck("one", probation, func(cfg *Config) { cfg.DrainTimeout = time.Hour })
	c.serve("two")
	c.reach(one, StateParked)
	one.Stop() // releases
	one.Hammer()
	r := c.wait(one)
	require.Equal(t, "handed_over", r.Reason)
	require.Equal(t, map[string]int{"active": 1}, r.Cut)
	<-ended
}

// TestHammerWhileASuccessorStarts: it has the sockets and serves when it is
// ready; what it was sent meanwhile waits in the queue.
func TestHammerWhileASuccessorStarts(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one")
	two := c.start("two")
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	c.until("it has every socket", func() (held bool) {
		one.ask(func() { held = one.m.younger == phaseHeld })
		return held
	})
	one.Stop() // waits for two
	c.until("the stop is seen", func() (seen bool) {
		one.ask(func() { seen = one.m.stopping })
		return seen
	})
	one.Hammer()
	require.Equal(t, "stopped", c.wait(one).Reason)
	answer := make(chan string, 1)
	go func() {
		s, err := ask(ln.Addr())
		if err != nil {
			s = err.Error()
		}
		answer <- s
	}()
	c.ready(two)
	require.Equal(t, "2", <-answer)
}

func TestDrainSendsSuccessorsAway(t *testing.T) {
	for _, m := range []Takeover{Standby, Spare} {
		t.Run(m.String(), func(t *testing.T) {
			c := newChain(t)
			one, ln := c.serve("one")
			two := c.start("two", mode(m))
			c.listen(two, "tcp", "127.0.0.1:0")
			ready := make(chan error, 1)
			go func() { ready <- two.Ready(c.ctx) }()
			c.reach(two, StateStandby)
			reason := make(chan string, 1)
			go func() {
				r, _ := one.Wait(c.ctx)
				reason <- r.Reason
			}()
			answer, err := c.client().DrainAndWait(c.ctx)
			require.NoError(t, err)
			require.EqualValues(t, 1, answer.Generation)
			require.Empty(t, answer.Cut)
			require.ErrorIs(t, <-ready, ErrRevoked)
			require.ErrorContains(t, two.Err(), "taken out")
			require.Equal(t, "stopped", <-reason)
			_, err = ask(ln.Addr())
			require.Error(t, err)
			_, err = c.client().Status(c.ctx)
			require.ErrorIs(t, err, ErrNobody)
		})
	}
}

func TestDrainIsRefusedInProbation(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", probation)
	c.serve("two")
	c.reach(one, StateParked)
	_, err := c.client().Drain(c.ctx)
	var no *RemoteError
	require.ErrorAs(t, err, &no)
	require.Equal(t, CodeNotNow, no.Code)
	require.Equal(t, StateParked, one.State())
}

func TestDrainTellsWhatWasCut(t *testing.T) {
	c := newChain(t)
	p, _, ended := c.stuck("one", func(cfg *Config) { cfg.DrainTimeout = -1 })
	go p.Wait(c.ctx)
	answer, err := c.client().DrainAndWait(c.ctx)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"active": 1}, answer.Cut)
	<-ended
}

// TestStopGeneration: a draining generation that is stuck ends by its number, be
// it known by its link, by a registration or by way of another draining one.
func TestStopGeneration(t *testing.T) {
	long := func(cfg *Config) { cfg.DrainTimeout = time.Hour }
	c := newChain(t)
	one, _, oneEnded := c.stuck("one", long)
	two, _, twoEnded := c.stuck("two", long)
	c.reach(one, StateDraining)
	three, _ := c.serve("three", long)
	c.reach(two, StateDraining)
	known := func(n uint64) bool {
		st, err := c.client().Status(c.ctx)
		require.NoError(t, err)
		for _, g := range st.Generations {
			if g.Generation == n {
				return true
			}
		}
		return false
	}
	c.until("generation 1 is known", func() bool { return known(1) })
	_, err := c.client().StopGeneration(c.ctx, 1)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"active": 1}, c.wait(one).Cut)
	<-oneEnded
	require.Equal(t, StateDraining, two.State(), "the others go on")

	four, _ := c.serve("four", long)
	c.wait(three)
	c.until("generation 2 has registered", func() (registered bool) {
		four.ask(func() { _, registered = four.living.source(2).(*conn) })
		return registered
	})
	_, err = c.client().StopGeneration(c.ctx, 2)
	require.NoError(t, err)
	require.Equal(t, map[string]int{"active": 1}, c.wait(two).Cut)
	<-twoEnded
	c.until("generation 2 is gone", func() bool { return !known(2) })

	for _, n := range []uint64{1, 2, 99} {
		_, err = c.client().StopGeneration(c.ctx, n)
		var no *RemoteError
		require.ErrorAs(t, err, &no)
		require.Equal(t, CodeNotNow, no.Code)
	}
	_, err = c.client().StopGeneration(c.ctx, 4)
	require.NoError(t, err)
	require.Equal(t, "stopped", c.wait(four).Reason)
}

func TestStopGenerationOfASuccessor(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", probation)
	two := c.start("two", mode(Standby))
	c.listen(two, "tcp", "127.0.0.1:0")
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)
	_, err := c.client().StopGeneration(c.ctx, 2)
	require.NoError(t, err)
	require.ErrorIs(t, <-ready, ErrRevoked)
	require.Equal(t, StateServing, one.State())

	c.serve("three")
	c.reach(one, StateParked)
	_, err = c.client().StopGeneration(c.ctx, 3)
	var no *RemoteError
	require.ErrorAs(t, err, &no)
	require.Contains(t, no.Hint, "rollback")
}

func TestStatusOfAProcess(t *testing.T) {
	c := newChain(t)
	p, _ := c.serve("one")
	st, err := p.Status(c.ctx)
	require.NoError(t, err)
	require.EqualValues(t, 1, st.Generation)
	require.Equal(t, "serving", st.Generations[0].State)
	require.NoError(t, p.Close())
	_, err = p.Status(c.ctx)
	require.ErrorIs(t, err, ErrNotServing)
}
