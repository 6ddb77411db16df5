package handoff

import (
	"bytes"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// open asks for any kind of socket and says what it is bound to and which of
// the kernel's sockets it is.
func (c *chain) open(p *Process, s Socket) (local string, inode uint64) {
	c.t.Helper()
	var end any
	if checkNetwork(s.Network, kindStream) == nil {
		ln, err := p.ListenSocket(c.ctx, s)
		require.NoError(c.t, err)
		end, local = ln, ln.Addr().String()
	} else {
		pc, err := p.ListenPacketSocket(c.ctx, s)
		require.NoError(c.t, err)
		end, local = pc, pc.LocalAddr().String()
	}
	return local, socketOf(c.t, p, end).inode
}

// socketOf returns the facts of the socket below what a program holds.
func socketOf(t testing.TB, p *Process, end any) socketFacts {
	t.Helper()
	facts, err := memberOf(t, p, end).d.facts()
	require.NoError(t, err)
	return facts
}

func memberOf(t testing.TB, p *Process, end any) *socket {
	t.Helper()
	p.sockets.mu.Lock()
	defer p.sockets.mu.Unlock()
	for _, s := range p.sockets.claimed {
		if any(s.listener) == end || any(s.packet) == end {
			return s
		}
	}
	t.Fatal("the process does not hold this socket")
	return nil
}

// What is inherited, and what is opened afresh. BOUND stands for the address
// that the first version's socket is bound to, PORT for its port, DIR for a
// directory.
func TestInheritedOrFresh(t *testing.T) {
	for _, tc := range []struct {
		name      string
		old, new  Socket
		inherited bool
	}{
		{"same address", Socket{Network: "tcp", Address: "127.0.0.1:0"}, Socket{Network: "tcp", Address: "127.0.0.1:0"}, true},
		{"same name and address", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, true},
		{"bound address under the name", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "web", Network: "tcp", Address: "BOUND"}, true},
		{"any port under the name", Socket{Name: "web", Network: "tcp", Address: "localhost:0"}, Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, true},
		{"renamed", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "http", Network: "tcp", Address: "BOUND"}, true},
		{"renamed to its address", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Network: "tcp", Address: "BOUND"}, true},
		{"any port under another name", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "http", Network: "tcp", Address: "127.0.0.1:0"}, false},
		{"another address under the name", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "web", Network: "tcp", Address: "127.0.0.2:0"}, false},
		{"another network under the name", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "web", Network: "udp", Address: "127.0.0.1:0"}, false},
		{"tcp as tcp4", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "web", Network: "tcp4", Address: "127.0.0.1:0"}, true},
		{"v6", Socket{Network: "tcp", Address: "[::1]:0"}, Socket{Network: "tcp6", Address: "[::1]:0"}, true},
		{"v4 to v6", Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "web", Network: "tcp", Address: "[::1]:0"}, false},
		{"wildcard", Socket{Name: "web", Network: "tcp", Address: ":0"}, Socket{Name: "web", Network: "tcp", Address: "0.0.0.0:PORT"}, true},
		{"wildcard renamed", Socket{Name: "web", Network: "tcp", Address: ":0"}, Socket{Network: "tcp", Address: "[::]:PORT"}, true},
		{"wildcard to one address", Socket{Name: "web", Network: "tcp", Address: ":0"}, Socket{Name: "web", Network: "tcp", Address: "127.0.0.1:0"}, false},
		{"wildcard of v4 to v6", Socket{Name: "web", Network: "tcp4", Address: ":0"}, Socket{Name: "web", Network: "tcp6", Address: ":0"}, false},
		{"wildcard of both to v4", Socket{Name: "web", Network: "tcp", Address: ":0"}, Socket{Name: "web", Network: "tcp4", Address: ":0"}, false},
		{"wildcard of both to v6", Socket{Name: "web", Network: "tcp", Address: ":0"}, Socket{Name: "web", Network: "tcp6", Address: ":0"}, false},
		{"wildcard of v6 to both", Socket{Name: "web", Network: "tcp6", Address: ":0"}, Socket{Name: "web", Network: "tcp", Address: ":0"}, false},
		{"udp", Socket{Network: "udp", Address: "127.0.0.1:0"}, Socket{Network: "udp", Address: "127.0.0.1:0"}, true},
		{"udp renamed", Socket{Network: "udp", Address: "127.0.0.1:0"}, Socket{Name: "dns", Network: "udp", Address: "BOUND"}, true},
		{"udp to another address", Socket{Name: "dns", Network: "udp", Address: "127.0.0.1:0"}, Socket{Name: "dns", Network: "udp", Address: "127.0.0.2:0"}, false},
		{"udp wildcard of v4 to v6", Socket{Name: "dns", Network: "udp4", Address: ":0"}, Socket{Name: "dns", Network: "udp6", Address: ":0"}, false},
		{"unix", Socket{Network: "unix", Address: "DIR/a"}, Socket{Network: "unix", Address: "DIR/a"}, true},
		{"unix renamed", Socket{Network: "unix", Address: "DIR/a"}, Socket{Name: "local", Network: "unix", Address: "DIR/a"}, true},
		{"unix moved", Socket{Name: "local", Network: "unix", Address: "DIR/a"}, Socket{Name: "local", Network: "unix", Address: "DIR/b"}, false},
		{"unixgram", Socket{Network: "unixgram", Address: "DIR/a"}, Socket{Network: "unixgram", Address: "DIR/a"}, true},
		{"unixgram renamed", Socket{Network: "unixgram", Address: "DIR/a"}, Socket{Name: "log", Network: "unixgram", Address: "DIR/a"}, true},
		{"unixgram moved", Socket{Name: "log", Network: "unixgram", Address: "DIR/a"}, Socket{Name: "log", Network: "unixgram", Address: "DIR/b"}, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			dir := filepath.Dir(c.socket)
			tc.old.Address = strings.ReplaceAll(tc.old.Address, "DIR", dir)
			one := c.start("one")
			bound, inode := c.open(one, tc.old)
			c.ready(one)
			port := bound[strings.LastIndex(bound, ":")+1:]
			tc.new.Address = strings.NewReplacer("BOUND", bound, "PORT", port, "DIR", dir).Replace(tc.new.Address)
			two := c.start("two", noClaim)
			local, got := c.open(two, tc.new)
			if tc.inherited {
				require.Equal(t, inode, got)
				require.Equal(t, bound, local)
			} else {
				require.NotEqual(t, inode, got)
			}
			c.ready(two)
			if tc.inherited {
				require.Empty(t, two.Unclaimed())
			} else {
				require.Len(t, two.Unclaimed(), 1)
				require.Contains(t, two.Unclaimed()[0], bound)
			}
		})
	}
}

