package handoff

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"github.com/fdhandoff/handoff/internal/leak"
)

// lab is a network of its own, that of the process which runs the test. It is the
// outside: the machine, with clients on it. Inside are namespaces such as containers
// have, each with an eth0 that is the other end of a veth pair.
type lab struct {
	*chain
	t *testing.T
}

// Addresses of both ends of the first pair.
const (
	outsideAddress = "10.9.0.1"
	insideAddress  = "10.9.0.2"
)

// inLab runs the test again as a process with network and mount namespaces of its
// own, as root: what it makes ends with it. With the role inside it is a version of
// the service that somebody has started in a namespace inside.
func inLab(t *testing.T, play func(l *lab)) {
	if inChild(t, func(role string) {
		c := newChain(t).moveTo(filepath.Join(os.Getenv(pathVariable), "run"))
		if role == "inside" {
			c.liveInside()
			return
		}
		require.NoError(t, unix.Mount("tmpfs", "/run", "tmpfs", 0, "")) // for the names of namespaces
		l := &lab{c, t}
		l.ip("link set lo up")
		play(l)
		fmt.Println("done it")
	}) {
		return
	}
	needRoot(t)
	dir := socketDir(t)
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.Mkdir(filepath.Join(dir, "run"), 0o700))
	otherProcess(t, dir, func(a *syscall.SysProcAttr) { a.Unshareflags = syscall.CLONE_NEWNET | syscall.CLONE_NEWNS })
}

// ip runs iproute2.
func (l *lab) ip(args string) {
	l.t.Helper()
	out, err := exec.Command("ip", strings.Fields(args)...).CombinedOutput()
	require.NoError(l.t, err, "ip %s: %s", args, out)
}

// container makes a namespace with that name, and its network.
func (l *lab) container(name string) {
	l.t.Helper()
	runtime.LockOSThread()
	home, err := netns.Get()
	require.NoError(l.t, err)
	defer home.Close()
	away, err := netns.NewNamed(name)
	require.NoError(l.t, err)
	require.NoError(l.t, away.Close())
	require.NoError(l.t, netns.Set(home))
	runtime.UnlockOSThread()
	l.ip("-n " + name + " link set lo up")
	l.wire(name)
}

// wire gives the namespace its eth0, as a container runtime does.
func (l *lab) wire(name string) {
	l.t.Helper()
	l.ip("link add to-" + name + " type veth peer name eth0 netns " + name)
	l.ip("addr add " + outsideAddress + "/24 dev to-" + name)
	l.ip("link set to-" + name + " up")
	l.ip("-n " + name + " addr add " + insideAddress + "/24 dev eth0")
	l.ip("-n " + name + " link set eth0 up")
}

// unwire takes the network away, as a container runtime does.
func (l *lab) unwire(name string) {
	l.t.Helper()
	l.ip("link del to-" + name)
}

// inside runs f where new sockets are made in the namespace.
func (l *lab) inside(name string, f func() error) {
	l.t.Helper()
	require.NoError(l.t, onLostThread(func() error {
		to, err := netns.GetFromName(name)
		if err != nil {
			return err
		}
		defer to.Close()
		return errors.Join(netns.Set(to), f())
	}))
}

// run starts a version of the service in the namespace, as whoever change says, and
// waits until it serves.
func (l *lab) run(name string, change ...func(*exec.Cmd)) *child {
	l.t.Helper()
	exe, err := os.Executable()
	require.NoError(l.t, err)
	cmd := childCommand(l.t, "inside")
	cmd.Path, cmd.Dir = exe, "/"
	for _, f := range change {
		f(cmd)
	}
	var c *child
	l.inside(name, func() error {
		c = startChild(l.t, cmd)
		return nil
	})
	c.expect("serves")
	return c
}

// liveInside is a process that serves, and leaves when it has handed over.
func (c *chain) liveInside() {
	p := c.start("inside", func(cfg *Config) { cfg.AllowUIDs = []uint32{uint32(overflowUID)} })
	c.service(p)
	c.ready(p)
	fmt.Println("serves it")
	r := c.wait(p)
	fmt.Println("left", r.Reason)
	waitForEnd()
}

