package handoff

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// bindSocket makes a socket for network "tcp", "udp" (also with 4 or 6 at the
// end), "unix" or "unixgram" that is bound to address and, if it is a stream
// socket, not listened on: until listen is called clients are refused at once,
// instead of waiting in a queue that nobody empties. The caller owns it. The
// fileID is that of a Unix socket's file.
//
// Addresses and options are those of net.Listen and net.ListenPacket: a
// wildcard of "tcp" and "udp" takes IPv4 and IPv6, of several addresses of a
// host the first IPv4 one is used. Unlike net's listeners a TCP socket is never
// a multipath one, so that its kind does not depend on who made it.
//
// With reusePort the socket joins the SO_REUSEPORT group of its address. A TCP or UDP
// socket is made in the network namespace of the socket home, or in this process's if
// that is nil; names are resolved here all the same.
func bindSocket(ctx context.Context, network, address string, reusePort bool, home *descriptor) (d *descriptor, id fileID, err error) {
	defer func() { err = opError("bind", address, err) }()
	switch network {
	case "unix", "unixgram":
		return listenUnix(ctx, network, address, unixOptions{})
	case "tcp", "tcp4", "tcp6", "udp", "udp4", "udp6":
		d, err = bindInternet(ctx, network, address, reusePort, home)
		return d, fileID{}, err
	}
	return nil, fileID{}, net.UnknownNetworkError(network)
}

func bindInternet(ctx context.Context, network, address string, reusePort bool, home *descriptor) (d *descriptor, err error) {
	a, err := resolve(ctx, network, address)
	if err != nil {
		return nil, err
	}
	s := internetSocket{tcp: strings.HasPrefix(network, "tcp"), addr: a, reusePort: reusePort}
	if home == nil {
		return s.bindFor(network)
	}
	err = inNetnsOf(home, func() error {
		d, err = s.bindFor(network)
		return err
	})
	if err != nil {
		return nil, err
	}
	if err := sameNetns(d, home); err != nil {
		d.Close()
		return nil, err
	}
	return d, nil
}

// bindFor binds to what the address means for network.
func (s internetSocket) bindFor(network string) (d *descriptor, err error) {
	wildcard := s.addr.Addr().IsUnspecified()
	switch {
	case strings.HasSuffix(network, "4"):
		return s.bind()
	case strings.HasSuffix(network, "6"):
		s.v6only = true
		return s.bind()
	case !wildcard:
		return s.bind()
	}
	s.addr = netip.AddrPortFrom(netip.IPv6Unspecified(), s.addr.Port())
	err = ipv6.try(func() error {
		d, err = s.bind()
		return err
	})
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EADDRNOTAVAIL) {
		s.addr = netip.AddrPortFrom(netip.IPv4Unspecified(), s.addr.Port()) // no IPv6 here
		d, err = s.bind()
	}
	return d, err
}

// resolve turns "host:port" into the one address to bind to.
func resolve(ctx context.Context, network, address string) (netip.AddrPort, error) {
	var host, service string
	if address != "" {
		var err error
		if host, service, err = net.SplitHostPort(address); err != nil {
			return netip.AddrPort{}, err
		}
	}
	port, err := net.DefaultResolver.LookupPort(ctx, network, service)
	if err != nil {
		return netip.AddrPort{}, err
	}
	a, err := resolveHost(ctx, network, host)
	return netip.AddrPortFrom(a, uint16(port)), err
}

func resolveHost(ctx context.Context, network, host string) (netip.Addr, error) {
	fits := func(netip.Addr) bool { return true }
	wildcard := netip.IPv6Unspecified()
	switch network[len(network)-1] {
	case '4':
		fits, wildcard = netip.Addr.Is4, netip.IPv4Unspecified()
	case '6':
		fits = netip.Addr.Is6
	}
	if host == "" {
		return wildcard, nil
	}
	addrs := make([]netip.Addr, 0, 1)
	if a, err := netip.ParseAddr(host); err == nil {
		addrs = append(addrs, a)
	} else if addrs, err = net.DefaultResolver.LookupNetIP(ctx, "ip", host); err != nil {
		return netip.Addr{}, err
	}
	var best netip.Addr
	for _, a := range addrs {
		if a = a.Unmap(); a.IsUnspecified() && wildcard.Is4() {
			a = wildcard // also for "[::]"
		}
		if fits(a) && (!best.IsValid() || a.Is4() && !best.Is4()) {
			best = a
		}
	}
	if !best.IsValid() {
		return netip.Addr{}, &net.AddrError{Err: "no suitable address for " + network, Addr: host}
	}
	return best, nil
}

