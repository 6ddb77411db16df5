package handoff

import (
	"context"
	"errors"
	"io"
	"math"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// giver is a version that drains, and moves its connections to whoever the test
// plays: its successor took the control socket and answers by itself.
type giver struct {
	*target
	*web
	link    *rawPeer
	control *net.UnixListener
}

func newGiver(t testing.TB, change ...func(*Config)) *giver {
	t.Helper()
	c := newChain(t)
	w := c.web("one", append([]func(*Config){probation}, change...)...)
	return &giver{target: &target{chain: c, one: w.p, at: w.ln.Addr()}, web: w}
}

// release hands over for good to a successor that leaves the rest to the test, and
// returns when answers are told to close: the moves may begin a moment before.
func (g *giver) release() {
	t := g.t
	t.Helper()
	var d *descriptor
	var err error
	require.True(t, g.one.ask(func() { d, err = g.one.control.d.dup() }))
	require.NoError(t, err)
	defer d.Close()
	ln, err := d.listener()
	require.NoError(t, err)
	g.control = ln.(*net.UnixListener)
	t.Cleanup(func() { ln.Close() })
	g.link = g.raw(phaseRelease)
	g.link.say(&frame{Type: msgReleased})
	<-g.h.drain.draining
}

// accept takes the next connection that asks to move connections.
func (g *giver) accept() *rawTaker {
	t := g.t
	t.Helper()
	require.NoError(t, g.control.SetDeadline(time.Now().Add(20*time.Second)))
	for {
		uc, err := g.control.AcceptUnix()
		require.NoError(t, err)
		c := newConn(uc)
		require.NoError(t, c.takeRights())
		r := &rawTaker{newRawPeer(t, c)}
		f, err := r.next()
		require.NoError(t, err)
		if f.Type == msgMove {
			require.EqualValues(t, 1, f.Generation)
			return r
		}
	}
}

// rawTaker answers `move` as a test wants.
type rawTaker struct{ *rawPeer }

func (r *rawTaker) ok() { r.t.Helper(); r.say(&frame{Type: msgOK}) }

// take hears a batch. What came with it is closed at the end of the test.
func (r *rawTaker) take() (*frame, []*descriptor) {
	r.t.Helper()
	b, fds, err := r.c.receive()
	require.NoError(r.t, err)
	r.t.Cleanup(func() { closeAll(fds) })
	f, err := decode(b)
	require.NoError(r.t, err)
	require.Equal(r.t, msgConnections, f.Type)
	require.Len(r.t, fds, len(f.Moved))
	return f, fds
}

// answerOver answers one request on a connection that was taken.
func (r *rawTaker) answerOver(d *descriptor, c *rawClient) {
	r.t.Helper()
	f, err := d.file("connection")
	require.NoError(r.t, err)
	nc, err := net.FileConn(f)
	require.NoError(r.t, err)
	require.NoError(r.t, f.Close())
	defer nc.Close()
	require.NoError(r.t, nc.SetDeadline(time.Now().Add(patience)))
	c.send(get("/"))
	b := make([]byte, len(get("/")))
	_, err = io.ReadFull(nc, b)
	require.NoError(r.t, err)
	require.Equal(r.t, get("/"), string(b), "nobody else read from it")
	_, err = io.WriteString(nc, "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\ntaker")
	require.NoError(r.t, err)
	require.Equal(r.t, "taker", c.ok(false))
}

// soonImpatient has a giver, or a taker, wait for the other end's words no longer than a
// test may wait for that; and for long enough that words which are said come in time
// where the machine stalls, since these tests also say some.
func soonImpatient(cfg *Config) { cfg.StepTimeout = 2 * time.Second }

// Who is not given connections: they are answered where they are, and told to close.
func TestTakerTakesNone(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(*rawTaker)
	}{
		{"says nothing", func(*rawTaker) {}},
		{"hangs up", func(r *rawTaker) { r.c.Close() }},
		{"does not know the question", func(r *rawTaker) { r.say(&frame{Type: msgError, Code: "unknown_type", Text: "no"}) }},
		{"moves off", func(r *rawTaker) { r.say(&frame{Type: msgError, Code: "moves_off", Text: "no"}) }},
		{"busy", func(r *rawTaker) { r.say(&frame{Type: msgError, Code: "busy", Text: "no"}) }},
		{"another frame", func(r *rawTaker) { r.say(&frame{Type: msgWelcome, Version: 1, Generation: 9, Program: &program{}}) }},
		{"descriptors", func(r *rawTaker) { r.push([]byte(`{"type":"ok"}`), newProbe(r.t).descriptor) }},
		{"garbage", func(r *rawTaker) { r.push([]byte("what is this")) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newGiver(t, soonImpatient)
			c, fresh := g.idle(), g.dial()
			g.open(map[string]int{"idle": 1, "new": 1})
			g.release()
			first := g.accept()
			tc.do(first)
			// It asks again: what came of the first time is known by then.
			g.accept().say(&frame{Type: msgError, Code: "moves_off", Text: "no"})
			g.accept()
			require.Equal(t, "one", c.get("/", true))
			require.Equal(t, "one", fresh.get("/", true))
			g.moved(0)
		})
	}
}

