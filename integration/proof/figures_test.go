package main

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
)

// twoStreams is a run's load without anybody to bear it.
func twoStreams(address string) []load.Stream {
	return []load.Stream{
		{Kind: load.KeepAlive, Address: address, Conns: 2, Rate: 30},
		{Kind: load.NewConn, Address: address, Rate: 4},
	}
}

// What clients and servers saw is added up: which losses were answered, whose dials count, which server ended badly.
func TestFiguresOf(t *testing.T) {
	begin := time.Unix(1000, 0)
	r := load.Report{
		Started: begin,
		Counts:  load.Counts{Sent: 502, Answered: 490, Refused: 2, Lost: 10, Broken: 3, Dials: 99},
		ByKind:  map[load.Kind]load.Counts{load.KeepAlive: {Dials: 7}, load.NewConn: {Dials: 92}},
		Losses: []load.Loss{
			{Cause: load.CauseReset},
			{Cause: load.CauseStatus},
			{Cause: load.CauseEcho},
			{Cause: load.CauseProtocol},
			{Cause: load.CauseClosed},
			{Cause: load.CauseTimeout},
			{Cause: load.CauseDial},
			{Cause: load.CauseWrite},
		}, // and two that were not kept
	}
	sp := spec{title: "handoff", handoffs: 2, conns: 2, streams: twoStreams}
	servers := []record{
		{written: true, answered: 200, moved: 2},
		{written: true, answered: 190, moved: 1, code: 6},
		{written: true, answered: 112},
		{code: 2},
	}
	f := figuresOf(sp, r, servers, begin.Add(time.Second), begin.Add(9*time.Second))
	require.EqualValues(t, 3, f.mistaken)
	require.EqualValues(t, 7, f.silent, "what was not kept whole is lost too")
	require.EqualValues(t, 10, f.lost())
	require.EqualValues(t, 7, f.dials, "of the clients that keep their connections")
	require.EqualValues(t, 502, f.servers)
	require.EqualValues(t, 2, f.refused)
	require.Zero(t, f.doubled())
	require.EqualValues(t, 3, f.moved)
	require.Equal(t, []string{
		"generation 2 ended with exit code 6",
		"generation 4 ended with exit code 2 and without its last record",
	}, f.bad)
	require.InDelta(t, 34*10, f.wanted, 1e-6, "of 9 s, and what comes after the last handoff")
	require.Equal(t, 8*time.Second, f.took)
	f.servers = 504
	require.EqualValues(t, 2, f.doubled())
}

// The last record of a server is found among others, and its want is noticed.
func TestLastRecord(t *testing.T) {
	good := `{"level":"INFO","msg":"drained","answered":5}
panic: not JSON
{"level":"INFO","msg":"ended","generation":3,"exit_code":0,"answered":12,"moved":100,"drain":6700000,"open":{"idle":100}}
`
	require.Equal(t, record{written: true, answered: 12, moved: 100, drain: 6700 * time.Microsecond}, lastRecord([]byte(good)))
	for _, log := range []string{"", strings.ReplaceAll(good, "ended", "gone"), strings.ReplaceAll(good, "answered", "asked"), good[:len(good)-20]} {
		require.Zero(t, lastRecord([]byte(log)), log)
	}
}

// Whether connections move is asked of the generation that serves.
func TestMoveOffOf(t *testing.T) {
	why, err := moveOffOf([]byte(`{"generations":[{"state":"draining","move_off":"old"},{"state":"serving","move_off":"new"}]}`))
	require.NoError(t, err)
	require.Equal(t, "new", why)
	why, err = moveOffOf([]byte(`{"generations":[{"state":"serving"}]}`))
	require.NoError(t, err)
	require.Empty(t, why)
	_, err = moveOffOf([]byte(`{"generations":[{"state":"draining"}]}`))
	require.Error(t, err)
	_, err = moveOffOf([]byte(`nobody`))
	require.Error(t, err)
}

// The table has a column for each run and says which is not as it must be; below it stands what README.md shows.
func TestAccount(t *testing.T) {
	good, bad := asMeant(), asMeant()
	good.title, good.line, good.took = "handoff", "handoff", 2*time.Second
	bad.title, bad.took, bad.sent, bad.silent, bad.wrong = "control", time.Second, 1234567, 3, []string{"it lost nothing"}
	bad.quiet = load.Latency{}
	text := account([]figures{good, bad})
	for _, want := range []string{
		"\nhandoffs                                        20          20\n",
		"\n  one every                               100.0 ms     50.0 ms\n",
		"\nrequests                                    10,000   1,234,567\n",
		"\n  lost: no answer                                0           3\n",
		"\n  before the first                          2.0 ms      0.0 ms\n",
		"\n  ratio                                       ×1.0           –\n",
		"\nas it must be                                  yes          NO\n",
		"\n\nhandoff, 20 times:    0 of 10,000 requests lost, 0 connections broken, 100 keep-alive clients dialled 100 times\n",
	} {
		require.Contains(t, text, want)
	}
	require.True(t, strings.HasSuffix(text, "dialled 100 times\n"), "a run without a line has none:\n%s", text)
}

func TestSettings(t *testing.T) {
	good := settings{handoffs: 1, every: time.Second, rate: 1, fresh: 1, quiet: time.Second}
	require.NoError(t, good.check(nil))
	require.Error(t, good.check([]string{"now"}))
	for _, change := range []func(s *settings){
		func(s *settings) { s.handoffs = 0 },
		func(s *settings) { s.every = 0 },
		func(s *settings) { s.rate = -1 },
		func(s *settings) { s.fresh = 0 },
		func(s *settings) { s.quiet = 0 },
		func(s *settings) { s.only = []string{"a", "x"} },
		func(s *settings) { s.only = []string{""} },
	} {
		s := good
		change(&s)
		require.Error(t, s.check(nil))
	}
	require.True(t, good.has(parts[1]))
	good.only = []string{"a"}
	require.NoError(t, good.check(nil))
	require.True(t, good.has(parts[0]))
	require.False(t, good.has(parts[1]))
}
