package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/signal"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"github.com/fdhandoff/handoff/internal/leak"
)

// send sends a signal to this test program, to every Process in it.
func send(t testing.TB, sig syscall.Signal) {
	t.Helper()
	require.NoError(t, syscall.Kill(os.Getpid(), sig))
}

// spareThisProgram keeps signals from ending the test program at a moment at
// which no Process handles them.
func spareThisProgram(t testing.TB) chan os.Signal {
	t.Helper()
	got := make(chan os.Signal, 64)
	signal.Notify(got, handled...)
	t.Cleanup(func() { signal.Stop(got) })
	return got
}

// seen is a Signals whose After hooks tell when a signal was seen through.
func seen(sigs ...syscall.Signal) (*Signals, chan os.Signal) {
	through := make(chan os.Signal, 64)
	s := &Signals{After: map[os.Signal][]func(){}}
	for _, sig := range sigs {
		s.After[sig] = []func(){func() { through <- sig }}
	}
	return s, through
}

func await[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(patience):
		require.FailNow(t, "it did not come")
	}
	return v
}

// slowServer serves HTTP on p; each request says on begun that it is under way,
// and is answered when release is closed.
type slowServer struct {
	addr    string
	begun   chan struct{}
	release chan struct{}
}

func (c *chain) serveSlowly(p *Process) *slowServer {
	c.t.Helper()
	s := &slowServer{begun: make(chan struct{}, 8), release: make(chan struct{})}
	ln := c.listen(p, "tcp", "127.0.0.1:0")
	s.addr = ln.Addr().String()
	h := NewHTTPServer(p, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.begun <- struct{}{}
		select {
		case <-s.release:
			io.WriteString(w, "answered")
		case <-r.Context().Done(): // the drain deadline
			panic(http.ErrAbortHandler)
		}
	})})
	served := make(chan error, 1)
	go func() { served <- h.Serve(ln) }()
	c.t.Cleanup(func() {
		p.Close()
		<-served
	})
	c.ready(p)
	return s
}

// request begins a request and says what came of it.
func (s *slowServer) request(t testing.TB) chan string {
	t.Helper()
	conn, err := net.Dial("tcp", s.addr)
	require.NoError(t, err)
	t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "GET / HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
	require.NoError(t, err)
	came := make(chan string, 1)
	go func() {
		b, err := io.ReadAll(conn)
		switch {
		case strings.HasSuffix(string(b), "answered"):
			came <- "answered"
		case err != nil || len(b) == 0:
			came <- "cut"
		default:
			came <- string(b)
		}
	}()
	await(t, s.begun)
	return came
}

func longDrain(cfg *Config) { cfg.DrainTimeout = time.Hour }

func TestStopSignals(t *testing.T) {
	for _, sig := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT} {
		t.Run(unix.SignalName(sig), func(t *testing.T) {
			c := newChain(t)
			spareThisProgram(t)
			one, ln := c.serve("one", func(cfg *Config) { cfg.Signals = &Signals{} })
			require.Equal(t, "1", asked(t, ln.Addr()))
			send(t, sig)
			require.Equal(t, "stopped", c.wait(one).Reason)
			require.NoError(t, one.Err())
		})
	}
}

func TestSecondStopSignalIsHammerTime(t *testing.T) {
	for _, again := range []syscall.Signal{syscall.SIGTERM, syscall.SIGINT, syscall.SIGUSR2} {
		t.Run(unix.SignalName(again), func(t *testing.T) {
			c := newChain(t)
			spareThisProgram(t)
			signals, through := seen(syscall.SIGTERM)
			one := c.start("one", longDrain, func(cfg *Config) { cfg.Signals = signals })
			s := c.serveSlowly(one)
			came := s.request(t)
			send(t, syscall.SIGTERM)
			await(t, through)
			c.reach(one, StateDraining)
			require.Empty(t, came, "the first one cuts nothing")
			send(t, again)
			require.Equal(t, "cut", await(t, came))
			c.wait(one)
		})
	}
}

