//go:build race

package handoff

// walkLimit is how many states of three processes are walked. The walk has one
// goroutine, so the race detector has nothing to find in it, and makes it slow:
// "make walk" goes farther.
const walkLimit = 5_000
