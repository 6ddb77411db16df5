// Package leak tells when a test leaves descriptors or goroutines behind.
package leak

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
)

// patience is how long what ends by itself may take at the end of a test.
const patience = 20 * time.Second

// Check fails the test if, when it and its other cleanups are done, this
// process has descriptors or goroutines that it did not have now. Call it first;
// not for parallel tests.
func Check(t testing.TB) {
	t.Helper()
	check(t, patience, false)
}

// CheckExact is Check, and fails the test also if descriptors were lost, which is
// what closing a number twice does.
func CheckExact(t testing.TB) {
	t.Helper()
	check(t, patience, true)
}

func check(t testing.TB, patience time.Duration, exact bool) {
	t.Helper()
	startPoller(t)
	fds, routines := Descriptors(t), goroutines()
	t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for {
			left := slices.Concat(
				difference("leaked descriptor", Descriptors(t), fds),
				difference("leaked", goroutines(), routines))
			if exact {
				left = append(left, difference("lost descriptor", fds, Descriptors(t))...)
			}
			if len(left) == 0 {
				return
			}
			if time.Now().After(deadline) {
				t.Errorf("%s", strings.Join(left, "\n"))
				return
			}
			time.Sleep(2 * time.Millisecond)
		}
	})
}

// startPoller makes the runtime open its epoll and event descriptors, which it
// never closes.
func startPoller(t testing.TB) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	_ = r.Close()
	_ = w.Close()
}

// Descriptors returns what each descriptor of this process refers to.
func Descriptors(t testing.TB) map[int]string {
	const dir = "/proc/self/fd"
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	fds := make(map[int]string, len(entries))
	for _, e := range entries {
		n, err := strconv.Atoi(e.Name())
		if err != nil {
			t.Fatal(err)
		}
		// The one that ReadDir used is closed again.
		if target, err := os.Readlink(filepath.Join(dir, e.Name())); err == nil {
			fds[n] = target
		}
	}
	return fds
}

// goroutines returns the stacks of all goroutines by number, but not those that
// the runtime starts once and keeps.
func goroutines() map[int]string {
	buf := make([]byte, 64<<10)
	n := runtime.Stack(buf, true)
	for n == len(buf) {
		buf = make([]byte, 2*len(buf))
		n = runtime.Stack(buf, true)
	}
	stacks := map[int]string{}
	for _, stack := range strings.Split(string(buf[:n]), "\n\n") {
		var id int
		if _, err := fmt.Sscanf(stack, "goroutine %d ", &id); err != nil {
			continue
		}
		if !strings.Contains(stack, "os/signal.loop()") {
			stacks[id] = stack
		}
	}
	return stacks
}

// difference lists what is in a, but not in b: a goroutine by its number, a
// descriptor also by what it refers to.
func difference(what string, a, b map[int]string) []string {
	var lines []string
	for id, v := range a {
		w, ok := b[id]
		if !ok || w != v && !strings.HasPrefix(v, "goroutine ") {
			lines = append(lines, fmt.Sprintf("%s %d: %s", what, id, v))
		}
	}
	slices.Sort(lines)
	return lines
}
