package main

import (
	"time"

	"github.com/fdhandoff/handoff/integration/load"
)

// death is what is known of one server that was killed.
type death struct {
	generation uint64
	stopped    time.Time // it was seen stopped: it accepts nothing after that
	killed     time.Time
}

// toll is what became of the requests that were not answered, and of the connections that ended.
type toll struct {
	fresh int // lost on new connections
	kept  int // lost on connections that somebody alive had, requests and idle connections alike
	hands int // died with the process that had accepted them
	first string
}

func (t toll) lost() int { return t.fresh + t.kept }

// count judges every loss of a run. What a killed process had accepted dies with it; whatever else is not answered is
// lost, and nothing is excused for its time alone.
func count(rep load.Report, deaths []death) (t toll) {
	for _, l := range rep.Losses {
		switch {
		case inHands(l, deaths):
			t.hands++
			continue
		case l.Fresh:
			t.fresh++
		default:
			t.kept++
		}
		t.note(l, rep.Started)
	}
	for _, l := range rep.Breaks {
		// An idle connection that ended: no request was on it, but one could have been.
		if inHands(l, deaths) {
			continue
		}
		t.kept++
		t.note(l, rep.Started)
	}
	// The report keeps a bounded number whole; the rest is counted as lost, not forgotten.
	t.kept += int(rep.Lost) - len(rep.Losses) + int(rep.Broken) - len(rep.Breaks)
	return t
}

func (t *toll) note(l load.Loss, started time.Time) {
	if t.first == "" {
		t.first = string(l.Kind) + " at " + l.Time.Sub(started).Round(time.Millisecond).String() + ": " + string(l.Cause) + ": " + l.Error
	}
}

// inHands says that a killed process had accepted the connection: it had answered on it, or the connection was begun
// before the process was seen stopped and ended by the kill. One that was begun later waited in the queue, which
// belongs to whoever lives, too.
func inHands(l load.Loss, deaths []death) bool {
	switch l.Cause {
	case load.CauseReset, load.CauseClosed, load.CauseWrite:
	default:
		return false
	}
	for _, d := range deaths {
		if l.Time.Before(d.killed) || !l.Dialed.Before(d.stopped) {
			continue
		}
		if l.Fresh || l.Generation == d.generation {
			return true
		}
	}
	return false
}

// recovery is the time from the fault to the first answer on a connection that was begun after it.
func recovery(rep load.Report, at time.Time) (time.Duration, bool) {
	var first time.Time
	for _, a := range rep.Answers(at, time.Time{}, load.NewConn) {
		if first.IsZero() || a.Time.Before(first) {
			first = a.Time
		}
	}
	return first.Sub(at), !first.IsZero()
}

// answeredBy is how many connections begun after from a generation answered.
func answeredBy(rep load.Report, generation uint64, from time.Time) (n int) {
	for _, a := range rep.Answers(from, time.Time{}, load.NewConn) {
		if a.Generation == generation {
			n++
		}
	}
	return n
}
