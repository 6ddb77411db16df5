package handoff

import (
	"context"
	"errors"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A process that hangs: the goroutine that obeys the machine does nothing, while
// its reader, the kernel and the rest of the program go on. Processes that are
// stopped whole, or die, are in integration/ and death_test.go.

// testBeat: two of it are longer than a busy machine leaves a goroutine without a
// processor, or who is well would seem to hang.
const testBeat = 200 * time.Millisecond

func beats(cfg *Config) { cfg.Heartbeat = testBeat }

// hang holds p up until goOn is called, or the test ends.
func (c *chain) hang(p *Process) (goOn func()) {
	c.t.Helper()
	hangs, over := make(chan struct{}), make(chan struct{})
	require.True(c.t, p.post(func() { close(hangs); <-over }))
	<-hangs
	goOn = sync.OnceFunc(func() { close(over) })
	c.t.Cleanup(goOn)
	return goOn
}

// of is what a status says of one generation.
func of(s *Status, n uint64) GenerationStatus {
	for _, g := range s.Generations {
		if g.Generation == n {
			return g
		}
	}
	return GenerationStatus{}
}

func (c *chain) status() *Status {
	c.t.Helper()
	s, err := c.client().Status(c.ctx)
	require.NoError(c.t, err)
	return s
}

// answeredBy waits until generation n answers the control socket, and match holds.
func (c *chain) answeredBy(n uint64, match func(*Status) bool) *Status {
	c.t.Helper()
	var s *Status
	c.until("the control socket", func() bool {
		s = c.status()
		return s.Generation == n && match(s)
	})
	return s
}

// refused wants a no with a code.
func refused(t testing.TB, err error, code string) *RemoteError {
	t.Helper()
	var no *RemoteError
	require.ErrorAs(t, err, &no)
	require.Equal(t, code, no.Code)
	require.NotEmpty(t, no.Hint)
	return no
}

func TestHangingSuccessorIsTakenBackFrom(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one", probation, beats)
	two, _ := c.serve("two", probation, beats)
	require.Equal(t, "2", asked(t, ln.Addr()))
	began := time.Now()
	goOn := c.hang(two)
	c.reach(one, StateServing)
	require.Greater(t, time.Since(began), testBeat, "a single heartbeat that is missed says nothing")
	s := c.status()
	require.Equal(t, OutcomeRolledBack, s.Last.Outcome)
	require.Equal(t, "silent", s.Last.Reason)
	require.Equal(t, "revoked", of(s, 2).State)
	// Its last answer may have come a moment after the heartbeat that is counted from.
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).SilentSeconds > 0 })
	// Until it knows, both accept; then the one that woke up never serves again.
	goOn()
	_, err := two.Wait(c.ctx)
	require.ErrorIs(t, err, ErrRevoked)
	for range 20 {
		require.Equal(t, "1", asked(t, ln.Addr()))
	}
	c.serve("three", probation, beats)
	require.Equal(t, "3", asked(t, ln.Addr()))
}

// The successor is asked at release, too.
func TestHangingSuccessorAtRelease(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one", probation, beats, func(cfg *Config) { cfg.StepTimeout = time.Hour })
	two, _ := c.serve("two", probation, beats)
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).State == "serving" })
	var goOn func()
	var then State
	require.True(t, one.ask(func() { // between two heartbeats
		goOn = c.hang(two)
		one.feed(event{kind: evStop}) // release now
		then = one.m.state
	}))
	require.Equal(t, StateReleasing, then)
	c.reach(one, StateServing)
	require.Equal(t, "silent", c.status().Last.Reason)
	goOn()
	_, err := two.Wait(c.ctx)
	require.ErrorIs(t, err, ErrRevoked)
	require.Equal(t, "1", asked(t, ln.Addr()))
}