// service is what every version serves: it says its generation.
func (c *chain) service(p *Process) {
	c.t.Helper()
	web, err := p.ListenSocket(c.ctx, Socket{Name: "web", Network: "tcp", Address: ":8080"})
	require.NoError(c.t, err)
	c.serveOn(p, web, &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, p.Generation()) })})
	dns, err := p.ListenPacketSocket(c.ctx, Socket{Name: "dns", Network: "udp", Address: ":8053"})
	require.NoError(c.t, err)
	sayNumber(p, dns)
	file, err := p.ListenSocket(c.ctx, Socket{Name: "file", Network: "unix", Address: c.socket + ".file"})
	require.NoError(c.t, err)
	greet(p, file)
}

// sayNumber answers each datagram with the generation.
func sayNumber(p *Process, pc net.PacketConn) {
	go func() {
		for b := make([]byte, 100); ; {
			_, from, err := pc.ReadFrom(b)
			if err != nil {
				return
			}
			fmt.Fprint(addressed{pc, from}, p.Generation())
		}
	}()
}

type addressed struct {
	net.PacketConn
	to net.Addr
}

func (a addressed) Write(b []byte) (int, error) { return a.WriteTo(b, a.to) }

// browser is a client's keep-alive connection.
type browser struct {
	t testing.TB
	net.Conn
	r *bufio.Reader
}

func (l *lab) browse() *browser {
	l.t.Helper()
	nc, err := net.DialTimeout("tcp", insideAddress+":8080", 5*time.Second)
	require.NoError(l.t, err)
	l.t.Cleanup(func() { nc.Close() })
	return &browser{l.t, nc, bufio.NewReader(nc)}
}

func (b *browser) get() string {
	b.t.Helper()
	require.NoError(b.t, b.SetDeadline(time.Now().Add(5*time.Second)))
	_, err := io.WriteString(b, nextRequest)
	require.NoError(b.t, err)
	resp, err := http.ReadResponse(b.r, nil)
	require.NoError(b.t, err)
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	require.NoError(b.t, err)
	return string(text)
}

// resolve asks by UDP.
func (l *lab) resolve(port int) string {
	l.t.Helper()
	uc, err := net.DialUDP("udp", nil, &net.UDPAddr{IP: net.ParseIP(insideAddress), Port: port})
	require.NoError(l.t, err)
	defer uc.Close()
	require.NoError(l.t, uc.SetDeadline(time.Now().Add(5*time.Second)))
	_, err = uc.Write([]byte("?"))
	require.NoError(l.t, err)
	b := make([]byte, 100)
	n, err := uc.Read(b)
	require.NoError(l.t, err)
	return string(b[:n])
}

func tcpAddr(host string, port int) net.Addr { return &net.TCPAddr{IP: net.ParseIP(host), Port: port} }

func (c *chain) info(name string) SocketInfo {
	c.t.Helper()
	all, err := c.client().Sockets(c.ctx)
	require.NoError(c.t, err)
	for _, s := range all {
		if s.Name == name {
			return s
		}
	}
	require.Fail(c.t, "no socket", name)
	return SocketInfo{}
}

func foreignAllowed(cfg *Config) { cfg.AllowForeignNetns = true }

