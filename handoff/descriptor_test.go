package handoff

import (
	"net"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"golang.org/x/sys/unix"
)

func TestDescriptorCloseWaitsForItsUsers(t *testing.T) {
	leak.CheckExact(t)
	p := newProbe(t)
	require.NoError(t, p.control(func(fd int) error {
		require.NoError(t, p.Close())
		require.NoError(t, p.Close())
		_, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0)
		require.NoError(t, err, "still open while it is used")
		require.ErrorIs(t, p.control(func(int) error { return nil }), os.ErrClosed)
		return nil
	}))
	p.requireGone(t)
	_, err := p.dup()
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = p.file("x")
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = p.listener()
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = p.packetConn()
	require.ErrorIs(t, err, os.ErrClosed)
	_, err = p.facts()
	require.ErrorIs(t, err, os.ErrClosed)
}

func TestDescriptorDup(t *testing.T) {
	leak.CheckExact(t)
	p := newProbe(t)
	e, err := p.dup()
	require.NoError(t, err)
	f, err := p.file("pipe")
	require.NoError(t, err)
	require.Equal(t, "pipe", f.Name())
	cloexec, nonblock := flagsOf(t, e)
	require.True(t, cloexec)
	require.True(t, nonblock)
	require.NoError(t, p.Close())
	_, err = f.WriteString("x")
	require.NoError(t, err, "a duplicate lives by itself")
	_, err = p.other.Read(make([]byte, 1))
	require.NoError(t, err)
	require.NoError(t, f.Close())
	require.NoError(t, e.Close())
	p.requireGone(t)
}

// O_NONBLOCK belongs to the open file description. Cleared by one process, it
// is cleared for all, and then Accept can't be interrupted.
func TestNonblockIsNotTouched(t *testing.T) {
	leak.CheckExact(t)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	d, err := dupConn(ln.(*net.TCPListener))
	require.NoError(t, err)
	defer d.Close()
	requireNonblock := func() {
		t.Helper()
		_, nonblock := flagsOf(t, d)
		require.True(t, nonblock)
	}
	requireNonblock()

	a, b := connPair(t)
	require.NoError(t, a.send([]byte("x"), d))
	_, fds, err := b.receive()
	require.NoError(t, err)
	requireNonblock()
	f, err := fds[0].file("x")
	require.NoError(t, err)
	_ = f.Fd()
	requireNonblock()
	require.NoError(t, f.Close())
	copied, err := fds[0].listener()
	require.NoError(t, err)
	requireNonblock()
	require.NoError(t, copied.Close())
	closeAll(fds)
	requireNonblock()

	// Failures leave it alone, too.
	require.ErrorIs(t, a.send(nil, d), errFrameSize)
	require.NoError(t, sendRaw(t, a, make([]byte, maxFrame+1), []*descriptor{d}))
	_, _, err = b.receive()
	require.ErrorIs(t, err, ErrTruncated)
	_, err = d.packetConn()
	require.Error(t, err)
	requireNonblock()

	require.NoError(t, ln.(*net.TCPListener).SetDeadline(longAgo()))
	_, err = ln.Accept()
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
}

func TestListenerFromBlockingSocket(t *testing.T) {
	leak.CheckExact(t)
	d, _, err := bindSocket(t.Context(), "tcp4", "127.0.0.1:0", false, nil)
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, d.listen())
	require.NoError(t, d.control(func(fd int) error { return unix.SetNonblock(fd, false) }))
	ln, err := d.listener()
	require.NoError(t, err)
	_, nonblock := flagsOf(t, d)
	require.True(t, nonblock)
	result := make(chan error)
	go func() {
		_, err := ln.Accept()
		result <- err
	}()
	require.NoError(t, ln.Close())
	require.ErrorIs(t, <-result, net.ErrClosed)
}

func TestListenerTakesOverItsQueue(t *testing.T) {
	leak.CheckExact(t)
	first, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	const queued = 50
	for range queued {
		c, err := net.Dial("tcp4", first.Addr().String())
		require.NoError(t, err)
		defer c.Close()
	}
	d, err := dupConn(first.(*net.TCPListener))
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, first.Close())

	ln, err := d.listener()
	require.NoError(t, err)
	defer ln.Close()
	require.Equal(t, first.Addr().String(), ln.Addr().String())
	for range queued {
		c, err := ln.Accept()
		require.NoError(t, err)
		require.NoError(t, c.Close())
	}
}

func TestPacketConnTakesOverItsQueue(t *testing.T) {
	leak.CheckExact(t)
	first, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	client, err := net.Dial("udp4", first.LocalAddr().String())
	require.NoError(t, err)
	defer client.Close()
	for range 20 {
		_, err := client.Write([]byte("datagram"))
		require.NoError(t, err)
	}
	d, err := dupConn(first.(*net.UDPConn))
	require.NoError(t, err)
	defer d.Close()
	require.NoError(t, first.Close())
	pc, err := d.packetConn()
	require.NoError(t, err)
	defer pc.Close()
	require.NoError(t, pc.SetReadDeadline(time.Now().Add(5*time.Second)))
	for range 20 {
		buf := make([]byte, 20)
		n, _, err := pc.ReadFrom(buf)
		require.NoError(t, err)
		require.Equal(t, "datagram", string(buf[:n]))
	}
}

func TestAcceptNow(t *testing.T) {
	leak.CheckExact(t)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer ln.Close()
	tcp := ln.(*net.TCPListener)
	_, err = acceptNow(tcp)
	require.ErrorIs(t, err, unix.EAGAIN)

	client, err := net.Dial("tcp4", ln.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	require.NoError(t, tcp.SetDeadline(longAgo()))
	c, err := acceptNow(tcp)
	require.NoError(t, err)
	require.Equal(t, client.LocalAddr().String(), c.RemoteAddr().String())
	require.NoError(t, c.Close())
	require.NoError(t, ln.Close())
	_, err = acceptNow(tcp)
	require.ErrorIs(t, err, net.ErrClosed)
}

func TestDupConnOfClosed(t *testing.T) {
	leak.CheckExact(t)
	ln, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	require.NoError(t, ln.Close())
	_, err = dupConn(ln.(*net.TCPListener))
	require.ErrorIs(t, err, net.ErrClosed)
}
