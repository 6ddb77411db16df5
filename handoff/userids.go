package handoff

import (
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
)

// What a user or group id that the kernel tells of somebody else is worth. It is
// translated to this process's user namespace (user_namespaces(7)), and whoever has
// no number here is shown under one that stands for all of those.

// idSpace is what this process's user namespace makes of user ids, or of group ids.
type idSpace struct {
	overflow uint32 // what an id without a number here is shown as
	full     bool   // there is none: every id has a number here
}

// overflowID is what the kernel shows unless told otherwise: DEFAULT_OVERFLOWUID,
// and DEFAULT_OVERFLOWGID.
const overflowID = 65534

var (
	userIDs  = sync.OnceValue(func() idSpace { return readIDSpace("/proc/self/uid_map", "/proc/sys/kernel/overflowuid") })
	groupIDs = sync.OnceValue(func() idSpace { return readIDSpace("/proc/self/gid_map", "/proc/sys/kernel/overflowgid") })
)

// readIDSpace reads an id map, and the number for what is not in it. What can't be
// read counts as a map of a part: then nobody is trusted by a number that others
// may have too.
func readIDSpace(mapFile, overflowFile string) idSpace {
	s := idSpace{overflow: overflowID}
	if b, err := os.ReadFile(overflowFile); err == nil {
		if n, err := strconv.ParseUint(strings.TrimSpace(string(b)), 10, 32); err == nil {
			s.overflow = uint32(n)
		}
	}
	if b, err := os.ReadFile(mapFile); err == nil {
		s.full = mapsAll(string(b))
	}
	return s
}

// mapsAll says whether an id map has every id but the last, which is none. The
// kernel lets a map name only ids that its parent has, and no id twice: so it is
// enough to count.
func mapsAll(text string) bool {
	var n uint64
	for line := range strings.Lines(text) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			return false
		}
		count, err := strconv.ParseUint(fields[2], 10, 32)
		if err != nil {
			return false
		}
		n += count
	}
	return n == 1<<32-1
}

// names says whether id names one user or group, rather than all without a number.
func (s idSpace) names(id uint32) bool { return s.full || id != s.overflow }

// checkNames refuses an allow list that would let in every user, or group, without
// a number here. what is the list's name.
func (s idSpace) checkNames(what string, ids []uint32) error {
	for _, id := range ids {
		if !s.names(id) {
			return fmt.Errorf("%s: %d stands for everybody without a number in this user namespace, so it can't be allowed (use a shared key)", what, id)
		}
	}
	return nil
}
