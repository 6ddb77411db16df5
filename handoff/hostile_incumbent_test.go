package handoff

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// squatter is whoever got hold of the path: it plays the incumbent.
type squatter struct {
	*chain
	ln      *net.UnixListener
	control *descriptor
	web     *descriptor // a listener that it offers
	at      net.Addr
	welcome *frame
	batch   *frame
	fds     []*descriptor
}

func newSquatter(t testing.TB) *squatter {
	t.Helper()
	c := newChain(t)
	ln, id, conn, err := meet(c.ctx, c.socket, allow{})
	require.NoError(t, err)
	require.Nil(t, conn)
	q := &squatter{chain: c, ln: ln}
	t.Cleanup(q.leave)
	q.control, err = dupConn(ln)
	require.NoError(t, err)
	q.web = q.bound("tcp", "127.0.0.1:0")
	require.NoError(t, q.web.listen())
	facts := q.facts(q.web)
	q.at = facts.addr
	q.batch = &frame{Type: msgSockets, Last: true}
	q.offer(manifestItem{Name: "control", Kind: kindControl, Network: "unixpacket", Asked: c.socket, File: id}, q.control)
	q.offer(manifestItem{Name: "127.0.0.1:0", Kind: kindStream, Network: "tcp", Asked: "127.0.0.1:0"}, q.web)
	q.welcome = &frame{Type: msgWelcome, Version: 1, Generation: 7, Handoff: "x", Program: &program{PID: os.Getpid(), Generation: 6}}
	return q
}

// leave ends the squatter; its socket file is stale then.
func (q *squatter) leave() {
	q.ln.Close()
	closeAll(q.fds)
	if q.control != nil {
		q.control.Close()
	}
	if q.web != nil {
		q.web.Close()
	}
}

func (q *squatter) bound(network, address string) *descriptor {
	q.t.Helper()
	d, _, err := bindSocket(q.ctx, network, address, false, nil)
	require.NoError(q.t, err)
	q.t.Cleanup(func() { d.Close() })
	return d
}

func (q *squatter) facts(d *descriptor) socketFacts {
	q.t.Helper()
	facts, err := d.facts()
	require.NoError(q.t, err)
	return facts
}

// offer adds an item with the facts that are true of d.
func (q *squatter) offer(it manifestItem, d *descriptor) {
	q.t.Helper()
	f := q.facts(d)
	it.Local, it.Domain, it.Type, it.Protocol = f.local, f.domain, f.typ, f.protocol
	q.batch.Sockets, q.fds = append(q.batch.Sockets, it), append(q.fds, d)
}

// victim is the honest successor, which starts meanwhile.
type victim struct {
	p   *Process
	err error
}

// meet lets an honest successor come, and returns the link to it once it has
// said hello.
func (q *squatter) meet(change ...func(*Config)) (*rawPeer, <-chan victim) {
	q.t.Helper()
	cfg := q.config("victim")
	for _, f := range change {
		f(&cfg)
	}
	got := make(chan victim, 1)
	go func() {
		p, err := Start(q.ctx, cfg)
		got <- victim{p, err}
	}()
	r := q.accept()
	r.hear(msgHello)
	return r, got
}

func (q *squatter) accept() *rawPeer {
	q.t.Helper()
	require.NoError(q.t, q.ln.SetDeadline(time.Now().Add(20*time.Second)))
	uc, err := q.ln.AcceptUnix()
	require.NoError(q.t, err)
	return newRawPeer(q.t, newConn(uc))
}

// send says welcome and offers what there is.
func (q *squatter) send(r *rawPeer) {
	q.t.Helper()
	q.welcome.Total = len(q.batch.Sockets)
	r.say(q.welcome)
	r.say(q.batch, q.fds...)
	require.Equal(q.t, len(q.fds), r.hear(msgGot).N)
}

