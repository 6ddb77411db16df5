package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// connKey is the key of a connection, bare, in the context of its requests.
type connKey struct{}

func withConn(ctx context.Context, nc net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, nc.(interface{ NetConn() net.Conn }).NetConn())
}

// socketOptions are what a program might set on a TCP connection.
var socketOptions = []struct {
	name          string
	level, number int
}{
	{"TCP_NODELAY", unix.IPPROTO_TCP, unix.TCP_NODELAY},
	{"SO_KEEPALIVE", unix.SOL_SOCKET, unix.SO_KEEPALIVE},
	{"TCP_KEEPIDLE", unix.IPPROTO_TCP, unix.TCP_KEEPIDLE},
	{"TCP_KEEPINTVL", unix.IPPROTO_TCP, unix.TCP_KEEPINTVL},
	{"TCP_KEEPCNT", unix.IPPROTO_TCP, unix.TCP_KEEPCNT},
	{"TCP_USER_TIMEOUT", unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT},
	{"SO_RCVBUF", unix.SOL_SOCKET, unix.SO_RCVBUF},
	{"SO_SNDBUF", unix.SOL_SOCKET, unix.SO_SNDBUF},
	{"IP_TOS", unix.IPPROTO_IP, unix.IP_TOS},
}

// tellOptions answers with the options of the connection, and its addresses.
func tellOptions(w http.ResponseWriter, r *http.Request) {
	nc := r.Context().Value(connKey{}).(*net.TCPConn)
	raw, err := nc.SyscallConn()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	raw.Control(func(fd uintptr) {
		for _, o := range socketOptions {
			v, err := unix.GetsockoptInt(int(fd), o.level, o.number)
			fmt.Fprintln(w, o.name, v, err)
		}
		l, err := getLinger(int(fd))
		fmt.Fprintln(w, "SO_LINGER", l, err)
	})
	fmt.Fprintln(w, nc.LocalAddr(), nc.RemoteAddr(), r.RemoteAddr)
}

func getLinger(fd int) (unix.Linger, error) {
	l, err := unix.GetsockoptLinger(fd, unix.SOL_SOCKET, unix.SO_LINGER)
	if err != nil {
		return unix.Linger{}, err
	}
	return *l, nil
}

// What the program has set on a connection, or left as it was, stays so, however often
// it moves, and whether it was asked something in between or not.
func TestSocketOptionsSurvive(t *testing.T) {
	for name, set := range map[string]func(*net.TCPConn) error{
		"as accepted": func(*net.TCPConn) error { return nil },
		"set": func(c *net.TCPConn) error {
			raw, err := c.SyscallConn()
			if err != nil {
				return err
			}
			var opts error
			err = raw.Control(func(fd uintptr) {
				opts = errors.Join(unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, 12345),
					unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_TOS, 0x10))
			})
			return errors.Join(err, opts, c.SetNoDelay(false), c.SetReadBuffer(10_000), c.SetWriteBuffer(20_000), c.SetLinger(3),
				c.SetKeepAliveConfig(net.KeepAliveConfig{Enable: true, Idle: 33 * time.Second, Interval: 7 * time.Second, Count: 5}))
		},
		"keep-alive off, reset on close": func(c *net.TCPConn) error {
			return errors.Join(c.SetKeepAlive(false), c.SetLinger(0))
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChain(t)
			version := func(label string, state func(net.Conn, http.ConnState)) *web {
				w := c.webOn(label, local("web", "tcp", "127.0.0.1:0"), &http.Server{Handler: http.HandlerFunc(tellOptions), ConnContext: withConn, ConnState: state})
				c.ready(w.p)
				return w
			}
			one := version("one", func(nc net.Conn, s http.ConnState) {
				if s == http.StateNew {
					if err := set(nc.(interface{ NetConn() net.Conn }).NetConn().(*net.TCPConn)); err != nil {
						t.Error(err)
					}
				}
			})
			asked, rests := one.dial(), one.dial()
			was, rested := asked.get("/", false), rests.get("/", false)
			if name == "set" {
				require.Contains(t, was, "TCP_NODELAY 0 ")
				require.Contains(t, was, "TCP_KEEPIDLE 33 ")
				require.Contains(t, was, "TCP_USER_TIMEOUT 12345 ")
				require.Contains(t, was, "SO_RCVBUF 20000 ")
				require.Contains(t, was, "SO_LINGER {1 3} ")
			}
			for i, prev := 0, one; i < 3; i++ {
				next := version(fmt.Sprintf("next %d", i), nil)
				prev.moved(2)
				require.Equal(t, was, asked.get("/", false))
				prev = next
			}
			require.Equal(t, rested, rests.get("/", false))
		})
	}
}

