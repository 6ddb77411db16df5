package leak

import (
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

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
	CheckExact(t)
	stop := make(chan struct{})
	r := &recorder{TB: t}
	f, err := os.Open("/dev/null")
	require.NoError(t, err)
	check(r, 50*time.Millisecond, true)

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
	CheckExact(t)
	r := &recorder{TB: t}
	CheckExact(r)
	stop := make(chan struct{})
	go func() { <-stop }()
	time.AfterFunc(20*time.Millisecond, func() { close(stop) })
	r.cleanups[0]()
	require.Empty(t, r.errors)
}
