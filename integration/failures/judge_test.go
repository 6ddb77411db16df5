package main

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
)

// What died with its process is told from what was lost: by who had answered, by when the connection was begun, and by
// how and when it ended.
func TestCount(t *testing.T) {
	begin := time.Unix(1000, 0)
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	victim := []death{{generation: 2, stopped: at(100), killed: at(200)}}
	for _, tc := range []struct {
		name   string
		loss   load.Loss
		idle   bool // a connection without a request
		deaths []death
		want   toll
	}{
		{"answered by the victim", load.Loss{Generation: 2, Dialed: at(0), Time: at(201), Cause: load.CauseReset}, false, victim, toll{hands: 1}},
		{"idle at the victim", load.Loss{Generation: 2, Dialed: at(0), Time: at(201), Cause: load.CauseClosed}, true, victim, toll{}},
		{"answered by who lives", load.Loss{Generation: 1, Dialed: at(0), Time: at(201), Cause: load.CauseReset}, false, victim, toll{kept: 1}},
		{"idle at who lives", load.Loss{Generation: 1, Dialed: at(0), Time: at(201), Cause: load.CauseClosed}, true, victim, toll{kept: 1}},
		{"new, begun before the victim was stopped", load.Loss{Fresh: true, Dialed: at(99), Time: at(201), Cause: load.CauseReset}, false, victim, toll{hands: 1}},
		{"new, begun after it", load.Loss{Fresh: true, Dialed: at(101), Time: at(201), Cause: load.CauseReset}, false, victim, toll{fresh: 1}},
		{"new, at the instant", load.Loss{Fresh: true, Dialed: at(100), Time: at(201), Cause: load.CauseClosed}, false, victim, toll{fresh: 1}},
		{"ended before the kill", load.Loss{Generation: 2, Dialed: at(0), Time: at(199), Cause: load.CauseReset}, false, victim, toll{kept: 1}},
		{"no answer in time", load.Loss{Generation: 2, Dialed: at(0), Time: at(9000), Cause: load.CauseTimeout}, false, victim, toll{kept: 1}},
		{"refused", load.Loss{Fresh: true, Dialed: at(50), Time: at(201), Cause: load.CauseDial}, false, victim, toll{fresh: 1}},
		{"a wrong answer", load.Loss{Generation: 2, Dialed: at(0), Time: at(201), Cause: load.CauseStatus}, false, victim, toll{kept: 1}},
		{"the number of the victim again, later", load.Loss{Generation: 2, Dialed: at(300), Time: at(400), Cause: load.CauseReset}, false, victim, toll{kept: 1}},
		{"nobody was killed", load.Loss{Generation: 2, Dialed: at(0), Time: at(201), Cause: load.CauseReset}, false, nil, toll{kept: 1}},
		{"either of two", load.Loss{Generation: 1, Dialed: at(0), Time: at(201), Cause: load.CauseReset}, false, append([]death{{1, at(90), at(200)}}, victim...), toll{hands: 1}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			rep := load.Report{Started: begin}
			if tc.idle {
				rep.Breaks, rep.Broken = []load.Loss{tc.loss}, 1
			} else {
				rep.Losses, rep.Lost = []load.Loss{tc.loss}, 1
			}
			got := count(rep, tc.deaths)
			require.Equal(t, got.lost() > 0, got.first != "", "the first loss is shown: %q", got.first)
			got.first = ""
			require.Equal(t, tc.want, got)
		})
	}
	// What the report does not keep whole is lost.
	require.Equal(t, 5, count(load.Report{Counts: load.Counts{Lost: 3, Broken: 2}}, victim).lost())
}

// Who can serve when somebody dies decides where a loss is excused.
func TestStages(t *testing.T) {
	of := func(name string, f fault, victims ...party) cell {
		s, err := stepNamed(name)
		require.NoError(t, err)
		return cell{step: s, fault: f, victims: victims}
	}
	for _, tc := range []struct {
		cell            cell
		nobody, mayLose bool
	}{
		{of("sent hello", faultKill, incumbent), false, true},
		{of("sent sockets", faultKill, incumbent), false, false},
		{of("sent hello", faultKill, successor), false, false},
		{of("probation", faultKill, incumbent), false, false},
		{of("probation", faultKill, successor, tool), false, false},
		{of("probation", faultKill, incumbent, successor), true, true},
		{of("probation", faultStop, incumbent), false, false},
		{of("read revoke", faultKill, incumbent), true, true},
		{of("read revoke", faultKill, successor), false, false},
		{of("read released", faultKill, successor), false, false},
		{of("sent released", faultKill, successor), true, true},
		{of("read draining", faultKill, successor), true, true},
		{of("read draining", faultKill, incumbent), false, false},
		{of("read draining", faultStop, successor), false, false},
	} {
		require.Equal(t, tc.nobody, tc.cell.nobody(), tc.cell.id())
		require.Equal(t, tc.mayLose, tc.cell.mayLose(), tc.cell.id())
	}
}
