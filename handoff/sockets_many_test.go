package handoff

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// raiseLimit lets this process have n open files, if it may, and says how many
// it may have.
func raiseLimit(t testing.TB, n uint64) uint64 {
	t.Helper()
	var was unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &was))
	now := unix.Rlimit{Cur: max(was.Cur, n), Max: max(was.Max, n)}
	if err := unix.Setrlimit(unix.RLIMIT_NOFILE, &now); err != nil {
		now = unix.Rlimit{Cur: was.Max, Max: was.Max} // without root
		require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &now))
	}
	t.Cleanup(func() { require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &was)) })
	return now.Cur
}

// bareCopy is how long it takes only to send n descriptors of sockets over a
// Unix socket and to receive them, in batches of the same size.
func bareCopy(t testing.TB, n int) time.Duration {
	t.Helper()
	d, err := openSocket(unix.AF_INET, unix.SOCK_STREAM, 0)
	require.NoError(t, err)
	defer d.Close()
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	require.NoError(t, err)
	defer unix.Close(pair[0])
	defer unix.Close(pair[1])
	received := make([]int, 0, n)
	oob := make([]byte, unix.CmsgSpace(maxBatch*4))
	begun := time.Now()
	for len(received) < n {
		batch := make([]int, min(maxBatch, n-len(received)))
		require.NoError(t, d.control(func(fd int) error {
			for i := range batch {
				batch[i] = fd
			}
			return unix.Sendmsg(pair[0], []byte{1}, unix.UnixRights(batch...), nil, 0)
		}))
		_, oobn, _, _, err := unix.Recvmsg(pair[1], make([]byte, 1), oob, unix.MSG_CMSG_CLOEXEC)
		require.NoError(t, err)
		received = append(received, rightsIn(oob[:oobn])...)
	}
	took := time.Since(begun)
	require.Len(t, received, n)
	for _, fd := range received {
		require.NoError(t, unix.Close(fd))
	}
	return took
}

// As many sockets as a handoff may have go over, each of them, and in a time
// that is a multiple of the mere copying.
func TestTenThousandSockets(t *testing.T) {
	c := newChain(t)
	// Both processes are this one, and each has two descriptors of a socket
	// that it serves.
	limit := raiseLimit(t, 4*maxSockets+1000)
	n := min(maxSockets, int(limit-500)/4)
	if n < maxSockets {
		t.Logf("the limit of open files, %d, is enough for %d sockets in place of %d", limit, n, maxSockets)
	}
	quiet := func(cfg *Config) { cfg.StepTimeout, cfg.ReadyTimeout = time.Minute, time.Minute }
	one := c.start("one", quiet)
	lns := make([]net.Listener, n)
	addresses := map[uint64]string{}
	for i := range lns {
		lns[i] = c.listen(one, "tcp", "127.0.0.1:0")
	}
	for _, s := range one.sockets.claimed {
		facts, err := s.d.facts()
		require.NoError(t, err)
		addresses[facts.inode] = facts.local
	}
	require.Len(t, addresses, n)
	c.ready(one)
	if n == maxSockets {
		_, err := one.Listen(c.ctx, "tcp", "127.0.0.1:0")
		require.ErrorContains(t, err, "at most")
	}

	bare := bareCopy(t, n)
	begun := time.Now()
	two := c.start("two", quiet)
	copied := time.Since(begun)
	sample := map[int]net.Listener{}
	for i := range n {
		ln := c.listen(two, "tcp", "127.0.0.1:0") // all have one name, and come in order
		if i%(n/20) == 0 {
			sample[i] = ln
			greet(two, ln)
		}
	}
	claimed := time.Since(begun)
	c.ready(two)
	took := time.Since(begun)
	ratio := float64(took) / float64(bare)
	t.Logf("%d sockets: %v in all, of it %v to copy and check and %v to claim; mere copying takes %v: %.0f times", n, took, copied, claimed-copied, bare, ratio)
	if took > 20*time.Second { // or the machine stalled while the copying did not
		require.Less(t, ratio, 5000.0)
	}

	require.Empty(t, two.Unclaimed())
	for _, s := range two.sockets.claimed {
		facts, err := s.d.facts()
		require.NoError(t, err)
		require.Equal(t, addresses[facts.inode], facts.local)
		delete(addresses, facts.inode)
	}
	require.Empty(t, addresses, "each arrived once")
	for i, ln := range sample {
		require.Equal(t, lns[i].Addr(), ln.Addr())
		require.Equal(t, "2", asked(t, ln.Addr()))
	}
	c.wait(one)
	sockets, err := c.client().Sockets(c.ctx)
	require.NoError(t, err)
	require.Len(t, sockets, n)
}

// A successor that has no room for the descriptors is told so, and the
// incumbent goes on.
func TestSuccessorOutOfDescriptors(t *testing.T) {
	if inChild(t, func(string) { startWithoutRoom(t) }) {
		return
	}
	c := newChain(t)
	one := c.start("one")
	var at net.Addr
	for range 200 {
		ln := c.listen(one, "tcp", "127.0.0.1:0")
		if at == nil {
			at = ln.Addr()
			greet(one, ln)
		}
	}
	c.ready(one)
	child := startChild(t, childCommand(t, "successor", EnvSocket+"="+c.socket))
	require.Contains(t, child.expect("error"), "RLIMIT_NOFILE")
	child.end()
	require.Equal(t, "1", asked(t, at))
	two := c.start("two")
	for range 200 {
		c.listen(two, "tcp", "127.0.0.1:0")
	}
	c.ready(two)
	require.Empty(t, two.Unclaimed())
	c.wait(one)
}

func startWithoutRoom(t *testing.T) {
	limit := unix.Rlimit{Cur: 64, Max: 64}
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &limit))
	_, err := Start(t.Context(), Config{})
	require.ErrorIs(t, err, ErrProtocol)
	_, werr := os.Stdout.WriteString("error " + err.Error() + "\n")
	require.NoError(t, werr)
}