// A busy taker is asked again, and then gets what there is.
func TestBusyTakerIsAskedAgain(t *testing.T) {
	g := newGiver(t)
	c := g.idle()
	g.release()
	for range 3 {
		g.accept().say(&frame{Type: msgError, Code: "busy", Text: "not yet"})
	}
	r := g.accept()
	r.ok()
	f, fds := r.take()
	require.Len(t, f.Moved, 1)
	require.False(t, f.Moved[0].Fresh)
	require.Equal(t, "127.0.0.1:0", f.Sockets[0].Name)
	r.say(&frame{Type: msgGot, N: 1})
	g.moved(1)
	r.answerOver(fds[0], c)
}

// A batch that is not acknowledged is the giver's again, and what a client said
// meanwhile is answered there.
func TestTakerKeepsSilentAboutABatch(t *testing.T) {
	g := newGiver(t, soonImpatient)
	c := g.idle()
	g.release()
	r := g.accept()
	r.ok()
	r.take()
	c.send(get("/"))
	r.hear(msgKeep)
	require.Equal(t, "one", c.ok(false))
	require.Empty(t, r.hearOut())

	// Somebody else may take it later.
	r = g.accept()
	r.ok()
	_, fds := r.take()
	r.say(&frame{Type: msgGot, N: 1})
	g.moved(1)
	r.answerOver(fds[0], c)
}

// After `keep` and the end of the giver's reading side no `got` can be said.
func TestGotIsImpossibleAfterKeep(t *testing.T) {
	g := newGiver(t, soonImpatient)
	c := g.idle()
	g.release()
	r := g.accept()
	r.ok()
	r.take()
	r.hear(msgKeep)
	b, err := (&frame{Type: msgPong}).encode() // passed over
	require.NoError(t, err)
	g.until("nothing can be said", func() bool { return errors.Is(r.c.send(b), unix.EPIPE) })
	b, err = (&frame{Type: msgGot, N: 1}).encode()
	require.NoError(t, err)
	require.ErrorIs(t, r.c.send(b), unix.EPIPE)
	require.Equal(t, "one", c.get("/", false))
	require.NoError(t, c.Close())
	g.moved(0)
}

// What a taker says of a batch that can't be true: nobody knows who reads from
// its connections, so nobody here does.
func TestTakerMiscounts(t *testing.T) {
	for name, got := range map[string]*frame{
		"nothing":        {N: 0},
		"more":           {N: 2},
		"as many as fit": {N: int(^uint(0) >> 1)},
		"none so high":   {N: 1, Rejected: []rejection{{Index: 1}}},
		"negative":       {N: 1, Rejected: []rejection{{Index: -1}}},
		"twice":          {N: 1, Rejected: []rejection{{Index: 0}, {Index: 0, Reason: "again"}}},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGiver(t)
			c := g.idle()
			g.release()
			r := g.accept()
			r.ok()
			_, fds := r.take()
			got.Type = msgGot
			r.say(got)
			require.Empty(t, r.hearOut(), "no more is said to it")
			g.wait(g.p)
			r.answerOver(fds[0], c)
			closeAll(fds)
			c.eof()
		})
	}
}

// What a taker rejects is served where it was, and told to close.
func TestTakerRejects(t *testing.T) {
	for name, no := range map[string]*frame{
		"by got":     {Type: msgGot, N: 1, Rejected: []rejection{{Index: 0, Reason: "no"}}},
		"no reason":  {Type: msgGot, N: 1, Rejected: []rejection{{Index: 0}}},
		"no room":    {Type: msgError, Code: "truncated", Text: "no room", Hint: "ulimit"},
		"not a word": {Type: msgError},
	} {
		t.Run(name, func(t *testing.T) {
			g := newGiver(t)
			c := g.idle()
			g.release()
			r := g.accept()
			r.ok()
			_, fds := r.take()
			closeAll(fds)
			c.send(get("/"))
			r.say(no)
			require.Equal(t, "one", c.ok(true))
			g.moved(0)
		})
	}
}

