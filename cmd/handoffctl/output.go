package main

import (
	"encoding/json"
	"fmt"
	"maps"
	"math"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"
)

// Data goes to stdout, and everything else to stderr: one line each, beginning
// with the program's name and what the line is. With --json the data is one
// object. Nothing depends on whether either is a terminal.

// schema is the number of the form of all JSON that is printed here.
const schema = 1

// say prints one line for people.
func (a *app) say(what, text string) {
	fmt.Fprintf(a.stderr, "handoffctl: %s: %s\n", what, plain(text))
}

// println prints one line of data.
func (a *app) println(line string) error {
	_, err := fmt.Fprintln(a.stdout, line)
	return err
}

// printJSON prints v as one object, indented for the eye.
func (a *app) printJSON(v any) error {
	e := json.NewEncoder(a.stdout)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(v)
}

// printTable prints aligned columns, the first row being their names.
func (a *app) printTable(rows [][]string) error {
	w := tabwriter.NewWriter(a.stdout, 0, 0, 2, ' ', 0)
	for _, row := range rows {
		for i, cell := range row {
			if row[i] = plain(cell); row[i] == "" {
				row[i] = "-"
			}
		}
		fmt.Fprintln(w, strings.Join(row, "\t"))
	}
	return w.Flush()
}

// plain makes text that another process chose fit for one line of a terminal:
// what does not print is shown as an escape.
func plain(s string) string {
	if !strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) }) {
		return s
	}
	var b strings.Builder
	for _, r := range s {
		if unicode.IsPrint(r) {
			b.WriteRune(r)
		} else {
			q := strconv.QuoteRune(r)
			b.WriteString(q[1 : len(q)-1])
		}
	}
	return b.String()
}

// counts prints numbers by kind: "2 active, 5 idle".
func counts(m map[string]int) string {
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(m)) {
		if m[kind] != 0 {
			parts = append(parts, fmt.Sprintf("%d %s", m[kind], kind))
		}
	}
	return strings.Join(parts, ", ")
}

// age prints seconds as people read them: 4.2s, 47s, 3m12s, 5h2m, 9d4h.
func age(seconds float64) string {
	const minute, hour, day = 60, 60 * 60, 24 * 60 * 60
	if math.IsNaN(seconds) || seconds < 0 {
		return "-"
	}
	s := int64(min(seconds, 1e15))
	switch {
	case seconds < 9.95:
		return fmt.Sprintf("%.1fs", seconds)
	case s < minute:
		return fmt.Sprintf("%ds", s)
	case s < hour:
		return fmt.Sprintf("%dm%ds", s/minute, s%minute)
	case s < day:
		return fmt.Sprintf("%dh%dm", s/hour, s%hour/minute)
	}
	return fmt.Sprintf("%dd%dh", s/day, s%day/hour)
}

// seconds is a duration as JSON has it.
func seconds(d time.Duration) float64 { return math.Round(d.Seconds()*1e6) / 1e6 }
