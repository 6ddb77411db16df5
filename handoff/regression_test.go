package handoff

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// What was broken once.

func TestUnclaimedAreClosedWhenTheIncumbentDies(t *testing.T) {
	c := newChain(t)
	a := c.start("A")
	l1, l2 := c.listen(a, "tcp", "127.0.0.1:0"), c.listen(a, "tcp", "localhost:0")
	greet(a, l1)
	greet(a, l2)
	c.ready(a)
	b := c.start("B")
	greet(b, c.listen(b, "tcp", "127.0.0.1:0"))
	a.Close()
	c.until("B knows", func() bool { ok := false; b.ask(func() { ok = b.m.elder == phaseNone }); return ok })
	c.ready(b)
	_, err := net.DialTimeout("tcp", l2.Addr().String(), time.Second)
	require.Error(t, err, "unclaimed listener must be closed")
}

func TestClaimedAndClosedAgain(t *testing.T) {
	c := newChain(t)
	a := c.start("A", probation)
	l1, l2 := c.listen(a, "tcp", "127.0.0.1:0"), c.listen(a, "tcp", "localhost:0")
	greet(a, l1)
	greet(a, l2)
	c.ready(a)
	b := c.start("B")
	greet(b, c.listen(b, "tcp", "127.0.0.1:0"))
	c.listen(b, "tcp", "localhost:0").Close()
	c.ready(b)
	c.reach(a, StateParked)
	conn, err := net.Dial("tcp", l2.Addr().String())
	require.NoError(t, err)
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patience))
	n, err := conn.Read(make([]byte, 10))
	require.NoError(t, err, "read %d: nobody answers", n)
}

func TestCloseLeavesFilesToTheStandby(t *testing.T) {
	c := newChain(t)
	path := filepath.Join(filepath.Dir(c.socket), "u")
	a := c.start("A")
	greet(a, c.listen(a, "unix", path))
	c.ready(a)
	b := c.start("B", mode(Standby))
	greet(b, c.listen(b, "unix", path))
	go b.Ready(c.ctx)
	c.until("standby", func() bool {
		s, _ := c.client().Status(c.ctx)
		return len(s.Generations) == 2 && s.Generations[1].State == "standby"
	})
	a.Close()
	c.reach(b, StateServing)
	_, err := os.Lstat(path)
	require.NoError(t, err, "B serves the unix listener")
}

func TestOperatorsThatStayConnectedDelayNobody(t *testing.T) {
	c := newChain(t)
	c.serve("A")
	for range maxConns {
		x, err := net.Dial("unixpacket", c.socket)
		require.NoError(t, err)
		defer x.Close()
		x.Write([]byte(`{"type":"status"}`))
		x.Read(make([]byte, 60000))
	}
	cfg := c.config("B")
	b, err := Start(c.ctx, cfg)
	if err == nil {
		b.Close()
	}
	require.NoError(t, err)
}

func TestBadFrameWhileServingIsForgotten(t *testing.T) {
	c := newChain(t)
	a, _ := c.serve("A", probation)
	b, _ := c.serve("B")
	c.reach(a, StateParked)
	a.ask(func() { a.younger.send(&frame{Type: msgSockets, Last: true}) }) // one frame out of place
	a.Stop()
	c.wait(a)
	c.serve("D")
	_, err := b.Wait(c.ctx)
	require.NoError(t, err, "it handed over well")
}

func TestOutcomeOfAHandoverByItsRequest(t *testing.T) {
	c := newChain(t)
	a, _ := c.serve("A")
	b := c.start("B", mode(Standby))
	greet(b, c.listen(b, "tcp", "127.0.0.1:0"))
	go b.Ready(c.ctx)
	c.until("standby", func() bool {
		s, _ := c.client().Status(c.ctx)
		return len(s.Generations) == 2 && s.Generations[1].State == "standby"
	})
	_, err := c.client().Handover(c.ctx, "op-7")
	require.NoError(t, err)
	c.wait(a)
	s, err := c.client().Status(c.ctx)
	require.NoError(t, err)
	require.Equal(t, "released", s.Requests[0].Outcome)
}