// A service that lives in a container's network is taken over by versions outside of
// it, and by one in it again.
func TestRootForeignNetwork(t *testing.T) {
	inLab(t, func(l *lab) {
		l.container("a")
		one := l.run("a")
		client := l.browse()
		require.Equal(t, "1", client.get())

		// Refused, and both sides say why.
		_, err := Start(l.ctx, l.config("two"))
		require.ErrorIs(t, err, ErrForeignNetns)
		l.until("the incumbent has heard it", func() bool { return l.status().Last != nil })
		last := l.status().Last
		require.Equal(t, []string{OutcomeFailed, "foreign_netns"}, []string{last.Outcome, last.Reason})
		require.Equal(t, "1", client.get(), "nothing has changed")

		// Accepted: it serves what lives there, with the connections that were open.
		var log book
		three := l.start("three", foreignAllowed, log.use)
		require.Equal(t, 1, strings.Count(log.String(), "sockets live in another network namespace"), log.String())
		require.Contains(t, log.String(), "tcp web ([::]:8080) udp dns ([::]:8053)]")
		l.service(three)
		l.ready(three)
		one.expect("left")
		one.end()
		l.until("the idle connection came", func() bool { return three.adopted.Load() == 1 })
		require.Equal(t, "3", client.get(), "over the connection that the first version accepted")
		require.Equal(t, "3", l.browse().get())
		require.Equal(t, "3", l.resolve(8053))
		require.Equal(t, "3", asked(t, &net.UnixAddr{Name: l.socket + ".file", Net: "unix"}))
		_, err = ask(tcpAddr(outsideAddress, 8080))
		require.ErrorIs(t, err, unix.ECONNREFUSED, "nothing listens here")

		// Further ones belong to the others.
		greet(three, l.listen(three, "tcp", ":8081"))
		group, err := three.ListenGroup(l.ctx, Socket{Network: "tcp4", Address: ":8082"}, 2)
		require.NoError(t, err)
		for _, ln := range group {
			greet(three, ln)
		}
		packets, err := three.ListenPacketGroup(l.ctx, Socket{Network: "udp", Address: insideAddress + ":8054"}, 2)
		require.NoError(t, err, "an address that only they have")
		for _, pc := range packets {
			sayNumber(three, pc)
		}
		for _, port := range []int{8081, 8082} {
			require.Equal(t, "3", asked(t, tcpAddr(insideAddress, port)))
			_, err = ask(tcpAddr(outsideAddress, port))
			require.ErrorIs(t, err, unix.ECONNREFUSED)
		}
		require.Equal(t, "3", l.resolve(8054))
		own, err := ownNetns()
		require.NoError(t, err)
		for _, name := range []string{"web", "dns", ":8081", ":8082", insideAddress + ":8054"} {
			s := l.info(name)
			require.True(t, s.Foreign, name)
			require.Equal(t, l.info("web").Netns, s.Netns)
			require.NotEqual(t, own, s.Netns)
		}
		file := l.info("file")
		require.Equal(t, []any{false, uint64(0)}, []any{file.Foreign, file.Netns}, "a Unix socket is reached by its path")
		require.Equal(t, 7, l.status().Generations[0].Foreign)

		// And again, from here to here: all of it is inherited.
		four := l.start("four", foreignAllowed)
		l.service(four)
		greet(four, l.listen(four, "tcp", ":8081"))
		l.ready(four)
		l.wait(three)
		require.Equal(t, "inherited", l.info(":8081").State)
		require.Equal(t, []string{"4", "4"}, []string{client.get(), asked(t, tcpAddr(insideAddress, 8081))})

		// To a version that lives there they are its own.
		five := l.run("a")
		l.wait(four)
		require.Equal(t, "5", client.get())
		st := l.status()
		require.EqualValues(t, 5, st.Generation)
		require.Zero(t, st.Generations[0].Foreign)
		require.False(t, l.info("web").Foreign)
		_, err = l.client().Stop(l.ctx)
		require.NoError(t, err)
		five.expect("left")
		five.end()
	})
}

// abroad makes a first version whose sockets live in the namespace, and one here that
// has taken over.
func (l *lab) abroad(name string, open func(*Process), change ...func(*Config)) *Process {
	l.t.Helper()
	one := l.start("one")
	l.inside(name, func() error { open(one); return nil })
	l.ready(one)
	two := l.start("two", append(change, foreignAllowed)...)
	open(two)
	l.ready(two)
	l.wait(one)
	return two
}

