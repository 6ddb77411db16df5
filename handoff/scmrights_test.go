package handoff

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"golang.org/x/sys/unix"
)

// roleVariable tells a test that runs in a process of its own what to do there.
const roleVariable = "HANDOFF_TEST_ROLE"

// inChild runs play and returns true in a process that childCommand started.
func inChild(t *testing.T, play func(role string)) bool {
	role := os.Getenv(roleVariable)
	if role == "" {
		return false
	}
	play(role)
	return true
}

// childCommand is the running test again, as another process with a role.
func childCommand(t *testing.T, role string, env ...string) *exec.Cmd {
	t.Helper()
	exe, err := os.Executable()
	require.NoError(t, err)
	cmd := exec.CommandContext(t.Context(), exe, "-test.run=^"+t.Name()+"$", "-test.v", "-test.timeout=60s")
	cmd.Env = append(os.Environ(), append(env, roleVariable+"="+role)...)
	return cmd
}

// connPair returns the two ends of a control connection.
func connPair(t testing.TB) (a, b *conn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	require.NoError(t, err)
	ends := make([]*conn, 2)
	for i, n := range fds {
		f := os.NewFile(uintptr(n), "pair")
		c, err := net.FileConn(f)
		require.NoError(t, err)
		require.NoError(t, f.Close())
		ends[i] = newConn(c.(*net.UnixConn))
		t.Cleanup(func() { _ = ends[i].Close() })
	}
	return ends[0], ends[1]
}

// probe is a descriptor of which a test can tell whether a copy is open
// anywhere: it is one end of a pipe.
type probe struct {
	*descriptor
	other *os.File
}

func newProbe(t testing.TB) *probe {
	t.Helper()
	var fds [2]int
	require.NoError(t, unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK))
	p := &probe{descriptor: newDescriptor(fds[1]), other: os.NewFile(uintptr(fds[0]), "probe")}
	t.Cleanup(func() {
		_ = p.Close()
		_ = p.other.Close()
	})
	return p
}

// requireGone closes the probe and waits until its last copy is closed.
func (p *probe) requireGone(t testing.TB) {
	t.Helper()
	require.NoError(t, p.Close())
	require.NoError(t, p.other.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err := p.other.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF, "a copy is still open")
}

func (p *probe) times(n int) []*descriptor {
	fds := make([]*descriptor, n)
	for i := range fds {
		fds[i] = p.descriptor
	}
	return fds
}

// sendRaw sends what send refuses.
func sendRaw(t testing.TB, c *conn, frame []byte, fds []*descriptor) error {
	t.Helper()
	raw, err := c.c.SyscallConn()
	require.NoError(t, err)
	require.NoError(t, raw.Control(func(fd uintptr) {
		var oob []byte
		numbers := make([]int, 0, len(fds))
		for _, d := range fds {
			n, aerr := d.acquire()
			require.NoError(t, aerr)
			defer d.release()
			numbers = append(numbers, n)
		}
		if len(numbers) > 0 {
			oob = unix.UnixRights(numbers...)
		}
		if len(frame) == 0 {
			err = sendEmpty(int(fd), oob)
			return
		}
		_, err = unix.SendmsgN(int(fd), frame, oob, nil, unix.MSG_NOSIGNAL)
	}))
	return err
}

func flagsOf(t testing.TB, d *descriptor) (cloexec, nonblock bool) {
	t.Helper()
	require.NoError(t, d.control(func(fd int) error {
		fdFlags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err)
		flags, err := unix.FcntlInt(uintptr(fd), unix.F_GETFL, 0)
		require.NoError(t, err)
		cloexec, nonblock = fdFlags&unix.FD_CLOEXEC != 0, flags&unix.O_NONBLOCK != 0
		return nil
	}))
	return cloexec, nonblock
}