// The time for which the server lets a connection be idle goes on, through all
// versions.
func TestIdleTimeoutGoesOn(t *testing.T) {
	const idle, moving = 4 * time.Second, 2500 * time.Millisecond
	c := newChain(t)
	version := func(label string) *web {
		w := c.webOn(label, local("web", "tcp", "127.0.0.1:0"), &http.Server{IdleTimeout: idle})
		c.ready(w.p)
		return w
	}
	w := version("one")
	client := w.dial()
	begun := time.Now()
	require.Equal(t, "one", client.get("/", false))
	n, last := 0, begun
	for ; time.Since(begun) < moving; n++ {
		time.Sleep(100 * time.Millisecond) // for which it is idle at each of them
		last = time.Now()
		next := version(fmt.Sprint("next ", n))
		w.moved(1)
		w = next
	}
	client.eof()
	require.GreaterOrEqual(t, time.Since(begun), idle)
	require.Less(t, time.Since(last), idle, "it did not begin anew at the last of %d versions", n)
	w.open(map[string]int{})
}

// What a giver says of a connection counts at the taker.
func TestIdleTimeOfTheGiver(t *testing.T) {
	for _, tc := range []struct {
		name         string
		item         movedItem
		idle, header time.Duration // the server's IdleTimeout and ReadHeaderTimeout
		least, most  time.Duration
	}{
		{"just now", movedItem{}, 2 * time.Second, time.Second, 2 * time.Second, patience},
		{"for most of it", movedItem{IdleMS: 7900}, 8 * time.Second, time.Second, 0, 7 * time.Second},
		{"for longer", movedItem{IdleMS: 60_000}, 8 * time.Second, time.Second, 0, 7 * time.Second},
		{"fresh, just now", movedItem{Fresh: true}, 8 * time.Second, time.Second, time.Second, 7 * time.Second},
		{"fresh, for longer", movedItem{Fresh: true, IdleMS: 60_000}, time.Hour, 8 * time.Second, 0, 7 * time.Second},
	} {
		t.Run(tc.name, func(t *testing.T) {
			a := newAdopterOf(t, "tcp", 1, &http.Server{IdleTimeout: tc.idle, ReadHeaderTimeout: tc.header})
			letRightsPass(t, a.p)
			r := a.move()
			f := a.batch(1)
			f.Moved[0] = tc.item
			begun := time.Now()
			r.say(f, a.conns[0].d)
			require.NoError(t, a.conns[0].d.Close())
			require.Empty(t, r.hear(msgGot).Rejected)
			a.conns[0].client.eof()
			require.GreaterOrEqual(t, time.Since(begun), tc.least)
			require.Less(t, time.Since(begun), tc.most)
		})
	}
}

// What the giver says is how long it was since the connection became idle.
func TestGiverTellsTheIdleTime(t *testing.T) {
	c := newChain(t)
	w := c.webOn("one", local("127.0.0.1:0", "tcp", "127.0.0.1:0"), &http.Server{IdleTimeout: time.Hour}, probation)
	c.ready(w.p)
	g := &giver{target: &target{chain: c, one: w.p, at: w.ln.Addr()}, web: w}
	client := g.dial()
	asked := time.Now()
	require.Equal(t, "one", client.get("/", false))
	c.until("the server waits again", func() bool { return waits(&mover{Process: g.p}) }) // and its time runs
	idle := time.Now()
	for time.Since(idle) < 100*time.Millisecond {
		g.idle().Close() // the time that it takes
	}
	g.open(map[string]int{"idle": 1})
	g.release()
	r := g.accept()
	least := time.Since(idle)
	r.ok()
	f, fds := r.take()
	told := time.Duration(f.Moved[0].IdleMS) * time.Millisecond
	require.LessOrEqual(t, told, time.Since(asked))
	require.Greater(t, told, least-2*time.Millisecond) // it is told in whole ones
	r.say(&frame{Type: msgGot, N: 1})
	g.moved(1)
	closeAll(fds)
}