// A spare lets go of everything and is filled anew: what it opened itself goes back to
// where the others live.
func TestRootSpareInAForeignNetwork(t *testing.T) {
	inLab(t, func(l *lab) {
		l.container("a")
		web := func(p *Process) { greet(p, l.listen(p, "tcp", ":8080")) }
		two := l.abroad("a", web)
		var log book
		spare := l.start("spare", foreignAllowed, mode(Spare), log.use)
		web(spare)
		greet(spare, l.listen(spare, "tcp", ":8081"))
		ready := make(chan error, 1)
		go func() { ready <- spare.Ready(l.ctx) }()
		l.reach(spare, StateStandby)

		four := l.start("four", foreignAllowed)
		web(four)
		l.ready(four)
		l.wait(two)
		l.until("it is back", func() bool { return strings.Count(log.String(), "sockets live in another network namespace") == 2 })
		l.reach(spare, StateStandby)
		four.Stop() // hands over to it
		require.NoError(t, <-ready)
		l.wait(four)
		n := fmt.Sprint(spare.Generation())
		require.Equal(t, []string{n, n}, []string{asked(t, tcpAddr(insideAddress, 8080)), asked(t, tcpAddr(insideAddress, 8081))})
		_, err := ask(tcpAddr(outsideAddress, 8081))
		require.ErrorIs(t, err, unix.ECONNREFUSED)
	})
}

// The end of a container's network is noticed, where the kernel reports no error.
func TestRootNetworkGone(t *testing.T) {
	inLab(t, func(l *lab) {
		noticed := func(p *Process, sockets int) {
			l.t.Helper()
			l.until("noticed", func() bool { return len(p.NetworkGone()) == sockets })
			p.ask(func() {}) // until it has said so, too
		}
		l.container("a")
		l.ip("-n a addr add 10.9.0.3/24 dev eth0")
		var log book
		two := l.abroad("a", func(p *Process) {
			greet(p, l.listen(p, "tcp", ":8080"))
			greet(p, l.listen(p, "tcp", insideAddress+":8081"))
			greet(p, l.listen(p, "tcp", "10.9.0.3:8081"))
			greet(p, l.listen(p, "tcp", "127.0.0.1:8082"))
		}, log.use)
		require.Equal(t, "2", asked(t, tcpAddr(insideAddress, 8080)))
		require.Empty(t, two.NetworkGone())

		// One address: what is bound to it.
		l.ip("-n a addr del 10.9.0.3/24 dev eth0")
		noticed(two, 1)
		require.Equal(t, []string{"tcp 10.9.0.3:8081"}, two.NetworkGone())
		require.Equal(t, "10.9.0.3 is on no interface there", l.info("10.9.0.3:8081").NetworkGone)
		require.Equal(t, "2", asked(t, tcpAddr(insideAddress, 8081)))

		// All of it, with nothing that fails.
		st := l.status()
		l.unwire("a")
		noticed(two, 4)
		require.Equal(t, StateServing, two.State())
		_, err := net.DialTimeout("tcp", insideAddress+":8080", 100*time.Millisecond)
		require.Error(t, err)
		require.Contains(t, log.String(), `level=ERROR msg="the network of sockets is gone: clients do not reach them any more"`)
		require.Contains(t, log.String(), `reason="no interface there is up but loopback"`)
		now := l.status()
		require.Len(t, now.Generations[0].NetworkGone, 4)
		require.Equal(t, 4, now.Generations[0].Foreign)
		require.NotEqual(t, st.Revision, now.Revision, "who watches is told")

		// A successor inherits that, and knows.
		var log3 book
		three := l.start("three", foreignAllowed, log3.use)
		for _, address := range []string{":8080", insideAddress + ":8081", "10.9.0.3:8081", "127.0.0.1:8082"} {
			greet(three, l.listen(three, "tcp", address))
		}
		l.ready(three)
		l.wait(two)
		noticed(three, 4)

		// And back.
		l.wire("a")
		noticed(three, 1)
		require.Equal(t, []string{"tcp 10.9.0.3:8081"}, three.NetworkGone())
		require.Contains(t, log3.String(), `level=INFO msg="the network of sockets is back"`)
		require.Equal(t, "3", asked(t, tcpAddr(insideAddress, 8080)))

		// The other end is down: it has no carrier.
		l.ip("link set to-a down")
		noticed(three, 4)
		require.Equal(t, "no interface there has a carrier", l.info(":8080").NetworkGone)
		require.Equal(t, 2, strings.Count(log3.String(), "level=ERROR"), "said once each time:\n%s", log3.String())
	})
}