// brings makes an honest successor that has come as far as to. It is a standby
// until it is told to serve, and greets on what it inherits.
func (q *squatter) brings(to phase, change ...func(*Config)) (*rawPeer, *Process, <-chan error) {
	q.t.Helper()
	r, got := q.meet(change...)
	q.send(r)
	v := <-got
	require.NoError(q.t, v.err)
	q.t.Cleanup(func() { v.p.Close() })
	ln := q.listen(v.p, "tcp", "127.0.0.1:0")
	require.Equal(q.t, q.at, ln.Addr())
	greet(v.p, ln)
	ready := make(chan error, 1)
	if to == phaseHeld {
		return r, v.p, ready
	}
	go func() { ready <- v.p.Ready(q.ctx) }()
	r.hear(msgReady)
	for _, step := range []struct {
		from phase
		ask  msgType
		says msgType
	}{{phaseReady, msgServe, msgServing}, {phaseServing, msgRelease, msgReleased}} {
		if step.from < to {
			r.say(&frame{Type: step.ask})
			r.hear(step.says)
		}
	}
	return r, v.p, ready
}

// unharmed: after the squatter has gone, honest processes start anew.
func (q *squatter) unharmed() {
	q.t.Helper()
	q.leave()
	one := q.start("honest one", probation)
	ln := q.listen(one, "tcp", "127.0.0.1:0")
	greet(one, ln)
	q.ready(one)
	two := q.start("honest two")
	greet(two, q.listen(two, "tcp", "127.0.0.1:0"))
	q.ready(two)
	one.Stop()
	q.wait(one)
	require.Equal(q.t, "2", asked(q.t, ln.Addr()))
	two.Stop()
	q.wait(two)
}