func TestHandoverTwiceKeepsTheRequest(t *testing.T) {
	c := newChain(t)
	c.serve("A", probation)
	b := c.start("B", mode(Standby))
	greet(b, c.listen(b, "tcp", "127.0.0.1:0"))
	_, err := c.client().Handover(c.ctx, "op-7")
	require.NoError(t, err)
	_, err = c.client().Handover(c.ctx, "")
	require.NoError(t, err)
	c.ready(b)
	c.until("committed", func() bool {
		s, _ := c.client().Status(c.ctx)
		return s.Generations[0].State == "parked" && s.Generations[1].State == "serving"
	})
	s, _ := c.client().Status(c.ctx)
	require.Len(t, s.Requests, 1)
}

func TestSuccessorThatCantAcceptGivesBack(t *testing.T) {
	c := newChain(t)
	a, _ := c.serve("A")
	b := c.start("B")
	greet(b, c.listen(b, "tcp", "127.0.0.1:0"))
	b.sockets.claimed[0].d.Close()
	require.Error(t, b.Ready(c.ctx))
	_, err := b.Wait(c.ctx)
	require.Error(t, err)
	c.reach(a, StateServing) // taken back at once, though there is no probation
}

func TestStopIsCarriedOutWithoutItsOperator(t *testing.T) {
	c := newChain(t)
	for range 20 {
		a := c.start("A")
		greet(a, c.listen(a, "tcp", "127.0.0.1:0"))
		c.ready(a)
		x, err := net.Dial("unixpacket", c.socket)
		require.NoError(t, err)
		x.Write([]byte(`{"type":"stop"}`))
		x.Close()
		c.wait(a)
	}
}

func TestErrorIsNeverAnswered(t *testing.T) {
	c := newChain(t)
	a := c.start("A")
	c.ready(a)
	x, err := net.Dial("unixpacket", c.socket)
	require.NoError(t, err)
	defer x.Close()
	x.Write([]byte(`{"type":"error","code":"x"}`))
	x.Write([]byte(`{"type":"list_sockets"}`))
	b := make([]byte, 1000)
	n, err := x.Read(b)
	require.NoError(t, err)
	require.Contains(t, string(b[:n]), `"socket_list"`, "the first answer is that to the second frame")
}

func TestContextErrorNamesThePath(t *testing.T) {
	c := newChain(t)
	ln, err := net.Listen("unixpacket", c.socket) // says nothing
	require.NoError(t, err)
	defer ln.Close()
	ctx, cancel := context.WithTimeout(c.ctx, 200*time.Millisecond)
	defer cancel()
	_, err = Start(ctx, c.config("B"))
	var op *OpError
	require.ErrorAs(t, err, &op)
}

func TestStartCancelledAtAnyMoment(t *testing.T) {
	c := newChain(t)
	a := c.start("A")
	for range 300 {
		c.listen(a, "tcp", "127.0.0.1:0")
	}
	c.ready(a)
	cfg := c.config("B")
	cfg.Logger = slog.New(slog.DiscardHandler)
	for i := range 150 {
		ctx, cancel := context.WithTimeout(c.ctx, time.Duration(i%50)*150*time.Microsecond)
		if b, err := Start(ctx, cfg); err == nil {
			b.Close()
		}
		cancel()
	}
	// newChain looks for descriptors that are left.
}