// The times for a request begin with its first byte, however long the connection has
// rested before.
func TestRequestTimesBeginWithTheFirstByte(t *testing.T) {
	const limit = time.Second // a whole request is answered within it, also where the machine is busy
	for name, srv := range map[string]*http.Server{
		"ReadHeaderTimeout": {ReadHeaderTimeout: limit, IdleTimeout: time.Hour},
		"ReadTimeout":       {ReadTimeout: limit, IdleTimeout: time.Hour},
		"WriteTimeout":      {WriteTimeout: limit, ReadHeaderTimeout: limit, IdleTimeout: time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChain(t)
			one := c.webOn("one", local("web", "tcp", "127.0.0.1:0"), &http.Server{IdleTimeout: time.Hour})
			c.ready(one.p)
			whole, half := one.idle(), one.idle()
			two := c.webOn("two", local("web", "tcp", "127.0.0.1:0"), srv)
			c.ready(two.p)
			one.moved(2)
			two.dial().eof() // one that says nothing from the beginning: by then the time is over
			two.answers(whole)
			begun := time.Now()
			half.send("GET / HT")
			rest, err := io.ReadAll(half)
			require.NoError(t, err)
			require.Contains(t, string(rest), "400 Bad Request", "net/http's word for it")
			require.GreaterOrEqual(t, time.Since(begun), limit)
			two.answers(whole)
		})
	}
}

// hooked tells of each call of a server's hooks.
type hooked struct {
	mu    sync.Mutex
	calls []string
}

func (h *hooked) add(format string, args ...any) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.calls = append(h.calls, fmt.Sprintf(format, args...))
}

func (h *hooked) all() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return slices.Clone(h.calls)
}

type baseKey struct{}

// The program's hooks are called at the next version as for a connection that it has
// accepted, once there is a request; and at the one before as for one that has closed.
func TestHooksAreCalled(t *testing.T) {
	c := newChain(t)
	version := func(label string) (*web, *hooked) {
		h := &hooked{}
		var w *web
		srv := &http.Server{
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				fmt.Fprint(w, r.Context().Value(baseKey{}), " ", r.Context().Value(connKey{}) != nil, " ", r.Context().Value(http.ServerContextKey) != nil)
			}),
			ConnState: func(nc net.Conn, s http.ConnState) {
				h.add("%s %v", nc.RemoteAddr(), s)
			},
			ConnContext: func(ctx context.Context, nc net.Conn) context.Context {
				h.add("%s ConnContext %s", nc.RemoteAddr(), nc.LocalAddr())
				return withConn(ctx, nc)
			},
			BaseContext: func(ln net.Listener) context.Context {
				if ln != w.ln {
					t.Errorf("BaseContext was called with %T", ln)
				}
				return context.WithValue(c.ctx, baseKey{}, label)
			},
		}
		w = c.webUnserved(label, local("web", "tcp", "127.0.0.1:0"), srv)
		w.serve(w.ln)
		c.ready(w.p)
		return w, h
	}
	one, first := version("one")
	client := one.dial()
	require.Equal(t, "one true true", client.get("/", false))
	two, second := version("two")
	one.moved(1)
	a, at := client.LocalAddr(), one.ln.Addr()
	called := func(states ...string) (all []string) {
		for _, s := range states {
			all = append(all, fmt.Sprint(a, " ", s))
		}
		return all
	}
	want := called("ConnContext "+at.String(), "new", "active", "idle", "closed")
	c.until("the hooks of the first were called", func() bool { return len(first.all()) >= len(want) }) // the last one comes after the close that ends the drain
	require.Equal(t, want, first.all())
	require.Empty(t, second.all(), "nothing was asked yet")
	require.Equal(t, "two true true", client.get("/", false))
	two.open(map[string]int{"idle": 1})
	require.NoError(t, client.Close())
	two.open(map[string]int{})
	c.until("the hooks were called", func() bool { return len(second.all()) >= len(want) })
	require.Equal(t, want, second.all())
}

