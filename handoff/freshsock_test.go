package handoff

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"golang.org/x/sys/unix"
)

// option reads a socket option.
func option(t testing.TB, d *descriptor, level, name int) int {
	t.Helper()
	var v int
	require.NoError(t, d.control(func(fd int) (err error) {
		v, err = unix.GetsockoptInt(fd, level, name)
		return err
	}))
	return v
}

func localAddress(t testing.TB, d *descriptor) string {
	t.Helper()
	f, err := d.facts()
	require.NoError(t, err)
	return f.local
}

// loopbacks are the addresses that this machine has; not each has IPv6.
func loopbacks(t testing.TB) []string {
	t.Helper()
	ln, err := net.Listen("tcp6", "[::1]:0")
	if err != nil {
		return []string{"127.0.0.1"}
	}
	require.NoError(t, ln.Close())
	return []string{"127.0.0.1", "::1"}
}

// What net makes of an address is what bindSocket makes of it, listening or not.
func TestBindSocketIsLikeNet(t *testing.T) {
	networks := []string{"tcp", "tcp4", "tcp6", "udp", "udp4", "udp6"}
	addresses := []string{
		"", ":0", "127.0.0.1:0", "0.0.0.0:0", "[::1]:0", "[::]:0", "localhost:0",
		"[::ffff:127.0.0.1]:0", "127.0.0.1:", "127.0.0.1", "127.0.0.1:65536", "127.0.0.1:no-such-service",
		"192.0.2.1:0", "224.0.0.251:0", "[ff02::fb%lo]:0", "[fe80::1%nowhere]:0",
	}
	for _, network := range networks {
		for _, address := range addresses {
			if strings.HasPrefix(network, "tcp") && (strings.HasPrefix(address, "224") || strings.HasPrefix(address, "[ff")) {
				continue // no TCP to a group
			}
			t.Run(network+" "+address, func(t *testing.T) {
				leak.CheckExact(t)
				compareWithNet(t, network, address)
			})
		}
	}
}

func compareWithNet(t *testing.T, network, address string) {
	d, id, err := bindSocket(t.Context(), network, address, false, nil)
	want, wantErr := netSocket(t, network, address)
	if wantErr != nil {
		require.Error(t, err, "net says %v", wantErr)
		return
	}
	defer want.Close()
	require.NoError(t, err)
	defer d.Close()
	require.Zero(t, id)
	cloexec, nonblock := flagsOf(t, d)
	require.True(t, cloexec)
	require.True(t, nonblock)
	tcp := strings.HasPrefix(network, "tcp")
	if tcp {
		require.Zero(t, option(t, d, unix.SOL_SOCKET, unix.SO_ACCEPTCONN))
		require.NoError(t, d.listen())
	}

	got, err := d.facts()
	require.NoError(t, err)
	net, err := want.facts()
	require.NoError(t, err)
	require.Equal(t, net.domain, got.domain)
	require.Equal(t, net.typ, got.typ)
	require.Equal(t, net.accepting, got.accepting)
	require.Equal(t, host(t, net.local), host(t, got.local))
	options := [][2]int{
		{unix.SOL_SOCKET, unix.SO_REUSEADDR},
		{unix.SOL_SOCKET, unix.SO_REUSEPORT},
		{unix.SOL_SOCKET, unix.SO_BROADCAST},
	}
	if got.domain == unix.AF_INET6 {
		options = append(options, [2]int{unix.IPPROTO_IPV6, unix.IPV6_V6ONLY})
	}
	for _, o := range options {
		require.Equal(t, option(t, want, o[0], o[1]), option(t, d, o[0], o[1]), "option %d", o)
	}
}

func host(t *testing.T, address string) string {
	t.Helper()
	h, _, err := net.SplitHostPort(address)
	require.NoError(t, err)
	return h
}

// netSocket is what package net makes.
func netSocket(t *testing.T, network, address string) (*descriptor, error) {
	if strings.HasPrefix(network, "udp") {
		pc, err := net.ListenPacket(network, address)
		if err != nil {
			return nil, err
		}
		defer pc.Close()
		return dupConn(pc.(*net.UDPConn))
	}
	var lc net.ListenConfig
	lc.SetMultipathTCP(false)
	ln, err := lc.Listen(t.Context(), network, address)
	if err != nil {
		return nil, err
	}
	defer ln.Close()
	return dupConn(ln.(*net.TCPListener))
}