// Another service that was given this one's control socket does not take its place:
// all that is served would be closed.
func TestNothingIsClaimed(t *testing.T) {
	for _, tc := range []struct {
		name string
		mode Takeover
		asks func(c *chain, p *Process)
		want string // of what the error lists
	}{
		{"nothing is asked for", Auto, func(*chain, *Process) {}, "tcp 127.0.0.1:0 ("},
		{"another address", Auto, func(c *chain, p *Process) { c.listen(p, "tcp", "127.0.0.3:0") }, "tcp 127.0.0.1:0 ("},
		{"closed again", Standby, func(c *chain, p *Process) { c.listen(p, "tcp", "127.0.0.1:0").Close() }, "tcp 127.0.0.1:0 ("},
		{"a spare", Spare, func(c *chain, p *Process) { c.listen(p, "tcp", "127.0.0.3:0") }, "tcp 127.0.0.1:0 ("},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			one, ln := c.serve("one", probation)
			two := c.start("two", mode(tc.mode))
			tc.asks(c, two)
			for range 2 {
				err := two.Ready(c.ctx)
				require.ErrorIs(t, err, ErrNoClaim)
				require.ErrorContains(t, err, tc.want)
			}
			require.Equal(t, StateServing, one.State())
			require.Equal(t, "1", asked(t, ln.Addr()))
			greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
			if tc.name == "closed again" { // what is closed is given up for good
				require.ErrorIs(t, two.Ready(c.ctx), ErrNoClaim)
				require.NoError(t, two.Close())
				c.until("the outcome", func() bool { l := c.status().Last; return l != nil && l.To == 2 })
				require.Equal(t, "failed", c.status().Last.Outcome)
				return
			}
			go two.Ready(c.ctx)
			if tc.mode == Spare {
				c.reach(two, StateStandby)
				return
			}
			c.reach(two, StateServing)
			require.Equal(t, "2", asked(t, ln.Addr()))
		})
	}
	t.Run("allowed", func(t *testing.T) {
		c := newChain(t)
		_, ln := c.serve("one", probation)
		two := c.start("two", noClaim)
		c.ready(two)
		require.Equal(t, "1", asked(t, ln.Addr()), "until release")
	})
	t.Run("the incumbent has nothing", func(t *testing.T) {
		c := newChain(t)
		c.ready(c.start("one", probation))
		two, ln := c.serve("two")
		require.Equal(t, StateServing, two.State())
		require.Equal(t, "2", asked(t, ln.Addr()))
	})
}