func TestFrameCarriesDescriptors(t *testing.T) {
	for _, n := range []int{0, 1, 2, 3, 4, maxBatch} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			leak.CheckExact(t)
			a, b := connPair(t)
			p := newProbe(t)
			require.NoError(t, a.send([]byte("first"), p.times(n)...))
			require.NoError(t, a.send([]byte("second")))

			frame, fds, err := b.receive()
			require.NoError(t, err)
			require.Equal(t, "first", string(frame))
			require.Len(t, fds, n)
			for _, d := range fds {
				cloexec, nonblock := flagsOf(t, d)
				require.True(t, cloexec)
				require.True(t, nonblock, "the open file description's flags are as they were")
			}
			frame, more, err := b.receive()
			require.NoError(t, err)
			require.Equal(t, "second", string(frame))
			require.Empty(t, more)
			closeAll(fds)
			p.requireGone(t)
		})
	}
}

func TestKernelLimitOfDescriptors(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	p := newProbe(t)
	require.ErrorIs(t, sendRaw(t, a, []byte("x"), p.times(kernelMaxFDs+1)), unix.EINVAL)
	require.NoError(t, sendRaw(t, a, []byte("x"), p.times(kernelMaxFDs)))
	_, fds, err := b.receive()
	require.NoError(t, err)
	require.Len(t, fds, kernelMaxFDs)
	closeAll(fds)
	p.requireGone(t)
}

func TestSendRefuses(t *testing.T) {
	leak.CheckExact(t)
	p := newProbe(t)
	closed := newProbe(t)
	require.NoError(t, closed.Close())
	tests := []struct {
		name  string
		frame []byte
		fds   []*descriptor
		want  error
	}{
		{"empty frame", nil, nil, errFrameSize},
		{"empty frame with a descriptor", nil, p.times(1), errFrameSize},
		{"frame too large", make([]byte, maxFrame+1), nil, errFrameSize},
		{"too many descriptors", []byte("x"), p.times(maxBatch + 1), errBatchSize},
		{"closed descriptor", []byte("x"), append(p.times(1), closed.descriptor), os.ErrClosed},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			a, b := connPair(t)
			require.ErrorIs(t, a.send(test.frame, test.fds...), test.want)
			_, _, ok, err := b.receiveNow()
			require.NoError(t, err)
			require.False(t, ok, "nothing was sent")
		})
	}
	p.requireGone(t)
}

func TestLargestFrame(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	want := bytes.Repeat([]byte("0123456789abcdef"), maxFrame/16)
	require.Len(t, want, maxFrame)
	require.NoError(t, a.send(want))
	require.NoError(t, a.send([]byte("next")))
	got, _, err := b.receive()
	require.NoError(t, err)
	next, _, err := b.receive()
	require.NoError(t, err)
	require.Equal(t, "next", string(next))
	require.True(t, bytes.Equal(want, got), "a frame belongs to the caller and stays as it is")
}

func TestTruncatedFrame(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	p := newProbe(t)
	require.NoError(t, sendRaw(t, a, make([]byte, maxFrame+1), p.times(3)))
	require.NoError(t, a.send([]byte("next")))
	frame, fds, err := b.receive()
	require.ErrorIs(t, err, ErrTruncated)
	require.Nil(t, frame)
	require.Nil(t, fds)
	p.requireGone(t)
	frame, _, err = b.receive()
	require.NoError(t, err)
	require.Equal(t, "next", string(frame))
}

// The kernel installs as many descriptors as RLIMIT_NOFILE allows, closes the
// rest, and reports no error but MSG_CTRUNC.
func TestNoRoomForDescriptors(t *testing.T) {
	if inChild(t, func(string) { receiveWithoutRoom(t) }) {
		return
	}
	leak.CheckExact(t)
	out, err := childCommand(t, "receiver").CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Contains(t, string(out), "--- PASS")
}

func receiveWithoutRoom(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	p := newProbe(t)
	require.NoError(t, a.send([]byte("x"), p.times(20)...))
	free, err := p.dup()
	require.NoError(t, err)
	room := uint64(free.n) + 5 // numbers below it that are free: five
	require.NoError(t, free.Close())
	var old unix.Rlimit
	require.NoError(t, unix.Getrlimit(unix.RLIMIT_NOFILE, &old))
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &unix.Rlimit{Cur: room, Max: old.Max}))
	_, fds, err := b.receive()
	require.NoError(t, unix.Setrlimit(unix.RLIMIT_NOFILE, &old))
	require.ErrorIs(t, err, ErrTruncated)
	require.Nil(t, fds)
	p.requireGone(t)
}