// Status and reports say what moved, and why nothing does.
func TestMovesAreCounted(t *testing.T) {
	c := newChain(t)
	one := c.web("one", func(cfg *Config) { cfg.Probation = time.Hour })
	clients := []*rawClient{one.idle(), one.idle(), one.dial()}
	one.open(map[string]int{"idle": 2, "new": 1})
	busy := one.dial()
	busy.send("GET / HT")
	one.open(map[string]int{"idle": 2, "new": 1, "active": 1})
	two := one.handsOver("two")
	generation := func(n uint64) (g GenerationStatus) {
		s, err := c.client().Status(c.ctx)
		require.NoError(t, err)
		for _, g = range s.Generations {
			if g.Generation == n {
				return g
			}
		}
		return GenerationStatus{}
	}
	require.Zero(t, generation(1).Moved, "nothing moves in probation")
	one.p.Stop()
	c.until("the status has it", func() bool {
		one, two := generation(1), generation(2)
		return one.Moved == 3 && one.Open["active"] == 1 && two.Adopted == 3 && two.Open["idle"] == 2 && two.Open["new"] == 1
	})
	require.Empty(t, generation(1).MoveOff)
	require.Empty(t, generation(2).MoveOff)
	busy.send("TP/1.1\r\nHost: test\r\n\r\n")
	require.Equal(t, "one", busy.ok(false))
	r := one.moved(4)
	require.EqualValues(t, 3, r.Answered)
	require.Equal(t, map[string]int{"idle": 2, "new": 1, "active": 1}, r.Open)
	for _, client := range append(clients, busy) {
		two.answers(client)
	}
	two.adopted(4)
}

// Where moving is off on either side, connections are told to close, and nothing is
// lost.
func TestMovingTurnedOff(t *testing.T) {
	off := func(cfg *Config) { cfg.MoveIdle = MoveIdleOff }
	for _, tc := range []struct {
		name     string
		one, two []func(*Config)
	}{
		{"at the giver", []func(*Config){off}, nil},
		{"at the taker", nil, []func(*Config){off}},
		{"at both", []func(*Config){off}, []func(*Config){off}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			one := c.web("one", tc.one...)
			client, fresh := one.idle(), one.dial()
			one.open(map[string]int{"idle": 1, "new": 1})
			two := c.web("two", tc.two...)
			for w, change := range map[*web][]func(*Config){one: tc.one, two: tc.two} {
				require.Equal(t, len(change) > 0, w.self().MoveOff == "turned off by its configuration")
			}
			c.reach(one.p, StateDraining)
			c.until("it is a lame duck", func() bool { return one.isLameDuck() })
			require.Equal(t, "one", client.get("/", true))
			require.Equal(t, "one", fresh.get("/", true))
			one.moved(0)
			two.adopted(0)
		})
	}
}

// isLameDuck says whether answers say close now.
func (w *web) isLameDuck() bool {
	d := w.h.drain
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		if !d.announces(c) {
			return false
		}
	}
	return d.isDraining()
}

// A service that is stopped has nobody to whom its connections could move.
func TestPlainStopMovesNothing(t *testing.T) {
	c := newChain(t)
	one := c.web("one")
	idle, fresh := one.idle(), one.dial()
	one.open(map[string]int{"idle": 1, "new": 1})
	one.p.Stop()
	idle.eof()
	fresh.eof()
	require.Equal(t, string(whyStopped), one.moved(0).Reason)
}

// What a revoked successor has accepted goes back to the incumbent, however it came
// to be revoked.
func TestRevokedSuccessorGivesBack(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, c *chain, two *Process)
		err  error
	}{
		{"rolled back", func(t *testing.T, c *chain, _ *Process) {
			_, err := c.client().Rollback(c.ctx)
			require.NoError(t, err)
		}, ErrRevoked},
		{"unhealthy", func(_ *testing.T, _ *chain, two *Process) { two.ReportUnhealthy(errors.New("no backend")) }, ErrUnhealthy},
		{"stopped", func(_ *testing.T, _ *chain, two *Process) { two.Stop() }, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			one := c.web("one", probation)
			was := one.idle()
			two := one.handsOver("two")
			client, fresh := two.idle(), two.dial()
			two.open(map[string]int{"idle": 1, "new": 1})
			c.reach(one.p, StateParked)
			tc.do(t, c, two.p)
			r, err := two.p.Wait(c.ctx)
			require.ErrorIs(t, err, tc.err)
			require.EqualValues(t, 2, r.Moved)
			require.Empty(t, r.Cut)
			one.answers(client)
			one.answers(fresh)
			one.answers(was)
			one.adopted(2)

			three := one.handsOver("three")
			one.p.Stop()
			one.moved(3)
			for _, k := range []*rawClient{client, fresh, was} {
				three.answers(k)
			}
		})
	}
}

