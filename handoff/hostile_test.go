package handoff

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// rawPeer is one end of a control connection that says what a test wants.
type rawPeer struct {
	t testing.TB
	c *conn

	deaf bool // it does not answer heartbeats, and hears them
}

func newRawPeer(t testing.TB, c *conn) *rawPeer {
	t.Helper()
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.setReadDeadline(time.Now().Add(20*time.Second)))
	return &rawPeer{t: t, c: c}
}

func (r *rawPeer) say(f *frame, fds ...*descriptor) {
	r.t.Helper()
	b, err := f.encode()
	require.NoError(r.t, err)
	require.NoError(r.t, r.c.send(b, fds...))
}

// push sends what say refuses. The other end may have hung up meanwhile, or the
// kernel may not let descriptors pass.
func (r *rawPeer) push(b []byte, fds ...*descriptor) {
	r.t.Helper()
	err := sendRaw(r.t, r.c, b, fds)
	if err != nil && !errors.Is(err, unix.EPIPE) && !errors.Is(err, unix.ECONNRESET) {
		require.ErrorIs(r.t, err, unix.EPERM)
		require.NotEmpty(r.t, fds)
	}
}

// next returns the next frame and closes the descriptors that came with it.
func (r *rawPeer) next() (*frame, error) {
	r.t.Helper()
	b, fds, err := r.c.receive()
	for errors.Is(err, errReset) {
		b, fds, err = r.c.receive()
	}
	closeAll(fds)
	if err != nil {
		return nil, err
	}
	f, err := decode(b)
	require.NoError(r.t, err)
	if f.Type == msgPing && !r.deaf {
		r.push([]byte(`{"type":"pong"}`)) // who asked may have hung up since
		return r.next()
	}
	return f, nil
}

func (r *rawPeer) hear(want msgType) *frame {
	r.t.Helper()
	f, err := r.next()
	require.NoError(r.t, err, "instead of %s", want)
	require.Equal(r.t, want, f.Type, "%+v", f)
	return f
}

// hearOut reads to the end and returns the frames that were left.
func (r *rawPeer) hearOut() (all []*frame) {
	r.t.Helper()
	for {
		f, err := r.next()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(r.t, err)
		all = append(all, f)
	}
}

// quiet makes sure that nothing was answered: the answer to a frame of an
// unknown type comes next.
func (r *rawPeer) quiet() {
	r.t.Helper()
	r.push([]byte(`{"type":"heartbeat"}`))
	require.Equal(r.t, "unknown_type", r.hear(msgError).Code)
}

// nonsense is what is wrong at any time. probe is sent where no descriptor belongs.
func nonsense(probe *descriptor) map[string]func(*rawPeer) {
	return map[string]func(*rawPeer){
		"garbage":        func(r *rawPeer) { r.push([]byte("\x00\xffwhat is this")) },
		"cut":            func(r *rawPeer) { r.push([]byte(`{"type":"got","n":1`)) },
		"empty":          func(r *rawPeer) { r.push(nil) },
		"too long":       func(r *rawPeer) { r.push([]byte(`{"type":"got","text":"` + strings.Repeat("x", maxFrame) + `"}`)) },
		"negative":       func(r *rawPeer) { r.push([]byte(`{"type":"got","n":-1}`)) },
		"a descriptor":   func(r *rawPeer) { r.push([]byte(`{"type":"error"}`), probe) },
		"empty with one": func(r *rawPeer) { r.push(nil, probe) },
		"many": func(r *rawPeer) {
			r.push([]byte(`{"type":"error"}`), slices.Repeat([]*descriptor{probe}, kernelMaxFDs)...)
		},
	}
}

// letRightsPass undoes what the kernel does against descriptors from clients,
// so that the Process itself has to.
func letRightsPass(t testing.TB, p *Process) {
	t.Helper()
	require.True(t, p.ask(func() {
		err := p.control.d.control(func(fd int) error { return unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_PASSRIGHTS, 1) })
		if err != nil && !errors.Is(err, unix.ENOPROTOOPT) {
			t.Error(err)
		}
	}))
}

// target is an honest incumbent with one listener.
type target struct {
	*chain
	one *Process
	at  net.Addr
}

func newTarget(t testing.TB, change ...func(*Config)) *target {
	t.Helper()
	c := newChain(t)
	one, ln := c.serve("one", append([]func(*Config){probation}, change...)...)
	letRightsPass(t, one)
	return &target{chain: c, one: one, at: ln.Addr()}
}

// unharmed: the incumbent serves, and the next honest handoff works.
func (g *target) unharmed() {
	g.t.Helper()
	g.reach(g.one, StateServing)
	require.Equal(g.t, "1", asked(g.t, g.at))
	two := g.start("two", probation)
	greet(two, g.listen(two, "tcp", "127.0.0.1:0"))
	g.ready(two)
	require.Equal(g.t, fmt.Sprint(two.Generation()), asked(g.t, g.at))
	g.one.Stop()
	g.wait(g.one)
	require.Empty(g.t, two.Unclaimed())
	two.Stop()
	g.wait(two)
}

// dialRaw connects to the incumbent.
func (g *target) dialRaw() *rawPeer {
	g.t.Helper()
	c, err := dial(g.ctx, g.socket, allow{})
	require.NoError(g.t, err)
	return newRawPeer(g.t, c)
}

// raw is a successor that has come as far as to.
func (g *target) raw(to phase) *rawPeer {
	g.t.Helper()
	r := g.dialRaw()
	if to == phaseNone {
		return r
	}
	m := Standby
	if to >= phaseServe {
		m = Auto
	}
	r.say(&frame{Type: msgHello, Versions: &versionRange{1, 1}, Mode: m, Program: &program{PID: os.Getpid(), Label: "raw"}})
	require.Equal(g.t, 2, r.hear(msgWelcome).Total)
	require.Len(g.t, r.hear(msgSockets).Sockets, 2)
	for _, step := range []struct {
		from phase
		do   func()
	}{
		{phaseOffer, func() { r.say(&frame{Type: msgGot, N: 2}) }},
		{phaseHeld, func() { r.say(&frame{Type: msgReady, N: 1}) }},
		{phaseReady, func() { r.hear(msgServe) }},
		{phaseServe, func() { r.say(&frame{Type: msgServing}) }},
		{phaseServing, func() { g.one.Stop(); r.hear(msgRelease) }},
	} {
		if step.from < to {
			step.do()
			if step.from >= phaseServe {
				g.far(max(step.from+1, phaseServing))
			} else if step.from != phaseReady {
				g.far(step.from + 1)
			}
		}
	}
	return r
}

// far waits until the incumbent's end of the link is that far, or further.
func (g *target) far(want phase) {
	g.t.Helper()
	g.until(fmt.Sprintf("phase %d", want), func() bool {
		var is phase
		g.one.ask(func() { is = g.one.m.younger })
		return is >= want
	})
}