func TestTCPAndUDPShareAName(t *testing.T) {
	c := newChain(t)
	tcp, udp := Socket{Name: "dns", Network: "tcp", Address: "127.0.0.1:0"}, Socket{Name: "dns", Network: "udp", Address: "127.0.0.1:0"}
	one := c.start("one")
	_, oneTCP := c.open(one, tcp)
	_, oneUDP := c.open(one, udp)
	c.ready(one)
	two := c.start("two")
	_, twoUDP := c.open(two, udp)
	_, twoTCP := c.open(two, tcp)
	require.Equal(t, []uint64{oneTCP, oneUDP}, []uint64{twoTCP, twoUDP})
	c.ready(two)
	c.wait(one)
	require.Empty(t, two.Unclaimed())
}

// Two sockets whose names are exchanged between versions.
func TestNamesChangePlaces(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	atA, a := c.open(one, Socket{Name: "a", Network: "tcp", Address: "127.0.0.1:0"})
	atB, b := c.open(one, Socket{Name: "b", Network: "tcp", Address: "127.0.0.1:0"})
	c.ready(one)
	two := c.start("two")
	_, gotB := c.open(two, Socket{Name: "a", Network: "tcp", Address: atB})
	_, gotA := c.open(two, Socket{Name: "b", Network: "tcp", Address: atA})
	require.Equal(t, []uint64{a, b}, []uint64{gotA, gotB})
	c.ready(two)
	c.wait(one)
}

// book keeps the lines of one Process.
type book struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (k *book) Write(b []byte) (int, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.b.Write(b)
}

func (k *book) String() string {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.b.String()
}

func (k *book) use(cfg *Config) { cfg.Logger = slog.New(slog.NewTextHandler(k, nil)) }

func TestUnclaimedSocketsAreServedUntilRelease(t *testing.T) {
	c := newChain(t)
	path := filepath.Join(filepath.Dir(c.socket), "u")
	var books [3]book
	one := c.start("one", probation, books[0].use)
	kept, dropped, local := c.listen(one, "tcp", "127.0.0.1:0"), c.listen(one, "tcp", "127.0.0.2:0"), c.listen(one, "unix", path)
	for _, ln := range []net.Listener{kept, dropped, local} {
		greet(one, ln)
	}
	c.ready(one)
	serves := func(want ...string) {
		t.Helper()
		require.Equal(t, want, []string{asked(t, kept.Addr()), asked(t, dropped.Addr()), asked(t, local.Addr())})
	}

	names := []string{"tcp 127.0.0.2:0 (" + dropped.Addr().String() + ")", "unix " + path}
	for i := range 2 {
		two := c.start("two", books[1+i].use)
		greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
		require.Empty(t, two.Unclaimed(), "it may still ask for them")
		c.ready(two)
		serves(fmt.Sprint(two.Generation()), "1", "1")
		require.Equal(t, names, two.Unclaimed())
		s, err := c.client().Status(c.ctx)
		require.NoError(t, err)
		require.Equal(t, names, s.Generations[0].Unclaimed)
		sockets, err := c.client().Sockets(c.ctx)
		require.NoError(t, err)
		states := map[string]string{}
		for _, s := range sockets {
			states[s.Address] = s.State
		}
		require.Equal(t, map[string]string{kept.Addr().String(): "parked", dropped.Addr().String(): "unclaimed", path: "unclaimed"}, states)
		for _, k := range []*book{&books[0], &books[1+i]} {
			require.Contains(t, k.String(), dropped.Addr().String())
			require.Contains(t, k.String(), "unclaimed=")
		}
		if i > 0 {
			break
		}
		// Taken back, everything is served here again, and is offered again.
		_, err = c.client().Rollback(c.ctx)
		require.NoError(t, err)
		<-two.Done()
		serves("1", "1", "1")
		s, err = c.client().Status(c.ctx)
		require.NoError(t, err)
		require.Empty(t, s.Generations[0].Unclaimed)
		two.Close()
	}

	one.Stop()
	c.wait(one)
	require.Equal(t, "3", asked(t, kept.Addr()))
	for _, ln := range []net.Listener{dropped, local} {
		_, err := ask(ln.Addr())
		if ln == local {
			require.ErrorIs(t, err, os.ErrNotExist, "the file is removed")
			continue
		}
		require.ErrorIs(t, err, unix.ECONNREFUSED)
	}
}