func TestExclusiveDeclaredByTheSuccessorAlone(t *testing.T) {
	c := newChain(t)
	a := c.start("A", probation)
	pa, err := a.ListenPacket(c.ctx, "udp", "127.0.0.1:0")
	require.NoError(t, err)
	c.ready(a)
	gate := make(chan struct{})
	b := c.start("B", func(cfg *Config) {
		cfg.OnState = func(_, to State) {
			if to == StateRevoked {
				<-gate
			}
		}
	})
	_, err = b.ListenPacketSocket(c.ctx, Socket{Network: "udp", Address: "127.0.0.1:0", Exclusive: true})
	require.NoError(t, err)
	c.ready(b)
	_, err = c.client().Rollback(c.ctx)
	require.NoError(t, err)
	accepts := func() (yes bool) {
		a.ask(func() { yes = a.sockets.claimed[0].accepts() })
		return yes
	}
	require.False(t, accepts(), "the successor has not confirmed")
	close(gate)
	c.until("it resumes", accepts)
	require.NoError(t, pa.Close())
}

func TestStopsInsideOnState(t *testing.T) {
	c := newChain(t)
	var p *Process
	started := make(chan struct{})
	p = c.start("A", func(cfg *Config) {
		cfg.OnState = func(_, to State) {
			if to == StateServing {
				<-started
				for range 200 {
					p.Stop()
				}
			}
		}
	})
	close(started)
	c.ready(p)
	c.wait(p)
}

func TestStopAfterTheEnd(t *testing.T) {
	c := newChain(t)
	p := c.start("A")
	require.NoError(t, p.Close())
	for range 200 {
		p.Stop()
	}
	require.NoError(t, p.Close())
	require.ErrorIs(t, p.Ready(c.ctx), ErrStopped)
}

// The word that a link was read empty comes after that link has ended.
func TestStaleEmptyDismissesNobody(t *testing.T) {
	m := machine{probation: true}
	for _, ev := range []event{
		{kind: evNobody},
		{kind: evAppReady},
		{kind: evHello, mode: Auto},
		{kind: evTimer, timer: timerStep}, // hung
		{kind: evEOF, side: sideYounger},  // and dead while its link was read
		{kind: evHello, mode: Auto},
		{kind: evEmpty, side: sideYounger},
	} {
		m.step(ev)
	}
	require.Equal(t, phaseOffer, m.younger)
}

func TestFinishedRequestIsNotOverwritten(t *testing.T) {
	var g ledger
	g.set(RequestStatus{ID: "x", Outcome: "committed", Generation: 2})
	g.set(RequestStatus{ID: "x", Outcome: "starting", Generation: 3})
	g.set(RequestStatus{ID: "x", Outcome: "failed", Generation: 3})
	r, _ := g.find("x")
	require.Equal(t, RequestStatus{ID: "x", Outcome: "committed", Generation: 2}, r)
	g.set(RequestStatus{ID: "x", Outcome: "released", Generation: 2})
	r, _ = g.find("x")
	require.Equal(t, "released", r.Outcome)
}

// What could not be opened, for want of descriptors for instance, is tried again.
func TestWhatDoesNotAcceptIsMended(t *testing.T) {
	c := newChain(t)
	p := c.start("A")
	ln := c.listen(p, "tcp", "127.0.0.1:0")
	greet(p, ln)
	pc, err := p.ListenPacket(c.ctx, "udp", "127.0.0.1:0")
	require.NoError(t, err)
	c.ready(p)
	p.ask(func() {
		for _, s := range p.sockets.claimed {
			s.park()
		}
		p.control.ln.Close()
		p.control.ln = nil
		p.mendLater()
	})
	require.Equal(t, "1", asked(t, ln.Addr()))
	_, err = c.client().Status(c.ctx)
	require.NoError(t, err)
	require.NoError(t, pc.Close())
}

// spareBetween makes a spare that had to give way to a standby, and looks for
// the next incumbent.
func (c *chain) spareBetween() (one, spare, two *Process, ln net.Listener) {
	c.t.Helper()
	one, ln = c.serve("one")
	spare = c.start("spare", mode(Spare))
	two = c.start("two", mode(Standby))
	c.until("the spare gives way", func() (gone bool) {
		spare.ask(func() { gone = spare.m.seeking })
		return gone
	})
	return one, spare, two, ln
}

