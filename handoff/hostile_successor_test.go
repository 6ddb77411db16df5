package handoff

import (
	"fmt"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

var phaseNames = map[phase]string{
	phaseNone: "before hello", phaseHello: "hello", phaseOffer: "offer", phaseHeld: "held", phaseReady: "ready", phaseServe: "serve",
	phaseServing: "serving", phaseRelease: "release", phaseReleased: "released",
}

// lied: a successor that is not believed any more is told to stop. One that was
// told to serve before is waited for, as it may still accept.
func (g *target) lied(r *rawPeer, at phase) {
	g.t.Helper()
	require.Equal(g.t, whyProtocol, r.hear(msgRevoke).Reason)
	if at >= phaseServe {
		g.reach(g.one, StateServing)
		r.say(&frame{Type: msgReleased}) // too late
		require.Equal(g.t, "1", asked(g.t, g.at))
		require.NoError(g.t, r.c.Close())
		return
	}
	require.Empty(g.t, r.hearOut())
}

// Each frame at each phase, where it has no place.
func TestSuccessorOutOfOrder(t *testing.T) {
	fits := map[phase][]msgType{
		phaseOffer: {}, // its got has a wrong number
		phaseHeld:  {msgRejected, msgReady}, phaseReady: {}, phaseServe: {msgServing}, phaseServing: {}, phaseRelease: {msgReleased},
	}
	for at, fitting := range fits {
		for _, f := range everyFrame() {
			skip := f.Type == msgError || f.Type == msgPing || f.Type == msgPong // TestErrorsAreNotAnswered, TestHeartbeat…
			for _, m := range fitting {
				skip = skip || m == f.Type
			}
			if skip {
				continue
			}
			t.Run(fmt.Sprintf("%s/%s", phaseNames[at], f.Type), func(t *testing.T) {
				g := newTarget(t)
				r := g.raw(at)
				r.say(f)
				switch f.Type {
				case msgAbort, msgRevoked, msgBye: // may be said at any time
					require.Empty(t, r.hearOut())
				default:
					g.lied(r, at)
				}
				g.unharmed()
			})
		}
	}
}

func TestSuccessorTalksNonsense(t *testing.T) {
	for _, at := range []phase{phaseOffer, phaseHeld, phaseReady, phaseServe, phaseServing, phaseRelease} {
		for name := range nonsense(nil) {
			t.Run(phaseNames[at]+"/"+name, func(t *testing.T) {
				g := newTarget(t)
				probe := newProbe(t)
				r := g.raw(at)
				nonsense(probe.descriptor)[name](r)
				g.lied(r, at)
				probe.requireGone(t)
				g.unharmed()
			})
		}
	}
	for name := range nonsense(nil) {
		t.Run("before hello/"+name, func(t *testing.T) {
			g := newTarget(t)
			probe := newProbe(t)
			r := g.dialRaw()
			nonsense(probe.descriptor)[name](r)
			require.Equal(t, "bad_request", r.hear(msgError).Code)
			require.Empty(t, r.hearOut())
			probe.requireGone(t)
			g.unharmed()
		})
	}
}

func TestSuccessorLies(t *testing.T) {
	hello := func(change func(*frame)) *frame {
		f := &frame{Type: msgHello, Versions: &versionRange{1, 1}, Program: &program{PID: 1}}
		change(f)
		return f
	}
	got := func(n int) func(*rawPeer) { return func(r *rawPeer) { r.say(&frame{Type: msgGot, N: n}) } }
	rejects := func(n ...int) func(*rawPeer) {
		return func(r *rawPeer) {
			f := &frame{Type: msgRejected}
			for _, i := range n {
				f.Rejected = append(f.Rejected, rejection{Index: i})
			}
			r.say(f)
		}
	}
	for _, tc := range []struct {
		name string
		at   phase
		do   func(*rawPeer)
	}{
		{"got nothing", phaseOffer, got(0)},
		{"got less", phaseOffer, got(1)},
		{"got more", phaseOffer, got(3)},
		{"got as many as can be said", phaseOffer, got(int(^uint(0) >> 1))},
		{"got twice", phaseHeld, got(2)},
		{"rejects the control listener", phaseHeld, rejects(0)},
		{"rejects what was not offered", phaseHeld, rejects(1, 2)},
		{"rejects with a negative index", phaseHeld, rejects(-1)},
		{"ready twice", phaseReady, func(r *rawPeer) { r.say(&frame{Type: msgReady, N: 1}) }},
		{"serving before serve", phaseReady, func(r *rawPeer) { r.say(&frame{Type: msgServing}) }},
		{"serving twice", phaseServing, func(r *rawPeer) { r.say(&frame{Type: msgServing}) }},
		{"released before release", phaseServing, func(r *rawPeer) { r.say(&frame{Type: msgReleased}) }},
		{"released before serving", phaseServe, func(r *rawPeer) { r.say(&frame{Type: msgReleased}) }},
		{"says hello again", phaseReady, func(r *rawPeer) { r.say(hello(func(*frame) {})) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			g := newTarget(t)
			r := g.raw(tc.at)
			tc.do(r)
			g.lied(r, tc.at)
			g.unharmed()
		})
	}

	for _, tc := range []struct {
		name, code string
		f          *frame
	}{
		{"newer", "version", hello(func(f *frame) { f.Versions = &versionRange{maxVersion + 1, maxVersion + 9} })},
		{"older", "version", hello(func(f *frame) { f.Versions = &versionRange{-3, 0} })},
	} {
		t.Run("hello/"+tc.name, func(t *testing.T) {
			g := newTarget(t)
			r := g.dialRaw()
			r.say(tc.f)
			require.Equal(t, tc.code, r.hear(msgRefuse).Code)
			require.Empty(t, r.hearOut())
			g.unharmed()
		})
	}
	for name, f := range map[string]*frame{
		"no versions": hello(func(f *frame) { f.Versions = nil }),
		"no program":  hello(func(f *frame) { f.Program = nil }),
		"never":       hello(func(f *frame) { f.Mode = Never }),
	} {
		t.Run("hello/"+name, func(t *testing.T) {
			g := newTarget(t)
			r := g.dialRaw()
			r.say(f)
			require.Equal(t, "bad_request", r.hear(msgError).Code)
			require.Empty(t, r.hearOut())
			g.unharmed()
		})
	}
}

// A rejected page may be repeated, and one socket be rejected twice: nothing is
// gained by it.
func TestSuccessorRejectsTwice(t *testing.T) {
	g := newTarget(t)
	r := g.raw(phaseHeld)
	for range 3 {
		r.say(&frame{Type: msgRejected, Rejected: []rejection{{Index: 1}, {Index: 1, Reason: "again"}}})
	}
	r.say(&frame{Type: msgReady, N: 1 << 40}) // not believed either: it is only shown
	g.far(phaseReady)
	_, err := g.client().Handover(g.ctx, "")
	require.NoError(t, err)
	r.hear(msgServe)
	r.say(&frame{Type: msgServing})
	require.Equal(t, "1", asked(t, g.at), "nobody else serves it")
	_, err = g.client().Rollback(g.ctx)
	require.NoError(t, err)
	require.Equal(t, whyRollback, r.hear(msgRevoke).Reason)
	r.say(&frame{Type: msgRevoked})
	require.Empty(t, r.hearOut())
	g.unharmed()
}

func TestErrorsAreNotAnswered(t *testing.T) {
	for _, at := range []phase{phaseOffer, phaseHeld, phaseReady, phaseServe, phaseServing, phaseRelease} {
		t.Run(phaseNames[at], func(t *testing.T) {
			g := newTarget(t)
			r := g.raw(at)
			for range 3 {
				r.say(&frame{Type: msgError, Code: "permission", Text: "no"})
			}
			r.quiet()
			g.far(at) // and it changed nothing
			require.NoError(t, r.c.Close())
			g.unharmed()
		})
	}
	t.Run("operator", func(t *testing.T) {
		g := newTarget(t)
		r := g.dialRaw()
		r.push([]byte(`{"type":"heartbeat"}`))
		require.Equal(t, "unknown_type", r.hear(msgError).Code)
		r.say(&frame{Type: msgStatus})
		r.hear(msgStatus)
		r.say(&frame{Type: msgError})
		r.say(&frame{Type: msgListSockets})
		r.hear(msgSocketList)
		require.NoError(t, r.c.Close())
		g.unharmed()
	})
}

// A successor that asks for answers and does not read them gets no more of them,
// and delays nobody.
func TestSuccessorThatDoesNotRead(t *testing.T) {
	for _, at := range []phase{phaseReady, phaseServing} {
		t.Run(phaseNames[at], func(t *testing.T) {
			g := newTarget(t)
			r := g.raw(at)
			begun := time.Now()
			for i := 0; i < 5000; i++ {
				if err := r.c.send([]byte(`{"type":"heartbeat"}`)); err != nil {
					break // it does not listen any more
				}
			}
			g.reach(g.one, StateServing)
			s, err := g.client().Status(g.ctx)
			require.NoError(t, err)
			require.EqualValues(t, 1, s.Generation)
			require.Equal(t, "serving", s.Generations[0].State)
			for _, g := range s.Generations[1:] {
				require.Equal(t, "revoked", g.State, "one that had served is waited for")
			}
			require.Less(t, time.Since(begun), 8*sendTimeout)
			require.NoError(t, r.c.Close())
			g.unharmed()
		})
	}
}

// Silence where an answer is due.
func TestSilentSuccessor(t *testing.T) {
	const step, ready = time.Hour, 2 * time.Hour
	slow := func(cfg *Config) { cfg.StepTimeout, cfg.ReadyTimeout = step, ready }
	for at, want := range map[phase]struct {
		timer timerKind
		after time.Duration
	}{
		phaseOffer: {timerStep, step}, phaseHeld: {timerReady, ready}, phaseServe: {timerServing, step}, phaseRelease: {timerReleased, step},
	} {
		t.Run(phaseNames[at], func(t *testing.T) {
			g := newTarget(t, slow)
			r := g.raw(at)
			require.True(t, g.one.ask(func() {
				require.Equal(t, want.timer.bit(), g.one.m.armed, "what runs")
				run := g.one.timers[want.timer]
				require.WithinDuration(t, time.Now().Add(want.after), run.due, time.Minute)
				run.t.Reset(0) // as if its time had come
			}))
			require.Equal(t, whyTimeout, r.hear(msgRevoke).Reason)
			g.reach(g.one, StateServing)
			require.NoError(t, r.c.Close())
			g.unharmed()
		})
	}
	t.Run("standby", func(t *testing.T) { // which may be silent
		g := newTarget(t, slow)
		r := g.raw(phaseReady)
		g.one.ask(func() { require.Zero(t, g.one.m.armed, "no timer runs") })
		require.NoError(t, r.c.Close())
		g.unharmed()
	})
	t.Run("before hello", func(t *testing.T) {
		g := newTarget(t, func(cfg *Config) { cfg.StepTimeout = time.Second })
		r := g.dialRaw()
		_, err := r.next()
		require.ErrorIs(t, err, io.EOF)
		g.unharmed()
	})
}

// Connections that say nothing, or nothing more, take all places that there are.
func TestIdleConnectionsDoNotStopAHandoff(t *testing.T) {
	for _, tc := range []struct {
		name string
		do   func(r *rawPeer) error
	}{
		{"silent", func(*rawPeer) error { return nil }},
		{"asked once", func(r *rawPeer) error { return r.c.send([]byte(`{"type":"status"}`)) }},
		{"asked and did not read", func(r *rawPeer) error {
			for range 500 {
				if err := r.c.send([]byte(`{"type":"status"}`)); err != nil {
					return nil
				}
			}
			return nil
		}},
		{"asked something unknown", func(r *rawPeer) error { return r.c.send([]byte(`{"type":"heartbeat"}`)) }},
	} {
		t.Run(tc.name, func(t *testing.T) {
			const step = 2 * time.Second // the successor is one of many here
			g := newTarget(t, func(cfg *Config) { cfg.StepTimeout = step })
			done := make(chan error)
			for range maxConns + 20 {
				r := g.dialRaw()
				go func() { done <- tc.do(r) }()
			}
			begun := time.Now()
			two, err := Start(g.ctx, g.config("two"))
			require.NoError(t, err)
			took := time.Since(begun)
			t.Logf("the handoff began after %v", took)
			require.Less(t, took, step+4*sendTimeout)
			require.Equal(t, "1", asked(t, g.at))
			require.NoError(t, two.Close())
			for range maxConns + 20 {
				<-done
			}
			g.unharmed()
		})
	}
}

// Whoever registers as a draining generation can say what it likes of itself,
// and only that: the rest of the status stays, and it goes when he goes.
func TestRegisteredLiar(t *testing.T) {
	g := newTarget(t)
	r := g.dialRaw()
	var older []GenerationStatus
	for i := range maxOlder {
		older = append(older, GenerationStatus{Generation: uint64(i + 100), State: "serving", Label: "<<<<<<<<<<"})
	}
	self := &GenerationStatus{Generation: 99, State: "draining", PID: os.Getpid()}
	r.say(&frame{Type: msgRegister, Self: self, Older: older})
	count := func() int {
		s, err := g.client().Status(g.ctx)
		require.NoError(t, err)
		require.EqualValues(t, 1, s.Generation)
		return len(s.Generations)
	}
	g.until("it is shown", func() bool { return count() > 2 })
	r.say(&frame{Type: msgServing}) // not what a draining process says
	require.Empty(t, r.hearOut())
	g.until("it is forgotten", func() bool { return count() == 1 })
	g.unharmed()
}

// A second one is told busy, at every phase, and disturbs nothing.
func TestSecondSuccessorIsToldBusy(t *testing.T) {
	for _, at := range []phase{phaseOffer, phaseHeld, phaseReady, phaseServe, phaseServing, phaseRelease} {
		t.Run(phaseNames[at], func(t *testing.T) {
			g := newTarget(t)
			r := g.raw(at)
			for range 3 {
				second := g.dialRaw()
				second.say(&frame{Type: msgHello, Versions: &versionRange{1, 1}, Program: &program{PID: 1}})
				f := second.hear(msgBusy)
				require.Positive(t, f.RetryMS)
				require.NotEmpty(t, f.Text)
				require.Empty(t, second.hearOut())
			}
			r.quiet()
			g.far(at)
			require.NoError(t, r.c.Close())
			g.unharmed()
		})
	}
}

// A successor whose link ends at any phase, without a word.
func TestSuccessorVanishes(t *testing.T) {
	for _, at := range []phase{phaseNone, phaseOffer, phaseHeld, phaseReady, phaseServe, phaseServing, phaseRelease} {
		t.Run(phaseNames[at], func(t *testing.T) {
			g := newTarget(t)
			require.NoError(t, g.raw(at).c.Close())
			g.unharmed()
		})
	}
}