// A successor that is gone before it served leaves no mark.
func TestUnclaimedIsForgottenWithTheSuccessor(t *testing.T) {
	c := newChain(t)
	_, ln := c.serve("one")
	two := c.start("two", mode(Standby), noClaim)
	go two.Ready(c.ctx)
	c.reach(two, StateStandby)
	unclaimed := func() []string {
		s, err := c.client().Status(c.ctx)
		require.NoError(t, err)
		return s.Generations[0].Unclaimed
	}
	c.until("it is reported", func() bool { return len(unclaimed()) == 1 })
	require.NoError(t, two.Close())
	c.until("it is forgotten", func() bool { return len(unclaimed()) == 0 })
	require.Equal(t, "1", asked(t, ln.Addr()))
}

// The incumbent goes on opening sockets while a standby waits; what the standby
// was not offered is served here until release, and then closed visibly.
func TestSocketsOpenedBehindTheStandby(t *testing.T) {
	c := newChain(t)
	path := filepath.Join(filepath.Dir(c.socket), "u")
	one := c.start("one", probation)
	c.ready(one)
	two := c.start("two", mode(Standby))
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)

	late, file := c.listen(one, "tcp", "127.0.0.1:0"), c.listen(one, "unix", path)
	greet(one, late)
	greet(one, file)
	_, err := c.client().Handover(c.ctx, "")
	require.NoError(t, err)
	require.NoError(t, <-ready)
	require.Equal(t, "1", asked(t, late.Addr()), "nobody else has it")
	require.Equal(t, "1", asked(t, file.Addr()))
	// Also in probation.
	later := c.listen(one, "tcp", "127.0.0.1:0")
	greet(one, later)
	require.Equal(t, "1", asked(t, later.Addr()))

	one.Stop()
	c.wait(one)
	for _, a := range []net.Addr{late.Addr(), later.Addr()} {
		_, err = ask(a)
		require.ErrorIs(t, err, unix.ECONNREFUSED)
	}
	_, err = os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestUnixListenerKeepsItsFile(t *testing.T) {
	c := newChain(t)
	path := filepath.Join(filepath.Dir(c.socket), "u")
	var first fileID
	var prev *Process
	for i := range 5 {
		p := c.start(fmt.Sprint(i + 1))
		ln := c.listen(p, "unix", path)
		greet(p, ln)
		c.ready(p)
		if prev != nil {
			c.wait(prev)
		}
		id, isSocket, err := identify(path)
		require.NoError(t, err)
		require.True(t, isSocket)
		if i == 0 {
			first = id
		}
		require.Equal(t, first, id)
		require.Equal(t, fmt.Sprint(i+1), asked(t, ln.Addr()))
		prev = p
	}
	prev.Stop()
	c.wait(prev)
	_, err := os.Lstat(path)
	require.ErrorIs(t, err, os.ErrNotExist)
}

func TestUnixFileOfSomebodyElseStays(t *testing.T) {
	c := newChain(t)
	path := filepath.Join(filepath.Dir(c.socket), "u")
	one := c.start("one")
	c.listen(one, "unix", path)
	c.ready(one)
	two := c.start("two")
	c.listen(two, "unix", path)
	c.ready(two)
	c.wait(one)

	other, err := net.Listen("unix", path+".new")
	require.NoError(t, err)
	defer other.Close()
	require.NoError(t, os.Rename(path+".new", path))
	two.Stop()
	c.wait(two)
	conn, err := net.Dial("unix", path)
	require.NoError(t, err)
	require.NoError(t, conn.Close())
	require.NoError(t, os.Remove(path))
}

// Nobody waits in the queue of a process that does not serve.
func TestFreshListenerOfAStandbyRefuses(t *testing.T) {
	c := newChain(t)
	path := filepath.Join(filepath.Dir(c.socket), "u")
	one := c.start("one")
	c.ready(one)
	two := c.start("two", mode(Standby))
	fresh := []net.Listener{c.listen(two, "tcp", "127.0.0.1:0"), c.listen(two, "tcp6", "[::1]:0"), c.listen(two, "unix", path)}
	group, err := two.ListenGroup(c.ctx, Socket{Network: "tcp", Address: "127.0.0.1:0"}, 2)
	require.NoError(t, err)
	fresh = append(fresh, group...)
	ready := make(chan error, 1)
	refused := func() {
		t.Helper()
		for _, ln := range fresh {
			_, err := ask(ln.Addr())
			require.ErrorIs(t, err, unix.ECONNREFUSED, ln.Addr())
		}
	}
	for _, ln := range fresh {
		greet(two, ln)
	}
	refused()
	go func() { ready <- two.Ready(c.ctx) }()
	c.reach(two, StateStandby)
	refused()
	_, err = c.client().Handover(c.ctx, "")
	require.NoError(t, err)
	require.NoError(t, <-ready)
	for _, ln := range fresh {
		require.Equal(t, "2", asked(t, ln.Addr()))
	}
	c.wait(one)
}

