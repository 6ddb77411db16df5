package handoff

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"

	"golang.org/x/sys/unix"
)

// socketFacts are what tells a socket from another one that somebody might pass
// in its place. Of a descriptor that is no socket only isSocket, nonblock and
// inode are set.
type socketFacts struct {
	isSocket  bool
	domain    int // SO_DOMAIN: AF_INET, AF_INET6, AF_UNIX
	typ       int // SO_TYPE: SOCK_STREAM, SOCK_DGRAM, SOCK_SEQPACKET
	protocol  int // SO_PROTOCOL
	accepting bool
	addr      net.Addr // *net.TCPAddr, *net.UDPAddr, *net.UnixAddr; nil for other families
	local     string   // addr as a string, "" without one
	cookie    uint64   // of the network namespace it lives in; 0 before Linux 5.14
	nonblock  bool
	inode     uint64
}

// serves says whether a socket can be what the manifest calls it. Other kinds
// would not do what a program expects of a listener of that network.
func (f *socketFacts) serves(k kind, network string) bool {
	if k == kindControl {
		return network == "unixpacket" && f.domain == unix.AF_UNIX && f.typ == unix.SOCK_SEQPACKET
	}
	if checkNetwork(network, k) != nil || f.typ != map[kind]int{kindStream: unix.SOCK_STREAM, kindPacket: unix.SOCK_DGRAM}[k] {
		return false
	}
	switch network {
	case "unix", "unixgram":
		return f.domain == unix.AF_UNIX
	case "tcp4", "udp4":
		return f.domain == unix.AF_INET
	case "tcp6", "udp6":
		return f.domain == unix.AF_INET6
	}
	return f.domain == unix.AF_INET || f.domain == unix.AF_INET6
}

// facts asks the kernel; it changes nothing.
func (d *descriptor) facts() (socketFacts, error) {
	var f socketFacts
	err := d.control(func(fd int) (err error) {
		f, err = readFacts(fd)
		return err
	})
	return f, err
}

func readFacts(fd int) (f socketFacts, err error) {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return f, os.NewSyscallError("fstat", err)
	}
	f.inode = st.Ino
	f.isSocket = st.Mode&unix.S_IFMT == unix.S_IFSOCK
	flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
	if err != nil {
		return f, os.NewSyscallError("fcntl", err)
	}
	f.nonblock = flags&unix.O_NONBLOCK != 0
	if !f.isSocket {
		return f, nil
	}
	if f.domain, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_DOMAIN); err != nil {
		return f, os.NewSyscallError("getsockopt", err)
	}
	return f, f.readSocket(fd)
}

// connFacts is facts for a connection, of which many come at a time: it asks no more
// than it has to, and does not know the inode, nor the domain but by the address.
func (d *descriptor) connFacts() (f socketFacts, err error) {
	err = d.control(func(fd int) error {
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		if err != nil {
			return os.NewSyscallError("fcntl", err)
		}
		f.nonblock = flags&unix.O_NONBLOCK != 0
		return f.readSocket(fd)
	})
	return f, err
}

// readSocket fails with ENOTSOCK where fd is no socket.
func (f *socketFacts) readSocket(fd int) (err error) {
	accepting := 0
	for _, o := range [...]struct {
		name  int
		value *int
	}{{unix.SO_TYPE, &f.typ}, {unix.SO_PROTOCOL, &f.protocol}, {unix.SO_ACCEPTCONN, &accepting}} {
		if *o.value, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, o.name); err != nil {
			return os.NewSyscallError("getsockopt", err)
		}
	}
	f.accepting = accepting != 0
	err = netnsCookies.try(func() error {
		f.cookie, err = unix.GetsockoptUint64(fd, unix.SOL_SOCKET, unix.SO_NETNS_COOKIE)
		return err
	})
	if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
		return os.NewSyscallError("getsockopt", err)
	}
	return f.readAddress(fd)
}

func (f *socketFacts) readAddress(fd int) error {
	sa, err := unix.Getsockname(fd)
	if errors.Is(err, unix.EAFNOSUPPORT) {
		return nil // a family that x/sys has no type for
	}
	if err != nil {
		return os.NewSyscallError("getsockname", err)
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		f.setInternet(netip.AddrFrom4(sa.Addr), sa.Port)
	case *unix.SockaddrInet6:
		f.setInternet(netip.AddrFrom16(sa.Addr).WithZone(zoneName(fd, sa.ZoneId)), sa.Port)
	case *unix.SockaddrUnix:
		name := sa.Name
		if name == "@" { // what x/sys makes of no name
			name = ""
		}
		f.addr = &net.UnixAddr{Name: name, Net: unixNetwork(f.typ)}
	}
	if f.addr != nil {
		f.local = f.addr.String()
	}
	return nil
}

func (f *socketFacts) setInternet(a netip.Addr, port int) {
	ap := netip.AddrPortFrom(a, uint16(port))
	switch f.typ {
	case unix.SOCK_STREAM:
		f.addr = net.TCPAddrFromAddrPort(ap)
	case unix.SOCK_DGRAM:
		f.addr = net.UDPAddrFromAddrPort(ap)
	}
}

// zoneName is the name of an interface where the socket lives, not where this process
// does: the other side of a handoff must come to the same one.
func zoneName(fd int, id uint32) string {
	if id == 0 {
		return ""
	}
	if name := interfaceName(fd, id); name != "" {
		return name
	}
	return strconv.FormatUint(uint64(id), 10)
}

func unixNetwork(sotype int) string {
	switch sotype {
	case unix.SOCK_DGRAM:
		return "unixgram"
	case unix.SOCK_SEQPACKET:
		return "unixpacket"
	}
	return "unix"
}