func TestStandbyOfAHangingIncumbent(t *testing.T) {
	c := newChain(t)
	var lines book
	one, ln := c.serve("one", probation, beats)
	two := c.start("two", mode(Standby), beats, lines.use)
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)

	goOn := c.hang(one)
	s := c.answeredBy(2, func(s *Status) bool { return of(s, 1).SilentSeconds > 0 })
	require.GreaterOrEqual(t, of(s, 1).SilentSeconds, (missed * testBeat).Seconds())
	require.Equal(t, "serving", of(s, 1).State)
	require.Equal(t, "standby", of(s, 2).State)
	require.Contains(t, lines.String(), "the incumbent is alive but silent; nothing is lost")
	require.Equal(t, StateStandby, two.State(), "it is not dead")

	// Nothing is decided in its stead.
	client := c.client()
	for name, verb := range map[string]func() error{
		"handover": func() error { _, err := client.Handover(c.ctx, "r"); return err },
		"rollback": func() error { _, err := client.Rollback(c.ctx); return err },
		"drain":    func() error { _, err := client.Drain(c.ctx); return err },
		"stop":     func() error { _, err := client.Stop(c.ctx); return err },
		"stop 2":   func() error { _, err := client.StopGeneration(c.ctx, 2); return err },
		"withdraw": func() error { _, err := client.Withdraw(c.ctx, "r"); return err },
	} {
		no := refused(t, verb(), CodeSilent)
		require.Contains(t, no.Text, "generation 1 (pid ", name)
		require.Contains(t, no.Hint, "SIGCONT", name)
	}
	sockets, err := client.Sockets(c.ctx)
	require.NoError(t, err)
	require.Len(t, sockets, 1)
	var waits book
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	met := make(chan error, 1)
	go func() {
		cfg := c.config("three")
		waits.use(&cfg)
		_, err := Start(ctx, cfg)
		met <- err
	}()
	c.until("it is told busy", func() bool { return strings.Contains(waits.String(), "reason=silent") })
	cancel()
	require.ErrorIs(t, <-met, context.Canceled)

	// It continues: it answers again, and can hand over.
	goOn()
	s = c.answeredBy(1, func(s *Status) bool { return of(s, 2).State == "standby" })
	require.Zero(t, of(s, 1).SilentSeconds)
	c.until("the log", func() bool { return strings.Contains(lines.String(), "the silent process answers again") })
	require.Equal(t, "1", asked(t, ln.Addr()))
	_, err = client.Handover(c.ctx, "again") // an id, or who stands aside just now might take it with him
	require.NoError(t, err)
	require.NoError(t, <-ready)
	require.Equal(t, "2", asked(t, ln.Addr()))
}

// Who watches where the incumbent begins to hang goes on to be told.
func TestWatchThroughSilence(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", probation, beats, func(cfg *Config) { cfg.StepTimeout = time.Second })
	two := c.start("two", mode(Standby), beats, noClaim)
	go two.Ready(c.ctx)
	c.reach(two, StateStandby)
	goOn := c.hang(one)
	c.answeredBy(2, func(s *Status) bool { return of(s, 1).SilentSeconds > 0 })
	last := c.status()
	told := make(chan *Status, 1)
	go func() {
		s, err := c.client().Watch(c.ctx, last)
		for err == nil && s.Generation != 1 {
			s, err = c.client().Watch(c.ctx, s)
		}
		told <- s
	}()
	goOn()
	require.EqualValues(t, 1, (<-told).Generation)
}

// Who was stopped himself counts anew, but does not take back what he knows.
func TestSilenceIsKnownAfterAStop(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", probation, beats)
	two := c.start("two", mode(Standby), beats, noClaim)
	go two.Ready(c.ctx)
	c.reach(two, StateStandby)
	goOn := c.hang(one)
	c.answeredBy(2, func(s *Status) bool { return of(s, 1).SilentSeconds > 0 })
	var then float64
	require.True(t, two.ask(func() {
		two.beatNow(true)
		then = of(two.status(), 1).SilentSeconds
	}))
	require.GreaterOrEqual(t, then, (missed * testBeat).Seconds())
	goOn()
	c.answeredBy(1, func(s *Status) bool { return of(s, 1).SilentSeconds == 0 })
}

