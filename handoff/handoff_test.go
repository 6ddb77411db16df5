package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// Several Processes in one program stand for several generations here; those
// that must die or hang are real processes, in integration/.

// testWriter sends a Process's lines to the test's log.
type testWriter struct{ t testing.TB }

func (w testWriter) Write(b []byte) (int, error) {
	w.t.Log(strings.TrimSpace(string(b)))
	return len(b), nil
}

// chain makes Processes that share one control socket.
type chain struct {
	t      testing.TB
	ctx    context.Context
	socket string
	key    []byte // of all its Processes, and its client
}

func newChain(t testing.TB) *chain {
	t.Helper()
	leak.CheckExact(t)
	dir, err := os.MkdirTemp("", "handoff")
	require.NoError(t, err)
	t.Cleanup(func() { os.RemoveAll(dir) })
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	return &chain{t: t, ctx: ctx, socket: filepath.Join(dir, "s")}
}

func (c *chain) config(label string) Config {
	return Config{
		Socket: c.socket, Label: label, Probation: -1, Key: c.key,
		Logger: slog.New(slog.NewTextHandler(testWriter{c.t}, &slog.HandlerOptions{Level: slog.LevelDebug})).With("label", label),
	}
}

// start makes a Process; change alters its Config.
func (c *chain) start(label string, change ...func(*Config)) *Process {
	c.t.Helper()
	cfg := c.config(label)
	for _, f := range change {
		f(&cfg)
	}
	p, err := Start(c.ctx, cfg)
	require.NoError(c.t, err)
	c.t.Cleanup(func() { p.Close() })
	return p
}

func (c *chain) listen(p *Process, network, address string) net.Listener {
	c.t.Helper()
	ln, err := p.Listen(c.ctx, network, address)
	require.NoError(c.t, err)
	return ln
}

func (c *chain) ready(p *Process) {
	c.t.Helper()
	require.NoError(c.t, p.Ready(c.ctx))
}

// serve makes a Process that greets on 127.0.0.1:0, and waits until it serves.
func (c *chain) serve(label string, change ...func(*Config)) (*Process, net.Listener) {
	c.t.Helper()
	p := c.start(label, change...)
	ln := c.listen(p, "tcp", "127.0.0.1:0")
	greet(p, ln)
	c.ready(p)
	return p, ln
}

// standby makes a Process that waits to take over and greets then, and tells how
// its Ready ends.
func (c *chain) standby(label string, m Takeover, change ...func(*Config)) (*Process, <-chan error) {
	c.t.Helper()
	p := c.start(label, append([]func(*Config){mode(m)}, change...)...)
	greet(p, c.listen(p, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- p.Ready(c.ctx) }() // it may wait for ever
	c.reach(p, StateStandby)
	return p, ready
}

func (c *chain) wait(p *Process) Report {
	c.t.Helper()
	r, err := p.Wait(c.ctx)
	require.NoError(c.t, err)
	return r
}

// reach waits for a state.
func (c *chain) reach(p *Process, want State) {
	c.t.Helper()
	c.until("generation is "+want.String(), func() bool { return p.State() == want })
}

func (c *chain) until(what string, ok func() bool) {
	c.t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); {
		require.True(c.t, time.Now().Before(deadline), what)
		time.Sleep(time.Millisecond) // a poll's pace, not a wait for something to have happened
	}
}

func (c *chain) client() *Client { return &Client{Socket: c.socket, Key: c.key} }

// greet serves ln by telling each connection who accepted it.
func greet(p *Process, ln net.Listener) {
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			fmt.Fprintf(c, "%d", p.Generation())
			c.Close()
		}
	}()
}

// asked says which generation accepts at a.
func asked(t testing.TB, a net.Addr) string {
	t.Helper()
	s, err := ask(a)
	require.NoError(t, err)
	return s
}