// A manifest that does not match what came with it: nothing of it is used.
func TestManifestThatLies(t *testing.T) {
	item := func(change func(*manifestItem)) func(*squatter) {
		return func(q *squatter) { change(&q.batch.Sockets[1]) }
	}
	control := func(change func(*manifestItem)) func(*squatter) {
		return func(q *squatter) { change(&q.batch.Sockets[0]) }
	}
	// swap offers d in the listener's place, with the facts that it has.
	swap := func(q *squatter, d *descriptor, it manifestItem) {
		q.batch.Sockets, q.fds = q.batch.Sockets[:1], q.fds[:1]
		q.offer(it, d)
	}
	web := manifestItem{Name: "web", Kind: kindStream, Network: "tcp"}
	for _, tc := range []struct {
		name string
		do   func(*squatter)
		want string
	}{
		{"domain", item(func(it *manifestItem) { it.Domain = unix.AF_INET6 }), "domain, type, protocol"},
		{"type", item(func(it *manifestItem) { it.Type = unix.SOCK_DGRAM }), "domain, type, protocol"},
		{"protocol", item(func(it *manifestItem) { it.Protocol = unix.IPPROTO_UDP }), "domain, type, protocol"},
		{"address", item(func(it *manifestItem) { it.Local = "127.0.0.1:1" }), "bound to"},
		{"no address", item(func(it *manifestItem) { it.Local = "" }), "bound to"},
		{"kind packet", item(func(it *manifestItem) { it.Kind = kindPacket }), "no packet socket"},
		{"kind file", item(func(it *manifestItem) { it.Kind = kindFile }), "not asked for"},
		{"kind unknown", item(func(it *manifestItem) { it.Kind = "disk" }), "kind"},
		{"network udp", item(func(it *manifestItem) { it.Network = "udp" }), "network"},
		{"network unix", item(func(it *manifestItem) { it.Network = "unix" }), "network"},
		{"network tcp6", item(func(it *manifestItem) { it.Network = "tcp6" }), "network"},
		{"network unknown", item(func(it *manifestItem) { it.Network = "ip" }), "network"},
		{"no name", item(func(it *manifestItem) { it.Name = "" }), "empty"},
		{"control twice", item(func(it *manifestItem) { it.Kind = kindControl }), "control listener"},
		{"control missing", control(func(it *manifestItem) { it.Kind = kindStream }), "control listener"},
		{"control as a file", control(func(it *manifestItem) { it.Kind = kindFile }), "control listener"},
		{"control last", func(q *squatter) {
			q.batch.Sockets[0], q.batch.Sockets[1] = q.batch.Sockets[1], q.batch.Sockets[0]
			q.fds[0], q.fds[1] = q.fds[1], q.fds[0]
		}, "control listener"},
		{"control is a tcp listener", func(q *squatter) {
			it := q.batch.Sockets[0]
			q.batch.Sockets, q.fds = nil, nil
			q.offer(it, q.web)
		}, "network"},
		{"control is a tcp listener and says so", func(q *squatter) {
			it := q.batch.Sockets[0]
			it.Network = "tcp"
			q.batch.Sockets, q.fds = nil, nil
			q.offer(it, q.web)
		}, "network"},
		{"control is a stream socket", func(q *squatter) {
			it := q.batch.Sockets[0]
			d := q.bound("unix", filepath.Join(filepath.Dir(q.socket), "stream"))
			require.NoError(q.t, d.listen())
			q.batch.Sockets, q.fds = nil, nil
			q.offer(it, d)
		}, "network"},
		{"control is not listened on", func(q *squatter) {
			it := q.batch.Sockets[0]
			d, _, err := listenUnix(q.ctx, "unixpacket", filepath.Join(filepath.Dir(q.socket), "deaf"), unixOptions{})
			require.NoError(q.t, err)
			q.batch.Sockets, q.fds = nil, nil
			q.offer(it, d)
		}, "listening"},
		{"swapped descriptors", func(q *squatter) { q.fds[0], q.fds[1] = q.fds[1], q.fds[0] }, "domain, type, protocol"},
		{"not listened on", func(q *squatter) { swap(q, q.bound("tcp", "127.0.0.1:0"), web) }, "listening"},
		{"a connection", func(q *squatter) {
			c, err := net.Dial("tcp", q.at.String())
			require.NoError(q.t, err)
			defer c.Close()
			d, err := dupConn(c.(*net.TCPConn))
			require.NoError(q.t, err)
			swap(q, d, web)
		}, "listening"},
		{"packet socket as a listener", func(q *squatter) { swap(q, q.bound("udp", "127.0.0.1:0"), web) }, "no stream socket"},
		{"packet socket of a strange type", func(q *squatter) {
			d, err := openSocket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP)
			if err != nil { // without root
				d, err = openSocket(unix.AF_NETLINK, unix.SOCK_DGRAM, 0)
			}
			require.NoError(q.t, err)
			swap(q, d, manifestItem{Name: "dns", Kind: kindPacket, Network: "udp"})
		}, "network"},
		{"blocking", func(q *squatter) {
			require.NoError(q.t, q.web.control(func(fd int) error { return unix.SetNonblock(fd, false) }))
		}, "O_NONBLOCK"},
		{"a pipe as a listener", func(q *squatter) { q.fds[1] = newProbe(q.t).descriptor }, "not a socket"},
		{"file not asked for", func(q *squatter) {
			q.batch.Sockets = append(q.batch.Sockets, manifestItem{Name: "log", Kind: kindFile})
			q.fds = append(q.fds, newProbe(q.t).descriptor)
		}, "not asked for"},
		{"one descriptor less", func(q *squatter) { q.fds = q.fds[:1] }, "carries 1 descriptors"},
		{"no descriptor", func(q *squatter) { q.fds = nil }, "carries 0 descriptors"},
		{"one descriptor more", func(q *squatter) { q.fds = append(q.fds, q.web) }, "carries 3 descriptors"},
		{"begins in the middle", func(q *squatter) { q.batch.First = 1 }, "from index 1"},
		{"nothing at all", func(q *squatter) { q.batch.Sockets, q.fds = nil, nil }, "control listener"},
		{"fewer than announced", func(q *squatter) { q.welcome.Total = 3 }, "announced"},
		{"more than announced", func(q *squatter) { q.welcome.Total = 1 }, "announced"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			q := newSquatter(t)
			tc.do(q)
			if q.welcome.Total == 0 {
				q.welcome.Total = len(q.batch.Sockets)
			}
			r, got := q.meet()
			r.say(q.welcome)
			r.say(q.batch, q.fds...)
			v := <-got
			require.ErrorIs(t, v.err, ErrProtocol)
			require.ErrorContains(t, v.err, tc.want)
			require.Equal(t, whyProtocol, r.hear(msgAbort).Reason)
			require.Empty(t, r.hearOut())
			q.unharmed()
		})
	}
}