// recvmsg returns 0 both for a message of no bytes and at the end.
func TestEmptyMessageIsNotTheEnd(t *testing.T) {
	tests := []struct {
		name   string
		fds    int
		behind []string // messages after it
		close  bool     // the sender is gone when it is received
	}{
		{name: "alone"},
		{name: "with descriptors", fds: 2},
		{name: "and then gone", close: true},
		{name: "with descriptors and then gone", fds: 2, close: true},
		{name: "last words behind it", behind: []string{"one", "two"}, close: true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			leak.CheckExact(t)
			a, b := connPair(t)
			p := newProbe(t)
			require.NoError(t, sendRaw(t, a, nil, p.times(test.fds)))
			for _, m := range test.behind {
				require.NoError(t, a.send([]byte(m)))
			}
			if test.close {
				require.NoError(t, a.Close())
			}
			_, fds, err := b.receive()
			require.ErrorIs(t, err, errEmptyFrame)
			require.Nil(t, fds)
			p.requireGone(t)
			for _, m := range test.behind {
				frame, _, err := b.receive()
				require.NoError(t, err)
				require.Equal(t, m, string(frame))
			}
			if !test.close {
				require.NoError(t, a.Close())
			}
			for range 2 {
				_, _, err = b.receive()
				require.Equal(t, io.EOF, err)
			}
		})
	}
}

func TestResetIsNotTheEnd(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	p := newProbe(t)
	require.NoError(t, b.send([]byte("unread")))
	require.NoError(t, a.send([]byte("one"), p.times(1)...))
	require.NoError(t, a.send([]byte("two")))
	require.NoError(t, a.Close())

	_, _, err := b.receive()
	require.ErrorIs(t, err, errReset)
	require.ErrorIs(t, err, unix.ECONNRESET)
	frame, fds, err := b.receive()
	require.NoError(t, err)
	require.Equal(t, "one", string(frame))
	require.Len(t, fds, 1)
	closeAll(fds)
	frame, _, ok, err := b.receiveNow()
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "two", string(frame))
	_, _, err = b.receive()
	require.Equal(t, io.EOF, err)
	p.requireGone(t)
}

func TestSendToTheDeparted(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	require.NoError(t, a.send([]byte("last word")))
	require.NoError(t, a.Close())
	require.ErrorIs(t, b.send([]byte("x")), unix.EPIPE)
	frame, _, err := b.receive()
	require.NoError(t, err)
	require.Equal(t, "last word", string(frame))
	_, _, err = b.receive()
	require.Equal(t, io.EOF, err)
	require.ErrorIs(t, a.send([]byte("x")), net.ErrClosed)
}

