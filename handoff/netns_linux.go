package handoff

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// A socket lives in the network namespace it was made in, wherever it is held.
// A listener from another namespace is a black hole once that container's
// network goes, with no error anywhere; so it is refused.

// checkNetns compares the namespace of an inherited socket with this process's
// by SO_NETNS_COOKIE (Linux 5.14). Where the kernel has no cookies it can't tell.
func checkNetns(facts socketFacts) error {
	if facts.domain == unix.AF_UNIX || facts.cookie == 0 {
		return nil
	}
	own, err := ownNetns()
	if err != nil || own == 0 || own == facts.cookie {
		return err
	}
	return fmt.Errorf("%w: it is bound to %s there", ErrForeignNetns, facts.local)
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