func ask(a net.Addr) (string, error) {
	c, err := net.DialTimeout(a.Network(), a.String(), 5*time.Second)
	if err != nil {
		return "", err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(c)
	return string(b), err
}

func probation(cfg *Config) { cfg.Probation = time.Hour }
func noClaim(cfg *Config)   { cfg.AllowNoClaim = true }

func mode(m Takeover) func(*Config) {
	return func(cfg *Config) { cfg.Takeover = m }
}

func TestChainOfFive(t *testing.T) {
	c := newChain(t)
	var prev *Process
	for i := range 5 {
		p := c.start(fmt.Sprintf("v%d", i+1))
		ln := c.listen(p, "tcp", "127.0.0.1:0")
		greet(p, ln)
		c.ready(p)
		require.EqualValues(t, i+1, p.Generation())
		require.Equal(t, fmt.Sprint(i+1), asked(t, ln.Addr()))
		if prev != nil {
			require.Equal(t, "handed_over", c.wait(prev).Reason)
			require.NoError(t, prev.Err())
		}
		prev = p
	}
	prev.Stop()
	require.Equal(t, "stopped", c.wait(prev).Reason)
	_, err := os.Lstat(c.socket)
	require.ErrorIs(t, err, os.ErrNotExist, "the last owner removes the control socket")
}

func TestListenAndServe(t *testing.T) {
	c := newChain(t)
	ends := map[string]chan error{}
	serve := func(ctx context.Context, label string) {
		ready := make(chan struct{})
		cfg := c.config(label)
		cfg.OnState = func(_, to State) {
			if to == StateServing {
				close(ready)
			}
		}
		end := make(chan error, 1)
		ends[label] = end
		srv := &http.Server{Addr: "127.0.0.1:0", Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, label) })}
		go func() { end <- ListenAndServe(ctx, cfg, srv) }()
		<-ready
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	serve(ctx, "one")
	// OnState comes before the change takes effect, this answer after it.
	_, err := c.client().Status(c.ctx)
	require.NoError(t, err)
	sockets, err := c.client().Sockets(c.ctx)
	require.NoError(t, err)
	url := "http://" + sockets[0].Address + "/"
	get := func() string {
		tr := &http.Transport{DisableKeepAlives: true}
		resp, err := (&http.Client{Transport: tr}).Get(url)
		require.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(b)
	}
	require.Equal(t, "one", get())
	serve(ctx, "two")
	require.NoError(t, <-ends["one"])
	require.Equal(t, "two", get())
	cancel()
	require.NoError(t, <-ends["two"])
}

func TestCloseBeforeReadyLeavesTheIncumbent(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one")
	path := filepath.Join(filepath.Dir(c.socket), "fresh")
	for range 3 {
		p := c.start("bad")
		c.listen(p, "tcp", "127.0.0.1:0")
		c.listen(p, "unix", path)
		require.NoError(t, p.Close())
		_, err := os.Lstat(path)
		require.ErrorIs(t, err, os.ErrNotExist, "what a successor opened goes with it")
	}
	require.Equal(t, "1", asked(t, ln.Addr()))
	two := c.start("two")
	require.EqualValues(t, 5, two.Generation(), "numbers are never used again")
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	c.ready(two)
	require.Equal(t, "5", asked(t, ln.Addr()))
	c.wait(one)
}

func TestNeverRefusesWhereAnIncumbentLives(t *testing.T) {
	c := newChain(t)
	c.ready(c.start("one"))
	cfg := c.config("two")
	cfg.Takeover = Never
	_, err := Start(c.ctx, cfg)
	require.ErrorIs(t, err, ErrIncumbent)
	require.ErrorContains(t, err, fmt.Sprintf("pid %d", os.Getpid()))
}

func TestBusyIsAskedAgain(t *testing.T) {
	c := newChain(t)
	one := c.start("one") // not ready: a hello is told busy
	ctx, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	enough := errors.New("enough")
	hasty := c.waits(ctx, "hasty")
	cancel(enough)
	err := <-hasty
	require.ErrorIs(t, err, enough)
	require.ErrorContains(t, err, "busy")

	got := make(chan *Process)
	go func() {
		p, err := Start(c.ctx, c.config("two"))
		if err != nil {
			t.Error(err)
		}
		got <- p
	}()
	c.ready(one)
	two := <-got
	defer two.Close()
	c.ready(two)
	c.wait(one)
}

// slowContext has a deadline that may pass before it ends, as that of any context may
// where the machine is slow.
type slowContext struct {
	context.Context
	passed atomic.Bool
}

func (c *slowContext) Deadline() (time.Time, bool) {
	if c.passed.Load() {
		return longAgo(), true
	}
	return c.Context.Deadline()
}

// Whose time ends while he dials is told all the same what it was spent on.
func TestBusyIsSaidWhereTheDialerIsFirst(t *testing.T) {
	c := newChain(t)
	c.start("one") // not ready
	parent, cancel := context.WithCancelCause(c.ctx)
	defer cancel(nil)
	ctx := &slowContext{Context: parent}
	hasty := c.waits(ctx, "hasty")
	ctx.passed.Store(true)
	time.AfterFunc(3*busyRetryMS*time.Millisecond, func() { cancel(context.DeadlineExceeded) })
	err := <-hasty
	require.ErrorIs(t, err, context.DeadlineExceeded)
	require.ErrorContains(t, err, "busy")
}