func TestSendIsBounded(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	frame := make([]byte, maxFrame)
	sent := 0
	var err error
	var took time.Duration
	for err == nil {
		start := time.Now()
		if err = a.send(frame); err == nil {
			sent++
		}
		took = time.Since(start)
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.GreaterOrEqual(t, took, sendTimeout)
	require.GreaterOrEqual(t, sent, 3)

	// The connection is as good as before.
	for range sent {
		_, _, err := b.receive()
		require.NoError(t, err)
	}
	require.NoError(t, a.send(frame))
}

func TestConcurrentSends(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	p := newProbe(t)
	const senders, each = 4, 200
	var wg sync.WaitGroup
	for range senders {
		wg.Go(func() {
			for range each {
				if err := a.send([]byte("frame"), p.descriptor); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for range senders * each {
		frame, fds, err := b.receive()
		require.NoError(t, err)
		require.Equal(t, "frame", string(frame))
		require.Len(t, fds, 1)
		closeAll(fds)
	}
	wg.Wait()
	p.requireGone(t)
}

func TestInterrupt(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)

	b.interrupt()
	b.interrupt() // counts as the same
	require.NoError(t, a.send([]byte("one")))
	_, _, err := b.receive()
	require.Equal(t, errInterrupted, err, "the coming receive")
	frame, _, err := b.receive()
	require.NoError(t, err)
	require.Equal(t, "one", string(frame))

	result := make(chan error)
	go func() {
		_, _, err := b.receive()
		result <- err
	}()
	b.interrupt()
	require.Equal(t, errInterrupted, <-result, "the blocked receive, or the coming one")

	// A deadline survives an interruption, and one that is set meanwhile counts.
	require.NoError(t, b.setReadDeadline(longAgo()))
	b.interrupt()
	_, _, err = b.receive()
	require.Equal(t, errInterrupted, err)
	_, _, err = b.receive()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	b.interrupt()
	require.NoError(t, b.setReadDeadline(time.Time{}))
	_, _, err = b.receive()
	require.Equal(t, errInterrupted, err)
	require.NoError(t, a.send([]byte("two")))
	frame, _, err = b.receive()
	require.NoError(t, err)
	require.Equal(t, "two", string(frame))
}

func TestInterruptLosesNothing(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	p := newProbe(t)
	const frames = 5000
	var wg sync.WaitGroup
	wg.Go(func() {
		for i := range frames {
			if err := a.send(fmt.Appendf(nil, "%d", i), p.descriptor); err != nil {
				t.Error(err)
			}
		}
	})
	done := make(chan struct{})
	wg.Go(func() {
		for {
			select {
			case <-done:
				return
			default:
				b.interrupt()
			}
		}
	})
	interruptions := 0
	for got := 0; got < frames; {
		frame, fds, err := b.receive()
		if err == errInterrupted {
			interruptions++
			continue
		}
		if err != nil || len(fds) != 1 || string(frame) != fmt.Sprint(got) {
			t.Errorf("frame %d: %q, %d descriptors, %v", got, frame, len(fds), err)
			break
		}
		closeAll(fds)
		got++
	}
	close(done)
	wg.Wait()
	require.Positive(t, interruptions)
	p.requireGone(t)
}

func TestReceiveNow(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	p := newProbe(t)
	_, _, ok, err := b.receiveNow()
	require.NoError(t, err)
	require.False(t, ok)

	// A timer fires: what is queued is still read, and the interrupt stays.
	require.NoError(t, a.send([]byte("one"), p.descriptor))
	require.NoError(t, b.setReadDeadline(longAgo()))
	b.interrupt()
	frame, fds, ok, err := b.receiveNow()
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, "one", string(frame))
	require.Len(t, fds, 1)
	closeAll(fds)
	_, _, ok, err = b.receiveNow()
	require.NoError(t, err)
	require.False(t, ok)
	_, _, err = b.receive()
	require.Equal(t, errInterrupted, err)

	require.NoError(t, a.Close())
	_, _, ok, err = b.receiveNow()
	require.Equal(t, io.EOF, err)
	require.False(t, ok)
	require.NoError(t, b.Close())
	_, _, ok, err = b.receiveNow()
	require.ErrorIs(t, err, net.ErrClosed)
	require.False(t, ok)
	p.requireGone(t)
}

func TestReadDeadline(t *testing.T) {
	leak.CheckExact(t)
	a, b := connPair(t)
	require.NoError(t, b.setReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, _, err := b.receive()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, a.send([]byte("late")))
	require.NoError(t, b.setReadDeadline(time.Time{}))
	frame, _, err := b.receive()
	require.NoError(t, err)
	require.Equal(t, "late", string(frame))
}

func TestCloseWakesReceive(t *testing.T) {
	leak.CheckExact(t)
	_, b := connPair(t)
	result := make(chan error)
	go func() {
		_, _, err := b.receive()
		result <- err
	}()
	require.NoError(t, b.Close())
	require.ErrorIs(t, <-result, net.ErrClosed)
}

func FuzzRightsIn(f *testing.F) {
	f.Add(unix.UnixRights(3))
	f.Add(unix.UnixRights(3, 4, 5))
	f.Add(append(unix.UnixRights(3, 4), unix.UnixRights(5)...))
	f.Add(append(unix.UnixCredentials(&unix.Ucred{Pid: 1}), unix.UnixRights(7)...))
	f.Add([]byte{})
	f.Add([]byte(strings.Repeat("\xff", 64)))
	f.Fuzz(func(t *testing.T, oob []byte) {
		numbers := rightsIn(bytes.Clone(oob))
		if len(numbers)*4 > len(oob) {
			t.Fatalf("%d descriptors in %d bytes", len(numbers), len(oob))
		}
		again := unix.UnixRights(numbers...)
		if len(numbers) > 0 {
			require.Equal(t, numbers, rightsIn(again))
		}
	})
}