// The successor hands over in turn while connections move to it: each client goes on,
// on the connection that it has.
func TestSuccessorHandsOverWhileConnectionsMove(t *testing.T) {
	const n = 150
	c := newChain(t)
	one := c.web("one")
	ctx, stop := context.WithCancel(c.ctx)
	defer stop()
	var clients sync.WaitGroup
	last := make(chan string, n)
	for i := range n {
		client := one.idle()
		if i%3 == 0 { // quiet until the end
			clients.Go(func() {
				<-ctx.Done()
				label, err := askOver(client)
				if err != nil {
					t.Error(err)
				}
				last <- label
			})
			continue
		}
		clients.Go(func() {
			label := ""
			for done := false; !done; {
				done = ctx.Err() != nil
				var err error
				if label, err = askOver(client); err != nil {
					t.Error(err)
					break
				}
			}
			last <- label
		})
	}
	versions := []*web{one}
	for i := range 4 {
		versions = append(versions, versions[i].handsOver(fmt.Sprint("next ", i)))
	}
	moved, adopted := uint64(0), uint64(0)
	for _, w := range versions[:4] {
		r := c.wait(w.p)
		require.Empty(t, r.Cut)
		moved += r.Moved
		adopted += w.p.adopted.Load()
	}
	stop()
	clients.Wait()
	for range n {
		require.Equal(t, "next 3", <-last)
	}
	final := versions[4].p
	c.until("all are counted", func() bool { return adopted+final.adopted.Load() >= moved }) // an answer may come before
	require.Equal(t, moved, adopted+final.adopted.Load(), "each came where it was sent")
	require.GreaterOrEqual(t, moved, uint64(n))
}