// Nothing completes a handshake that nobody answers.
func TestBoundTCPRefusesThenServes(t *testing.T) {
	for _, network := range []string{"tcp", "tcp4"} {
		t.Run(network, func(t *testing.T) {
			leak.CheckExact(t)
			d, _, err := bindSocket(t.Context(), network, "127.0.0.1:0", false, nil)
			require.NoError(t, err)
			defer d.Close()
			address := localAddress(t, d)
			_, err = net.Dial("tcp", address)
			require.ErrorIs(t, err, unix.ECONNREFUSED)

			require.NoError(t, d.listen())
			require.Equal(t, address, localAddress(t, d))
			client, err := net.Dial("tcp", address)
			require.NoError(t, err)
			defer client.Close()
			ln, err := d.listener()
			require.NoError(t, err)
			defer ln.Close()
			c, err := ln.Accept()
			require.NoError(t, err)
			require.Equal(t, client.LocalAddr().String(), c.RemoteAddr().String())
			require.NoError(t, c.Close())
		})
	}
}

// With SO_REUSEADDR on both, a port that is bound could be listened on by
// somebody else.
func TestBoundTCPPortIsReserved(t *testing.T) {
	leak.CheckExact(t)
	d, _, err := bindSocket(t.Context(), "tcp4", "127.0.0.1:0", false, nil)
	require.NoError(t, err)
	defer d.Close()
	copied, err := d.dup()
	require.NoError(t, err)
	defer copied.Close()
	address := localAddress(t, d)
	for range 3 {
		_, err = net.Listen("tcp4", address)
		require.ErrorIs(t, err, unix.EADDRINUSE)
		_, _, err = bindSocket(t.Context(), "tcp4", address, false, nil)
		require.ErrorIs(t, err, unix.EADDRINUSE)
		var o *OpError
		require.ErrorAs(t, err, &o)
		require.Equal(t, address, o.Path)
	}
	// A copy knows, too.
	require.Zero(t, option(t, d, unix.SOL_SOCKET, unix.SO_REUSEADDR))
	require.NoError(t, copied.listen())
	require.NotZero(t, option(t, d, unix.SOL_SOCKET, unix.SO_REUSEADDR))
	_, err = net.Listen("tcp4", address)
	require.ErrorIs(t, err, unix.EADDRINUSE)
}

// Connections of whoever had the port before do not keep it: neither those that
// are open, nor those in TIME_WAIT.
func TestPortWithOldConnections(t *testing.T) {
	leak.CheckExact(t)
	old, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	address := old.Addr().String()
	var open []net.Conn
	for range 2 {
		c, err := net.Dial("tcp4", address)
		require.NoError(t, err)
		s, err := old.Accept()
		require.NoError(t, err)
		defer c.Close()
		defer s.Close()
		open = append(open, s, c)
	}
	require.NoError(t, open[0].Close()) // who closes first keeps TIME_WAIT
	_, err = open[1].Read(make([]byte, 1))
	require.Error(t, err)
	require.NoError(t, open[1].Close())
	require.NoError(t, old.Close())

	d, _, err := bindSocket(t.Context(), "tcp4", address, false, nil)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.listen())
	c, err := net.Dial("tcp4", address)
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

func TestReusePortGroup(t *testing.T) {
	for _, network := range []string{"tcp4", "udp4"} {
		t.Run(network, func(t *testing.T) {
			leak.CheckExact(t)
			first, _, err := bindSocket(t.Context(), network, "127.0.0.1:0", true, nil)
			require.NoError(t, err)
			defer first.Close()
			address := localAddress(t, first)
			members := []*descriptor{first}
			for range 3 {
				d, _, err := bindSocket(t.Context(), network, address, true, nil)
				require.NoError(t, err)
				defer d.Close()
				require.Equal(t, 1, option(t, d, unix.SOL_SOCKET, unix.SO_REUSEPORT))
				members = append(members, d)
			}
			_, _, err = bindSocket(t.Context(), network, address, false, nil)
			require.ErrorIs(t, err, unix.EADDRINUSE)
			if network == "tcp4" {
				for _, d := range members {
					require.NoError(t, d.listen())
				}
				_, _, err = bindSocket(t.Context(), network, address, false, nil)
				require.ErrorIs(t, err, unix.EADDRINUSE)
			}
		})
	}
}

