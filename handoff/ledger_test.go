package handoff

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestLedgerKeepsTheLatest(t *testing.T) {
	var g ledger
	_, ok := g.find("")
	require.False(t, ok)
	require.Empty(t, g.list())
	g.set(RequestStatus{Outcome: "nobody's"})
	require.Empty(t, g.list())

	for i := range 3 * maxRequests {
		g.set(RequestStatus{ID: fmt.Sprint(i), Outcome: "starting"})
		require.LessOrEqual(t, len(g.list()), maxRequests)
	}
	_, ok = g.find(fmt.Sprint(2*maxRequests - 1))
	require.False(t, ok)
	r, ok := g.find(fmt.Sprint(2 * maxRequests))
	require.True(t, ok)
	require.Equal(t, "starting", r.Outcome)

	// What changes is the latest, and is there once.
	g.set(RequestStatus{ID: r.ID, Outcome: "released", Reason: strings.Repeat("x", 2*maxTextLen)})
	all := g.list()
	require.Len(t, all, maxRequests)
	require.Equal(t, "released", all[maxRequests-1].Outcome)
	require.LessOrEqual(t, len(all[maxRequests-1].Reason), maxTextLen)
	all[0].ID = "changed"
	_, ok = g.find("changed")
	require.False(t, ok, "list is a copy")
}

func TestLedgerMerge(t *testing.T) {
	var mine ledger
	at := func(sec int) time.Time { return time.Unix(int64(sec), 0) }
	mine.set(RequestStatus{ID: "older here", Outcome: "starting", Time: at(1)})
	mine.set(RequestStatus{ID: "newer here", Outcome: "withdrawn", Time: at(9)})
	mine.merge([]RequestStatus{
		{ID: "older here", Outcome: "released", Time: at(5)},
		{ID: "newer here", Outcome: "starting", Time: at(5)},
		{ID: "theirs", Outcome: "failed", Time: at(5)},
		{Outcome: "nobody's", Time: at(5)},
	})
	outcome := func(id string) string { r, _ := mine.find(id); return r.Outcome }
	require.Equal(t, "released", outcome("older here"))
	require.Equal(t, "withdrawn", outcome("newer here"))
	require.Equal(t, "failed", outcome("theirs"))
	require.Len(t, mine.list(), 3)
	require.True(t, mine.withdrawn("newer here"))
	require.False(t, mine.withdrawn("theirs"))
	require.False(t, mine.withdrawn(""))
}

// Whatever ids and reasons peers came with, the list fits the frames that carry
// it: welcome, release and status. JSON makes six bytes of some.
func TestLedgerFitsAFrame(t *testing.T) {
	var g ledger
	for i := range maxRequests {
		g.set(RequestStatus{ID: fmt.Sprintf("%d%s", i, strings.Repeat("<", maxTextLen-2)), Outcome: "failed", Reason: strings.Repeat("\x01", maxTextLen), Time: someTime})
	}
	for _, f := range []*frame{
		{Type: msgRelease, Requests: g.list()},
		{Type: msgWelcome, Version: 1, Generation: 1, Program: &program{Label: strings.Repeat("<", maxNameLen)}, Requests: g.list()},
		{Type: msgStatus, Status: &Status{Requests: g.list()}},
	} {
		require.NotEmpty(t, g.list())
		_, err := f.encode()
		require.NoError(t, err)
	}
	last := g.all[len(g.all)-1].ID
	list := g.list()
	require.Equal(t, last, list[len(list)-1].ID, "the latest are kept")
	require.Less(t, len(list), maxRequests)
}

// Reports of older generations fit the frames as well.
func TestOlderGenerationsFitAFrame(t *testing.T) {
	var v living
	for i := range 8 {
		f := &frame{Self: &GenerationStatus{Generation: uint64(100 * i)}}
		for j := range maxOlder {
			f.Older = append(f.Older, GenerationStatus{Generation: uint64(100*i + j + 1), Label: strings.Repeat("<", maxTextLen), Unclaimed: []string{strings.Repeat("<", maxTextLen)}})
		}
		v.report(i, f)
	}
	for i := range 3 {
		f := &frame{Self: &GenerationStatus{Generation: 1}}
		for j := range maxOlder {
			f.Older = append(f.Older, GenerationStatus{Generation: uint64(1 + j)})
		}
		v.report(fmt.Sprint("gone ", i), f)
		v.lost(fmt.Sprint("gone ", i))
	}
	require.Len(t, v.orphans, maxOlder)
	older := v.older()
	require.NotEmpty(t, older)
	require.LessOrEqual(t, len(older), maxOlder)
	require.EqualValues(t, 7*100+maxOlder, older[len(older)-1].Generation, "the youngest are kept")
	_, err := (&frame{Type: msgDraining, Self: &GenerationStatus{}, Older: older}).encode()
	require.NoError(t, err)
	_, err = (&frame{Type: msgStatus, Status: &Status{Generations: older}}).encode()
	require.NoError(t, err)
	v.lost(7)
	require.LessOrEqual(t, len(v.orphans), maxOlder, "who told much leaves no more behind")
	require.EqualValues(t, 7*100+maxOlder, v.older()[len(v.older())-1].Generation, "they may register")
	for i := range v.orphans {
		v.orphans[i].until = time.Time{}
	}
	require.EqualValues(t, 6*100+maxOlder, v.older()[len(v.older())-1].Generation)
}