// askOver asks once, and expects to be able to ask again.
func askOver(c *rawClient) (string, error) {
	if err := c.SetDeadline(time.Now().Add(patience)); err != nil {
		return "", err
	}
	if _, err := io.WriteString(c, get("/")); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(c.r, nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && (resp.Close || resp.StatusCode != http.StatusOK) {
		err = fmt.Errorf("status %d, close %v", resp.StatusCode, resp.Close)
	}
	return string(body), err
}

// Hammer and Close while connections move: each is at one of the two, or cut.
func TestEndWhileConnectionsMove(t *testing.T) {
	for name, end := range map[string]func(*chain, *web) Report{
		"hammer": func(c *chain, w *web) Report { w.p.Hammer(); return c.wait(w.p) },
		"close": func(c *chain, w *web) Report {
			if err := w.p.Close(); err != nil {
				c.t.Error(err)
			}
			return Report{Moved: w.p.moved.Load()}
		},
	} {
		t.Run(name, func(t *testing.T) {
			const n = 100
			c := newChain(t)
			one := c.web("one")
			var clients []*rawClient
			for range n {
				clients = append(clients, one.idle())
			}
			one.open(map[string]int{"idle": n})
			two := one.handsOver("two")
			c.until("some move", func() bool { return one.p.moved.Load() > 0 })
			r := end(c, one)
			if name == "hammer" {
				require.Equal(t, n, int(r.Moved)+r.Cut["idle"], "%+v", r)
			}
			two.adopted(r.Moved)
			answered := 0
			for _, k := range clients {
				if label, err := askOver(k); err == nil {
					require.Equal(t, "two", label)
					answered++
				}
			}
			require.EqualValues(t, r.Moved, answered)
		})
	}
}

// The next version may call the listener by another name.
func TestRenamedListener(t *testing.T) {
	c := newChain(t)
	one := c.webOn("one", local("old", "tcp", "127.0.0.1:0"), &http.Server{})
	c.ready(one.p)
	client := one.idle()
	two := c.webOn("two", local("new", "tcp", one.ln.Addr().String()), &http.Server{})
	c.ready(two.p)
	require.Empty(t, two.p.Unclaimed())
	one.moved(1)
	two.answers(client)
}

// Two listeners of which the names were exchanged: what counts is the address.
func TestExchangedNames(t *testing.T) {
	c := newChain(t)
	version := func(label, a, b, at, bt string) (*web, net.Listener) {
		w := c.webOn(label, local(a, "tcp", at), &http.Server{})
		other, err := w.p.ListenSocket(c.ctx, local(b, "tcp", bt))
		require.NoError(t, err)
		w.serve(other)
		c.ready(w.p)
		return w, other
	}
	one, other := version("one", "a", "b", "127.0.0.1:0", "127.0.0.1:0")
	first, second := one.idle(), dialAt(t, other.Addr())
	require.Equal(t, "one", second.get("/", false))
	two, _ := version("two", "b", "a", one.ln.Addr().String(), other.Addr().String())
	one.moved(2)
	two.answers(first)
	two.answers(second)
}

// A listener that the next version does not serve by HTTP: its connections stay, and
// are told to close. Those of another one move.
func TestListenerThatIsNotServed(t *testing.T) {
	for name, take := range map[string]func(c *chain, two *Process){
		"claimed, and not served": func(c *chain, two *Process) {
			_, err := two.ListenSocket(c.ctx, local("odd", "tcp", "127.0.0.1:0"))
			require.NoError(c.t, err)
		},
		"served by another protocol": func(c *chain, two *Process) {
			ln, err := two.ListenSocket(c.ctx, local("odd", "tcp", "127.0.0.1:0"))
			require.NoError(c.t, err)
			greet(two, two.Track(ln))
		},
		"not claimed": func(*chain, *Process) {},
		"served by TLS": func(c *chain, two *Process) {
			ln, err := two.ListenSocket(c.ctx, local("odd", "tcp", "127.0.0.1:0"))
			require.NoError(c.t, err)
			server, _ := tlsConfigs(c.t.(*testing.T))
			w := &web{c: c, p: two, ln: ln, h: NewHTTPServer(two, &http.Server{TLSConfig: server})}
			w.serveTLS()
		},
	} {
		t.Run(name, func(t *testing.T) {
			c := newChain(t)
			one := c.webOn("one", local("odd", "tcp", "127.0.0.1:0"), &http.Server{})
			other, err := one.p.ListenSocket(c.ctx, local("web", "tcp", "127.0.0.1:0"))
			require.NoError(t, err)
			one.serve(other)
			c.ready(one.p)
			stays, moves := one.idle(), dialAt(t, other.Addr())
			require.Equal(t, "one", moves.get("/", false))
			one.open(map[string]int{"idle": 2})
			two := c.webOn("two", local("web", "tcp", "127.0.0.1:0"), &http.Server{})
			take(c, two.p)
			c.ready(two.p)
			c.until("the other one has moved", func() bool { return one.p.moved.Load() == 1 })
			two.answers(moves)
			for closes := false; !closes; {
				stays.send(get("/"))
				resp, body := stays.answer()
				require.Equal(t, "one", body)
				closes = resp.Close
			}
			stays.eof()
			one.moved(1)
		})
	}
}

// A program that serves only some time after it is Ready gets what has waited.
func TestServedLate(t *testing.T) {
	c := newChain(t)
	one := c.web("one")
	client := one.idle()
	one.open(map[string]int{"idle": 1})
	two := c.webUnserved("two", local("127.0.0.1:0", "tcp", "127.0.0.1:0"), &http.Server{})
	c.ready(two.p)
	c.until("the connection is on its way", func() bool { return one.h.drain.travelling.Load() > 0 })
	two.serve(two.ln)
	one.moved(1)
	two.answers(client)
}

// A version for which the connections that would come are too many says so before
// anything has changed.
func TestTooFewOpenFiles(t *testing.T) {
	c := newChain(t)
	one := c.web("one", probation) // it takes back below
	clients := []*rawClient{}
	const n = 20
	for range n {
		clients = append(clients, one.idle())
	}
	one.open(map[string]int{"idle": n})

	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	lower := func(cur uint64) {
		l := limit
		l.Cur = cur
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &l))
	}
	t.Cleanup(func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) })

	two := c.webOn("two", local("127.0.0.1:0", "tcp", "127.0.0.1:0"), &http.Server{})
	open, err := os.ReadDir("/proc/self/fd")
	require.NoError(t, err)
	lower(uint64(len(open) + n - 1 + spareFiles/2))
	err = two.p.Ready(c.ctx)
	require.ErrorIs(t, err, ErrOpenFiles)
	require.ErrorContains(t, err, fmt.Sprintf("%d connections of the incumbent", n))
	require.NotEqual(t, StateServing, two.p.State())
	require.Equal(t, StateServing, one.p.State())
	for _, k := range clients {
		one.answers(k)
	}

	// With moving turned off there is nothing to make room for.
	require.NoError(t, two.p.Close())
	three := c.webOn("three", local("127.0.0.1:0", "tcp", "127.0.0.1:0"), &http.Server{}, func(cfg *Config) { cfg.MoveIdle = MoveIdleOff })
	require.NoError(t, three.p.Ready(c.ctx))
	require.NoError(t, three.p.Close())
	c.reach(one.p, StateServing)

	// Raised, the same version becomes ready.
	four := c.webOn("four", local("127.0.0.1:0", "tcp", "127.0.0.1:0"), &http.Server{})
	require.ErrorIs(t, four.p.Ready(c.ctx), ErrOpenFiles)
	lower(limit.Cur)
	c.ready(four.p)
	one.p.Stop() // the probation
	one.moved(n)
	for _, k := range clients {
		four.answers(k)
	}
}