// A packet socket may be bound to a broadcast address, which no interface has.
func TestRootNetworkOfBroadcasts(t *testing.T) {
	inLab(t, func(l *lab) {
		l.container("a")
		one := l.start("one")
		defer one.Close()
		l.inside("a", func() error {
			for _, address := range []string{"10.9.0.255:8053", "255.255.255.255:8053"} {
				pc, err := one.ListenPacket(l.ctx, "udp", address)
				require.NoError(t, err)
				sayNumber(one, pc)
			}
			return nil
		})
		gone := func() (all []string) {
			for _, s := range one.sockets.claimed {
				n, err := s.d.network()
				require.NoError(t, err)
				if why := n.gone(s.item.Local, true, 0); why != "" {
					all = append(all, why)
				}
			}
			return all
		}
		require.Empty(t, gone())
		l.ip("-n a addr add 10.9.1.2/31 dev eth0")
		l.ip("-n a addr del " + insideAddress + "/24 dev eth0")
		require.Equal(t, []string{"10.9.0.255 is on no interface there"}, gone())
	})
}

// What has no IPv4 address can't be listed.
func TestRootNetworkOfIPv6(t *testing.T) {
	inLab(t, func(l *lab) {
		l.container("a")
		l.ip("-n a addr del " + insideAddress + "/24 dev eth0")
		l.ip("-n a link set eth0 down")
		l.ip("-n a link set eth0 name net7")
		l.ip("-n a addr add fd00:9::2/64 dev net7 nodad")
		l.ip("addr add fd00:9::1/64 dev to-a nodad")
		l.ip("-n a link set net7 up")
		two := l.abroad("a", func(p *Process) { greet(p, l.listen(p, "tcp", "[fd00:9::2]:8080")) })
		require.Equal(t, "2", asked(t, tcpAddr("fd00:9::2", 8080)))
		two.lookAtNetworks()
		require.Empty(t, two.NetworkGone())
		l.unwire("a")
		l.until("noticed", func() bool { return len(two.NetworkGone()) == 1 })
	})
}

// A namespace that never led outside is not missed, and is not a network that has gone.
func TestRootNetworkOfLoopback(t *testing.T) {
	inLab(t, func(l *lab) {
		l.container("a")
		l.unwire("a")
		two := l.abroad("a", func(p *Process) {
			greet(p, l.listen(p, "tcp", ":8080"))
			greet(p, l.listen(p, "tcp", "127.0.0.2:8081"))
		})
		two.lookAtNetworks()
		require.Empty(t, two.NetworkGone())
		for _, a := range []net.Addr{tcpAddr("127.0.0.1", 8080), tcpAddr("127.0.0.2", 8081)} {
			l.inside("a", func() error {
				text, err := ask(a)
				require.Equal(t, "2", text)
				return err
			})
		}
	})
}

// The name of a namespace is nothing to those who have a socket there.
func TestRootNamespaceDeleted(t *testing.T) {
	inLab(t, func(l *lab) {
		l.container("a")
		two := l.abroad("a", func(p *Process) { greet(p, l.listen(p, "tcp", ":8080")) })
		require.NoError(t, netns.DeleteNamed("a"))
		_, err := netns.GetFromName("a")
		require.ErrorIs(t, err, os.ErrNotExist)
		greet(two, l.listen(two, "tcp", ":8081"))
		for _, port := range []int{8080, 8081} {
			require.Equal(t, "2", asked(t, tcpAddr(insideAddress, port)))
		}
		two.lookAtNetworks()
		require.Empty(t, two.NetworkGone())
	})
}