func TestFirstStartsAtTheSameInstant(t *testing.T) {
	c := newChain(t)
	const n = 6
	var wg sync.WaitGroup
	generations := make(chan uint64, n)
	for i := range n {
		wg.Go(func() {
			p, err := Start(c.ctx, c.config(fmt.Sprintf("p%d", i)))
			if err != nil {
				t.Error(err)
				return
			}
			defer p.Close()
			if _, err := p.Listen(c.ctx, "tcp", "127.0.0.1:0"); err != nil {
				t.Error(err)
				return
			}
			if err := p.Ready(c.ctx); err != nil {
				t.Error(err)
				return
			}
			generations <- p.Generation()
			if _, err := p.Wait(c.ctx); err != nil {
				t.Error(err)
			}
		})
	}
	c.until("the last one serves alone", func() bool {
		s, err := c.client().Status(c.ctx)
		return err == nil && s.Generation == n && len(s.Generations) == 1
	})
	_, err := c.client().Stop(c.ctx)
	require.NoError(t, err)
	wg.Wait()
	seen := map[uint64]bool{}
	for range n {
		seen[<-generations] = true
	}
	require.Len(t, seen, n, "one chain, each number once")
}

func TestStandbyWaitsForTheOperator(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one")

	_, err := c.client().Handover(c.ctx, "")
	var remote *RemoteError
	require.ErrorAs(t, err, &remote)
	require.Equal(t, CodeNoStandby, remote.Code)

	two := c.start("two", mode(Standby))
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)
	require.Equal(t, "1", asked(t, ln.Addr()))

	ans, err := c.client().Handover(c.ctx, "r1")
	require.NoError(t, err)
	require.False(t, ans.Already)
	require.NoError(t, <-ready)
	require.Equal(t, "2", asked(t, ln.Addr()))
	c.wait(one)
	ans, err = c.client().Handover(c.ctx, "r1")
	require.NoError(t, err)
	require.True(t, ans.Already, "the next generation remembers the request")
}

func TestStandbyServesWhenTheIncumbentEnds(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	ln := c.listen(one, "tcp", "127.0.0.1:0")
	c.ready(one)
	two := c.start("two", mode(Standby))
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)

	// Queued, and accepted by nobody yet.
	queued, err := net.Dial("tcp", ln.Addr().String())
	require.NoError(t, err)
	defer queued.Close()
	require.NoError(t, one.Close())
	require.NoError(t, <-ready)
	queued.SetDeadline(time.Now().Add(5 * time.Second))
	b, err := io.ReadAll(queued)
	require.NoError(t, err)
	require.Equal(t, "2", string(b))
}