// A spare that looks for the next incumbent does not serve because its program
// becomes ready meanwhile: somebody else does.
func TestSpareBecomesReadyBetweenIncumbents(t *testing.T) {
	c := newChain(t)
	one, spare, two, ln := c.spareBetween()
	ready := make(chan error, 1)
	go func() { ready <- spare.Ready(c.ctx) }()
	c.until("Ready is heard", func() (heard bool) {
		spare.ask(func() { heard = spare.m.appReady })
		return heard
	})
	require.Equal(t, StateStarting, spare.State())
	require.Equal(t, "1", asked(t, ln.Addr()))
	require.NoError(t, two.Close())
	c.reach(spare, StateStandby)
	require.NoError(t, one.Close())
	require.NoError(t, <-ready)
}

// What a spare asks for between two incumbents it gets from the next one.
func TestSpareListensBetweenIncumbents(t *testing.T) {
	c := newChain(t)
	one, spare, two, ln := c.spareBetween()
	type result struct {
		ln  net.Listener
		err error
	}
	listening := make(chan result, 1)
	go func() {
		ln, err := spare.Listen(c.ctx, "tcp", ln.Addr().String())
		listening <- result{ln, err}
	}()
	require.NoError(t, two.Close())
	r := <-listening
	require.NoError(t, r.err)
	greet(spare, r.ln)
	ready := make(chan error, 1)
	go func() { ready <- spare.Ready(c.ctx) }()
	c.reach(spare, StateStandby)
	require.NoError(t, one.Close())
	require.NoError(t, <-ready)
	require.Equal(t, fmt.Sprint(spare.Generation()), asked(t, r.ln.Addr()))
}

// A spare that outlives its chain gives no number that the chain has given.
func TestSpareCountsOn(t *testing.T) {
	c := newChain(t)
	one, spare, two, _ := c.spareBetween()
	given := two.Generation()
	require.NoError(t, two.Close())
	require.NoError(t, one.Close())
	require.NoError(t, spare.Ready(c.ctx))
	require.Greater(t, spare.Generation(), given)
}

// Whoever waits for its turn is refused when the service is taken out, and does
// not become the first of another chain.
func TestDrainRefusesWhoWaits(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", func(cfg *Config) { cfg.StopDelay = time.Hour }) // however long it takes to ask again
	two := c.start("two", mode(Standby))
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	waiting := c.waits(ctx, "three")
	_, err := c.client().Drain(c.ctx)
	require.NoError(t, err)
	err = <-waiting
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "taken out")
	<-two.Done()
	one.Hammer()
	require.Equal(t, "stopped", c.wait(one).Reason)
}

// Without a delay of its own, there is one that is long enough for that.
func TestDrainLeavesTimeToAsk(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one")
	go one.Wait(c.ctx)
	begun := time.Now()
	_, err := c.client().DrainAndWait(c.ctx)
	require.NoError(t, err)
	require.GreaterOrEqual(t, time.Since(begun), outDelay)
}

// waits begins to start a Process, and returns when it was told busy, and has asked
// again: it knows why it waits. How Start ends is told; ctx ends it.
func (c *chain) waits(ctx context.Context, label string) (ended <-chan error) {
	c.t.Helper()
	var log book
	cfg := c.config(label)
	cfg.Logger = slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelDebug}))
	end := make(chan error, 1)
	go func() {
		p, err := Start(ctx, cfg)
		if err == nil {
			p.Close()
		}
		end <- err
	}()
	c.until(label+" is told busy", func() bool { return strings.Count(log.String(), "the incumbent is busy") >= 2 })
	return end
}

// Also where a stop is under way already, and only delayed.
func TestDrainRefusesDuringAStopDelay(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", func(cfg *Config) { cfg.StopDelay = time.Hour })
	one.Stop()
	c.until("it is ending", one.Ending)
	answer, err := c.client().Drain(c.ctx)
	require.NoError(t, err)
	require.True(t, answer.Already)
	_, err = Start(c.ctx, c.config("two"))
	require.ErrorIs(t, err, ErrRefused)
	one.Hammer()
	require.Equal(t, "stopped", c.wait(one).Reason)
}