// The watch ends with the last socket that needs it, and begins again.
func TestRootNetworksAreWatchedWhileNeeded(t *testing.T) {
	inLab(t, func(l *lab) {
		l.container("a")
		var ln net.Listener
		two := l.abroad("a", func(p *Process) {
			ln = l.listen(p, "tcp", ":8080")
			greet(p, ln)
		})
		watched := func() (yes bool) {
			two.ask(func() { yes = two.watching })
			return yes
		}
		require.True(t, watched())
		more := l.listen(two, "tcp", ":8081")
		require.NoError(t, ln.Close())
		two.lookAtNetworks()
		require.True(t, watched(), "there is another")
		require.NoError(t, more.Close())
		l.until("it has ended", func() bool { return !watched() })
		l.listen(two, "tcp", ":8080")
		require.Empty(t, l.info(":8080").Foreign, "nothing says that it belonged elsewhere")
		require.False(t, watched())
	})
}

// A process without privileges serves what it inherits, and opens nothing here that
// belongs there.
func TestRootForeignNetworkWithoutPrivileges(t *testing.T) {
	if inChildOf(t, "outside", func() {
		c := newChain(t).moveTo(filepath.Join(os.Getenv(pathVariable), "run"))
		two := c.start("two", foreignAllowed)
		c.service(two)
		for network, address := range map[string]string{"tcp": ":8081", "tcp4": "127.0.0.1:0"} {
			_, err := two.Listen(c.ctx, network, address)
			require.ErrorIs(t, err, ErrPermission)
			require.ErrorIs(t, err, unix.EPERM)
			require.ErrorContains(t, err, "CAP_NET_ADMIN")
			require.ErrorContains(t, err, "listen only on what is inherited")
		}
		_, err := two.ListenPacket(c.ctx, "udp", ":8055")
		require.ErrorContains(t, err, "CAP_NET_ADMIN")
		greet(two, c.listen(two, "unix", c.socket+".more")) // by its path, as always
		c.ready(two)
		_, err = net.Listen("tcp", ":8081")
		require.NoError(t, err, "nothing was opened here")
		fmt.Println("serves it")
		waitForEnd()
	}) {
		return
	}
	inLab(t, func(l *lab) {
		l.container("a")
		run := filepath.Dir(l.socket)
		require.NoError(t, os.Chown(run, overflowUID, overflowUID))
		nobody := func(cmd *exec.Cmd) {
			cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uint32(overflowUID), Gid: uint32(overflowUID)}}
		}
		one := l.run("a", nobody)
		cmd := childCommand(t, "outside")
		cmd.Dir = "/"
		nobody(cmd)
		two := startChild(t, cmd)
		two.expect("serves")
		one.expect("left")
		one.end()
		require.Equal(t, "2", l.browse().get())
		two.end()
	})
}

// inChildOf is inChild for one role of several.
func inChildOf(t *testing.T, want string, play func()) bool {
	t.Helper()
	if os.Getenv(roleVariable) != want {
		return false
	}
	return inChild(t, func(string) { play() })
}