func TestSpareGivesWayAndComesBack(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one")

	spare := c.start("spare", mode(Spare))
	greet(spare, c.listen(spare, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- spare.Ready(c.ctx) }()
	c.reach(spare, StateStandby)
	_, err := c.client().Handover(c.ctx, "")
	var remote *RemoteError
	require.ErrorAs(t, err, &remote, "a spare waits for the incumbent's death only")

	two, _ := c.serve("two")
	c.wait(one)
	require.Equal(t, fmt.Sprint(two.Generation()), asked(t, ln.Addr()))

	c.until("the spare is a standby of two", func() bool {
		return spare.State() == StateStandby && spare.Generation() > two.Generation()
	})
	require.NoError(t, two.Close())
	require.NoError(t, <-ready)
	require.Equal(t, fmt.Sprint(spare.Generation()), asked(t, ln.Addr()))
}

func TestRollbackInProbation(t *testing.T) {
	c := newChain(t)
	var states []string
	one := c.start("one", probation, func(cfg *Config) {
		cfg.OnState = func(from, to State) { states = append(states, from.String()+" "+to.String()) }
	})
	ln := c.listen(one, "tcp", "127.0.0.1:0")
	greet(one, ln)
	c.ready(one)
	two, _ := c.serve("two")
	require.Equal(t, "2", asked(t, ln.Addr()))
	var s *Status
	c.until("`serving` has arrived", func() bool {
		var err error
		s, err = c.client().Status(c.ctx)
		require.NoError(t, err)
		require.EqualValues(t, 1, s.Generation, "until release the incumbent answers")
		require.Equal(t, "parked", s.Generations[0].State)
		return s.Generations[1].State == "serving"
	})
	require.Positive(t, s.Generations[0].LeftSeconds)

	_, err := c.client().Rollback(c.ctx)
	require.NoError(t, err)
	<-two.Done()
	require.ErrorIs(t, two.Err(), ErrRevoked)
	require.Equal(t, "1", asked(t, ln.Addr()))
	_, err = two.Wait(c.ctx)
	require.ErrorIs(t, err, ErrRevoked)
	ans, err := c.client().Rollback(c.ctx)
	require.NoError(t, err)
	require.True(t, ans.Already)
	require.Equal(t, []string{"starting serving", "serving parked", "parked serving"}, states)

	// The next one gets a number of its own, and after release there is no way back.
	three := c.start("three")
	require.EqualValues(t, 3, three.Generation())
	greet(three, c.listen(three, "tcp", "127.0.0.1:0"))
	c.ready(three)
	one.Stop() // in probation: release now
	c.wait(one)
	_, err = c.client().Rollback(c.ctx)
	var remote *RemoteError
	require.ErrorAs(t, err, &remote)
	require.Equal(t, CodeNotNow, remote.Code)
}

func TestSuccessorThatEndsInProbationGivesBack(t *testing.T) {
	for _, end := range []struct {
		name string
		do   func(*Process)
	}{
		{"stopped", (*Process).Stop},
		{"closed", func(p *Process) { p.Close() }},
		{"link ends without a word", func(p *Process) { p.ask(func() { p.elder.c.Close() }) }},
	} {
		t.Run(end.name, func(t *testing.T) {
			c := newChain(t)
			one := c.start("one", probation)
			ln := c.listen(one, "tcp", "127.0.0.1:0")
			greet(one, ln)
			c.ready(one)
			two := c.start("two")
			greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
			c.ready(two)
			c.reach(one, StateParked)
			end.do(two)
			c.reach(one, StateServing)
			two.Close()
			require.Equal(t, "1", asked(t, ln.Addr()))
		})
	}
}

func TestStopWaitsForAStartingSuccessor(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one")
	two := c.start("two", mode(Standby))
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	one.Stop()
	require.Equal(t, "1", asked(t, ln.Addr()), "it serves until its successor is ready")
	c.ready(two)
	require.Equal(t, "handed_over", c.wait(one).Reason)
	require.Equal(t, "2", asked(t, ln.Addr()))
}

func TestStopWithoutASuccessorAfterAll(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	c.listen(one, "tcp", "127.0.0.1:0")
	c.ready(one)
	two := c.start("two")
	one.Stop()
	c.until("one waits", func() bool {
		var waits bool
		one.ask(func() { waits = one.m.stopping })
		return waits
	})
	require.NoError(t, two.Close())
	require.Equal(t, "stopped", c.wait(one).Reason)
}

func TestReadyTimeoutRevokesTheSuccessor(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one", func(cfg *Config) { cfg.ReadyTimeout = 50 * time.Millisecond })
	two := c.start("two")
	<-two.Done()
	require.ErrorIs(t, two.Err(), ErrRevoked)
	require.ErrorIs(t, two.Ready(c.ctx), ErrRevoked)
	require.Equal(t, "1", asked(t, ln.Addr()))
	require.True(t, one.ask(func() { one.cfg.ReadyTimeout = time.Hour })) // who is ready at once may need as long
	c.ready(c.start("three", noClaim))
	c.wait(one)
}

func TestRequestsAreFollowedAndWithdrawn(t *testing.T) {
	c := newChain(t)
	one := c.start("one", func(cfg *Config) { cfg.Request = "first" })
	c.listen(one, "tcp", "127.0.0.1:0")
	c.ready(one)
	outcome := func(id string) string {
		s, err := c.client().Status(c.ctx)
		require.NoError(t, err)
		for _, r := range s.Requests {
			if r.ID == id {
				return r.Outcome
			}
		}
		return ""
	}
	require.Equal(t, "serving", outcome("first"))

	// Withdrawn before the hello, and with the successor there.
	_, err := c.client().Withdraw(c.ctx, "early")
	require.NoError(t, err)
	cfg := c.config("early")
	cfg.Request = "early"
	_, err = Start(c.ctx, cfg)
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "withdrawn")

	late := c.start("late", func(cfg *Config) { cfg.Request, cfg.Takeover = "late", Standby })
	require.Equal(t, "starting", outcome("late"))
	_, err = c.client().Withdraw(c.ctx, "late")
	require.NoError(t, err)
	<-late.Done()
	require.ErrorContains(t, late.Err(), "withdrawn")
	require.Equal(t, "withdrawn", outcome("late"))

	good := c.start("good", func(cfg *Config) { cfg.Request = "good" })
	c.listen(good, "tcp", "127.0.0.1:0")
	c.ready(good)
	c.wait(one)
	require.Equal(t, "released", outcome("good"))
	require.Equal(t, "withdrawn", outcome("late"), "outcomes travel to the successor")
	_, err = c.client().Withdraw(c.ctx, "good")
	var remote *RemoteError
	require.ErrorAs(t, err, &remote)
}