// O_NONBLOCK belongs to the open file description that both processes share.
func TestNonblockStays(t *testing.T) {
	c := newChain(t)
	one := c.start("one", probation)
	tcp, local := c.listen(one, "tcp", "127.0.0.1:0"), c.listen(one, "unix", filepath.Join(filepath.Dir(c.socket), "u"))
	udp, err := one.ListenPacket(c.ctx, "udp", "127.0.0.1:0")
	require.NoError(t, err)
	c.ready(one)
	check := func(when string) {
		t.Helper()
		for _, end := range []any{tcp, local, udp} {
			require.True(t, socketOf(t, one, end).nonblock, when)
		}
	}
	claim := func(p *Process) {
		c.listen(p, "tcp", "127.0.0.1:0")
		c.listen(p, "unix", local.Addr().String())
		_, err := p.ListenPacket(c.ctx, "udp", "127.0.0.1:0")
		require.NoError(t, err)
	}
	check("at first")
	failed := c.start("fails")
	claim(failed)
	require.NoError(t, failed.Close())
	check("after a failure")
	back := c.start("is taken back")
	claim(back)
	c.ready(back)
	check("in probation")
	_, err = c.client().Rollback(c.ctx)
	require.NoError(t, err)
	<-back.Done()
	back.Close()
	check("after a take-back")
	two := c.start("two")
	tcp2 := c.listen(two, "tcp", "127.0.0.1:0")
	c.ready(two)
	one.Stop()
	c.wait(one)
	require.True(t, socketOf(t, two, tcp2).nonblock, "after a handoff")
	// Interruptible: an Accept that blocked in the kernel would keep Wait from ending.
	accepted := make(chan error, 1)
	go func() { _, err := tcp2.Accept(); accepted <- err }()
	two.Stop()
	c.wait(two)
	select {
	case err := <-accepted:
		require.ErrorIs(t, err, net.ErrClosed)
	case <-time.After(10 * time.Second):
		t.Fatal("Accept still blocks")
	}
}

// Several services in one program do not know of each other.
func TestSeveralProcessesAtOnce(t *testing.T) {
	var wg sync.WaitGroup
	var chains []*chain
	for range 4 {
		chains = append(chains, newChain(t))
	}
	for i, c := range chains {
		wg.Go(func() {
			var prev *Process
			for v := range 3 {
				p, err := Start(c.ctx, c.config(fmt.Sprintf("service %d version %d", i, v)))
				if err != nil {
					t.Error(err)
					return
				}
				defer p.Close()
				ln, err := p.Listen(c.ctx, "tcp", "127.0.0.1:0")
				if err != nil {
					t.Error(err)
					return
				}
				greet(p, ln)
				if err := p.Ready(c.ctx); err != nil {
					t.Error(err)
					return
				}
				if got, err := ask(ln.Addr()); err != nil || got != fmt.Sprint(v+1) || p.Generation() != uint64(v+1) {
					t.Errorf("service %d is answered by %q (%v), version %d has generation %d", i, got, err, v, p.Generation())
				}
				if prev != nil {
					if _, err := prev.Wait(c.ctx); err != nil {
						t.Error(err)
					}
				}
				prev = p
			}
		})
	}
	wg.Wait()
}

// tcpListeners returns the inodes of the sockets that listen at a in this
// network namespace, whoever holds them.
func tcpListeners(t testing.TB, a net.Addr) []string {
	t.Helper()
	b, err := os.ReadFile("/proc/self/net/tcp")
	require.NoError(t, err)
	port := fmt.Sprintf(":%04X", a.(*net.TCPAddr).Port)
	var inodes []string
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		const listening = "0A"
		if len(f) > 9 && strings.HasSuffix(f[1], port) && f[3] == listening {
			inodes = append(inodes, f[9])
		}
	}
	slices.Sort(inodes)
	return inodes
}