// Of several batches the last one lies: what came before is closed as well.
func TestManifestThatLiesLate(t *testing.T) {
	q := newSquatter(t)
	probe := newProbe(t)
	r, got := q.meet(asks("log"))
	q.welcome.Total = 3
	r.say(q.welcome)
	q.batch.Last = false
	q.batch.Sockets = append(q.batch.Sockets, manifestItem{Name: "log", Kind: kindFile})
	r.say(q.batch, append(q.fds, probe.descriptor)...)
	require.Equal(t, 3, r.hear(msgGot).N)
	r.say(&frame{Type: msgSockets, First: 2, Last: true})
	v := <-got
	require.ErrorIs(t, v.err, ErrProtocol)
	r.hear(msgAbort)
	require.Empty(t, r.hearOut())
	probe.requireGone(t)
	q.unharmed()
}

func TestIncumbentAnswersHelloWrongly(t *testing.T) {
	welcome := func(change func(*frame)) func(*rawPeer) {
		return func(r *rawPeer) {
			f := &frame{Type: msgWelcome, Version: 1, Generation: 7, Total: 2, Program: &program{PID: 1, Generation: 6}}
			change(f)
			b, err := f.encode()
			require.NoError(r.t, err)
			r.push(b)
		}
	}
	cases := map[string]struct {
		do   func(*rawPeer)
		want error
	}{
		"a version that was not offered": {welcome(func(f *frame) { f.Version = maxVersion + 1 }), ErrProtocol},
		"no version":                     {welcome(func(f *frame) { f.Version = 0 }), ErrProtocol},
		"generation 0":                   {welcome(func(f *frame) { f.Generation = 0 }), ErrProtocol},
		"no program":                     {welcome(func(f *frame) { f.Program = nil }), ErrProtocol},
		"welcome twice": {func(r *rawPeer) {
			welcome(func(*frame) {})(r)
			welcome(func(f *frame) { f.Generation = 9 })(r)
		}, ErrProtocol},
		"refuse after welcome": {func(r *rawPeer) {
			welcome(func(*frame) {})(r)
			r.say(&frame{Type: msgRefuse, Text: "after all"})
		}, ErrProtocol},
		"busy after welcome": {func(r *rawPeer) {
			welcome(func(*frame) {})(r)
			r.say(&frame{Type: msgBusy})
		}, ErrProtocol},
		"refuse":     {func(r *rawPeer) { r.say(&frame{Type: msgRefuse, Text: "no"}) }, ErrRefused},
		"error":      {func(r *rawPeer) { r.say(&frame{Type: msgError, Code: "x", Text: "no"}) }, ErrRefused},
		"permission": {func(r *rawPeer) { r.say(&frame{Type: msgError, Code: CodePermission, Text: "no"}) }, ErrPermission},
	}
	for _, f := range everyFrame() {
		switch f.Type {
		case msgWelcome, msgBusy, msgRefuse, msgError, msgBye: // TestIncumbentThatLeaves
		default:
			cases["says "+f.Type.String()] = struct {
				do   func(*rawPeer)
				want error
			}{func(r *rawPeer) { r.say(f) }, ErrProtocol}
		}
	}
	for name, tc := range cases {
		t.Run(name, func(t *testing.T) {
			q := newSquatter(t)
			r, got := q.meet()
			tc.do(r)
			v := <-got
			require.ErrorIs(t, v.err, tc.want)
			if tc.want == ErrProtocol {
				require.NotErrorIs(t, v.err, ErrRefused)
				require.NotErrorIs(t, v.err, ErrRevoked)
				require.Equal(t, whyProtocol, r.hear(msgAbort).Reason)
			}
			require.Empty(t, r.hearOut())
			q.unharmed()
		})
	}
}