// With sockets of several namespaces it can't be told where another one belongs; with
// one of this one, it can.
func TestRootWhereFurtherSocketsBelong(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		name   string
		away   int  // namespaces that sockets come from
		own    bool // and from this one
		unix   bool
		refuse bool
		here   bool
	}{
		{name: "one namespace", away: 1},
		{name: "two", away: 2, refuse: true},
		{name: "two, for a unix socket", away: 2, unix: true, here: true},
		{name: "one, and this one", away: 1, own: true, here: true},
		{name: "two, and this one", away: 2, own: true, here: true},
		{name: "this one", own: true, here: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := newSquatter(t)
			if !tc.own {
				q.batch.Sockets, q.fds = q.batch.Sockets[:1], q.fds[:1]
			}
			var cookies []uint64
			for i := range tc.away {
				d := q.foreign("tcp", "0.0.0.0:0")
				cookies = append(cookies, q.facts(d).cookie)
				q.offer(manifestItem{Name: fmt.Sprint("away", i), Kind: kindStream, Network: "tcp"}, d)
			}
			r, got := q.meet(foreignAllowed)
			q.send(r)
			v := <-got
			require.NoError(t, v.err)
			defer v.p.Close()
			network, address := "tcp", ":0"
			if tc.unix {
				network, address = "unix", q.socket+".more"
			}
			_, err := v.p.Listen(q.ctx, network, address)
			if tc.refuse {
				require.ErrorContains(t, err, "which of 2 other network namespaces")
				for i, cookie := range cookies {
					require.ErrorContains(t, err, fmt.Sprintf("tcp away%d ([::]:%d) in namespace %d", i, q.facts(q.fds[1+i]).addr.(*net.TCPAddr).Port, cookie))
				}
				return
			}
			require.NoError(t, err)
			s := v.p.sockets.claimed[0]
			require.Equal(t, !tc.here, s.foreign)
			if !tc.here {
				require.Equal(t, cookies[0], s.netns)
				facts := q.facts(s.d)
				require.Equal(t, cookies[0], facts.cookie)
			}
		})
	}
}

// A group is one address: its missing members are opened where it lives, wherever
// other sockets of the service do.
func TestRootGroupStaysInItsNetwork(t *testing.T) {
	needRoot(t)
	q := newSquatter(t) // with a socket of this namespace
	for _, name := range []string{"one", "two"} {
		q.offer(manifestItem{Name: name, Kind: kindStream, Network: "tcp", Asked: ":0"}, q.foreignMember("tcp", ":0", true))
	}
	r, got := q.meet(foreignAllowed)
	q.send(r)
	v := <-got
	require.NoError(t, v.err)
	defer v.p.Close()
	for i, name := range []string{"one", "two"} {
		_, err := v.p.ListenGroup(q.ctx, Socket{Name: name, Network: "tcp", Address: ":0"}, 3)
		require.NoError(t, err)
		there := q.facts(q.fds[2+i])
		for _, s := range v.p.sockets.claimed[3*i:] {
			facts := q.facts(s.d)
			require.Equal(t, there.cookie, facts.cookie)
			require.Equal(t, there.addr, facts.addr)
			require.True(t, s.foreign)
		}
	}
	ln, err := v.p.Listen(q.ctx, "tcp", ":0")
	require.NoError(t, err)
	require.NotNil(t, ln)
	require.False(t, v.p.sockets.claimed[6].foreign, "what is no member belongs here")
}

// Opening sockets elsewhere changes no thread that goes on.
func TestRootThreadsStayWhereTheyAre(t *testing.T) {
	needRoot(t)
	leak.CheckExact(t)
	q := newSquatter(t)
	away := q.foreign("tcp", "0.0.0.0:0")
	namespaces := func() map[string]bool {
		all := map[string]bool{}
		links, err := filepath.Glob("/proc/self/task/*/ns/net")
		require.NoError(t, err)
		for _, link := range links {
			if to, err := os.Readlink(link); err == nil { // a thread that ends
				all[to] = true
			}
		}
		return all
	}
	main, err := os.Readlink(fmt.Sprintf("/proc/self/task/%d/ns/net", os.Getpid()))
	require.NoError(t, err)
	var work sync.WaitGroup
	for range 8 {
		work.Go(func() {
			for range 20 {
				d, _, err := bindSocket(context.Background(), "tcp", ":0", false, away)
				if err != nil {
					t.Error(err)
					return
				}
				d.Close()
			}
		})
	}
	work.Wait()
	// Those that made sockets there end a moment later, as may some of the test before.
	q.until("all threads are where the main one is", func() bool {
		all := namespaces()
		return len(all) == 1 && all[main]
	})
}

