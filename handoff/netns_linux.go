package handoff

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"strings"

	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// A socket lives in the network namespace it was made in, wherever it is held.
// A listener from another namespace is a black hole once that container's
// network goes, with no error anywhere; so it is refused, or watched where it is
// allowed (netns_watch.go).

// netns is the cookie of the namespace that matters for a socket; 0 for one that is
// reached by its path, and where the kernel has no cookies.
func (f *socketFacts) netns() uint64 {
	if f.domain != unix.AF_INET && f.domain != unix.AF_INET6 {
		return 0
	}
	return f.cookie
}

// isForeign compares the namespace of a socket with this process's, which is own, by
// SO_NETNS_COOKIE (Linux 5.14). Where the kernel has no cookies it can't tell.
func (f *socketFacts) isForeign(own uint64) bool {
	there := f.netns()
	return there != 0 && own != 0 && there != own
}

// ownNetns is the cookie of the namespace that a new socket would be made in. A
// Unix socket has it too, and is what a process that may not use every address
// family (RestrictAddressFamilies= of systemd) can make for certain.
func ownNetns() (uint64, error) {
	d, err := openSocket(unix.AF_UNIX, unix.SOCK_DGRAM, 0)
	if err != nil {
		return 0, err
	}
	defer d.Close()
	facts, err := d.facts()
	return facts.cookie, err
}

// home says in which namespace another socket of the service belongs: where the others
// of its group live, which are one address; or else in this process's own, which is nil,
// if it has no socket that lives elsewhere, or one that lives here; otherwise where the
// others live. Where it is not nil, d is a duplicate of a socket that lives there, for
// the caller to close. A Unix socket is reached by its path. The others are the set's
// and claimed, those that it is claimed with. Under mu.
func (set *socketSet) home(want Socket, claimed []*socket) (d *descriptor, err error) {
	if fam := family(want.Network); fam != "tcp" && fam != "udp" {
		return nil, nil
	}
	// Without a copy of the lists: this is done for each of up to 10,000 sockets.
	for _, list := range [][]*socket{claimed, set.claimed} {
		for _, s := range list {
			switch {
			case s.d == nil || s.netns == 0 || !s.reuse || s.want != want:
			case !s.foreign:
				return nil, nil
			default:
				return s.d.dup()
			}
		}
	}
	at := map[uint64][]*socket{}
	for _, list := range [][]*socket{claimed, set.claimed, set.unclaimed} {
		for _, s := range list {
			switch {
			case s.d == nil || s.netns == 0:
			case !s.foreign:
				return nil, nil
			default:
				at[s.netns] = append(at[s.netns], s)
			}
		}
	}
	if len(at) > 1 {
		return nil, fmt.Errorf("which of %d other network namespaces it belongs into can't be told (listen only on what is inherited, or on a unix: address; or let one version live where all of it is): %s", len(at), listNetns(at))
	}
	for _, all := range at {
		return all[0].d.dup()
	}
	return nil, nil
}

// listNetns says which sockets live where.
func listNetns(at map[uint64][]*socket) string {
	var parts []string
	for _, cookie := range slices.Sorted(maps.Keys(at)) {
		parts = append(parts, fmt.Sprintf("%s in namespace %d", strings.Join(clipList(socketNames(at[cookie])), ", "), cookie))
	}
	return strings.Join(parts, "; ")
}

// lackOf says that a capability is missing over the namespace of the service's
// sockets. Never is a socket opened here in the place of one there.
func lackOf(capability string, err error) error {
	return fmt.Errorf("%w: it belongs into the network namespace of the service's other sockets, where this process can't open one without %s (%w): give it CAP_NET_ADMIN and CAP_SYS_ADMIN over that namespace, listen only on what is inherited, or let both versions share one",
		ErrPermission, capability, err)
}

// inNetnsOf runs f where new sockets are made in the namespace that the socket d
// lives in. It needs CAP_NET_ADMIN over it for SIOCGSKNS (net/socket.c, sock_ioctl),
// and CAP_SYS_ADMIN over it and in this process's user namespace for setns(2).
func inNetnsOf(d *descriptor, f func() error) error {
	to := netns.None()
	err := d.control(func(fd int) error {
		n, err := unix.IoctlRetInt(fd, unix.SIOCGSKNS)
		if err == nil {
			to = netns.NsHandle(n)
		}
		return err
	})
	if errors.Is(err, unix.EPERM) {
		return lackOf("CAP_NET_ADMIN", os.NewSyscallError("ioctl SIOCGSKNS", err))
	}
	if err != nil {
		return os.NewSyscallError("ioctl SIOCGSKNS", err)
	}
	defer to.Close()
	return onLostThread(func() error {
		err := netns.Set(to)
		if errors.Is(err, unix.EPERM) {
			return lackOf("CAP_SYS_ADMIN", os.NewSyscallError("setns", err))
		}
		if err != nil {
			return os.NewSyscallError("setns", err)
		}
		return f()
	})
}

// sameNetns makes certain that the socket d was made where the socket home lives.
func sameNetns(d, home *descriptor) error {
	there, err := home.facts()
	if err != nil {
		return err
	}
	here, err := d.facts()
	if err == nil && here.cookie != there.cookie {
		err = fmt.Errorf("it was made in network namespace %d instead of %d", here.cookie, there.cookie)
	}
	return err
}

// onLostThread runs f on an operating system thread that ends with it, so that f may
// leave the thread as it likes. That is never the main thread, which would not end
// with its goroutine, but stay as f has left it, and be what /proc/PID/ns shows
// (mexit in runtime/proc.go).
func onLostThread(f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if unix.Gettid() == unix.Getpid() {
			// While it is held here, another goroutine gets another thread.
			err := onLostThread(f)
			runtime.UnlockOSThread()
			done <- err
			return
		}
		done <- f() // no unlock: the runtime ends the thread with this goroutine
	}()
	return <-done
}