// An error in place of a seat at the table: all connections are taken just now.
func TestBusyErrorIsAskedAgain(t *testing.T) {
	q := newSquatter(t)
	r, got := q.meet()
	for range 2 {
		r.say(&frame{Type: msgError, Code: CodeBusy, Text: "64 connections are being answered already"})
		require.Empty(t, r.hearOut())
		r = q.accept()
		r.hear(msgHello)
	}
	q.send(r)
	v := <-got
	require.NoError(t, v.err)
	require.NoError(t, v.p.Close())
	require.Equal(t, whyAborted, r.hear(msgAbort).Reason)
	q.unharmed()
}

// Before anything was received the successor looks for the incumbent anew.
func TestIncumbentThatLeaves(t *testing.T) {
	for name, last := range map[string]func(*squatter, *rawPeer){
		"with bye":      func(_ *squatter, r *rawPeer) { r.say(&frame{Type: msgBye}) },
		"without":       func(*squatter, *rawPeer) {},
		"after welcome": func(q *squatter, r *rawPeer) { q.welcome.Total = 2; r.say(q.welcome) },
	} {
		t.Run(name, func(t *testing.T) {
			q := newSquatter(t)
			r, got := q.meet()
			last(q, r)
			require.NoError(t, r.c.Close())
			r = q.accept()
			r.hear(msgHello)
			q.send(r)
			v := <-got
			require.NoError(t, v.err)
			require.NoError(t, v.p.Close())
			q.unharmed()
		})
	}
}

func TestIncumbentTalksNonsense(t *testing.T) {
	for _, at := range []phase{phaseHello, phaseOffer, phaseHeld, phaseReady, phaseServing, phaseReleased} {
		for name := range nonsense(nil) {
			t.Run(phaseNames[at]+"/"+name, func(t *testing.T) {
				q := newSquatter(t)
				probe := newProbe(t)
				lie := func(r *rawPeer) { nonsense(probe.descriptor)[name](r) }
				if at <= phaseOffer {
					r, got := q.meet()
					if at == phaseOffer {
						q.welcome.Total = 2
						r.say(q.welcome)
					}
					lie(r)
					require.ErrorIs(t, (<-got).err, ErrProtocol)
					probe.requireGone(t)
					q.unharmed()
					return
				}
				r, p, ready := q.brings(at)
				lie(r)
				q.survives(r, p, ready, at)
				probe.requireGone(t)
				q.unharmed()
			})
		}
	}
}

// survives: before it serves a successor leaves a liar; while it serves it goes
// on, hears the end of the handoff and never mentions the lie again.
func (q *squatter) survives(r *rawPeer, p *Process, ready <-chan error, at phase) {
	q.t.Helper()
	if at < phaseServing {
		select {
		case <-p.Done():
		case <-q.ctx.Done():
			q.t.Fatal("it goes on")
		}
		require.ErrorIs(q.t, p.Err(), ErrProtocol)
		if at == phaseReady {
			require.ErrorIs(q.t, <-ready, ErrProtocol)
		}
		require.Equal(q.t, whyProtocol, r.hear(msgAbort).Reason)
		require.Empty(q.t, r.hearOut())
		return
	}
	require.NoError(q.t, <-ready)
	require.Equal(q.t, "7", asked(q.t, q.at))
	if at == phaseServing {
		r.say(&frame{Type: msgRelease})
		r.hear(msgReleased)
	}
	r.say(&frame{Type: msgDraining})
	r.say(&frame{Type: msgBye})
	require.Empty(q.t, r.hearOut())
	require.Equal(q.t, StateServing, p.State())
	require.EqualValues(q.t, 7, p.Generation(), "its number is its own")
	require.Equal(q.t, "7", asked(q.t, q.at))
	// It answers now, and hands over as if nothing had happened.
	s, err := q.client().Status(q.ctx)
	require.NoError(q.t, err)
	require.EqualValues(q.t, 7, s.Generation)
	next := q.start("next")
	require.EqualValues(q.t, 8, next.Generation())
	greet(next, q.listen(next, "tcp", "127.0.0.1:0"))
	q.ready(next)
	p.Stop()
	q.wait(p)
	require.NoError(q.t, p.Err())
	next.Stop()
	q.wait(next)
}

