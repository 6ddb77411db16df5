package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// result is what one cell showed.
type result struct {
	cell
	outcome  string // who serves, how the others ended, how the tool did
	toll     toll
	recovery time.Duration // 0: nothing to measure
	failures []string
	logs     string        // the ends of the logs, where something failed
	dir      string        // that stays
	held     time.Duration // from the stop at the step to the fault
	took     time.Duration
}

func (r *result) fail(format string, args ...any) {
	r.failures = append(r.failures, fmt.Sprintf(format, args...))
}

// figures is the second line of a cell: what it cost.
func (r *result) figures() string {
	var parts []string
	if r.mayLose() {
		parts = append(parts, "nobody has the sockets")
	} else {
		parts = append(parts, fmt.Sprintf("lost %d", r.toll.lost()))
	}
	if r.toll.hands > 0 {
		parts = append(parts, fmt.Sprintf("in the victim's hands %d", r.toll.hands))
	}
	if r.recovery > 0 {
		parts = append(parts, short(r.recovery))
	}
	return strings.Join(parts, ", ")
}

// short writes a time as people read it.
func short(d time.Duration) string {
	if d < time.Second {
		return fmt.Sprintf("%d ms", d.Milliseconds())
	}
	return fmt.Sprintf("%.1f s", d.Seconds())
}

// record is a line of a server's log, as far as it is used here.
type record struct {
	Time time.Time `json:"time"`
	Msg  string    `json:"msg"`
	To   string    `json:"to"`
	Code *int      `json:"exit_code"`
}

// records reads a server's log. A line that is none, of a runtime's panic say, is left out.
func records(path string) (all []record) {
	b, err := os.ReadFile(path)
	if err != nil {
		return nil // it never began
	}
	for line := range strings.Lines(string(b)) {
		var r record
		if json.Unmarshal([]byte(line), &r) == nil {
			all = append(all, r)
		}
	}
	return all
}

// exitCode is what the last line of a server's log says; whoever started it has waited for it.
func exitCode(path string) (int, bool) {
	for _, r := range records(path) {
		if r.Msg == "ended" && r.Code != nil {
			return *r.Code, true
		}
	}
	return 0, false
}

// served says that a server has served at any time.
func served(path string) bool {
	for _, r := range records(path) {
		if r.Msg == "state" && r.To == "serving" {
			return true
		}
	}
	return false
}

// revokedAt is when a successor read that it was revoked; the zero time where it did not.
func revokedAt(path string) time.Time {
	for _, r := range records(path) {
		if r.Msg == "revoked by the incumbent" {
			return r.Time
		}
	}
	return time.Time{}
}

// tails is the end of every log.
func tails(paths []string) string {
	var b strings.Builder
	for _, path := range paths {
		text, err := os.ReadFile(path)
		if err != nil {
			continue // its process never began
		}
		fmt.Fprintf(&b, "--- %s\n%s", filepath.Base(path), text[max(0, len(text)-6000):])
	}
	return b.String()
}
