//go:build !race

package handoff

// walkLimit is how many states of three processes are walked.
const walkLimit = 100_000