// Connections that rest are the server's idle ones: Shutdown and Close end them, as
// they do where net/http has them.
func TestShutdownEndsWhatRests(t *testing.T) {
	for name, end := range map[string]func(*http.Server) error{
		"Shutdown": func(s *http.Server) error { return s.Shutdown(context.Background()) },
		"Close":    (*http.Server).Close,
	} {
		t.Run(name, func(t *testing.T) {
			c := newChain(t)
			one := c.web("one")
			idle := one.idle()
			srv := &http.Server{}
			two := c.webUnserved("two", Socket{Network: "tcp", Address: "127.0.0.1:0"}, srv)
			served := make(chan error, 1)
			go func() { served <- two.h.Serve(two.ln) }()
			c.ready(two.p)
			c.until("it moved", func() bool { return two.p.adopted.Load() == 1 })
			require.NoError(t, end(srv))
			require.ErrorIs(t, <-served, http.ErrServerClosed)
			require.NoError(t, idle.SetReadDeadline(time.Now().Add(patience)))
			_, err := idle.Read(make([]byte, 1))
			require.ErrorIs(t, err, io.EOF)
			c.until("it is counted no more", func() bool { return len(two.h.drain.open()) == 0 })
		})
	}
}

// A connection that rests needs one descriptor more for the moment in which net/http
// gets it. Where there is none, its request waits, as one does that is not accepted.
func TestRequestWaitsForADescriptor(t *testing.T) {
	c := newChain(t)
	one := c.web("one")
	idle := one.idle()
	two := c.web("two")
	two.adopted(1)
	c.wait(one.p)
	var limit unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &limit))
	scarce := limit
	scarce.Cur = 3 // no number below it is free
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &scarce))
	back := func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit)) }
	time.AfterFunc(200*time.Millisecond, back)
	defer back()
	require.Equal(t, "two", idle.get("/", false))
}

// What the taker closes is closed for the client, also where a giver that hangs has not
// closed its copy yet.
func TestClosedAlthoughTheGiverHangs(t *testing.T) {
	c := newChain(t)
	one := c.web("one")
	client := one.idle()
	one.h.drain.mu.Lock()
	for tc := range one.h.drain.conns {
		d, err := dupConn(tc.Conn.(syscall.Conn))
		require.NoError(t, err)
		defer d.Close() // the giver's copy
	}
	one.h.drain.mu.Unlock()
	two := c.web("two")
	two.adopted(1)
	client.send("GET / HTTP/1.1\r\nHost: test\r\nConnection: close\r\n\r\n")
	require.NoError(t, client.SetReadDeadline(time.Now().Add(patience)))
	_, err := io.ReadAll(client)
	require.NoError(t, err, "without the end of the connection")
}