// A generation that drains because it was replaced is asked to stop for the
// first time: it cuts nothing.
func TestStopSignalWhileItDrains(t *testing.T) {
	c := newChain(t)
	spareThisProgram(t)
	signals, through := seen(syscall.SIGTERM)
	one := c.start("one", longDrain, func(cfg *Config) { cfg.Signals = signals })
	s := c.serveSlowly(one)
	came := s.request(t)
	c.serve("two")
	c.reach(one, StateDraining)
	send(t, syscall.SIGTERM)
	await(t, through)
	close(s.release)
	require.Equal(t, "answered", await(t, came))
	require.Equal(t, "handed_over", c.wait(one).Reason)
}

// Where the successor fails that a stop handed over to, the next signal is a
// first one again.
func TestStopSignalThatCameToNothing(t *testing.T) {
	c := newChain(t)
	spareThisProgram(t)
	signals, through := seen(syscall.SIGTERM)
	var lines book
	one := c.start("one", longDrain, probation, lines.use, func(cfg *Config) { cfg.Signals = signals })
	s := c.serveSlowly(one)
	two := c.start("two", mode(Standby))
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)
	send(t, syscall.SIGTERM)
	require.NoError(t, await(t, ready), "a stop with a standby there is a handover")
	require.NoError(t, two.Close())
	c.reach(one, StateServing)
	await(t, through)

	came := s.request(t)
	require.True(t, c.status().Generations[0].StopOwed) // said when all of the take-back was done, and logged
	require.Contains(t, lines.String(), "this process serves on")
	send(t, syscall.SIGTERM)
	await(t, through)
	c.reach(one, StateDraining)
	close(s.release)
	require.Equal(t, "answered", await(t, came))
	r := c.wait(one)
	require.Equal(t, "stopped", r.Reason)
	require.Empty(t, r.Cut)
}

func TestSecondStopSignalEndsProbation(t *testing.T) {
	c := newChain(t)
	spareThisProgram(t)
	signals, through := seen(syscall.SIGTERM)
	one, _ := c.serve("one", probation, func(cfg *Config) { cfg.Signals = signals })
	two := c.start("two", mode(Standby))
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)
	send(t, syscall.SIGTERM)
	await(t, through)
	require.NoError(t, await(t, ready))
	c.until("two is in probation", func() bool {
		serves := false
		one.ask(func() { serves = one.m.younger == phaseServing })
		return serves
	})
	send(t, syscall.SIGTERM)
	require.Equal(t, "handed_over", c.wait(one).Reason)
}

func TestHammerSignalWhileItServes(t *testing.T) {
	c := newChain(t)
	spareThisProgram(t)
	signals, through := seen(syscall.SIGUSR2)
	var lines book
	one := c.start("one", lines.use, func(cfg *Config) { cfg.Signals = signals })
	s := c.serveSlowly(one)
	came := s.request(t)
	send(t, syscall.SIGUSR2)
	await(t, through)
	require.Contains(t, lines.String(), "hammer time was asked for, but this process is not on its way out")
	require.Equal(t, StateServing, one.State())
	close(s.release)
	require.Equal(t, "answered", await(t, came))
}