// Each frame at each phase, where it has no place.
func TestIncumbentOutOfOrder(t *testing.T) {
	fits := map[phase][]msgType{
		phaseHeld: {msgRevoke, msgBye}, phaseReady: {msgServe, msgRevoke, msgBye},
		phaseServing: {msgRelease, msgRevoke, msgBye}, phaseReleased: {msgDraining, msgRevoke, msgBye},
	}
	for at, fitting := range fits {
		for _, f := range everyFrame() {
			skip := f.Type == msgError || f.Type == msgPing || f.Type == msgPong
			for _, m := range fitting {
				skip = skip || m == f.Type
			}
			if skip {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", phaseNames[at], f.Type), func(t *testing.T) {
				q := newSquatter(t)
				r, p, ready := q.brings(at)
				if f.Type == msgSockets {
					r.push(q.encoded(), q.fds...)
				} else {
					r.say(f)
				}
				q.survives(r, p, ready, at)
				q.unharmed()
			})
		}
	}
}

func (q *squatter) encoded() []byte {
	q.t.Helper()
	b, err := q.batch.encode()
	require.NoError(q.t, err)
	return b
}

// An error is never answered, what is unknown is, and neither changes anything.
func TestSuccessorPassesOverErrors(t *testing.T) {
	for _, at := range []phase{phaseHeld, phaseReady, phaseServing, phaseReleased} {
		t.Run(phaseNames[at], func(t *testing.T) {
			q := newSquatter(t)
			r, p, _ := q.brings(at)
			for range 3 {
				r.say(&frame{Type: msgError, Code: CodeBusy, Text: "no"})
			}
			r.quiet()
			want := map[phase]State{phaseHeld: StateStarting, phaseReady: StateStandby}[at]
			if at >= phaseServing {
				want = StateServing
			}
			require.Equal(t, want, p.State())
			require.NoError(t, p.Close())
			q.unharmed()
		})
	}
}

// A silent incumbent is named by its pid.
func TestSilentIncumbent(t *testing.T) {
	// As much as the test itself may need between two words.
	quick := func(cfg *Config) { cfg.StepTimeout = time.Second }
	for name, say := range map[string]func(*squatter, *rawPeer){
		"after hello":   func(*squatter, *rawPeer) {},
		"after welcome": func(q *squatter, r *rawPeer) { q.welcome.Total = 2; r.say(q.welcome) },
		"between batches": func(q *squatter, r *rawPeer) {
			q.welcome.Total = 3
			q.batch.Last = false
			r.say(q.welcome)
			r.say(q.batch, q.fds...)
			r.hear(msgGot)
		},
	} {
		t.Run(name, func(t *testing.T) {
			q := newSquatter(t)
			r, got := q.meet(quick)
			say(q, r)
			v := <-got
			require.ErrorIs(t, v.err, ErrSilent)
			require.ErrorContains(t, v.err, fmt.Sprintf("pid %d", os.Getpid()))
			require.Equal(t, whySilent, r.hear(msgAbort).Reason)
			require.Empty(t, r.hearOut())
			q.unharmed()
		})
	}
	t.Run("before it accepts", func(t *testing.T) {
		q := newSquatter(t)
		_, err := Start(q.ctx, func() Config { cfg := q.config("victim"); quick(&cfg); return cfg }())
		require.ErrorIs(t, err, ErrSilent)
		require.ErrorContains(t, err, fmt.Sprintf("pid %d", os.Getpid()))
		q.unharmed()
	})
	t.Run("busy for ever", func(t *testing.T) {
		q := newSquatter(t)
		ctx, cancel := context.WithCancelCause(q.ctx)
		defer cancel(nil)
		go func() {
			for asked := 1; ; asked++ {
				uc, err := q.ln.AcceptUnix()
				if err != nil {
					return
				}
				c := newConn(uc)
				c.receive()
				if asked == 3 { // so the first two answers were read
					cancel(context.DeadlineExceeded)
				}
				say(c, &frame{Type: msgBusy, Reason: whyHandoff, Text: "another one"})
				c.Close()
			}
		}()
		_, err := Start(ctx, q.config("victim"))
		require.ErrorIs(t, err, context.DeadlineExceeded)
		require.ErrorContains(t, err, "another one")
		q.unharmed()
	})
}

