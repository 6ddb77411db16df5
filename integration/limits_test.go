package integration

import (
	"fmt"
	"os"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// softLimit is what a shell is given in these tests, as many start their services.
const softLimit = 256

// limited is a command that runs another one under the soft limit.
func limited(command string) string { return fmt.Sprintf("ulimit -Sn %d && %s", softLimit, command) }

var openFiles = regexp.MustCompile(`(?m)^Max open files +(\d+) +(\d+) `)

// descriptorLimits are the soft and the hard limit that a process has.
func (s *service) descriptorLimits(pid int) (soft, hard uint64) {
	s.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	require.NoError(s.t, err)
	m := openFiles.FindSubmatch(b)
	require.NotNil(s.t, m, "%s", b)
	soft, err = strconv.ParseUint(string(m[1]), 10, 64)
	require.NoError(s.t, err)
	hard, err = strconv.ParseUint(string(m[2]), 10, 64)
	require.NoError(s.t, err)
	return soft, hard
}

// raised wants the soft limit of a process where Go's runtime puts it: one below the hard one.
func (s *service) raised(pid int) {
	s.t.Helper()
	soft, hard := s.descriptorLimits(pid)
	require.Greater(s.t, hard, uint64(softLimit+1), "this machine's hard limit leaves nothing to raise")
	require.Equal(s.t, hard-1, soft)
}

// A server raises its soft limit of descriptors to the hard one (less one) by itself, so that only the hard one counts.
// What it would start has the limit that it was started with, and so has what handoffctl starts: the next version,
// which raises it again, and the commands that check it.
func TestDescriptorLimitIsRaised(t *testing.T) {
	s := newService(t)
	own := s.path("own")
	first := s.run("v1", "/bin/sh", append([]string{"-c", limited(`ulimit -Sn >"$0" && exec "$@"`), own, s.binary}, s.args("v1")...)...)
	s.waitStatus("serves", func(st proc.Status) bool { return st.Serving().PID == first.PID() })
	s.soft(own, softLimit)
	s.raised(first.PID())

	next, check := s.path("next"), s.path("check")
	r := s.sh(s.dir, limited(`exec "$@"`), append([]string{
		programs.Handoffctl, "--socket", s.socket, "upgrade", "--log", s.newLog("v2"), "--precheck", "ulimit -Sn >" + check,
		"--", "/bin/sh", "-c", `ulimit -Sn >"$0" && exec "$@"`, next, s.binary,
	}, s.args("v2")...)...)
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	second := s.adopt(s.status().Serving().PID)
	s.exits(first, 0, "handed over")
	s.soft(next, softLimit)
	s.soft(check, softLimit)
	s.raised(second.PID)
	s.kill(second, syscall.SIGTERM)
	s.exits(second, 0, "stopped")
}

// soft wants a file with what ulimit -Sn printed.
func (s *service) soft(path string, want uint64) {
	s.t.Helper()
	b, err := os.ReadFile(path)
	require.NoError(s.t, err)
	require.Equal(s.t, strconv.FormatUint(want, 10), strings.TrimSpace(string(b)))
}

// A version whose limit has no room for the connections that are to move to it does not take over, and says why. It does
// with --move-idle=false, or with a higher limit.
func TestNextVersionWithoutRoomForConnections(t *testing.T) {
	s := newService(t)
	first := s.serving("v1")
	var conns []*keptConn
	for range 100 {
		c := s.keep(s.address(web))
		generation, last := c.ask(t)
		require.Equal(t, "1", generation)
		require.False(t, last)
		conns = append(conns, c)
	}
	under := func(limit int, label string, extra ...string) *proc.Process {
		return s.run(label, "/bin/sh", append([]string{"-c", fmt.Sprintf(`ulimit -n %d && exec "$@"`, limit), "sh", s.binary}, s.args(label, extra...)...)...)
	}
	low := under(softLimit/2, "low")
	s.exits(low, 1, "no room for 100 connections")
	require.Contains(t, fmt.Sprint(lastRecord(t, low)["error"]), "too few open files are allowed: 100 connections of the incumbent are to move here")
	require.Equal(t, first.PID(), s.status().Serving().PID)

	next := under(2*softLimit, "enough")
	s.exits(first, 0, "handed over")
	require.EqualValues(t, 100, lastRecord(t, first)["moved"])
	for _, c := range conns {
		generation, last := c.ask(t)
		require.Equal(t, "3", generation, "the number 2 was given before")
		require.False(t, last)
	}

	off := under(softLimit/2, "off", "--move-idle=false")
	s.waitStatus("serves", func(st proc.Status) bool { return st.Serving().PID == off.PID() })
	for _, c := range conns {
		for last := false; !last; {
			var generation string
			generation, last = c.ask(t)
			require.Equal(t, "3", generation)
		}
	}
	s.exits(next, 0, "each client was told to go")
}
