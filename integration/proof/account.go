package main

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"time"

	"github.com/fdhandoff/handoff/integration/load"
)

// account is the table, with a line below it for each run that has one.
func account(all []figures) string {
	var b strings.Builder
	row := func(name string, cell func(f figures) string) {
		fmt.Fprintf(&b, "%-38s", name)
		for _, f := range all {
			fmt.Fprintf(&b, "   %*s", max(len(f.title), 9), cell(f))
		}
		fmt.Fprintln(&b)
	}
	row("", func(f figures) string { return f.title })
	row("handoffs", func(f figures) string { return strconv.Itoa(f.handoffs) })
	row("  one every", func(f figures) string { return millis(f.took / time.Duration(f.handoffs)) })
	row("requests", func(f figures) string { return thousands(f.sent) })
	row("  lost: no answer", func(f figures) string { return thousands(f.silent) })
	row("  lost: answered wrongly", func(f figures) string { return thousands(f.mistaken) })
	row("  refused by Connection: close", func(f figures) string { return thousands(f.refused) })
	row("  answered twice", func(f figures) string { return thousands(f.doubled()) })
	row("keep-alive clients", func(f figures) string { return strconv.Itoa(f.conns) })
	row("  connections that they dialled", func(f figures) string { return thousands(f.dials) })
	row("  connections broken", func(f figures) string { return thousands(f.broken) })
	row("  connections moved between versions", func(f figures) string { return thousands(f.moved) })
	row("old version gone after: half of them", func(f figures) string { return drainTime(f.drained(0.5)) })
	row("  nine in ten", func(f figures) string { return drainTime(f.drained(0.9)) })
	latencies(row)
	row("as it must be", func(f figures) string {
		if len(f.wrong) > 0 {
			return "NO"
		}
		return "yes"
	})
	fmt.Fprintln(&b)
	for _, f := range all {
		f.writeLine(&b)
	}
	return b.String()
}

// latencies are the times with handoffs, those of the same run without, and what the former is of the latter.
func latencies(row func(name string, cell func(f figures) string)) {
	for _, q := range []struct {
		name string
		of   func(l load.Latency) time.Duration
	}{
		{"p50", func(l load.Latency) time.Duration { return l.P50 }},
		{"p99", func(l load.Latency) time.Duration { return l.P99 }},
		{"p99.9", func(l load.Latency) time.Duration { return l.P999 }},
	} {
		row(q.name+" during handoffs", func(f figures) string { return millis(q.of(f.during)) })
		row("  before the first", func(f figures) string { return millis(q.of(f.quiet)) })
		row("  ratio", func(f figures) string { return ratio(q.of(f.during), q.of(f.quiet)) })
	}
}

// writeLine writes what README.md shows.
func (f figures) writeLine(w io.Writer) {
	if f.line == "" {
		return
	}
	fmt.Fprintf(w, "%-21s %s of %s requests lost, %s connections broken, %d keep-alive clients dialled %s times\n",
		fmt.Sprintf("%s, %d times:", f.line, f.handoffs), thousands(f.lost()), thousands(f.sent), thousands(f.broken), f.conns, thousands(f.dials))
}

// drainTime is a time that a server's last record has. One that drains by Shutdown has done that before, and records none.
func drainTime(d time.Duration) string {
	if d < 100*time.Microsecond {
		return "–"
	}
	return millis(d)
}

// millis is a time as it is compared here.
func millis(d time.Duration) string {
	return strconv.FormatFloat(float64(d)/float64(time.Millisecond), 'f', 1, 64) + " ms"
}

// ratio is a to b.
func ratio(a, b time.Duration) string {
	if b <= 0 {
		return "–"
	}
	return fmt.Sprintf("×%.1f", float64(a)/float64(b))
}

// thousands groups a number's digits by commas.
func thousands(n uint64) string {
	s := strconv.FormatUint(n, 10)
	for i := len(s) - 3; i > 0; i -= 3 {
		s = s[:i] + "," + s[i:]
	}
	return s
}
