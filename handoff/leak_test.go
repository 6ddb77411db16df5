package handoff

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

	"github.com/stretchr/testify/require"
)

// checkLeak fails the test if, when it and its other cleanups are done, this
// process has descriptors or goroutines that it did not have now, or has lost
// descriptors (which is what closing a number twice does). Call it first; not
// for parallel tests.
func checkLeak(t testing.TB) {
	t.Helper()
	checkLeakWithin(t, 5*time.Second)
}

// checkLeakWithin is checkLeak with the time that goroutines have to end after
// the test.
func checkLeakWithin(t testing.TB, patience time.Duration) {
	t.Helper()
	startPoller(t)
	fds, routines := openFDs(t), goroutines()
	t.Cleanup(func() {
		deadline := time.Now().Add(patience)
		for {
			left := slices.Concat(
				difference("leaked descriptor", openFDs(t), fds),
				difference("lost descriptor", fds, openFDs(t)),
				difference("leaked", goroutines(), routines))
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

// openFDs returns what each descriptor of this process refers to.
func openFDs(t testing.TB) map[int]string {
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

// recorder is a testing.TB that keeps its cleanups and errors to itself.
type recorder struct {
	testing.TB
	cleanups []func()
	errors   []string
}

func (r *recorder) Helper()          {}
func (r *recorder) Cleanup(f func()) { r.cleanups = append(r.cleanups, f) }
func (r *recorder) Errorf(format string, args ...any) {
	r.errors = append(r.errors, fmt.Sprintf(format, args...))
}

// A checker that saw nothing would make every test that relies on it pass.
func TestCheckLeakSeesLeaks(t *testing.T) {
	checkLeak(t)
	stop := make(chan struct{})
	r := &recorder{TB: t}
	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	checkLeakWithin(r, 50*time.Millisecond)

	require.NoError(t, f.Close())
	g, err := os.Open("/dev/zero") // gets the same number
	require.NoError(t, err)
	go func() { <-stop }()
	r.cleanups[0]()
	require.Len(t, r.errors, 1)
	require.Contains(t, r.errors[0], "leaked descriptor")
	require.Contains(t, r.errors[0], "/dev/zero")
	require.Contains(t, r.errors[0], "lost descriptor")
	require.Contains(t, r.errors[0], "/dev/null")
	require.Contains(t, r.errors[0], "TestCheckLeakSeesLeaks")

	close(stop)
	require.NoError(t, g.Close())
}

func TestCheckLeakWaits(t *testing.T) {
	checkLeak(t)
	r := &recorder{TB: t}
	checkLeak(r)
	stop := make(chan struct{})
	go func() { <-stop }()
	time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	r.cleanups[0]()
	require.Empty(t, r.errors)
}