// What Start waits for when the signal comes.
func TestStopSignalDuringStart(t *testing.T) {
	for _, tc := range []struct {
		name  string
		waits func(c *chain)
	}{
		{"for the lock", func(c *chain) {
			lock, err := lockSocketFile(c.ctx, c.socket)
			require.NoError(c.t, err)
			c.t.Cleanup(func() { lock.Close() })
		}},
		{"for a backlog that is full", func(c *chain) {
			d, _, err := listenUnix(c.ctx, "unixpacket", c.socket, unixOptions{})
			require.NoError(c.t, err)
			require.NoError(c.t, d.control(func(fd int) error { return unix.Listen(fd, 0) }))
			first, err := dial(c.ctx, c.socket, allow{})
			require.NoError(c.t, err)
			c.t.Cleanup(func() { first.Close(); d.Close() })
		}},
		{"for an incumbent that says nothing", func(c *chain) {
			ln, _, err := listenControl(c.ctx, c.socket, unixOptions{listen: true})
			require.NoError(c.t, err)
			c.t.Cleanup(func() { ln.Close() })
		}},
		{"for an incumbent that is busy", func(c *chain) { c.start("one") }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			spareThisProgram(t)
			tc.waits(c)
			cfg := c.config("two")
			handles := make(chan struct{})
			cfg.Signals = &Signals{
				Before: map[os.Signal][]func(){syscall.SIGHUP: {sync.OnceFunc(func() { close(handles) })}},
				Reload: func() error { return nil },
			}
			end := make(chan error, 1)
			go func() {
				p, err := Start(c.ctx, cfg)
				if err == nil {
					p.Close()
				}
				end <- err
			}()
			c.until("signals are handled", func() bool {
				// Until it handles them, nobody sees one.
				send(t, syscall.SIGHUP)
				select {
				case <-handles:
					return true
				case <-time.After(time.Millisecond):
					return false
				}
			})
			send(t, syscall.SIGTERM)
			err := await(t, end)
			require.ErrorIs(t, err, ErrStopped)
			require.ErrorContains(t, err, c.socket)
		})
	}
}

func TestReloadAndReopen(t *testing.T) {
	c := newChain(t)
	spareThisProgram(t)
	signals, through := seen(syscall.SIGHUP, syscall.SIGUSR1)
	var calls []string
	results := make(chan error, 1)
	signals.Reload = func() error { calls = append(calls, "reload"); return <-results }
	signals.Reopen = func() error { calls = append(calls, "reopen"); return <-results }
	var lines book
	one, ln := c.serve("one", lines.use, func(cfg *Config) { cfg.Signals = signals })
	for _, result := range []error{nil, errors.New("bad certificate")} {
		for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1} {
			send(t, sig)
			results <- result
			require.Equal(t, sig, await(t, through))
		}
	}
	require.Equal(t, []string{"reload", "reopen", "reload", "reopen"}, calls)
	require.Equal(t, 2, strings.Count(lines.String(), "level=ERROR"), lines.String())
	require.Equal(t, 2, strings.Count(lines.String(), `error="bad certificate"`), lines.String())
	require.Equal(t, "1", asked(t, ln.Addr()))
	require.Equal(t, StateServing, one.State())
}

func TestSignalsWithoutAMeaning(t *testing.T) {
	c := newChain(t)
	spareThisProgram(t)
	signals, through := seen(syscall.SIGHUP, syscall.SIGUSR1)
	var lines book
	one, ln := c.serve("one", lines.use, func(cfg *Config) { cfg.Signals = signals })
	for _, sig := range []syscall.Signal{syscall.SIGHUP, syscall.SIGUSR1} {
		send(t, sig)
		require.Equal(t, sig, await(t, through))
		require.Contains(t, lines.String(), "ignored\" generation=1 signal="+unix.SignalName(sig))
	}
	require.Equal(t, "1", asked(t, ln.Addr()))
	require.Equal(t, StateServing, one.State())
}

// A Reload that hangs holds up neither the stop nor the signals behind it for
// good: they are seen through when it ends.
func TestStopSignalDoesNotWaitForReload(t *testing.T) {
	c := newChain(t)
	spareThisProgram(t)
	signals, through := seen(syscall.SIGTERM)
	hangs, release, reloads := make(chan struct{}, 8), make(chan struct{}), 0
	signals.Reload = func() error {
		reloads++
		hangs <- struct{}{}
		<-release
		return nil
	}
	one, _ := c.serve("one", func(cfg *Config) { cfg.Signals = signals })
	send(t, syscall.SIGHUP)
	await(t, hangs)
	send(t, syscall.SIGTERM)
	<-one.Done()
	require.Empty(t, through, "its hooks wait for their turn")
	close(release)
	require.Equal(t, "stopped", c.wait(one).Reason)
	require.Equal(t, os.Signal(syscall.SIGTERM), await(t, through), "they are called before Wait returns")
	require.Equal(t, 1, reloads)
}