func TestConfigIsChecked(t *testing.T) {
	t.Setenv(EnvSocket, "")
	long := strings.Repeat("x", maxNameLen+1)
	pass := func(context.Context) error { return nil }
	for _, tc := range []struct {
		name string
		cfg  Config
		want string
	}{
		{"no socket", Config{}, EnvSocket},
		{"long label", Config{Socket: "s", Label: long}, "at most"},
		{"long request", Config{Socket: "s", Request: long}, "at most"},
		{"takeover", Config{Socket: "s", Takeover: 9}, "Takeover(9)"},
		{"spare with files", Config{Socket: "s", Takeover: Spare, Files: []string{"a"}}, "spare"},
		{"file name", Config{Socket: "s", Files: []string{"a\nb"}}, "control character"},
		{"check without a name", Config{Socket: "s", Checks: []Check{{Run: pass}}}, "a name is empty"},
		{"check without Run", Config{Socket: "s", Checks: []Check{{Name: "a"}}}, "a has no Run"},
		{"two checks of one name", Config{Socket: "s", Checks: []Check{{Name: "a", Run: pass}, {Name: "b", Run: pass}, {Name: "a", Run: pass}}}, "two are called a"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			_, err := Start(context.Background(), tc.cfg)
			require.ErrorContains(t, err, tc.want)
		})
	}
}

func TestReadyCanBeCalledAgain(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	c.ready(one)
	c.ready(one)
	two := c.start("two", mode(Standby))
	ctx, cancel := context.WithCancelCause(c.ctx)
	ended := make(chan error, 1)
	go func() { ended <- two.Ready(ctx) }()
	c.reach(two, StateStandby)
	cancel(errors.New("enough"))
	require.ErrorContains(t, <-ended, "enough")
	require.Equal(t, StateStandby, two.State(), "that ended the waiting only")
	_, err := c.client().Handover(c.ctx, "")
	require.NoError(t, err)
	c.ready(two)
	c.wait(one)
}

func TestOlderGenerationsStayInTheStatus(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	c.ready(one)
	two := c.start("two")
	c.ready(two)
	<-one.Done() // drains until it calls Wait
	three := c.start("three")
	c.ready(three)
	<-two.Done()
	states := func() string {
		s, err := c.client().Status(c.ctx)
		require.NoError(t, err)
		var all []string
		for _, g := range s.Generations {
			all = append(all, fmt.Sprint(g.Generation, " ", g.State))
		}
		return strings.Join(all, ", ")
	}
	c.until("all three", func() bool { return states() == "1 draining, 2 draining, 3 serving" })
	c.wait(two) // the link that one reports through ends: it registers with three
	c.until("one registers", func() bool { return states() == "1 draining, 3 serving" })
	c.wait(one)
	c.until("three alone", func() bool { return states() == "3 serving" })
}

// What the incumbent opens while a standby waits is not in the offer: it is
// served until release, and then leaves nothing behind.
func TestSocketOpenedBesideAStandby(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", probation)
	two := c.start("two", mode(Standby))
	c.listen(two, "tcp", "127.0.0.1:0")
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)
	path := filepath.Join(filepath.Dir(c.socket), "late")
	late := c.listen(one, "unix", path)
	greet(one, late)
	_, err := c.client().Handover(c.ctx, "")
	require.NoError(t, err)
	require.NoError(t, <-ready)
	require.Equal(t, "1", asked(t, late.Addr()), "not parked: the successor does not have it")
	parked := filepath.Join(filepath.Dir(c.socket), "parked")
	c.listen(one, "unix", parked)
	one.Stop()
	c.wait(one)
	for _, p := range []string{path, parked} {
		_, err = os.Lstat(p)
		require.ErrorIs(t, err, os.ErrNotExist)
	}
}
