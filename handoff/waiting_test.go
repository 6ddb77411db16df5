package handoff

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// TestHelloWhereManyDrain: that as many drain as may is the last reason, keeps no
// spare away, and sends none away.
func TestHelloWhereManyDrain(t *testing.T) {
	serving := machine{state: StateServing}
	for _, tt := range []struct {
		name string
		m    machine
		mode Takeover
		want reason // of the busy; none: admitted
	}{
		{"serving", serving, Auto, whyMaxDraining},
		{"serving, a standby asks", serving, Standby, whyMaxDraining},
		{"serving, a spare asks", serving, Spare, whyNone},
		{"a spare is there", machine{state: StateServing, younger: phaseReady, youngerMode: Spare}, Auto, whyMaxDraining},
		{"a spare is there, another one asks", machine{state: StateServing, younger: phaseReady, youngerMode: Spare}, Spare, whyHandoff},
		{"a successor is there", machine{state: StateServing, younger: phaseHeld}, Auto, whyHandoff},
		{"probation", machine{state: StateParked, younger: phaseServing}, Auto, whyProbation},
		{"a stop waits", machine{state: StateServing, stopping: true}, Auto, whyStopping},
		{"a revoked one holds an exclusive socket", machine{state: StateServing, revoking: 1, exclusive: true}, Auto, whyRevoking},
		{"starting", machine{}, Auto, whyStarting},
	} {
		t.Run(tt.name, func(t *testing.T) {
			m := tt.m
			acts := m.step(event{kind: evHello, mode: tt.mode, full: true})
			if tt.want == whyNone {
				require.True(t, slices.ContainsFunc(acts, func(a action) bool { return a.kind == actAdmit }), "%+v", acts)
				return
			}
			require.Equal(t, []action{{kind: actSend, side: sideAsker, msg: msgBusy, why: tt.want}}, acts)
			require.Equal(t, tt.m, m, "nothing else changes")
			// One less that drains changes nothing about the other reasons.
			acts = m.step(event{kind: evHello, mode: tt.mode})
			busy := slices.ContainsFunc(acts, func(a action) bool { return a.msg == msgBusy })
			require.Equal(t, tt.want != whyMaxDraining, busy, "%+v", acts)
		})
	}
}

// keep holds a process while it drains, until the returned function is called.
func keep(t *testing.T, p *Process) (release func()) {
	t.Helper()
	_, done := p.Hold(t.Context(), "work")
	t.Cleanup(done)
	return done
}

// TestMaxDraining: at the limit a successor waits, is seen to wait with the reason,
// and is admitted when a drain has ended; a spare is not kept away.
func TestMaxDraining(t *testing.T) {
	c := newChain(t)
	limit := func(cfg *Config) { cfg.MaxDraining = 1 }
	one, _ := c.serve("one", limit)
	keep(t, one)
	c.ended(one)
	two, _ := c.serve("two", limit)
	ended := c.ended(two)
	c.reach(one, StateDraining)

	spare, _ := c.standby("spare", Spare)
	three := make(chan error, 1)
	go func() {
		cfg := c.config("three")
		cfg.Request = "deploy-3"
		p, err := Start(c.ctx, cfg)
		if err == nil {
			c.t.Cleanup(func() { p.Close() })
			_, err = p.Listen(c.ctx, "tcp", "127.0.0.1:0")
		}
		if err == nil {
			err = p.Ready(c.ctx)
		}
		three <- err
	}()
	var w WaitingStatus
	c.until("three is seen to wait", func() bool {
		st, err := c.client().Status(c.ctx)
		require.NoError(t, err)
		require.NotContains(t, fmt.Sprint(st.Requests), "deploy-3", "it has not begun")
		if len(st.Waiting) > 0 {
			w = st.Waiting[0]
		}
		return len(st.Waiting) == 1
	})
	require.Equal(t, "three", w.Label)
	require.Equal(t, "deploy-3", w.Request)
	require.Equal(t, "auto", w.Takeover)
	require.Equal(t, "max_draining", w.Reason)
	require.Equal(t, "1 older generation still drains, and at most 1 may: wait, or handoffctl stop --generation 1", w.Text)
	require.WithinDuration(t, time.Now(), w.Since, 30*time.Second)
	require.Equal(t, StateStandby, spare.State(), "it was not sent away for one that isn't admitted")

	// It is still the same wait when it has asked again.
	waits := func() (w waiter) {
		require.True(t, two.ask(func() {
			if assert.LessOrEqual(t, len(two.waiting.all), 1) && len(two.waiting.all) == 1 {
				w = two.waiting.all[0]
			}
		}))
		return w
	}
	before, after := waits(), waiter{}
	c.until("three asks again", func() bool {
		after = waits()
		if after.asked.Sub(before.asked) > waitingFor { // the machine stalled, and it was forgotten
			before = after
		}
		return after.asked.After(before.asked)
	})
	require.Equal(t, "three", after.shown.Label)
	require.True(t, after.shown.Since.Equal(before.shown.Since))

	_, err := c.client().StopGeneration(c.ctx, 1)
	require.NoError(t, err)
	require.NoError(t, <-three)
	<-ended
}