// With some sockets received, a successor whose incumbent dies serves.
func TestIncumbentDiesBetweenBatches(t *testing.T) {
	q := newSquatter(t)
	r, got := q.meet()
	q.welcome.Total = 3
	q.batch.Last = false
	r.say(q.welcome)
	r.say(q.batch, q.fds...)
	r.hear(msgGot)
	q.leave()
	require.NoError(t, r.c.Close())
	v := <-got
	require.NoError(t, v.err)
	defer v.p.Close()
	ln := q.listen(v.p, "tcp", "127.0.0.1:0")
	require.Equal(t, q.at, ln.Addr())
	greet(v.p, ln)
	q.ready(v.p)
	require.Equal(t, "7", asked(t, ln.Addr()))
	next := q.start("next")
	greet(next, q.listen(next, "tcp", "127.0.0.1:0"))
	q.ready(next)
	q.wait(v.p)
	require.Equal(t, "8", asked(t, ln.Addr()))
}

// needRoot skips what only root can run. Where HANDOFF_TEST_ROOT is set, as in
// .ci/run, that is a failure.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	require.Empty(t, os.Getenv("HANDOFF_TEST_ROOT"), "this test needs root")
	t.Skip("needs root; HANDOFF_TEST_ROOT=1 makes this a failure")
}

// A listener of another network namespace is a black hole once that namespace's
// network is gone.
func TestRootForeignNetworkNamespace(t *testing.T) {
	needRoot(t)
	for _, kind := range []struct {
		name, network string
		kind          kind
	}{{"tcp", "tcp", kindStream}, {"udp", "udp", kindPacket}} {
		t.Run(kind.name, func(t *testing.T) {
			q := newSquatter(t)
			foreign := q.foreign(kind.network, "0.0.0.0:0")
			q.batch.Sockets, q.fds = q.batch.Sockets[:1], q.fds[:1]
			q.offer(manifestItem{Name: "web", Kind: kind.kind, Network: kind.network}, foreign)
			q.welcome.Total = 2
			r, got := q.meet()
			r.say(q.welcome)
			r.say(q.batch, q.fds...)
			v := <-got
			require.ErrorIs(t, v.err, ErrForeignNetns)
			for _, remedy := range []string{"network_mode: host", "--allow-foreign-netns", "it is bound to "} {
				require.ErrorContains(t, v.err, remedy)
			}
			last := r.hear(msgAbort)
			require.Equal(t, whyForeign, last.Reason)
			require.Contains(t, last.Text, "another network namespace", "the incumbent can tell its operator")
			require.Empty(t, r.hearOut())
			q.unharmed()
		})
	}
}

// foreign makes a socket in a network namespace that nothing else lives in.
func (q *squatter) foreign(network, address string) *descriptor {
	return q.foreignMember(network, address, false)
}

// foreignMember is foreign for a member of an SO_REUSEPORT group.
func (q *squatter) foreignMember(network, address string, reusePort bool) *descriptor {
	q.t.Helper()
	// A thread that could not be brought back would end with its goroutine.
	runtime.LockOSThread()
	home, err := netns.Get()
	require.NoError(q.t, err)
	defer home.Close()
	away, err := netns.New()
	require.NoError(q.t, err)
	defer away.Close()
	d, _, err := bindSocket(q.ctx, network, address, reusePort, nil)
	require.NoError(q.t, err)
	q.t.Cleanup(func() { d.Close() })
	if network == "tcp" {
		require.NoError(q.t, d.listen())
	}
	require.NoError(q.t, netns.Set(home))
	runtime.UnlockOSThread()
	return d
}