// Of a batch of which only some are taken each has one owner.
func TestTakerRejectsSome(t *testing.T) {
	g := newGiver(t)
	const n = 8
	clients := map[string]*rawClient{}
	for range n {
		c := g.idle()
		clients[c.LocalAddr().String()] = c
	}
	g.open(map[string]int{"idle": n})
	g.release()
	r := g.accept()
	r.ok()
	taken, rejected := 0, 0
	for taken+rejected < n {
		f, fds := r.take()
		got := &frame{Type: msgGot, N: len(f.Moved)}
		var mine []int
		for i := range fds {
			if (taken+rejected+i)%2 == 1 {
				got.Rejected = append(got.Rejected, rejection{Index: i, Reason: "odd"})
			} else {
				mine = append(mine, i)
			}
		}
		var theirs []*rawClient
		for _, x := range got.Rejected {
			c := clients[peerOf(t, fds[x.Index])]
			c.send(get("/")) // answered as soon as it is the giver's again: later it may have been swept again
			theirs = append(theirs, c)
			fds[x.Index].Close()
		}
		r.say(got)
		for _, c := range theirs {
			require.Equal(t, "one", c.ok(true))
		}
		for _, i := range mine {
			r.answerOver(fds[i], clients[peerOf(t, fds[i])])
			fds[i].Close()
		}
		taken, rejected = taken+len(mine), rejected+len(theirs)
	}
	g.moved(uint64(taken))
}

func peerOf(t testing.TB, d *descriptor) (address string) {
	t.Helper()
	require.NoError(t, d.control(func(fd int) error {
		sa, err := unix.Getpeername(fd)
		require.NoError(t, err)
		a := sa.(*unix.SockaddrInet4)
		address = (&net.TCPAddr{IP: a.Addr[:], Port: a.Port}).String()
		return nil
	}))
	return address
}

// A taker that ends without `got` has nothing; one that ends after it has what it
// acknowledged.
func TestTakerEnds(t *testing.T) {
	t.Run("before got", func(t *testing.T) {
		g := newGiver(t)
		c := g.idle()
		g.release()
		for range 3 {
			r := g.accept()
			r.ok()
			_, fds := r.take()
			closeAll(fds)
			require.NoError(t, r.c.Close())
			require.Equal(t, "one", c.get("/", false))
		}
		require.NoError(t, c.Close())
		g.moved(0)
	})
	t.Run("before it read the batch", func(t *testing.T) {
		g := newGiver(t)
		c := g.idle()
		g.release()
		for range 3 {
			r := g.accept()
			r.ok()
			require.True(t, waitToReadFrom(t, r.c))
			require.NoError(t, r.c.Close())
			require.Equal(t, "one", c.get("/", false))
		}
		require.NoError(t, c.Close())
		g.moved(0)
	})
	t.Run("after got", func(t *testing.T) {
		g := newGiver(t)
		c := g.idle()
		g.release()
		r := g.accept()
		r.ok()
		_, fds := r.take()
		r.say(&frame{Type: msgGot, N: 1})
		require.NoError(t, r.c.Close())
		g.moved(1)
		r.answerOver(fds[0], c)
	})
}

// waitToReadFrom waits until a message is there, and leaves it.
func waitToReadFrom(t testing.TB, c *conn) bool {
	t.Helper()
	raw, err := c.c.SyscallConn()
	require.NoError(t, err)
	return raw.Read(canRead) == nil
}

// Whatever else a taker says, it is `got` that counts: a batch is the giver's
// again only when `got` can't be said any more.
func TestTakerTalksNonsense(t *testing.T) {
	all := nonsense(nil)
	delete(all, "a descriptor") // both are an error, which is a word
	delete(all, "many")
	all["an unknown type"] = nil
	all["a ping"] = nil
	for name := range all {
		for _, then := range []string{"got", "nothing"} {
			t.Run(name+", then "+then, func(t *testing.T) {
				change := []func(*Config){}
				if then == "nothing" {
					change = append(change, soonImpatient)
				}
				g := newGiver(t, change...)
				probe := newProbe(t)
				c := g.idle()
				g.release()
				r := g.accept()
				r.ok()
				_, fds := r.take()
				say := nonsense(probe.descriptor)
				say["an unknown type"] = func(r *rawPeer) { r.push([]byte(`{"type":"heartbeat"}`)) }
				say["a ping"] = func(r *rawPeer) { r.say(&frame{Type: msgPing}) }
				say[name](r.rawPeer)
				if then == "got" {
					r.say(&frame{Type: msgGot, N: 1})
					g.moved(1)
					r.answerOver(fds[0], c)
					probe.requireGone(t)
					return
				}
				closeAll(fds)
				require.Equal(t, "one", c.get("/", false))
				require.NoError(t, c.Close())
				g.moved(0)
				probe.requireGone(t)
			})
		}
	}
}

// Descriptors do not belong to `got`; they are closed.
func TestTakerSendsDescriptors(t *testing.T) {
	g := newGiver(t)
	probe := newProbe(t)
	c := g.idle()
	g.release()
	r := g.accept()
	r.ok()
	_, fds := r.take()
	r.push([]byte(`{"type":"got","n":1}`), probe.times(3)...)
	g.moved(1)
	probe.requireGone(t)
	r.answerOver(fds[0], c)
}

