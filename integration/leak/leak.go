// Package leak tells when a test leaves descriptors or goroutines behind.
package leak

import (
	"net"
	"os"
	"runtime"
	"testing"
	"time"
)

// grace is how long what ends by itself may take to be gone at the end of a test.
const grace = 5 * time.Second

// Check fails the test at its end if more descriptors or goroutines are there than now. It is called first, so that
// its check comes after every other cleanup of the test. Tests that use it must not run in parallel.
func Check(t testing.TB) {
	t.Helper()
	// The runtime opens the poller's descriptors with the first connection of the program and keeps them.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ln.Close()
	fds, goroutines := descriptors(t), runtime.NumGoroutine()
	t.Cleanup(func() {
		tick := time.NewTicker(2 * time.Millisecond)
		defer tick.Stop()
		for end := time.Now().Add(grace); descriptors(t) > fds || runtime.NumGoroutine() > goroutines; <-tick.C {
			if time.Now().After(end) {
				stacks := make([]byte, 1<<16)
				t.Fatalf("left over: %d descriptors instead of %d, %d goroutines instead of %d\n%s", descriptors(t), fds,
					runtime.NumGoroutine(), goroutines, stacks[:runtime.Stack(stacks, true)])
			}
		}
	})
}

func descriptors(t testing.TB) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