func TestListenRevivesAListener(t *testing.T) {
	leak.CheckExact(t)
	// One socket has its port from the kernel and keeps it for the other, which
	// asks for it by number.
	keeper, _, err := bindSocket(t.Context(), "tcp4", "127.0.0.1:0", true, nil)
	require.NoError(t, err)
	defer keeper.Close()
	address := localAddress(t, keeper)
	d, _, err := bindSocket(t.Context(), "tcp4", address, true, nil)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.listen())
	require.NoError(t, d.control(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_RDWR) }))
	f, err := d.facts()
	require.NoError(t, err)
	require.False(t, f.accepting)
	_, err = net.Dial("tcp4", address)
	require.ErrorIs(t, err, unix.ECONNREFUSED)

	require.NoError(t, d.listen())
	c, err := net.Dial("tcp4", address)
	require.NoError(t, err)
	require.NoError(t, c.Close())
}

func TestListenTakesTheLargestBacklog(t *testing.T) {
	leak.CheckExact(t)
	b, err := os.ReadFile("/proc/sys/net/core/somaxconn")
	require.NoError(t, err)
	require.Equal(t, strings.TrimSpace(string(b)), fmt.Sprint(maxBacklog()))

	d, _, err := bindSocket(t.Context(), "tcp4", "127.0.0.1:0", false, nil)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.listen())
	var info *unix.TCPInfo
	require.NoError(t, d.control(func(fd int) (err error) {
		info, err = unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
		return err
	}))
	require.EqualValues(t, maxBacklog(), info.Sacked, "of a listener this is its backlog")
}

func TestBindSocketErrors(t *testing.T) {
	leak.CheckExact(t)
	_, _, err := bindSocket(t.Context(), "unixpacket", "/tmp/x", false, nil)
	require.ErrorAs(t, err, new(net.UnknownNetworkError))
	_, _, err = bindSocket(t.Context(), "ip", "127.0.0.1", false, nil)
	require.ErrorAs(t, err, new(net.UnknownNetworkError))
	_, _, err = bindSocket(t.Context(), "", "", false, nil)
	require.ErrorAs(t, err, new(net.UnknownNetworkError))

	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, _, err = bindSocket(ctx, "tcp", "handoff.invalid:80", false, nil)
	require.Error(t, err)

	d, _, err := bindSocket(t.Context(), "udp4", "127.0.0.1:0", false, nil)
	require.NoError(t, err)
	defer d.Close()
	require.ErrorIs(t, d.listen(), unix.EOPNOTSUPP)
}

