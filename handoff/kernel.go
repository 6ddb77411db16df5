package handoff

import (
	"io/fs"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

// What not every system has, and this library does without there. What it can't
// do without is older than the oldest kernel that Go runs on. docs/requirements.md
// lists both, and what each is for.

// feature is something that may be missing.
type feature uint8

const (
	netnsCookies  feature = iota // SO_NETNS_COOKIE, Linux 5.14. Without: sockets of another network namespace are not told
	rightsRefusal                // SO_PASSRIGHTS, Linux 6.16. Without: what a client sends is received, and closed
	messageStamps                // SO_TIMESTAMP on Unix sockets. Without: a message of no bytes looks like the end of the connection
	backlogLimit                 // /proc/sys/net/core/somaxconn. Without: unix.SOMAXCONN
	pidfds                       // pidfd_open(2), Linux 5.3. Without: the successor takes only the end of the link for the incumbent's death, and can't end one that is silent
	peerPidfds                   // SO_PEERPIDFD, Linux 6.5. Without: the incumbent takes only the end of the link for the successor's death
	ipv6                         // Without: a wildcard address is IPv4's
	featureCount
)

// absent is how the system says that it does not have a feature.
var absent = [featureCount]error{
	netnsCookies:  unix.ENOPROTOOPT,
	rightsRefusal: unix.ENOPROTOOPT,
	messageStamps: unix.ENOPROTOOPT,
	backlogLimit:  fs.ErrNotExist,
	pidfds:        unix.ENOSYS,
	peerPidfds:    unix.ENOPROTOOPT,
	ipv6:          unix.EAFNOSUPPORT,
}

// forcedOff are the features that a test takes away, by bit.
var forcedOff atomic.Uint32

// try calls f, which needs the feature, or says that it is absent as the system
// would.
func (k feature) try(f func() error) error {
	if forcedOff.Load()&(1<<k) != 0 {
		return absent[k]
	}
	return f()
}