// The main thread would stay where a socket was made. A goroutine often begins on it
// where the one that begins it runs there, and waits. In a process of its own: where
// signals were asked for, os/signal may wait for the next one on the main thread.
func TestLostThreadIsNotTheMainOne(t *testing.T) {
	if !inChild(t, func(string) { tryLostThreads(t) }) {
		out, err := childCommand(t, "alone").CombinedOutput()
		require.NoError(t, err, "%s", out)
		require.Contains(t, string(out), "--- PASS: "+t.Name())
	}
}

func tryLostThreads(t *testing.T) {
	onMain := func() bool { return unix.Gettid() == os.Getpid() }
	began := 0 // other goroutines that began there
	all := make(chan error)
	done := make(chan struct{})
	var held sync.WaitGroup
	defer held.Wait()
	defer close(done)
	// Each holds a thread, until one has got the main one. What comes through a pipe
	// wakes that, too, where it waits in the poller.
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	defer w.Close()
	hold := func() {
		if _, err := r.Read(make([]byte, 1)); err != nil {
			all <- err
			return
		}
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		if !onMain() {
			all <- nil
			<-done
			return
		}
		runtime.UnlockOSThread()
		defer runtime.LockOSThread()
		// With one processor no other thread steals what begins.
		defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
		for range 2000 {
			other := make(chan bool)
			go func() { other <- onMain() }()
			if <-other {
				began++
			}
			var lost bool
			err := onLostThread(func() error { lost = !onMain(); return nil })
			if err == nil && !lost {
				err = errors.New("it ran on the main thread")
			}
			if err != nil {
				all <- err
				return
			}
		}
		all <- io.EOF
	}
	for range 1000 {
		held.Go(hold)
		_, err = w.Write([]byte("x"))
		require.NoError(t, err)
		if err = <-all; err != nil {
			break
		}
	}
	require.Equal(t, io.EOF, err) // nil: no goroutine had the main thread
	t.Log(began, "began there")
	require.Positive(t, began)
	want := errors.New("x")
	require.ErrorIs(t, onLostThread(func() error { return want }), want)
}

// Whoever may make a user namespace can see that a socket from there is refused, and
// what it takes to open another one there.
func TestForeignNetworkOfAUserNamespace(t *testing.T) {
	if inChild(t, func(string) {
		c := newChain(t).moveTo(os.Getenv(pathVariable))
		p := c.start("inside")
		greet(p, c.listen(p, "tcp", "0.0.0.0:0"))
		c.ready(p)
		fmt.Println("serves it")
		c.wait(p)
		waitForEnd()
	}) {
		return
	}
	c := newChain(t)
	cmd := childCommand(t, "inside", pathVariable+"="+filepath.Dir(c.socket))
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
		UidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getuid(), HostID: os.Getuid(), Size: 1}},
		GidMappings: []syscall.SysProcIDMap{{ContainerID: os.Getgid(), HostID: os.Getgid(), Size: 1}},
	}
	if os.Geteuid() != 0 {
		try := exec.CommandContext(t.Context(), cmd.Path, "-test.run=^$")
		try.SysProcAttr = cmd.SysProcAttr
		if err := try.Run(); err != nil {
			t.Skipf("no user namespace for an ordinary user here: %v", err)
		}
	}
	one := startChild(t, cmd)
	one.expect("serves")
	_, err := Start(c.ctx, c.config("two"))
	require.ErrorIs(t, err, ErrForeignNetns)

	three := c.start("three", foreignAllowed)
	greet(three, c.listen(three, "tcp", "0.0.0.0:0"))
	_, err = three.Listen(c.ctx, "tcp", ":0")
	if os.Geteuid() == 0 {
		require.NoError(t, err)
		require.True(t, three.sockets.claimed[1].foreign)
	} else {
		// Who made the namespace has CAP_NET_ADMIN over it, and setns(2) wants more.
		require.ErrorIs(t, err, ErrPermission)
		require.ErrorContains(t, err, "CAP_SYS_ADMIN")
	}
	c.ready(three)
	c.answeredBy(3, func(*Status) bool { return true })
	require.True(t, c.info("0.0.0.0:0").Foreign)
	one.end()
}