func TestHangingIncumbentInProbation(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one", probation, beats)
	var lines book
	two, _ := c.serve("two", probation, beats, lines.use)
	goOn := c.hang(one)
	s := c.answeredBy(2, func(s *Status) bool { return of(s, 1).SilentSeconds > 0 })
	require.Equal(t, "parked", of(s, 1).State)
	require.Equal(t, "2", asked(t, ln.Addr()))
	_, err := c.client().Rollback(c.ctx)
	refused(t, err, CodeSilent)

	// To give back to it would end the service.
	two.Stop()
	c.until("the log", func() bool { return strings.Contains(lines.String(), "told to stop, but the incumbent") })
	require.Equal(t, StateServing, two.State())
	require.Equal(t, "2", asked(t, ln.Addr()))
	goOn()
	c.reach(one, StateServing)
	_, err = two.Wait(c.ctx)
	require.NoError(t, err)
	require.Equal(t, "1", asked(t, ln.Addr()))
}

// Hammer time does not wait for it.
func TestHammerBesideAHangingIncumbent(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", probation, beats)
	two, _ := c.serve("two", probation, beats)
	goOn := c.hang(one)
	c.answeredBy(2, func(s *Status) bool { return of(s, 1).SilentSeconds > 0 })
	two.Stop()
	two.Hammer()
	_, err := two.Wait(c.ctx)
	require.NoError(t, err)
	goOn()
	c.reach(one, StateServing)
}

// The process whose death a hang seems to be ends at last: its standby serves.
func TestHangingIncumbentEnds(t *testing.T) {
	q := newSquatter(t)
	r, p, ready := q.brings(phaseReady, beats)
	s := q.answeredBy(7, func(s *Status) bool { return of(s, 6).SilentSeconds > 0 })
	require.Equal(t, "standby", of(s, 7).State)
	require.NoError(t, r.c.Close())
	require.NoError(t, <-ready)
	require.Equal(t, StateServing, p.State())
	s = q.answeredBy(7, func(s *Status) bool { return of(s, 7).State == "serving" })
	require.Zero(t, of(s, 6))
	require.NoError(t, p.Close())
}

func TestHangingStandby(t *testing.T) {
	c := newChain(t)
	var lines book
	c.serve("one", probation, beats, lines.use)
	two, ready := c.standby("two", Standby, beats)
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).State == "standby" })
	goOn := c.hang(two)
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).SilentSeconds > 0 })
	require.Contains(t, lines.String(), "the standby is alive but silent")
	_, err := c.client().Handover(c.ctx, "r")
	require.Contains(t, refused(t, err, CodeSilent).Text, "generation 2")
	_, known := Status{Requests: c.status().Requests}.request("r")
	require.False(t, known)
	goOn()
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).SilentSeconds == 0 })

	goOn = c.hang(two)
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).SilentSeconds > 0 })
	three, ln := c.serve("three", probation, beats)
	require.Equal(t, "3", asked(t, ln.Addr()))
	goOn()
	require.ErrorIs(t, <-ready, ErrRevoked)
	require.Equal(t, StateServing, three.State())
}

// A spare that waits is no reason to send a silent standby away.
func TestHangingStandbyAndASpare(t *testing.T) {
	c := newChain(t)
	c.serve("one", probation, beats)
	two, ready := c.standby("two", Standby, beats)
	goOn := c.hang(two)
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).SilentSeconds > 0 })
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	spare := make(chan error, 1)
	go func() {
		cfg := c.config("spare")
		cfg.Takeover = Spare
		_, err := Start(ctx, cfg)
		spare <- err
	}()
	c.answeredBy(1, func(s *Status) bool { return len(s.Waiting) == 1 && s.Waiting[0].Reason == "handoff" })
	goOn()
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).SilentSeconds == 0 })
	cancel()
	require.ErrorIs(t, <-spare, context.Canceled)
	_, err := c.client().Handover(c.ctx, "")
	require.NoError(t, err)
	require.NoError(t, <-ready)
}

// A stop is not handed over to it either, and is not carried out.
func TestStopBesideAHangingStandby(t *testing.T) {
	c := newChain(t)
	var lines book
	one, ln := c.serve("one", probation, beats, lines.use, func(cfg *Config) { cfg.StepTimeout = time.Hour })
	two, ready := c.standby("two", Standby, beats)
	goOn := c.hang(two)
	c.answeredBy(1, func(s *Status) bool { return of(s, 2).SilentSeconds > 0 })
	one.Stop()
	c.until("the log", func() bool { return strings.Contains(lines.String(), "told to stop, but the successor failed") })
	require.Equal(t, StateServing, one.State())
	require.Equal(t, "1", asked(t, ln.Addr()))
	require.NotContains(t, lines.String(), "to=parked")
	goOn()
	require.ErrorIs(t, <-ready, ErrRevoked)
	one.Stop()
	require.Equal(t, "stopped", c.wait(one).Reason)
}