// TestWaitingLeaves: one that asks no more leaves the status, and whoever watches
// is told.
func TestWaitingLeaves(t *testing.T) {
	c := newChain(t)
	c.serve("one")
	c.standby("two", Standby)
	ctx, cancel := context.WithCancel(c.ctx)
	ended := make(chan error, 1)
	go func() { _, err := Start(ctx, c.config("three")); ended <- err }()
	var st *Status
	c.until("three waits", func() bool {
		var err error
		st, err = c.client().Status(c.ctx)
		require.NoError(t, err)
		return len(st.Waiting) > 0
	})
	require.Equal(t, "handoff", st.Waiting[0].Reason)
	require.Equal(t, busyText(whyHandoff), st.Waiting[0].Text)
	cancel()
	require.ErrorIs(t, <-ended, context.Canceled)
	// No poll: what changes must be told.
	for st.Waiting != nil {
		var err error
		st, err = c.client().Watch(c.ctx, st)
		require.NoError(t, err)
	}
}

// TestWaitingIsBounded: strangers that ask can't fill the status, and those that
// came first stay in it.
func TestWaitingIsBounded(t *testing.T) {
	p, err := Config{Socket: "s", Logger: slog.New(slog.DiscardHandler)}.withDefaults()
	require.NoError(t, err)
	q := newProcess(p)
	// What JSON writes longest: six bytes for one.
	name := strings.Repeat("<", maxNameLen)
	for i := range 3 * maxWaiting {
		l := &link{p: q, peer: program{PID: i + 1, Label: name, Request: name, Started: time.Unix(int64(i), 0)}}
		q.noteWaiting(l, whyHandoff, strings.Repeat("<", maxTextLen))
		q.noteWaiting(l, whyHandoff, strings.Repeat("<", maxTextLen))
	}
	require.Len(t, q.waiting.all, maxWaiting)
	list := q.waiting.list()
	require.NotEmpty(t, list)
	require.Equal(t, 1, list[0].PID)
	f := &frame{Type: msgStatus, Status: &Status{Waiting: list}}
	b, err := f.encode()
	require.NoError(t, err)
	require.Less(t, len(b), maxWaitingSize+512)

	for i := range q.waiting.all {
		q.waiting.all[i].shown = WaitingStatus{}
	}
	require.Len(t, q.waiting.list(), maxWaiting, "short ones all fit")
	// Only those that do not ask any more make room.
	q.waiting.all[3].asked = time.Now().Add(-2 * waitingFor)
	q.noteWaiting(&link{p: q, peer: program{PID: 999}}, whyHandoff, "")
	require.Len(t, q.waiting.all, maxWaiting)
	require.Equal(t, 999, q.waiting.all[maxWaiting-1].shown.PID)
	q.waiting.admitted(&link{peer: program{PID: 999}})
	require.Len(t, q.waiting.all, maxWaiting-1)
}

// TestOrphansAreKnown: generations of which one that has gone told are known until
// they register, and for no longer than they may take for it.
func TestOrphansAreKnown(t *testing.T) {
	numbers := func(v *living) (all []uint64) {
		for _, g := range v.known() {
			all = append(all, g.Generation)
		}
		return all
	}
	gen := func(n uint64) GenerationStatus { return GenerationStatus{Generation: n} }
	two, three := gen(2), gen(3)
	v := &living{}
	require.True(t, v.report("link", &frame{Self: &three, Older: []GenerationStatus{gen(1), two}}))
	require.False(t, v.report("link", &frame{Self: &three, Older: []GenerationStatus{gen(1), two}}), "the same ones")
	require.True(t, v.report("link", &frame{Self: &three, Older: []GenerationStatus{two, gen(1)}}))
	v.lost("link")
	require.Equal(t, []uint64{1, 2}, numbers(v), "3 has gone, they have not")
	require.Nil(t, v.source(1), "nobody there passes a word on")

	require.True(t, v.report("conn", &frame{Self: &two}))
	require.Equal(t, []uint64{1, 2}, numbers(v))
	v.lost("conn")
	require.Equal(t, []uint64{1}, numbers(v), "2 said itself that it lives, and has gone now")

	v.orphans[0].until = time.Now().Add(-time.Second)
	require.Empty(t, numbers(v))
	v.lost("nobody")
	require.Empty(t, numbers(v))
}