// Every signal's hooks stand around what it means, in the order of arrival.
func TestSignalHooks(t *testing.T) {
	c := newChain(t)
	spareThisProgram(t)
	var serves atomic.Pointer[Process]
	var mu sync.Mutex
	var calls []string
	note := func(format string, args ...any) func() {
		return func() {
			mu.Lock()
			defer mu.Unlock()
			calls = append(calls, fmt.Sprintf(format, args...))
		}
	}
	signals := &Signals{
		Before: map[os.Signal][]func(){}, After: map[os.Signal][]func(){},
		Reload: func() error { note("reload")(); return nil },
		Reopen: func() error { note("reopen")(); return nil },
	}
	through := make(chan os.Signal, 8)
	for _, sig := range handled {
		name := signalName(sig)
		signals.Before[sig] = []func(){note("before %s", name), note("and %s", name)}
		signals.After[sig] = []func(){note("after %s", name), func() { through <- sig }}
	}
	term := os.Signal(syscall.SIGTERM)
	signals.Before[term] = append(signals.Before[term], func() { note("%v", serves.Load().State())() })
	one, _ := c.serve("one", func(cfg *Config) { cfg.Signals = signals })
	serves.Store(one)
	clear(signals.Before) // a Config is read by Start only
	noted := func() []string {
		mu.Lock()
		defer mu.Unlock()
		return slices.Clone(calls)
	}
	var want []string
	for _, sig := range []syscall.Signal{syscall.SIGTSTP, syscall.SIGUSR1, syscall.SIGHUP, syscall.SIGUSR2, syscall.SIGTERM, syscall.SIGINT} {
		send(t, sig)
		require.Equal(t, sig, await(t, through))
		name := signalName(sig)
		want = append(want, "before "+name, "and "+name)
		switch sig {
		case syscall.SIGHUP:
			want = append(want, "reload")
		case syscall.SIGUSR1:
			want = append(want, "reopen")
		case syscall.SIGTERM:
			want = append(want, "serving")
			<-one.Done() // what it means came after the hooks before it
		}
		want = append(want, "after "+name)
		require.Equal(t, want, noted())
	}
	c.wait(one)
}

func TestSignalsOfSeveralProcesses(t *testing.T) {
	c, other := newChain(t), newChain(t)
	spareThisProgram(t)
	first, firstThrough := seen(syscall.SIGHUP)
	second, secondThrough := seen(syscall.SIGHUP)
	one, _ := c.serve("one", func(cfg *Config) { cfg.Signals = first })
	two, _ := other.serve("two", func(cfg *Config) { cfg.Signals = second })
	send(t, syscall.SIGHUP)
	await(t, firstThrough)
	await(t, secondThrough)
	require.NoError(t, one.Close())
	send(t, syscall.SIGHUP)
	await(t, secondThrough)
	require.Empty(t, firstThrough, "not after its end")
	send(t, syscall.SIGTERM)
	require.Equal(t, "stopped", other.wait(two).Reason)
}

func TestNoSignalsByDefault(t *testing.T) {
	c := newChain(t)
	got := spareThisProgram(t)
	one, ln := c.serve("one")
	for _, sig := range handled {
		send(t, sig.(syscall.Signal))
		require.Equal(t, sig, await(t, got))
	}
	require.Equal(t, "1", asked(t, ln.Addr()))
	require.Equal(t, StateServing, one.State())
}