// A taker that hangs does not hold up the end: what is on its way is cut at the
// deadline, and counted.
func TestDrainEndsWithATakerThatHangs(t *testing.T) {
	hangs := map[string]func(*giver) *rawTaker{
		"before its answer":                    func(g *giver) *rawTaker { return g.accept() },
		"before it answers the control socket": func(*giver) *rawTaker { return nil },
		"with a batch": func(g *giver) *rawTaker {
			r := g.accept()
			r.ok()
			r.take()
			return r
		},
	}
	for name, hang := range hangs {
		t.Run(name+"/deadline", func(t *testing.T) {
			g := newGiver(t, func(cfg *Config) { cfg.DrainTimeout = 2 * time.Second }) // for all of it, up to where the taker hangs
			c := g.idle()
			g.release()
			r := hang(g)
			rep := g.wait(g.p)
			require.Equal(t, map[string]int{"idle": 1}, rep.Cut)
			require.Zero(t, rep.Moved)
			if name == "with a batch" {
				r.hear(msgKeep)
				require.Empty(t, r.hearOut())
			}
			require.NoError(t, g.link.c.Close())
			_ = c
		})
		t.Run(name+"/hammer", func(t *testing.T) {
			g := newGiver(t)
			g.idle()
			g.release()
			hang(g)
			g.reach(g.p, StateDraining)
			g.p.Hammer()
			require.Equal(t, map[string]int{"idle": 1}, g.wait(g.p).Cut)
		})
		t.Run(name+"/close", func(t *testing.T) {
			g := newGiver(t)
			c := g.idle()
			g.release()
			r := hang(g)
			g.reach(g.p, StateDraining)
			require.NoError(t, g.p.Close())
			if r != nil && name == "with a batch" {
				r.hear(msgKeep)
			}
			_ = c
		})
	}
}

// A taker that does not read, where the buffer is so full that `keep` can't be said:
// it may read the batch at any time, so nobody here does, and the drain ends.
func TestKeepThatCannotBeSaid(t *testing.T) {
	c := newChain(t)
	w := c.web("one", soonImpatient)
	a, b := connPair(t)
	require.NoError(t, a.c.SetWriteBuffer(1)) // the kernel makes it the least there is
	pong, err := (&frame{Type: msgPong}).encode()
	require.NoError(t, err)
	for err == nil {
		err = a.send(pong)
	}
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	_, _, err = b.receive() // so that the batch is admitted, whatever its size, and nothing after it
	require.NoError(t, err)

	probe := newProbe(t)
	d, err := probe.dup()
	require.NoError(t, err)
	var l *trackedListener
	c.until("it is served", func() bool { l = w.p.findServed(itemOf(w.ln)); return l != nil })
	m := &moving{p: w.p, k: newCarrier(time.Time{})}
	m.ctx, m.halted = context.WithCancel(c.ctx)
	m.halted()
	replies := make(chan *frame)
	ended := make(chan struct{})
	w.h.drain.travelling.Add(1)
	go func() {
		defer close(ended)
		back, goOn := m.give(a, replies, []*movedConn{{from: l, d: d}})
		assert.Empty(t, back)
		assert.False(t, goOn)
	}()
	select {
	case <-ended:
	case <-c.ctx.Done():
		t.Error("it waits for ever")
	}
	for {
		frame, fds, err := b.receive()
		require.NoError(t, err)
		if len(fds) > 0 {
			require.Contains(t, string(frame), "connections")
			closeAll(fds)
			break
		}
	}
	probe.requireGone(t)
}

func itemOf(ln net.Listener) *manifestItem {
	it := ln.(*listener).item()
	return &it
}

// adopter is a version that serves and takes connections, of which the test has some.
type adopter struct {
	*web
	*target
	conns []givenConn
}

// givenConn is a connection that came through a listener of the adopter and that
// nobody serves yet.
type givenConn struct {
	client *rawClient
	d      *descriptor
}

// newAdopter makes an adopter, and n connections to give to it.
func newAdopter(t testing.TB, network string, n int, change ...func(*Config)) *adopter {
	t.Helper()
	return newAdopterOf(t, network, n, &http.Server{}, change...)
}

func newAdopterOf(t testing.TB, network string, n int, srv *http.Server, change ...func(*Config)) *adopter {
	t.Helper()
	c := newChain(t)
	s := Socket{Network: network, Address: "127.0.0.1:0"}
	if network == "unix" {
		s.Address = filepath.Join(filepath.Dir(c.socket), "web")
	}
	w := c.webUnserved("one", s, srv, change...)
	c.ready(w.p)
	a := &adopter{web: w, target: &target{chain: c, one: w.p, at: w.ln.Addr()}}
	for range n {
		client := w.dial()
		nc, err := w.ln.Accept()
		require.NoError(t, err)
		d, err := dupConn(nc.(syscall.Conn))
		require.NoError(t, err)
		t.Cleanup(func() { d.Close() })
		require.NoError(t, nc.Close())
		a.conns = append(a.conns, givenConn{client, d})
	}
	w.serve(w.ln)
	c.until("it is served", func() bool { return w.p.findServed(itemOf(w.ln)) != nil })
	return a
}