// request finds a request by its id.
func (s Status) request(id string) (RequestStatus, bool) {
	for _, r := range s.Requests {
		if r.ID == id {
			return r, true
		}
	}
	return RequestStatus{}, false
}

// byHand makes heartbeats come when a test calls for them only: one that plays a peer
// has no time of its own that it could miss them in.
func byHand(cfg *Config) { cfg.Heartbeat = time.Hour }

// beat is n heartbeats, as if their time had come.
func (g *target) beat(n int) {
	g.t.Helper()
	require.True(g.t, g.one.ask(func() {
		for range n {
			g.one.beatNow(false)
		}
	}))
}

// heard waits until the incumbent has heard its successor since the last heartbeat.
func (g *target) heard() {
	g.t.Helper()
	g.until("it was heard", func() bool {
		quiet := -1
		g.one.ask(func() {
			if l := g.one.younger; l != nil {
				quiet = l.pulse.quiet
			}
		})
		return quiet == 0
	})
}

// A peer is asked once, and not again before it has answered: there must be room
// for the last word.
func TestHeartbeatsThatAreNotAnswered(t *testing.T) {
	g := newTarget(t, byHand)
	r := g.raw(phaseServing)
	r.deaf = true
	g.beat(1)
	r.hear(msgPing)
	r.say(&frame{Type: msgPong})
	g.heard()
	g.beat(missed)
	r.hear(msgPing)
	require.Equal(t, whySilent, r.hear(msgRevoke).Reason)
	g.reach(g.one, StateServing)
	r.say(&frame{Type: msgReleased}) // too late
	require.NoError(t, r.c.Close())
	g.unharmed()
}

// Whatever is said is a sign of life, also of a peer that knows no heartbeats.
func TestHeartbeatsOfAnotherVersion(t *testing.T) {
	for name, answer := range map[string]*frame{
		"unknown type": {Type: msgError, Code: "unknown_type", Text: "no such frame"},
		"pong":         {Type: msgPong},
	} {
		t.Run(name, func(t *testing.T) {
			g := newTarget(t, byHand)
			r := g.raw(phaseServing)
			r.deaf = true
			for range 3 * missed {
				g.beat(1)
				r.hear(msgPing)
				r.say(answer)
				g.heard()
			}
			require.Equal(t, StateParked, g.one.State())
			require.NoError(t, r.c.Close())
			g.unharmed()
		})
	}
}

// A heartbeat that comes late was held up with this process, which then knows
// nothing of its peer.
func TestLateHeartbeatsSayNothing(t *testing.T) {
	g := newTarget(t, byHand)
	r := g.raw(phaseServing)
	r.deaf = true
	beat := func(late bool) (quiet int) {
		require.True(t, g.one.ask(func() { g.one.beatNow(late); quiet = g.one.younger.pulse.quiet }))
		return quiet
	}
	require.Equal(t, 1, beat(false))
	require.Equal(t, 2, beat(false))
	require.Equal(t, 1, beat(true), "it counts from anew")
	require.Equal(t, 2, beat(false))
	require.Equal(t, 3, beat(false))
	require.Equal(t, msgPing, r.hear(msgPing).Type)
	require.Equal(t, whySilent, r.hear(msgRevoke).Reason)
	require.NoError(t, r.c.Close())
	g.unharmed()
}

// The answer that waits to be read counts.
func TestHeartbeatAnswerInTheQueue(t *testing.T) {
	g := newTarget(t, byHand)
	r := g.raw(phaseServing)
	r.deaf = true
	g.beat(2)
	r.hear(msgPing)
	goOn := g.hang(g.one)
	g.one.post(func() { g.one.beatNow(false) })
	r.say(&frame{Type: msgPong})
	goOn()
	g.heard()
	require.Equal(t, StateParked, g.one.State())
	require.NoError(t, r.c.Close())
	g.unharmed()
}