func TestSignalsThatCanHaveNoHooks(t *testing.T) {
	for _, tc := range []struct {
		name    string
		signals Signals
		want    string
	}{
		{"before", Signals{Before: map[os.Signal][]func(){syscall.SIGPIPE: nil}}, "no hook can be for SIGPIPE: only for SIGHUP"},
		{"after", Signals{After: map[os.Signal][]func(){syscall.SIGKILL: {func() {}}}}, "no hook can be for SIGKILL: only for SIGHUP"},
		{"no number that is known", Signals{After: map[os.Signal][]func(){syscall.Signal(99): {}}}, "no hook can be for signal 99"},
		{"nil hook", Signals{Before: map[os.Signal][]func(){syscall.SIGHUP: {nil}}}, "a hook for SIGHUP is nil"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			cfg := c.config("one")
			cfg.Signals = &tc.signals
			_, err := Start(c.ctx, cfg)
			require.ErrorContains(t, err, "handoff: Config.Signals: "+tc.want)
		})
	}
}

// SIGTSTP stops a process that has no hooks for it, and only that. The child
// plays one that has Signals.
func TestSuspendSignal(t *testing.T) {
	if inChild(t, func(role string) {
		cfg := Config{Socket: os.Getenv(pathVariable), Signals: &Signals{}}
		if role == "hook" {
			cfg.Signals.After = map[os.Signal][]func(){syscall.SIGTSTP: {func() { fmt.Println("hook called") }}}
		}
		p, err := Start(t.Context(), cfg)
		require.NoError(t, err)
		require.NoError(t, p.Ready(t.Context()))
		fmt.Println("serving now")
		_, err = p.Wait(t.Context())
		require.NoError(t, err)
		fmt.Println("ended well")
	}) {
		return
	}
	for _, role := range []string{"no hook", "hook"} {
		t.Run(role, func(t *testing.T) {
			leak.CheckExact(t)
			path := socketDir(t) + "/s"
			cmd := childCommand(t, role, pathVariable+"="+path)
			cmd.Args[1] = "-test.run=^TestSuspendSignal$"
			// A group of its own in this session: a stop signal of an orphaned
			// group is discarded.
			cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
			child := startChild(t, cmd)
			child.expect("serving")
			pid := cmd.Process.Pid
			require.NoError(t, syscall.Kill(pid, syscall.SIGTSTP))
			if role == "hook" {
				child.expect("hook")
			} else {
				var status syscall.WaitStatus
				_, err := syscall.Wait4(pid, &status, syscall.WUNTRACED, nil)
				require.NoError(t, err)
				require.True(t, status.Stopped(), "%v", status)
				require.Equal(t, syscall.SIGTSTP, status.StopSignal())
				require.NoError(t, syscall.Kill(pid, syscall.SIGCONT))
			}
			require.NoError(t, syscall.Kill(pid, syscall.SIGTERM))
			child.expect("ended")
			child.end()
		})
	}
}

func TestTakeoverFromTheEnvironment(t *testing.T) {
	for _, tc := range []struct {
		name, env string
		set, want Takeover
		err       string
	}{
		{name: "not set"},
		{name: "auto", env: "auto"},
		{name: "standby", env: "standby", want: Standby},
		{name: "spare", env: "spare", want: Spare},
		{name: "never", env: "never", want: Never},
		{name: "Config has the last word", env: "spare", set: Standby, want: Standby},
		{name: "nonsense", env: "soon", err: `HANDOFF_TAKEOVER is "soon", which is none of auto, standby, spare, never`},
		{name: "nonsense that is not asked for", env: "soon", set: Never, want: Never},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			t.Setenv(EnvTakeover, tc.env)
			p, err := Start(c.ctx, Config{Socket: c.socket, Takeover: tc.set})
			if tc.err != "" {
				require.EqualError(t, err, "handoff: "+tc.err)
				return
			}
			require.NoError(t, err)
			defer p.Close()
			s, err := c.client().Status(c.ctx)
			require.NoError(t, err)
			require.Equal(t, tc.want.String(), s.Generations[0].Takeover)
		})
	}
	t.Run("a spare can't ask for files", func(t *testing.T) {
		c := newChain(t)
		t.Setenv(EnvTakeover, "spare")
		_, err := Start(c.ctx, Config{Socket: c.socket, Files: []string{"state"}})
		require.ErrorContains(t, err, "a spare can't ask for files")
	})
}