func TestFacts(t *testing.T) {
	leak.CheckExact(t)
	dir := socketDir(t)
	type factsTest struct {
		network, address string
		want             socketFacts
		addr             string
	}
	tests := []factsTest{
		{"tcp4", "127.0.0.1:0", socketFacts{domain: unix.AF_INET, typ: unix.SOCK_STREAM, protocol: unix.IPPROTO_TCP}, "*net.TCPAddr"},
		{"udp4", "127.0.0.1:0", socketFacts{domain: unix.AF_INET, typ: unix.SOCK_DGRAM, protocol: unix.IPPROTO_UDP}, "*net.UDPAddr"},
		{"unix", filepath.Join(dir, "u"), socketFacts{domain: unix.AF_UNIX, typ: unix.SOCK_STREAM}, "*net.UnixAddr"},
		{"unixgram", filepath.Join(dir, "g"), socketFacts{domain: unix.AF_UNIX, typ: unix.SOCK_DGRAM}, "*net.UnixAddr"},
	}
	if len(loopbacks(t)) > 1 {
		tests = append(tests,
			factsTest{"tcp6", "[::1]:0", socketFacts{domain: unix.AF_INET6, typ: unix.SOCK_STREAM, protocol: unix.IPPROTO_TCP}, "*net.TCPAddr"},
			factsTest{"udp6", "[::1]:0", socketFacts{domain: unix.AF_INET6, typ: unix.SOCK_DGRAM, protocol: unix.IPPROTO_UDP}, "*net.UDPAddr"})
	}
	other, err := openSocket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	require.NoError(t, err)
	defer other.Close()
	otherFacts, err := other.facts()
	require.NoError(t, err)
	ownCookie := otherFacts.cookie
	inodes := map[uint64]bool{otherFacts.inode: true}
	for _, test := range tests {
		t.Run(test.network, func(t *testing.T) {
			d, _, err := bindSocket(t.Context(), test.network, test.address, false, nil)
			require.NoError(t, err)
			defer d.Close()
			got, err := d.facts()
			require.NoError(t, err)
			want := test.want
			want.isSocket, want.nonblock = true, true
			want.addr, want.local, want.cookie, want.inode = got.addr, got.local, got.cookie, got.inode
			require.Equal(t, want, got)
			require.Equal(t, test.addr, fmt.Sprintf("%T", got.addr))
			require.Equal(t, got.addr.String(), got.local)
			require.Equal(t, strings.TrimRight(test.network, "46"), got.addr.Network())
			require.NotZero(t, got.cookie)
			require.Equal(t, ownCookie, got.cookie, "all are of one network namespace")
			require.False(t, inodes[got.inode])
			inodes[got.inode] = true

			// They are the socket's, whoever holds it, and follow its state.
			e, err := d.dup()
			require.NoError(t, err)
			defer e.Close()
			if want.typ == unix.SOCK_STREAM {
				require.NoError(t, e.listen())
				want.accepting = true
			}
			require.NoError(t, e.control(func(fd int) error { return unix.SetNonblock(fd, false) }))
			want.nonblock = false
			got, err = d.facts()
			require.NoError(t, err)
			require.Equal(t, want, got)
		})
	}
}

func TestFactsOfOthers(t *testing.T) {
	leak.CheckExact(t)
	p := newProbe(t)
	got, err := p.facts()
	require.NoError(t, err)
	require.NotZero(t, got.inode)
	require.Equal(t, socketFacts{nonblock: true, inode: got.inode}, got)

	unbound, err := openSocket(unix.AF_UNIX, unix.SOCK_SEQPACKET, 0)
	require.NoError(t, err)
	defer unbound.Close()
	got, err = unbound.facts()
	require.NoError(t, err)
	require.Equal(t, "unixpacket", got.addr.Network())
	require.Empty(t, got.local)

	netlink, err := openSocket(unix.AF_NETLINK, unix.SOCK_RAW, unix.NETLINK_ROUTE)
	require.NoError(t, err)
	defer netlink.Close()
	got, err = netlink.facts()
	require.NoError(t, err)
	require.True(t, got.isSocket)
	require.Equal(t, unix.AF_NETLINK, got.domain)
	require.Nil(t, got.addr)
	require.Empty(t, got.local)
}

func TestListenerAndFactsAgreeOnTheAddress(t *testing.T) {
	leak.CheckExact(t)
	hosts := append(loopbacks(t), "", "0.0.0.0")
	for _, h := range hosts {
		address := net.JoinHostPort(h, "0")
		d, _, err := bindSocket(t.Context(), "tcp", address, false, nil)
		require.NoError(t, err)
		require.NoError(t, d.listen())
		ln, err := d.listener()
		require.NoError(t, err)
		require.Equal(t, ln.Addr().String(), localAddress(t, d))
		require.NoError(t, ln.Close())
		require.NoError(t, d.Close())
	}
}

// A dual-stack wildcard takes clients of both families.
func TestWildcardTakesBothFamilies(t *testing.T) {
	leak.CheckExact(t)
	d, _, err := bindSocket(t.Context(), "tcp", ":0", false, nil)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.listen())
	ln, err := d.listener()
	require.NoError(t, err)
	defer ln.Close()
	_, port, err := net.SplitHostPort(localAddress(t, d))
	require.NoError(t, err)
	require.NoError(t, ln.(*net.TCPListener).SetDeadline(time.Now().Add(5*time.Second)))
	for _, h := range loopbacks(t) {
		c, err := net.Dial("tcp", net.JoinHostPort(h, port))
		require.NoError(t, err)
		s, err := ln.Accept()
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.NoError(t, s.Close())
	}
}