func TestNoHeartbeats(t *testing.T) {
	g := newTarget(t, func(cfg *Config) { cfg.Heartbeat = -1 })
	r := g.raw(phaseServing)
	g.one.ask(func() { require.Nil(t, g.one.beat) })
	require.NoError(t, r.c.Close())
	g.unharmed()
}

func TestUnhealthy(t *testing.T) {
	bad := errors.New("the cache can't be read")
	t.Run("in probation", func(t *testing.T) {
		c := newChain(t)
		var lines book
		one, ln := c.serve("one", probation, lines.use)
		two, _ := c.serve("two", probation)
		two.ReportUnhealthy(bad)
		c.reach(one, StateServing)
		<-two.Done()
		require.ErrorIs(t, two.Err(), ErrUnhealthy)
		require.ErrorContains(t, two.Err(), bad.Error())
		r, err := two.Wait(c.ctx)
		require.ErrorIs(t, err, ErrUnhealthy)
		require.Equal(t, "unhealthy", r.Reason)
		require.Equal(t, "1", asked(t, ln.Addr()))
		require.Equal(t, "unhealthy", c.status().Last.Reason)
		require.Contains(t, lines.String(), bad.Error())
	})
	t.Run("beside an incumbent that hangs", func(t *testing.T) {
		c := newChain(t)
		var lines book
		one, ln := c.serve("one", probation, beats)
		two, _ := c.serve("two", probation, beats, lines.use)
		goOn := c.hang(one)
		c.answeredBy(2, func(s *Status) bool { return of(s, 1).SilentSeconds > 0 })
		two.ReportUnhealthy(bad)
		c.until("the log", func() bool { return strings.Contains(lines.String(), "unhealthy, and nobody can take back now") })
		require.Equal(t, StateServing, two.State())
		require.Equal(t, "2", asked(t, ln.Addr()))
		goOn()
		c.reach(one, StateServing)
		_, err := two.Wait(c.ctx)
		require.ErrorIs(t, err, ErrUnhealthy)
		require.Equal(t, "1", asked(t, ln.Addr()))
	})
	t.Run("before it serves", func(t *testing.T) {
		c := newChain(t)
		_, ln := c.serve("one", probation)
		two := c.start("two", mode(Standby), noClaim)
		ready := make(chan error, 1)
		go func() { ready <- two.Ready(c.ctx) }()
		c.reach(two, StateStandby)
		two.ReportUnhealthy(bad)
		require.ErrorIs(t, <-ready, ErrUnhealthy)
		require.Equal(t, "1", asked(t, ln.Addr()))
		c.until("the outcome", func() bool { l := c.status().Last; return l != nil && l.Reason == "unhealthy" })
	})
	t.Run("alone", func(t *testing.T) {
		c := newChain(t)
		var lines book
		one, ln := c.serve("one", lines.use)
		one.ReportUnhealthy(bad)
		c.until("the status", func() bool { return of(c.status(), 1).Unhealthy == bad.Error() })
		require.Equal(t, StateServing, one.State())
		require.Equal(t, "1", asked(t, ln.Addr()))
		require.Contains(t, lines.String(), "unhealthy, and nobody can take back now")
	})
}

// A generation that drains reports twice a second; one that hangs does not.
func TestHangingWhileItDrains(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one")
	_, release := one.Hold(c.ctx, "work")
	defer release()
	c.serve("two")
	c.answeredBy(2, func(s *Status) bool { return of(s, 1).State == "draining" })
	goOn := c.hang(one)
	c.answeredBy(2, func(s *Status) bool { return of(s, 1).SilentSeconds > 0 })
	goOn()
	c.answeredBy(2, func(s *Status) bool { return of(s, 1).SilentSeconds == 0 })
}

// A connection that came through the shared socket while the standby stood in, and is
// answered only when the incumbent is heard again, is sent to that one.
func TestStandbyThatStandsAsideAnswersNothing(t *testing.T) {
	c := newChain(t)
	c.serve("one")
	two, _ := c.standby("two", Standby)
	for _, m := range []msgType{msgStatus, msgListSockets, msgHandover} {
		no := two.notMine(&frame{Type: m})
		require.NotNil(t, no, m)
		require.Equal(t, CodeBusy, no.Code)
	}
}
