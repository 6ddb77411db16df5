package main

import (
	"fmt"
	"io"
	"os"
	"strconv"
	"text/tabwriter"
	"time"

	"github.com/fdhandoff/handoff/integration/load"
)

// account prints what happened.
func (d *demo) account(r load.Report) {
	fmt.Println("\nHandoffs, from the start of the new version's process")
	table(func(w io.Writer) {
		fmt.Fprintln(w, "\tit serves\told can't take back\told gone\t")
		for _, h := range d.handoffs {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t\n", left(fmt.Sprintf("version %d", h.version)),
				millis(h.committed.Sub(h.began)), millis(h.released.Sub(h.began)), millis(h.drained.Sub(h.began)))
		}
	})
	fmt.Printf("  version 4 failed to start and was reported after %s; version 3 served on\n",
		millis(d.failed.ended.Sub(d.failed.began)))

	fmt.Println("\nRequests")
	table(func(w io.Writer) {
		fmt.Fprintln(w, "\tsent\tanswered\tlost\tconnections\tbroken\t")
		row := func(name string, c load.Counts) {
			fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", left(name), thousands(c.Sent), thousands(c.Answered),
				thousands(c.Lost), thousands(c.Dials), thousands(c.Broken))
		}
		row("keep-alive POSTs", r.ByKind[load.KeepAlive])
		row("on new connections", r.ByKind[load.NewConn])
		row("all", r.Counts)
	})

	fmt.Println("\nAnswered by")
	table(func(w io.Writer) {
		for g := range uint64(len(d.handoffs) + 1) {
			fmt.Fprintf(w, "%s\t%s\t\n", left(fmt.Sprintf("version %d", g+1)), thousands(r.Generations[g+1]))
		}
	})

	fmt.Println("\nLatency, from the time at which a request was due")
	table(func(w io.Writer) {
		fmt.Fprintln(w, "\tanswers\tp50\tp99\tp99.9\tmax\t")
		d.latencies(w, r)
	})
}

// latencies writes a row for each part of the play.
func (d *demo) latencies(w io.Writer, r load.Report) {
	row := func(name string, from, to time.Time) {
		l := r.Latency(from, to)
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t\n", left(name), thousands(uint64(l.N)),
			load.Millis(l.P50), load.Millis(l.P99), load.Millis(l.P999), load.Millis(l.Max))
	}
	row("before", time.Time{}, d.handoffs[0].began)
	for _, h := range d.handoffs {
		row(fmt.Sprintf("during the handoff to %d", h.version), h.began, h.drained)
	}
	row("during the failed start", d.failed.began, d.failed.ended)
	row("after", d.failed.ended, time.Time{})
}

// verdict prints the last line, and is an error if a client noticed anything.
func verdict(r load.Report) error {
	if r.Lost == 0 && r.Broken == 0 && r.Answered == r.Sent {
		fmt.Printf("\nNothing was lost: %s requests, %s answers.\n", thousands(r.Sent), thousands(r.Answered))
		return nil
	}
	return fmt.Errorf("%s of %s requests lost, %s connections broken\n%s",
		thousands(r.Lost), thousands(r.Sent), thousands(r.Broken), r)
}

// table aligns rows of cells, each ended by a tab, to the right.
func table(rows func(w io.Writer)) {
	w := tabwriter.NewWriter(os.Stdout, 2, 0, 3, ' ', tabwriter.AlignRight)
	rows(w)
	w.Flush() // nothing can be done where standard output fails
}

// left aligns a row's name to the left of a column that is aligned to the right.
func left(name string) string { return fmt.Sprintf("%-26s", name) }

// millis is a duration as people read it here.
func millis(d time.Duration) string {
	return thousands(uint64(d.Round(time.Millisecond).Milliseconds())) + " ms"
}

// thousands groups a number's digits by commas.
func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