// move asks to give connections.
func (a *adopter) move() *rawPeer {
	a.t.Helper()
	r := a.dialRaw()
	r.say(&frame{Type: msgMove, Generation: 7})
	r.hear(msgOK)
	return r
}

// batch is a frame that gives n idle connections of the adopter's listener.
func (a *adopter) batch(n int) *frame {
	f := &frame{Type: msgConnections, Sockets: []manifestItem{*itemOf(a.ln)}}
	f.Moved = make([]movedItem, n)
	return f
}

// answers expects the adopter to answer on the i-th connection.
func (a *adopter) answers(i int) {
	a.t.Helper()
	require.Equal(a.t, "one", a.conns[i].client.get("/", false))
}

// lets go of the i-th connection: the client finds out that nobody has it.
func (a *adopter) nobodyHas(i int) {
	a.t.Helper()
	require.NoError(a.t, a.conns[i].d.Close())
	a.conns[i].client.eof()
}

// Descriptors that are no connection of the listener that they are said to have come
// through are rejected one by one, and closed.
func TestGiverOfOtherDescriptors(t *testing.T) {
	dupOf := func(a *adopter, c any) *descriptor {
		d, err := dupConn(c.(syscall.Conn))
		require.NoError(a.t, err)
		return d
	}
	pair := func(a *adopter, typ int) *descriptor {
		fds, err := unix.Socketpair(unix.AF_UNIX, typ|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		require.NoError(a.t, err)
		require.NoError(a.t, unix.Close(fds[1]))
		return newDescriptor(fds[0])
	}
	// accepted is a connection that came through another listener.
	accepted := func(a *adopter, network, address string) *descriptor {
		ln, err := net.Listen(network, address)
		require.NoError(a.t, err)
		defer ln.Close()
		dialAt(a.t, ln.Addr())
		nc, err := ln.Accept()
		require.NoError(a.t, err)
		defer nc.Close()
		return dupOf(a, nc)
	}
	for _, tc := range []struct {
		name    string
		make    func(*adopter) *descriptor
		network string // of which adopter; "" is any
	}{
		{name: "a pipe", make: func(a *adopter) *descriptor {
			d, err := newProbe(a.t).dup()
			require.NoError(a.t, err)
			return d
		}},
		{name: "a directory", make: func(a *adopter) *descriptor {
			fd, err := unix.Open("/", unix.O_RDONLY|unix.O_CLOEXEC, 0)
			require.NoError(a.t, err)
			return newDescriptor(fd)
		}},
		{name: "an epoll", make: func(a *adopter) *descriptor {
			fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
			require.NoError(a.t, err)
			return newDescriptor(fd)
		}},
		{name: "the listener itself", make: func(a *adopter) *descriptor {
			var d *descriptor
			var err error
			require.True(a.t, a.p.ask(func() {
				for _, s := range a.p.sockets.claimed {
					d, err = s.d.dup()
				}
			}))
			require.NoError(a.t, err)
			return d
		}},
		{name: "udp at its address", network: "tcp", make: func(a *adopter) *descriptor {
			pc, err := net.ListenPacket("udp", a.ln.Addr().String())
			require.NoError(a.t, err)
			defer pc.Close()
			return dupOf(a, pc)
		}},
		{name: "seqpacket", make: func(a *adopter) *descriptor { return pair(a, unix.SOCK_SEQPACKET) }},
		{name: "datagrams", make: func(a *adopter) *descriptor { return pair(a, unix.SOCK_DGRAM) }},
		{name: "a pair", make: func(a *adopter) *descriptor { return pair(a, unix.SOCK_STREAM) }},
		{name: "tcp of another port", make: func(a *adopter) *descriptor { return accepted(a, "tcp", "127.0.0.1:0") }},
		{name: "tcp of another address", network: "tcp", make: func(a *adopter) *descriptor {
			return accepted(a, "tcp", net.JoinHostPort("127.0.0.2", strconv.Itoa(a.ln.Addr().(*net.TCPAddr).Port)))
		}},
		{name: "unix of another path", make: func(a *adopter) *descriptor {
			return accepted(a, "unix", filepath.Join(filepath.Dir(a.socket), "other"))
		}},
		{name: "the client's end", make: func(a *adopter) *descriptor { return dupOf(a, a.dial().Conn) }},
		{name: "not bound", make: func(a *adopter) *descriptor {
			fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
			require.NoError(a.t, err)
			return newDescriptor(fd)
		}},
		{name: "blocking", make: func(a *adopter) *descriptor {
			nc, err := net.FileConn(fileOf(a.t, a.conns[1].d))
			require.NoError(a.t, err)
			defer nc.Close()
			d := dupOf(a, nc)
			require.NoError(a.t, d.control(func(fd int) error { return unix.SetNonblock(fd, false) }))
			return d
		}},
	} {
		for _, network := range []string{"tcp", "unix"} {
			if tc.network != "" && tc.network != network {
				continue
			}
			t.Run(network+"/"+tc.name, func(t *testing.T) {
				a := newAdopter(t, network, 2)
				letRightsPass(t, a.p)
				bad := tc.make(a)
				defer bad.Close()
				r := a.move()
				r.say(a.batch(2), bad, a.conns[0].d)
				got := r.hear(msgGot)
				require.Equal(t, 2, got.N)
				require.Len(t, got.Rejected, 1)
				require.Zero(t, got.Rejected[0].Index)
				require.NotEmpty(t, got.Rejected[0].Reason)
				a.answers(0)
				a.adopted(1)
			})
		}
	}
}

func fileOf(t testing.TB, d *descriptor) *os.File {
	t.Helper()
	f, err := d.file("connection")
	require.NoError(t, err)
	t.Cleanup(func() { f.Close() })
	return f
}

// A connection of another network namespace would answer to other clients, and to
// nobody once that is gone.
func TestRootGiverOfAnotherNetworkNamespace(t *testing.T) {
	needRoot(t)
	c := newChain(t)
	w := c.webOn("one", Socket{Network: "tcp4", Address: "0.0.0.0:0"}, &http.Server{})
	c.ready(w.p)
	letRightsPass(t, w.p)
	q := &squatter{chain: c}
	d := q.foreign("tcp4", w.ln.Addr().String())
	require.NoError(t, d.control(func(fd int) error { return unix.SetNonblock(fd, true) }))
	a := &adopter{web: w, target: &target{chain: c, one: w.p, at: w.ln.Addr()}}
	r := a.move()
	r.say(a.batch(1), d)
	got := r.hear(msgGot)
	require.Len(t, got.Rejected, 1)
	require.Contains(t, got.Rejected[0].Reason, "network namespace")
	require.Zero(t, a.self().Adopted)
}

// Whoever breaks the rules of moving is told so, and everything it sent is closed.
func TestGiverBreaksTheRules(t *testing.T) {
	send := func(change func(*frame), n int) func(*adopter, *rawPeer) {
		return func(a *adopter, r *rawPeer) {
			f := a.batch(2)
			change(f)
			b, err := f.encode()
			require.NoError(a.t, err)
			r.push(b, []*descriptor{a.conns[0].d, a.conns[1].d, a.conns[0].d}[:n]...)
		}
	}
	for name, do := range map[string]func(*adopter, *rawPeer){
		"fewer descriptors":  send(func(*frame) {}, 1),
		"no descriptor":      send(func(*frame) {}, 0),
		"more descriptors":   send(func(*frame) {}, 3),
		"no such listener":   send(func(f *frame) { f.Moved[1].Listener = 1 }, 2),
		"a negative one":     send(func(f *frame) { f.Moved[1].Listener = -1 }, 2),
		"idle in the future": send(func(f *frame) { f.Moved[1].IdleMS = -1 }, 2),
		"no listeners":       send(func(f *frame) { f.Sockets = nil }, 2),
		"no connections":     send(func(f *frame) { f.Moved = nil }, 0),
		"too many listeners": send(func(f *frame) {
			for range maxListeners {
				f.Sockets = append(f.Sockets, f.Sockets[0])
			}
		}, 2),
		"sockets": func(_ *adopter, r *rawPeer) { r.say(&frame{Type: msgSockets, Last: true}) },
		"hello": func(_ *adopter, r *rawPeer) {
			r.say(&frame{Type: msgHello, Versions: &versionRange{1, 1}, Program: &program{}})
		},
		"status":  func(_ *adopter, r *rawPeer) { r.say(&frame{Type: msgStatus}) },
		"stop":    func(_ *adopter, r *rawPeer) { r.say(&frame{Type: msgStop}) },
		"unknown": func(_ *adopter, r *rawPeer) { r.push([]byte(`{"type":"heartbeat"}`)) },
		"garbage": func(a *adopter, r *rawPeer) { r.push([]byte("what is this"), a.conns[0].d, a.conns[1].d) },
		"nonsense": func(a *adopter, r *rawPeer) {
			r.push([]byte("{}"), slices.Repeat([]*descriptor{a.conns[0].d}, kernelMaxFDs)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAdopter(t, "tcp", 2)
			letRightsPass(t, a.p)
			r := a.move()
			do(a, r)
			require.Equal(t, "bad_request", r.hear(msgError).Code)
			require.Empty(t, r.hearOut())
			a.nobodyHas(0)
			a.nobodyHas(1)
			require.Zero(t, a.self().Adopted)
			a.unharmedWeb()
		})
	}
	t.Run("connections without move", func(t *testing.T) {
		a := newAdopter(t, "tcp", 1)
		letRightsPass(t, a.p)
		r := a.dialRaw()
		r.say(a.batch(1), a.conns[0].d)
		require.Equal(t, "bad_request", r.hear(msgError).Code)
		require.Empty(t, r.hearOut())
		a.nobodyHas(0)
		a.unharmedWeb()
	})
	t.Run("at the self socket", func(t *testing.T) {
		self := filepath.Join(t.TempDir(), "self")
		a := newAdopter(t, "tcp", 1, func(cfg *Config) { cfg.SelfSocket = self })
		c, err := dial(a.ctx, self, allow{})
		require.NoError(t, err)
		r := newRawPeer(t, c)
		r.say(&frame{Type: msgMove, Generation: 7})
		require.Equal(t, CodeSelfSocket, r.hear(msgError).Code)
		a.unharmedWeb()
	})
}

// unharmedWeb: the adopter serves, and hands over.
func (a *adopter) unharmedWeb() {
	a.t.Helper()
	c := a.idle()
	two := a.c.webOn("two", Socket{Network: "tcp", Address: "127.0.0.1:0"}, &http.Server{})
	a.ready(two.p)
	a.moved(1)
	two.answers(c)
}

// What a giver may do, though it need not.
func TestGiverMay(t *testing.T) {
	for name, do := range map[string]func(*adopter, *rawPeer){
		"say connections before ok came": func(a *adopter, _ *rawPeer) {
			r := a.dialRaw()
			r.say(&frame{Type: msgMove, Generation: 7})
			r.say(a.batch(1), a.conns[0].d)
			r.say(a.batch(1), a.conns[1].d)
			r.hear(msgOK)
			require.Empty(a.t, r.hear(msgGot).Rejected)
			require.Empty(a.t, r.hear(msgGot).Rejected)
		},
		"send two batches before got came": func(a *adopter, r *rawPeer) {
			r.say(a.batch(1), a.conns[0].d)
			r.say(a.batch(1), a.conns[1].d)
			require.Empty(a.t, r.hear(msgGot).Rejected)
			require.Empty(a.t, r.hear(msgGot).Rejected)
		},
		"say keep where there is nothing to keep": func(a *adopter, r *rawPeer) {
			r.say(&frame{Type: msgKeep})
			r.say(a.batch(2), a.conns[0].d, a.conns[1].d)
			require.Empty(a.t, r.hear(msgGot).Rejected)
			r.say(&frame{Type: msgKeep}) // too late: got came before it
		},
		"claim to have been idle for ever": func(a *adopter, r *rawPeer) {
			f := a.batch(2)
			f.Moved[0].IdleMS, f.Moved[1].IdleMS = math.MaxInt64, maxIdleMillis
			r.say(f, a.conns[0].d, a.conns[1].d)
			require.Empty(a.t, r.hear(msgGot).Rejected)
		},
		"say an older generation's number, or none": func(a *adopter, _ *rawPeer) {
			r := a.dialRaw()
			r.say(&frame{Type: msgMove})
			r.hear(msgOK)
			r.say(a.batch(2), a.conns[0].d, a.conns[1].d)
			require.Empty(a.t, r.hear(msgGot).Rejected)
		},
		"give one with another's": func(a *adopter, r *rawPeer) {
			f := a.batch(2)
			f.Sockets = append([]manifestItem{{Name: "unknown", Kind: kindStream, Network: "tcp", Local: "127.0.0.1:1"}}, f.Sockets...)
			f.Moved[0].Listener, f.Moved[1].Listener = 1, 0
			r.say(f, a.conns[0].d, a.conns[1].d)
			got := r.hear(msgGot)
			require.Len(a.t, got.Rejected, 1)
			require.Equal(a.t, 1, got.Rejected[0].Index)
			f = a.batch(1)
			r.say(f, a.conns[1].d)
			require.Empty(a.t, r.hear(msgGot).Rejected)
		},
		"end at once": func(a *adopter, r *rawPeer) {
			r.say(a.batch(2), a.conns[0].d, a.conns[1].d)
			require.NoError(a.t, r.c.Close())
		},
	} {
		t.Run(name, func(t *testing.T) {
			a := newAdopter(t, "tcp", 2)
			letRightsPass(t, a.p)
			do(a, a.move())
			a.answers(0)
			a.answers(1)
			a.adopted(2)
		})
	}
}

// Where `got` can't be said, what the giver says next decides: nothing is read
// before.
func TestGiverThatCannotBeTold(t *testing.T) {
	start := func(t *testing.T) (*adopter, *rawPeer) {
		a := newAdopter(t, "tcp", 2)
		letRightsPass(t, a.p)
		r := a.move()
		require.NoError(t, r.c.c.CloseRead())
		r.say(a.batch(1), a.conns[0].d)
		a.until("it was read", func() bool { return a.h.drain.travelling.Load() == 1 })
		return a, r
	}
	t.Run("keeps", func(t *testing.T) {
		a, r := start(t)
		r.say(&frame{Type: msgKeep})
		(&rawTaker{r}).answerOver(a.conns[0].d, a.conns[0].client)
		a.nobodyHas(0)
		require.Zero(t, a.self().Adopted)
		a.unharmedWeb()
	})
	t.Run("dies", func(t *testing.T) {
		a, r := start(t)
		a.conns[0].client.send(get("/"))
		require.NoError(t, a.conns[0].d.Close())
		require.NoError(t, r.c.Close())
		require.Equal(t, "one", a.conns[0].client.ok(false))
		a.adopted(1)
	})
	t.Run("keeps, and dies", func(t *testing.T) {
		a, r := start(t)
		r.say(&frame{Type: msgKeep})
		require.NoError(t, r.c.Close())
		a.nobodyHas(0)
		require.Zero(t, a.self().Adopted)
	})
	t.Run("gives another batch", func(t *testing.T) { // of which it knows that nobody can have it
		a, r := start(t)
		r.say(a.batch(1), a.conns[1].d)
		a.nobodyHas(0)
		a.nobodyHas(1)
		require.Zero(t, a.self().Adopted)
	})
	t.Run("waits while this one hands over", func(t *testing.T) {
		a, r := start(t)
		c := a.conns[0].client
		two := a.c.web("two")
		a.until("it has stopped accepting", func() bool {
			a.h.drain.mu.Lock()
			defer a.h.drain.mu.Unlock()
			return !a.h.drain.begun.IsZero() && len(a.h.drain.listeners) == 0
		})
		require.False(t, isClosed(a.h.drain.drained()), "it has a connection that may be its own")
		require.Equal(t, map[string]int{"idle": 1}, a.p.openConnections())
		require.NoError(t, r.c.Close())
		require.NoError(t, a.conns[0].d.Close())
		a.moved(1)
		two.answers(c)
		two.open(map[string]int{"idle": 1})
	})
}

// Listeners that a program holds and does not serve by HTTP, or not yet, are waited for
// once, however many there are and however often their connections come.
func TestGiverOfConnectionsThatNobodyServes(t *testing.T) {
	a := newAdopter(t, "tcp", 2)
	letRightsPass(t, a.p)
	f := a.batch(2)
	for i := range maxListeners - 1 {
		ln, err := a.p.ListenSocket(a.ctx, Socket{Name: strconv.Itoa(i), Network: "tcp", Address: "127.0.0.1:0"})
		require.NoError(t, err)
		f.Sockets = append(f.Sockets, *itemOf(ln))
	}
	f.Moved[1].Listener = 1
	r := a.move()
	begun := time.Now()
	for range 15 {
		r.say(f, a.conns[0].d, a.conns[1].d)
		f.Moved = f.Moved[:2]
		got := r.hear(msgGot)
		require.Len(t, got.Rejected, 1)
		require.Equal(t, 1, got.Rejected[0].Index)
	}
	require.Less(t, time.Since(begun), 10*moveSweep, "once, and not each time")
}

// A taker that goes between the moment when there was room and the one when a connection
// comes: that stays where it was, whether it rests or is net/http's.
func TestTakerGoesBeforeAConnectionComes(t *testing.T) {
	a := newAdopter(t, "tcp", 1)
	letRightsPass(t, a.p)
	own := a.idle()
	r := a.move()
	r.say(a.batch(1), a.conns[0].d)
	require.Empty(t, r.hear(msgGot).Rejected)
	require.NoError(t, a.conns[0].d.Close())
	a.adopted(1)
	a.open(map[string]int{"idle": 2})

	k := newCarrier(time.Time{})
	k.open(2)
	require.Empty(t, k.close(0)) // and leaves the room
	for range 10 {
		a.h.drain.sweep(k)
		a.until("all room is given back", func() bool {
			k.mu.Lock()
			defer k.mu.Unlock()
			return k.room == 2
		})
		require.Empty(t, k.take())
		require.Equal(t, map[string]int{"idle": 2}, a.p.openConnections())
	}
	require.Equal(t, "one", own.get("/", false))
	a.answers(0)
}

// A connection that is taken out of its rest, and goes back to it, is counted all the
// time, and once: a drain that missed it would end, and close it.
func TestRestIsCountedAtAnyMoment(t *testing.T) {
	a := newAdopter(t, "tcp", 1)
	letRightsPass(t, a.p)
	r := a.move()
	r.say(a.batch(1), a.conns[0].d)
	require.Empty(t, r.hear(msgGot).Rejected)
	require.NoError(t, a.conns[0].d.Close())
	a.adopted(1)
	a.open(map[string]int{"idle": 1})

	d := a.h.drain
	k := newCarrier(time.Time{})
	k.open(1)
	require.Empty(t, k.close(0)) // and leaves the room: what comes has to go back
	swept := make(chan struct{})
	go func() {
		defer close(swept)
		for range 20_000 {
			d.sweep(k)
		}
	}()
	for !isClosed(swept) {
		require.Equal(t, map[string]int{"idle": 1}, d.open())
		d.mu.Lock()
		none := d.noneRestsLocked()
		d.mu.Unlock()
		require.False(t, none)
	}
	a.answers(0)
}