// internetSocket is what there is to know about a TCP or UDP socket to be made.
type internetSocket struct {
	tcp       bool
	addr      netip.AddrPort
	v6only    bool
	reusePort bool
}

func (s internetSocket) bind() (*descriptor, error) {
	sa, err := s.sockaddr()
	if err != nil {
		return nil, err
	}
	domain, sotype := unix.AF_INET, unix.SOCK_DGRAM
	if s.addr.Addr().Is6() {
		domain = unix.AF_INET6
	}
	if s.tcp {
		sotype = unix.SOCK_STREAM
	}
	d, err := openSocket(domain, sotype, 0)
	if err != nil {
		return nil, err
	}
	err = d.control(func(fd int) error {
		if err := s.setOptions(fd); err != nil {
			return err
		}
		return os.NewSyscallError("bind", unix.Bind(fd, sa))
	})
	if err == nil && s.tcp {
		err = d.hold()
	}
	if err != nil {
		_ = d.Close()
		return nil, err
	}
	return d, nil
}

func (s internetSocket) setOptions(fd int) error {
	options := []struct {
		wanted             bool
		level, name, value int
	}{
		{s.addr.Addr().Is6(), unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, boolInt(s.v6only)},
		{!s.tcp, unix.SOL_SOCKET, unix.SO_BROADCAST, 1},
		{s.tcp || s.addr.Addr().IsMulticast(), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1},
		{s.reusePort, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1},
	}
	for _, o := range options {
		if !o.wanted {
			continue
		}
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return os.NewSyscallError("setsockopt", err)
		}
	}
	return nil
}

func boolInt(b bool) int {
	if b {
		return 1
	}
	return 0
}

// sockaddr is the address to bind to: for a multicast group the wildcard, as
// several groups may be joined at one port.
func (s internetSocket) sockaddr() (unix.Sockaddr, error) {
	a, port := s.addr.Addr(), int(s.addr.Port())
	if a.Is4() {
		if a.IsMulticast() {
			a = netip.IPv4Unspecified()
		}
		return &unix.SockaddrInet4{Port: port, Addr: a.As4()}, nil
	}
	zone, err := zoneID(a.Zone())
	if err != nil {
		return nil, err
	}
	if a.IsMulticast() {
		a = netip.IPv6Unspecified()
	}
	return &unix.SockaddrInet6{Port: port, Addr: a.As16(), ZoneId: zone}, nil
}

func zoneID(zone string) (uint32, error) {
	if zone == "" {
		return 0, nil
	}
	if n, err := strconv.ParseUint(zone, 10, 32); err == nil {
		return uint32(n), nil
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		return 0, fmt.Errorf("zone %q: %w", zone, err)
	}
	return uint32(i.Index), nil
}

// openSocket makes a socket, close-on-exec and non-blocking.
func openSocket(domain, sotype, protocol int) (*descriptor, error) {
	n, err := unix.Socket(domain, sotype|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	return newDescriptor(n), nil
}

// hold keeps others off the port until listen is called. SO_REUSEADDR is needed
// at bind, for the connections in TIME_WAIT of whoever had the port before; but
// as long as none of two sockets that have it is listening, both can be bound to
// the same port, and the first to listen takes it (inet_csk_bind_conflict).
func (d *descriptor) hold() error {
	if err := d.setReuseAddr(false); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.held = true
	return nil
}

func (d *descriptor) setReuseAddr(on bool) error {
	return d.control(func(fd int) error {
		return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, boolInt(on)))
	})
}

// listen calls listen(2), also on a socket that has been listened on: its queue
// stays, and SO_PEERCRED then names this process. A listener that was shut down
// lives again, at its old port if that was asked for by number; one that the
// kernel had chosen is lost with shutdown(2). The backlog is the most that the
// system allows.
func (d *descriptor) listen() error {
	d.mu.Lock()
	held := d.held
	d.held = false
	d.mu.Unlock()
	if held {
		// listen(2) checks for conflicts once more, and accepted connections
		// of an earlier listener are some.
		if err := d.setReuseAddr(true); err != nil {
			return err
		}
	}
	return d.control(listenFD)
}

func listenFD(fd int) error {
	return os.NewSyscallError("listen", unix.Listen(fd, maxBacklog()))
}

// maxBacklog reads the limit each time: it may be raised while a chain of
// processes lives, and belongs to the network namespace.
func maxBacklog() int {
	var b []byte
	err := backlogLimit.try(func() (err error) {
		b, err = os.ReadFile("/proc/sys/net/core/somaxconn")
		return err
	})
	if err != nil {
		return unix.SOMAXCONN
	}
	n, err := strconv.Atoi(strings.TrimSpace(string(b)))
	if err != nil || n <= 0 {
		return unix.SOMAXCONN
	}
	return n
}
