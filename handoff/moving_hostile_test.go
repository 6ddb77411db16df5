package handoff

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
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

// release hands over for good to a successor that leaves the rest to the test.
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

func step250(cfg *Config) { cfg.StepTimeout = 250 * time.Millisecond }

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
			g := newGiver(t, step250)
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
	g := newGiver(t, step250)
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
	g := newGiver(t, step250)
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
			theirs = append(theirs, clients[peerOf(t, fds[x.Index])])
			fds[x.Index].Close()
		}
		r.say(got)
		for _, c := range theirs {
			require.Equal(t, "one", c.get("/", true))
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
					change = append(change, step250)
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
			g := newGiver(t, func(cfg *Config) { cfg.DrainTimeout = 500 * time.Millisecond })
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
	w := c.web("one", step250)
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
		back, goOn := m.give(a, replies, []*movedConn{{drain: w.h.drain, from: l, d: d}})
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
