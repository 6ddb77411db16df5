package main

import (
	"fmt"
	"slices"
	"strings"
)

// outcomes reads the outcome of every cell from a page, by table, step and column.
func outcomes(page string) map[string]string {
	all := map[string]string{}
	title := ""
	var columns []string
	for line := range strings.Lines(page) {
		line = strings.TrimSpace(line)
		if t, ok := strings.CutPrefix(line, "## "); ok {
			title, columns = t, nil
			continue
		}
		fields, ok := tableRow(line)
		switch {
		case !ok:
			columns = nil
		case fields[0] == "step":
			columns = fields
		case columns == nil || len(fields) != len(columns) || strings.HasPrefix(fields[0], "---"):
		default:
			for i := 2; i < len(fields); i++ {
				outcome, _, _ := strings.Cut(fields[i], lineBreak)
				all[title+": "+fields[0]+": "+columns[i]] = strings.ReplaceAll(outcome, "*", "")
			}
		}
	}
	return all
}

// tableRow splits a row of a table.
func tableRow(line string) ([]string, bool) {
	if len(line) < 2 || line[0] != '|' || line[len(line)-1] != '|' {
		return nil, false
	}
	fields := strings.Split(line[1:len(line)-1], "|")
	for i := range fields {
		fields[i] = strings.TrimSpace(fields[i])
	}
	return fields, true
}

// differences says where two pages differ in an outcome.
func differences(committed, now string) (all []string) {
	old, got := outcomes(committed), outcomes(now)
	for where, outcome := range got {
		switch was, known := old[where]; {
		case !known:
			all = append(all, fmt.Sprintf("%s\n\tis not in the page\n\tnow  %s", where, outcome))
		case was != outcome:
			all = append(all, fmt.Sprintf("%s\n\tpage %s\n\tnow  %s", where, was, outcome))
		}
	}
	for where, was := range old {
		if _, there := got[where]; !there {
			all = append(all, fmt.Sprintf("%s\n\tpage %s\n\tis not run any more", where, was))
		}
	}
	slices.Sort(all)
	return all
}