// Hammer comes after the Stop that was called before it.
func TestStopAndHammerAtOnce(t *testing.T) {
	for range 20 {
		t.Run("", func(t *testing.T) {
			c := newChain(t)
			p, _, ended := c.stuck("one", func(cfg *Config) { cfg.DrainTimeout = time.Hour })
			p.Stop()
			p.Hammer()
			require.Equal(t, map[string]int{"active": 1}, c.wait(p).Cut)
			<-ended
		})
	}
}

func TestReadyWithAnEndedContext(t *testing.T) {
	c := newChain(t)
	p := c.start("one")
	ctx, cancel := context.WithCancel(c.ctx)
	cancel()
	require.ErrorIs(t, p.Ready(ctx), context.Canceled)
	heard := true
	p.ask(func() { heard = p.m.appReady })
	require.False(t, heard)
	c.ready(p)
}

// A generation of an earlier chain may have the number of this one: neither is
// stopped in the other's place.
func TestStopOfANumberThatTwoHave(t *testing.T) {
	c := newChain(t)
	one, _, ended := c.stuck("one", func(cfg *Config) { cfg.DrainTimeout = time.Hour })
	two, _ := c.serve("two")
	c.reach(one, StateDraining)
	two.Stop()
	c.wait(two)
	again, _ := c.serve("again")
	require.EqualValues(t, 1, again.Generation())
	c.until("the older one has registered", func() (registered bool) {
		again.ask(func() { _, registered = again.living.source(1).(*conn) })
		return registered
	})
	_, err := c.client().StopGeneration(c.ctx, 1)
	var no *RemoteError
	require.ErrorAs(t, err, &no)
	require.Equal(t, CodeNotNow, no.Code)
	require.Equal(t, StateServing, again.State())
	one.Hammer()
	<-ended
	c.wait(one)
}

// Close closes what it has accepted, too.
func TestCloseClosesConnections(t *testing.T) {
	c := newChain(t)
	p, _, ended := c.stuck("one")
	tracked := p.Track(c.listen(p, "tcp", "localhost:0"))
	accepted := make(chan net.Conn, 1)
	go func() {
		if nc, err := tracked.Accept(); err == nil {
			accepted <- nc
		}
	}()
	client, err := net.Dial("tcp", tracked.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	nc := <-accepted
	require.NoError(t, p.Close())
	<-ended
	<-nc.(*TrackedConn).Context().Done()
	_, err = client.Read(make([]byte, 1))
	require.Error(t, err)
}

// A process that ends closes no connection on which an answer is under way: what
// was asked for may be what ended it.
func TestClosingWaitsForTheAnswer(t *testing.T) {
	ours, theirs := connPair(t)
	var table connTable
	table.track(ours, false)
	ours.answering.Lock()
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		table.closeConns()
	}()
	ended := func() bool {
		table.mu.Lock()
		defer table.mu.Unlock()
		return table.ended
	}
	require.Eventually(t, ended, 10*time.Second, time.Millisecond)
	for range 100 { // it has every chance to close
		require.NoError(t, ours.send([]byte("{}")))
		_, _, err := theirs.receive()
		require.NoError(t, err)
	}
	ours.answering.Unlock()
	<-closed
	_, _, err := theirs.receive()
	require.ErrorIs(t, err, io.EOF)
}

// One false report must not use up all numbers.
func TestReportOfTheLastNumber(t *testing.T) {
	c := newChain(t)
	c.serve("one")
	liar, err := dial(c.ctx, c.socket, allow{})
	require.NoError(t, err)
	defer liar.Close()
	require.NoError(t, say(liar, &frame{Type: msgRegister, Self: &GenerationStatus{Generation: maxGeneration, State: "draining"}}))
	c.until("it is in the status", func() bool { return of(c.status(), maxGeneration).State == "draining" })
	two, _ := c.serve("two")
	require.EqualValues(t, 2, two.Generation())
}
