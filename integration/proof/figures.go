package main

import (
	"fmt"
	"slices"
	"time"

	"github.com/fdhandoff/handoff/integration/load"
)

// figures are what came of a run.
type figures struct {
	title, line string
	handoffs    int
	conns       int           // that the clients of the first stream keep
	took        time.Duration // from the first handoff to the last
	wanted      float64       // requests that were due in the run, at least

	sent, answered uint64 // requests, over all streams
	silent         uint64 // lost: no answer came, or half of one
	mistaken       uint64 // lost: the answer was not the one to this request, or none of a server that understood it
	refused        uint64 // behind a request whose answer said "Connection: close"
	broken         uint64 // connections that ended with nothing outstanding and without a word
	dials          uint64 // of the first stream

	servers uint64          // answers, as the servers count them
	moved   uint64          // connections, as the servers count them
	drains  []time.Duration // of those that were succeeded, shortest first
	bad     []string        // how servers ended that did not end well
	moveOff string

	quiet, during load.Latency // before the first handoff, and from then to the last

	wrong []string // what is not as it must be
}

// lost are the requests that have no answer that is theirs.
func (f figures) lost() uint64 { return f.silent + f.mistaken }

// doubled is how many more answers servers gave than requests were sent: no two requests of a run have the same body,
// and each is written once, so that a server that answers more than it was sent has read something twice.
func (f figures) doubled() uint64 {
	if f.servers <= f.sent {
		return 0
	}
	return f.servers - f.sent
}

// figuresOf adds up what the clients and the servers saw.
func figuresOf(sp spec, r load.Report, servers []record, began, ended time.Time) figures {
	streams := sp.streams("")
	f := figures{
		title: sp.title, line: sp.line, handoffs: sp.handoffs, conns: sp.conns, took: ended.Sub(began),
		sent: r.Sent, answered: r.Answered, refused: r.Refused, broken: r.Broken, dials: r.ByKind[streams[0].Kind].Dials,
		quiet: r.Latency(time.Time{}, began), during: r.Latency(began, ended),
	}
	for _, s := range streams {
		f.wanted += s.Rate * ended.Add(afterwards).Sub(r.Started).Seconds()
	}
	for _, l := range r.Losses {
		if isMistaken(l.Cause) {
			f.mistaken++
		}
	}
	f.silent = r.Lost - f.mistaken // of those beyond what the report keeps whole the cause is not known
	for i, s := range servers {
		f.servers += s.answered
		f.moved += s.moved
		if i < len(servers)-1 {
			f.drains = append(f.drains, s.drain)
		}
		if s.code != 0 || !s.written {
			f.bad = append(f.bad, s.ending(i+1))
		}
	}
	slices.Sort(f.drains)
	return f
}

// drained is the time in which that part of the servers were done with what they had.
func (f figures) drained(part float64) time.Duration {
	if len(f.drains) == 0 {
		return 0
	}
	return f.drains[min(int(part*float64(len(f.drains))), len(f.drains)-1)]
}

// isMistaken says that an answer came, and was not the one that belongs to the request.
func isMistaken(c load.Cause) bool {
	return c == load.CauseStatus || c == load.CauseEcho || c == load.CauseProtocol
}

// ending says how a server ended that did not end well.
func (r record) ending(generation int) string {
	if !r.written {
		return fmt.Sprintf("generation %d ended with exit code %d and without its last record", generation, r.code)
	}
	return fmt.Sprintf("generation %d ended with exit code %d", generation, r.code)
}
