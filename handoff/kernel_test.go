package handoff

import (
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// featureNames are the features as docs/requirements.md calls them, with the
// Linux version that brought each, where it is known.
var featureNames = [featureCount]struct{ name, since string }{
	netnsCookies:  {"SO_NETNS_COOKIE", "5.14"},
	rightsRefusal: {"SO_PASSRIGHTS", "6.16"},
	messageStamps: {"SO_TIMESTAMP", ""},
	backlogLimit:  {"/proc/sys/net/core/somaxconn", ""},
	pidfds:        {"pidfd_open(2)", "5.3"},
	peerPidfds:    {"SO_PEERPIDFD", "6.5"},
	ipv6:          {"IPv6", ""},
}

// without takes features away until the test ends.
func without(t testing.TB, all ...feature) {
	t.Helper()
	for _, k := range all {
		forcedOff.Or(1 << k)
	}
	t.Cleanup(func() { forcedOff.Store(0) })
}

// handOver takes a service with one socket of each kind, and its control socket
// and self sockets, through a handoff that is taken back, one that is not, and a
// stop. It returns the addresses that were served.
func (c *chain) handOver(t testing.TB, network, address string, look func(*Process)) []net.Addr {
	t.Helper()
	file := filepath.Join(filepath.Dir(c.socket), "application")
	begin := func(name string) (*Process, []net.Addr) {
		p := c.start(name, probation, c.withSelf(name))
		var at []net.Addr
		for _, s := range [][2]string{{network, address}, {"unix", file}} {
			ln := c.listen(p, s[0], s[1])
			greet(p, ln)
			at = append(at, ln.Addr())
		}
		packets, err := p.ListenPacket(c.ctx, "udp"+network[len("tcp"):], address)
		require.NoError(t, err)
		at = append(at, packets.LocalAddr())
		c.ready(p)
		return p, at
	}
	one, at := begin("one")
	serves := func(p *Process) {
		t.Helper()
		for _, a := range at[:2] {
			require.Equal(t, fmt.Sprint(p.Generation()), asked(t, a))
		}
	}
	serves(one)
	two, same := begin("two")
	require.Equal(t, at, same)
	serves(two)
	require.Empty(t, two.Unclaimed())
	_, err := c.client().Rollback(c.ctx)
	require.NoError(t, err)
	_, err = two.Wait(c.ctx)
	require.ErrorIs(t, err, ErrRevoked)
	serves(one)
	three, same := begin("three")
	require.Equal(t, at, same)
	one.Stop() // in probation: release now
	require.Equal(t, "handed_over", c.wait(one).Reason)
	serves(three)
	c.itself("three")
	if look != nil {
		look(three)
	}
	three.Stop()
	require.Equal(t, "stopped", c.wait(three).Reason)
	for _, path := range []string{c.socket, c.selfPath("three"), file} {
		require.NoFileExists(t, path)
	}
	return at
}

// A whole handoff works without each feature, and without all. What is lost is
// what docs/requirements.md says.
func TestHandoffWithoutFeature(t *testing.T) {
	lost := [featureCount]func(*testing.T, *chain, *Process){
		netnsCookies: func(t *testing.T, _ *chain, p *Process) {
			facts, err := p.sockets.claimed[0].d.facts()
			require.NoError(t, err)
			require.Zero(t, facts.cookie)
			own, err := ownNetns()
			require.NoError(t, err)
			require.Zero(t, own)
		},
		rightsRefusal: func(t *testing.T, c *chain, _ *Process) {
			o, err := dialOperator(c.ctx, c.socket, allow{})
			require.NoError(t, err)
			defer o.Close()
			sent := newProbe(t)
			require.NoError(t, o.c.send([]byte(`{"type":"status"}`), sent.descriptor))
			b, err := o.next(c.ctx)
			require.NoError(t, err)
			require.Contains(t, string(b), "a frame with 1 descriptors, where none belong")
			sent.requireGone(t)
		},
		messageStamps: func(t *testing.T, c *chain, _ *Process) {
			o, err := dialOperator(c.ctx, c.socket, allow{})
			require.NoError(t, err)
			defer o.Close()
			require.NoError(t, sendRaw(t, o.c, nil, nil))
			_, err = o.next(c.ctx)
			require.ErrorIs(t, err, ErrNoAnswer, "it was taken for the end")
		},
		backlogLimit: func(t *testing.T, _ *chain, _ *Process) {
			require.Equal(t, unix.SOMAXCONN, maxBacklog())
		},
		pidfds: func(t *testing.T, _ *chain, _ *Process) {
			_, err := ownPidfd()
			require.ErrorIs(t, err, unix.ENOSYS)
		},
		peerPidfds: func(t *testing.T, c *chain, _ *Process) {
			o, err := dialOperator(c.ctx, c.socket, allow{})
			require.NoError(t, err)
			defer o.Close()
			_, err = o.c.pidfd()
			require.ErrorIs(t, err, unix.ENOPROTOOPT)
			pid, err := o.c.peerPID()
			require.NoError(t, err)
			require.Equal(t, os.Getpid(), pid)
		},
		ipv6: func(t *testing.T, c *chain, p *Process) {
			ln := c.listen(p, "tcp", ":0")
			greet(p, ln)
			require.Equal(t, "0.0.0.0", ln.Addr().(*net.TCPAddr).IP.String())
		},
	}
	for k := range featureCount {
		t.Run(featureNames[k].name, func(t *testing.T) {
			c := newChain(t)
			without(t, k)
			c.handOver(t, "tcp", "127.0.0.1:0", func(p *Process) { lost[k](t, c, p) })
		})
	}
	t.Run("all", func(t *testing.T) {
		c := newChain(t)
		without(t, netnsCookies, rightsRefusal, messageStamps, backlogLimit, pidfds, peerPidfds, ipv6)
		c.handOver(t, "tcp", ":0", func(p *Process) {
			for _, look := range lost {
				look(t, c, p)
			}
		})
	})
}

// Without cookies nothing tells that a listener is of another namespace.
func TestRootForeignNetworkNamespaceWithoutCookies(t *testing.T) {
	needRoot(t)
	q := newSquatter(t)
	without(t, netnsCookies)
	foreign := q.foreign("tcp", "0.0.0.0:0")
	q.batch.Sockets, q.fds = q.batch.Sockets[:1], q.fds[:1]
	q.offer(manifestItem{Name: "web", Kind: kindStream, Network: "tcp"}, foreign)
	q.welcome.Total = 2
	r, got := q.meet()
	r.say(q.welcome)
	r.say(q.batch, q.fds...)
	v := <-got
	require.NoError(t, v.err)
	require.NoError(t, v.p.Close())
}

// The cookie of a Unix socket is that of the namespace too.
func TestOwnNetns(t *testing.T) {
	own, err := ownNetns()
	require.NoError(t, err)
	d, err := openSocket(unix.AF_INET, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer d.Close()
	facts, err := d.facts()
	require.NoError(t, err)
	require.Equal(t, facts.cookie, own)
}

// A mixed chain: an incumbent that could make no IPv6 socket, and a successor
// that can, or the other way round, agree on the wildcard socket there is.
func TestWildcardIsInheritedWhateverItsFamily(t *testing.T) {
	for _, first := range []string{"without IPv6", "with IPv6"} {
		t.Run(first, func(t *testing.T) {
			c := newChain(t)
			if first == "without IPv6" {
				without(t, ipv6)
			}
			one := c.start("one")
			at := c.listen(one, "tcp", ":0").Addr()
			c.ready(one)
			forcedOff.Store(0)
			if first != "without IPv6" {
				without(t, ipv6)
			}
			two := c.start("two")
			ln := c.listen(two, "tcp", ":0")
			require.Equal(t, at, ln.Addr())
			greet(two, ln)
			c.ready(two)
			c.wait(one)
			conn, err := net.Dial("tcp", fmt.Sprintf("127.0.0.1:%d", at.(*net.TCPAddr).Port))
			require.NoError(t, err)
			defer conn.Close()
			b, err := io.ReadAll(conn)
			require.NoError(t, err)
			require.Equal(t, "2", string(b))
		})
	}
}

// The limit of the system is read each time and given to listen(2), which the
// kernel tells in the place of the bytes that were not acknowledged.
func TestBacklogIsTheSystemsLimit(t *testing.T) {
	b, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	require.NoError(t, err)
	limit := 0
	_, err = fmt.Sscan(string(b), &limit)
	require.NoError(t, err)
	for _, tc := range []struct {
		name string
		off  []feature
		want int
	}{
		{"as the system says", nil, limit},
		{"without /proc", []feature{backlogLimit}, min(limit, unix.SOMAXCONN)},
	} {
		t.Run(tc.name, func(t *testing.T) {
			without(t, tc.off...)
			d, err := openSocket(unix.AF_INET, unix.SOCK_STREAM, 0)
			require.NoError(t, err)
			defer d.Close()
			require.NoError(t, d.listen())
			require.NoError(t, d.control(func(fd int) error {
				info, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
				require.EqualValues(t, tc.want, info.Sacked)
				return err
			}))
		})
	}
}
