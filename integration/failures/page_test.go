package main

import (
	"os"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// everyCell is a run in which every cell had an outcome of its own.
func everyCell() (all []*result) {
	for i, c := range cells() {
		all = append(all, &result{
			cell: c, outcome: "1 serves, 2 ended (" + strings.Repeat("x", i+1) + "), upgrade 1",
			toll: toll{hands: i}, recovery: time.Duration(i) * time.Millisecond,
		})
	}
	return all
}

func write(t *testing.T, results []*result) string {
	t.Helper()
	var b strings.Builder
	require.NoError(t, writePage(&b, results, nil))
	return b.String()
}

// The page says of every cell what it was, figures differ from run to run, and a changed outcome shows.
func TestPageComparesOutcomes(t *testing.T) {
	results := everyCell()
	page := write(t, results)
	read := outcomes(page)
	for _, r := range results {
		found := 0
		for _, outcome := range read {
			if outcome == r.outcome {
				found++
			}
		}
		require.Equal(t, 1, found, "%s is in the page once", r.id())
	}
	for _, r := range results {
		r.recovery += time.Second
		r.toll.hands++
	}
	require.Empty(t, differences(page, write(t, results)))

	was := results[7].outcome
	results[7].outcome = "2 serves, 1 killed, upgrade 0"
	diff := differences(page, write(t, results))
	require.Len(t, diff, 1)
	require.Contains(t, diff[0], results[7].step.name)
	require.Contains(t, diff[0], "page "+was)
	require.Contains(t, diff[0], "now  2 serves, 1 killed, upgrade 0")

	require.NotEmpty(t, differences("", page), "a page that has none of it")
	require.NotEmpty(t, differences(page, write(t, results[1:])), "a cell that is not run any more")
}

// The committed page has every cell of this matrix, and a control for each that must fail.
func TestCommittedPage(t *testing.T) {
	b, err := os.ReadFile("../../docs/failures.md")
	require.NoError(t, err)
	had := outcomes(string(b))
	for where := range outcomes(write(t, everyCell())) {
		require.Contains(t, had, where, "make failures")
	}
	for _, k := range controls {
		c, err := k.cell()
		require.NoError(t, err)
		require.Contains(t, string(b), "| "+k.rule+" | "+c.id()+" |", "make failures")
	}
}

func TestControlMustFail(t *testing.T) {
	for _, tc := range []struct {
		name     string
		failures []string
		lost     int
		passes   bool
	}{
		{"it passed", nil, 0, false},
		{"it failed, and nothing was lost", []string{"x"}, 0, false},
		{"it failed, and something was lost", []string{"x"}, 3, true},
	} {
		k := control{losses: true}
		k.judge(&result{failures: tc.failures, toll: toll{kept: tc.lost}})
		require.Equal(t, tc.passes, k.verdict == "", tc.name)
	}
}
