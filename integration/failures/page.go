package main

import (
	_ "embed"
	"fmt"
	"io"
	"slices"
	"strings"
	"text/template"
	"time"
)

//go:embed page.tmpl
var pageText string

var pageTemplate = template.Must(template.New("page").Parse(pageText))

// pageTable is one table of the page.
type pageTable struct {
	Title   string
	Columns []string
	Rows    []pageRow
}

// Anchor is what a link to the table's heading names.
func (t pageTable) Anchor() string { return strings.ReplaceAll(strings.ToLower(t.Title), " ", "-") }

type pageRow struct {
	Step, At string
	Cells    []string
}

// summary is the page in a few lines.
type summary struct {
	What, Lost, Longest string
	Cells               int
}

// summarise adds up what belongs together.
func summarise(results []*result) (all []summary) {
	for _, group := range []struct {
		what string
		has  func(c cell) bool
		lost bool // what was lost is worth a number
	}{
		{"somebody is killed, and a server lives that has the sockets", func(c cell) bool { return c.fault == faultKill && !c.mayLose() }, true},
		{"a successor is stopped, and the incumbent can do without it", func(c cell) bool {
			return c.fault == faultStop && c.hits(successor) && c.step.stage < said
		}, true},
		{"any other is stopped, and goes on after " + short(stopFor), func(c cell) bool {
			return c.fault == faultStop && !(c.hits(successor) && c.step.stage < said)
		}, true},
		{"somebody is killed, and no server lives that has the sockets, but one that comes next", func(c cell) bool { return c.mayLose() && !c.nobody() }, false},
		{"nobody is left who may serve: the next start works", cell.nobody, false},
	} {
		s := summary{What: group.what, Lost: "–", Longest: "–"}
		lost, longest := 0, time.Duration(0)
		for _, r := range results {
			if group.has(r.cell) {
				s.Cells++
				lost += r.toll.lost()
				longest = max(longest, r.recovery)
			}
		}
		if group.lost {
			s.Lost = fmt.Sprint(lost)
		}
		if longest > 0 {
			s.Longest = short(longest)
		}
		all = append(all, s)
	}
	return all
}

type pageControl struct{ Rule, Cell, Showed string }

// leftOut is a cell that there is no point in.
const leftOut = "–"

// lineBreak is between a cell's outcome and its figures.
const lineBreak = "<br>"

// writePage writes docs/failures.md. But for the figures it is the same for the same outcomes.
func writePage(w io.Writer, results []*result, held []control) error {
	data := struct {
		Cells, Controls           int
		StopFor, Flags, MaxHeld   string
		ProbationBound, StepBound string
		Tables                    []pageTable
		Held                      []pageControl
		Pointless                 []string
		Summary                   []summary
	}{
		Cells: len(results), Controls: len(held),
		StopFor: short(stopFor), Flags: strings.Join(serverFlags, " "), MaxHeld: short(maxHeld),
		ProbationBound: short(3*heartbeat + time.Second), StepBound: short(stepTimeout + time.Second),
		Tables: pageTables(results), Pointless: pointless(), Summary: summarise(results),
	}
	for _, k := range held {
		data.Held = append(data.Held, pageControl{Rule: k.rule, Cell: k.result.id(), Showed: showed(k)})
	}
	return pageTemplate.Execute(w, data)
}

func pageTables(results []*result) (all []pageTable) {
	byID := map[string]*result{}
	for _, r := range results {
		byID[r.id()] = r
	}
	for _, t := range tables {
		page := pageTable{Title: t.title}
		for _, col := range t.columns {
			page.Columns = append(page.Columns, columnTitle(col))
		}
		for _, s := range steps {
			row := pageRow{Step: s.name, At: atOf(s)}
			any := false
			for _, col := range t.columns {
				text := leftOut
				if r := byID[cell{step: s, victims: col.victims, fault: col.fault}.id()]; r != nil {
					text, any = "**"+strings.Replace(r.outcome, ",", "**,", 1)+lineBreak+r.figures(), true
					if !strings.Contains(r.outcome, ",") {
						text = "**" + r.outcome + "**" + lineBreak + r.figures()
					}
				}
				row.Cells = append(row.Cells, text)
			}
			if any {
				page.Rows = append(page.Rows, row)
			}
		}
		all = append(all, page)
	}
	return all
}

func columnTitle(c column) string {
	if len(c.victims) == 1 {
		return string(c.fault)
	}
	return strings.ReplaceAll(victimsName(c.victims), "+", " and ") + ": " + string(c.fault)
}

// atOf says who halts.
func atOf(s step) string {
	switch s.halt {
	case incumbent:
		return "I"
	case successor:
		return "S"
	}
	return ""
}

// showed is what a control came to, without what differs from run to run.
func showed(k control) string {
	if k.verdict != "" {
		return "**" + k.verdict + "**"
	}
	var parts []string
	if n := k.result.toll.lost(); n > 0 {
		parts = append(parts, fmt.Sprintf("%d requests lost", n))
	}
	return strings.Join(append(parts, k.result.outcome), "; ")
}

// pointless lists why cells are left out, and which.
func pointless() []string {
	var reasons []string
	where := map[string][]string{}
	for _, t := range tables {
		for _, s := range steps {
			for _, col := range t.columns {
				c := cell{step: s, victims: col.victims, fault: col.fault}
				why := c.pointless()
				if why == "" {
					continue
				}
				if where[why] == nil {
					reasons = append(reasons, why)
				}
				if !slices.Contains(where[why], s.name) {
					where[why] = append(where[why], s.name)
				}
			}
		}
	}
	for i, why := range reasons {
		reasons[i] = fmt.Sprintf("%s: %s.", strings.Join(where[why], ", "), why)
	}
	return reasons
}
