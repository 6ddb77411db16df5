package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
)

// measured is a distribution that was measured.
var measured = load.Latency{N: 1000, P50: time.Millisecond, P99: 2 * time.Millisecond, P999: 3 * time.Millisecond}

// asMeant is a chain of handoffs as it is to be.
func asMeant() figures {
	return figures{
		handoffs: 20, conns: 100, wanted: 10_000, sent: 10_000, answered: 10_000, dials: 100,
		servers: 10_000, moved: 2000, quiet: measured, during: measured,
	}
}

// Every figure of a chain of handoffs can make the proof fail, alone.
func TestMustLoseNothing(t *testing.T) {
	require.Empty(t, mustLoseNothing(asMeant()))
	for _, tc := range []struct {
		name   string
		change func(f *figures)
		want   string
	}{
		{"one request lost", func(f *figures) { f.silent = 1 }, "1 requests were lost"},
		{"one answered wrongly", func(f *figures) { f.mistaken = 1 }, "1 requests were answered wrongly"},
		{"one refused", func(f *figures) { f.refused = 1 }, "1 requests were refused"},
		{"one connection broken", func(f *figures) { f.broken = 1 }, "1 connections were broken"},
		{"one not accounted for", func(f *figures) { f.answered-- }, "10000 requests were sent, but 9999 answered"},
		{"one dial more", func(f *figures) { f.dials++ }, "100 keep-alive clients dialled 101 times"},
		{"one dial less: they were not counted", func(f *figures) { f.dials-- }, "100 keep-alive clients dialled 99 times"},
		{"one doubled", func(f *figures) { f.servers++ }, "10000 requests were sent, but the servers answered 10001"},
		{"one answered by no server", func(f *figures) { f.servers-- }, "10000 requests were sent, but the servers answered 9999"},
		{"a connection was cut", func(f *figures) { f.bad = []string{"generation 3 ended with exit code 6"} }, "generation 3 ended with exit code 6"},
		{"too little load", func(f *figures) { f.wanted = 12_000 }, "10000 requests were sent of the 12000 that were due: this machine is too busy"},
		{"nothing measured before", func(f *figures) { f.quiet = load.Latency{} }, "nothing was answered before the handoffs, or during them"},
		{"nothing measured during", func(f *figures) { f.during = load.Latency{} }, "nothing was answered before the handoffs, or during them"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := asMeant()
			tc.change(&f)
			require.Equal(t, []string{tc.want}, mustLoseNothing(f))
		})
	}
	require.NotEmpty(t, mustLoseNothing(figures{conns: 100, dials: 100}), "nothing was sent")
}

// A control passes if it fails in each way that it is there for.
func TestMustLose(t *testing.T) {
	control := func() figures {
		f := asMeant()
		f.silent, f.broken, f.dials, f.answered, f.servers = 50, 1900, 2050, 9950, 9960
		return f
	}
	require.Empty(t, mustLose(control()))
	for _, tc := range []struct {
		name   string
		change func(f *figures)
		want   string
	}{
		{"nothing lost", func(f *figures) { f.silent = 0 }, "it lost no request, so that this proof does not see what it is for"},
		{"nothing broken", func(f *figures) { f.broken = 0 }, "it broke no connection, so that this proof does not see what it is for"},
		{"a server crashed", func(f *figures) { f.bad = []string{"generation 3 ended with exit code 2"} }, "generation 3 ended with exit code 2"},
		{"nothing dialled again", func(f *figures) { f.dials = 100 }, "100 keep-alive clients dialled only 100 times"},
		{"too little load", func(f *figures) { f.wanted = 12_000 }, "10000 requests were sent of the 12000 that were due: this machine is too busy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := control()
			tc.change(&f)
			require.Equal(t, []string{tc.want}, mustLose(f))
		})
	}
	require.NotEmpty(t, mustLose(asMeant()), "a chain of handoffs is no control")
	require.NotEmpty(t, mustLoseNothing(control()), "and a control no handoff")
}

// The control without the rule passes only if it shows what the rule is for.
func TestMustAnswerWrongly(t *testing.T) {
	control := asMeant()
	control.mistaken, control.answered = 7, 9990
	require.Empty(t, mustAnswerWrongly(control))
	f := control
	f.mistaken, f.silent = 0, 7
	require.Equal(t, []string{"no request was answered wrongly, so that this proof does not see what the rule is for"}, mustAnswerWrongly(f))
	f = control
	f.moved = 0
	require.Equal(t, []string{"no connection moved, so that this proof says nothing about the rule"}, mustAnswerWrongly(f))
	f = control
	f.wanted, f.bad = 12_000, []string{"generation 3 ended with exit code 2"}
	require.Len(t, mustAnswerWrongly(f), 2)
	require.NotEmpty(t, mustAnswerWrongly(asMeant()), "a chain of handoffs is no control")
}

// The control with the check alone passes only if nothing moved, nothing was lost, and the status says why.
func TestMustNoticeItself(t *testing.T) {
	control := func() figures {
		f := asMeant()
		f.moveOff, f.moved, f.dials = "a connection with a byte of the next request was found movable", 0, 2050
		f.refused, f.answered, f.servers = 40, 9960, 9960
		return f
	}
	require.Empty(t, mustNoticeItself(control()))
	for _, tc := range []struct {
		name   string
		change func(f *figures)
		want   string
	}{
		{"the check found nothing", func(f *figures) { f.moveOff = "" }, "the check at the start found nothing: the status has no move_off"},
		{"something moved", func(f *figures) { f.moved = 1 }, "1 connections moved all the same"},
		{"one broken", func(f *figures) { f.broken = 1 }, "1 connections were broken"},
		{"one not accounted for", func(f *figures) { f.refused-- }, "10000 requests were sent, but 9960 answered and 39 refused"},
		{"one answered twice", func(f *figures) { f.servers++ }, "9960 requests were answered, but the servers say 9961"},
		{"one lost", func(f *figures) { f.silent = 1 }, "1 requests were lost"},
		{"one answered wrongly", func(f *figures) { f.mistaken = 1 }, "1 requests were lost"},
		{"a connection was cut", func(f *figures) { f.bad = []string{"generation 3 ended with exit code 6"} }, "generation 3 ended with exit code 6"},
		{"too little load", func(f *figures) { f.wanted = 12_000 }, "10000 requests were sent of the 12000 that were due: this machine is too busy"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			f := control()
			tc.change(&f)
			require.Equal(t, []string{tc.want}, mustNoticeItself(f))
		})
	}
}
