package handoff

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What network interfaces there are where a socket lives. The requests of
// netdevice(7) answer for the namespace of the socket they are made on (sock_ioctl in
// net/socket.c), whoever asks and from wherever, and need no privilege. What they
// don't tell is IPv6 addresses.

// The interfaces that have no IPv4 address can't be listed, only asked for by name
// or index. These are tried: container runtimes call theirs eth0 and so on, and the
// indexes of a namespace count from 1, but for an interface that was moved there and
// kept its own.
const (
	triedNames   = 10   // eth0 to eth9
	triedIndexes = 4096 // about a millisecond
)

// network is what can be seen of the network that a socket lives in.
type network struct {
	outside   bool // an interface is up, and not loopback
	carrier   bool // and one of them has a carrier: the other end of a veth pair is up
	addresses []interfaceAddress
}

// interfaceAddress is an IPv4 address of an interface.
type interfaceAddress struct {
	name      string
	addr      netip.Addr
	broadcast netip.Addr // of its subnet, to which a packet socket may be bound; none if there is none
}

// network looks at the network that the socket d lives in. The error says that nothing
// could be seen.
func (d *descriptor) network() (n network, err error) {
	err = d.control(func(fd int) error {
		if n.addresses, err = listInterfaces(fd); err != nil {
			return err
		}
		n.lookOutside(fd)
		return nil
	})
	return n, err
}

// missing says that the IPv4 address which a socket is bound to, as host:port, is on
// no interface; "" if it is, or can't be told. Loopback is all of 127.0.0.0/8, of
// which only one address is listed; a multicast group is on no interface, nor is the
// broadcast address of all networks; that of a subnet is where an address of it is.
func (n *network) missing(local string) string {
	ap, err := netip.ParseAddrPort(local)
	a := ap.Addr().Unmap()
	there := func(i interfaceAddress) bool { return i.addr == a || i.broadcast == a }
	if err != nil || !a.Is4() || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a == limitedBroadcast || slices.ContainsFunc(n.addresses, there) {
		return ""
	}
	return a.String() + " is on no interface there"
}

var limitedBroadcast = netip.AddrFrom4([4]byte{255, 255, 255, 255})

// broadcastOf is the highest address of the subnet that addr is in on the interface.
// The kernel takes that for a broadcast address also where none was set
// (fib_add_ifaddr in net/ipv4/fib_frontend.c), and has none of a subnet of one or two.
func broadcastOf(fd int, name string, addr [4]byte) (b netip.Addr) {
	r, err := unix.NewIfreq(name)
	if err != nil || r.SetInet4Addr(addr[:]) != nil || unix.IoctlIfreq(fd, unix.SIOCGIFNETMASK, r) != nil {
		return b
	}
	mask, err := r.Inet4Addr()
	if err != nil || mask[3]|1 == 0xff {
		return b
	}
	for i := range addr {
		addr[i] |= ^mask[i]
	}
	return netip.AddrFrom4(addr)
}

// listInterfaces has every IPv4 address and its interface; an interface that has
// none is not listed.
func listInterfaces(fd int) ([]interfaceAddress, error) {
	const size = int(unsafe.Sizeof(ifreq{}))
	for room := 64; ; room *= 4 {
		buf := make([]ifreq, room)
		c := ifconf{bytes: int32(room * size), to: &buf[0]}
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCGIFCONF, uintptr(unsafe.Pointer(&c))); errno != 0 {
			return nil, os.NewSyscallError("ioctl SIOCGIFCONF", errno)
		}
		n := int(c.bytes) / size
		if n == room && room < 1<<16 {
			continue // there may be more
		}
		var all []interfaceAddress
		for _, r := range buf[:n] {
			name, _, _ := bytes.Cut(r.name[:], []byte{0})
			all = append(all, interfaceAddress{string(name), netip.AddrFrom4(r.addr), broadcastOf(fd, string(name), r.addr)})
		}
		return all, nil
	}
}

// ifreq and ifconf are the C structures of netdevice(7), as SIOCGIFCONF fills them.
type ifreq struct {
	name [unix.IFNAMSIZ]byte
	_    [4]byte // family and port of a struct sockaddr_in
	addr [4]byte
	_    [ifruSize - 8]byte
}

type ifconf struct {
	bytes int32
	to    *ifreq
}

// ifruSize is that of the union in struct ifreq, of which struct ifmap is the largest
// member: 24 bytes, and 16 where a long has four.
const ifruSize = 16 + 8*(^uintptr(0)>>63)

// lookOutside looks for interfaces that lead elsewhere than loopback, until one is good.
func (n *network) lookOutside(fd int) {
	for _, i := range n.addresses {
		if n.look(fd, i.name) {
			return
		}
	}
	for i := range triedNames {
		if n.look(fd, fmt.Sprintf("eth%d", i)) {
			return
		}
	}
	for i := uint32(1); i <= triedIndexes; i++ {
		if name := interfaceName(fd, i); name != "" && n.look(fd, name) {
			return
		}
	}
}

// look takes account of one interface, if there is one of that name. The flag
// IFF_RUNNING follows the carrier by up to a second (net/core/link_watch.c).
func (n *network) look(fd int, name string) (good bool) {
	r, err := unix.NewIfreq(name)
	if err != nil || unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, r) != nil {
		return false
	}
	flags := r.Uint16()
	up := flags&(unix.IFF_UP|unix.IFF_LOOPBACK) == unix.IFF_UP
	n.outside = n.outside || up
	n.carrier = n.carrier || up && flags&unix.IFF_RUNNING != 0
	return n.carrier
}

// interfaceName is what the interface with that index is called where the socket
// lives; "" if there is none.
func interfaceName(fd int, index uint32) string {
	r, err := unix.NewIfreq("")
	if err != nil {
		return ""
	}
	r.SetUint32(index)
	if unix.IoctlIfreq(fd, unix.SIOCGIFNAME, r) != nil {
		return ""
	}
	return r.Name()
}
