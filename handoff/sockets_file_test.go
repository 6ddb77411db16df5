package handoff

import (
	"errors"
	"io"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

func asks(names ...string) func(*Config) {
	return func(cfg *Config) { cfg.Files = names }
}

func mustNotOpen() (*os.File, error) { return nil, errors.New("opened afresh") }

// pipe returns the reading end, and what opens the writing end once.
func pipe(t testing.TB, flags int) (*os.File, func() (*os.File, error)) {
	t.Helper()
	var fds [2]int
	require.NoError(t, unix.Pipe2(fds[:], unix.O_CLOEXEC|flags))
	r, w := os.NewFile(uintptr(fds[0]), "r"), os.NewFile(uintptr(fds[1]), "w")
	t.Cleanup(func() { r.Close(); w.Close() })
	return r, func() (*os.File, error) { return w, nil }
}

func readable(t testing.TB, r *os.File, want string) {
	t.Helper()
	b := make([]byte, len(want))
	_, err := io.ReadFull(r, b)
	require.NoError(t, err)
	require.Equal(t, want, string(b))
}

func nonblocking(t testing.TB, f *os.File) bool {
	t.Helper()
	d, err := dupConn(f)
	require.NoError(t, err)
	defer d.Close()
	_, nonblock := flagsOf(t, d)
	return nonblock
}

// What a program asks for by name is the same open file description in every
// generation, with its offset and its flags.
func TestFileIsTheSameDescription(t *testing.T) {
	for _, tc := range []struct {
		name     string
		flags    int
		nonblock bool
	}{{"blocking", 0, false}, {"non-blocking", unix.O_NONBLOCK, true}} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			r, open := pipe(t, tc.flags)
			regular, err := os.CreateTemp("", "handoff")
			require.NoError(t, err)
			defer os.Remove(regular.Name())

			one := c.start("one", asks("pipe", "regular"))
			w1, err := one.File("pipe", open)
			require.NoError(t, err)
			f1, err := one.File("regular", func() (*os.File, error) { return regular, nil })
			require.NoError(t, err)
			c.ready(one)
			_, err = f1.WriteString("one,")
			require.NoError(t, err)

			two := c.start("two", asks("pipe", "regular"))
			w2, err := two.File("pipe", mustNotOpen)
			require.NoError(t, err)
			require.Equal(t, "pipe", w2.Name())
			f2, err := two.File("regular", mustNotOpen)
			require.NoError(t, err)
			require.Equal(t, tc.nonblock, nonblocking(t, w1))
			require.Equal(t, tc.nonblock, nonblocking(t, w2))
			c.ready(two)
			c.wait(one)

			for _, w := range []*os.File{w1, w2} {
				_, err = w.WriteString("x")
				require.NoError(t, err)
				readable(t, r, "x")
				require.Equal(t, tc.nonblock, nonblocking(t, w))
			}
			_, err = f2.WriteString("two")
			require.NoError(t, err)
			b, err := os.ReadFile(regular.Name())
			require.NoError(t, err)
			require.Equal(t, "one,two", string(b), "the offset is shared")
			require.Empty(t, two.Unclaimed())

			// The caller owns what it got, and the Process its duplicate.
			for _, f := range []*os.File{w1, w2, f1, f2} {
				require.NoError(t, f.Close())
			}
			two.Stop()
			c.wait(two)
			n, err := r.Read(make([]byte, 1))
			require.Zero(t, n)
			require.ErrorIs(t, err, io.EOF, "no copy is left open")
		})
	}
}

// A file goes only to a successor that asks for it.
func TestFileNotAskedFor(t *testing.T) {
	c := newChain(t)
	r, open := pipe(t, unix.O_NONBLOCK)
	var lines book
	one := c.start("one", asks("log", "other"), probation, lines.use)
	w, err := one.File("log", open)
	require.NoError(t, err)
	_, err = one.File("unlisted", open)
	require.ErrorContains(t, err, "Config.Files")
	c.ready(one)

	two := c.start("two", asks("other"))
	_, err = two.File("log", mustNotOpen)
	require.ErrorContains(t, err, "Config.Files")
	_, err = two.File("other", mustNotOpen)
	require.ErrorContains(t, err, "opened afresh", "there is none to inherit")
	c.ready(two)
	require.Empty(t, two.Unclaimed(), "it was not even offered")
	s, err := c.client().Status(c.ctx)
	require.NoError(t, err)
	require.Equal(t, []string{"file log"}, s.Generations[0].Unclaimed)
	require.Contains(t, lines.String(), "file log")
	_, err = c.client().Rollback(c.ctx)
	require.NoError(t, err)
	<-two.Done()
	two.Close()

	// Listed, but not claimed: reported on both sides and closed here.
	three := c.start("three", asks("log"), noClaim)
	c.ready(three)
	require.Equal(t, []string{"file log"}, three.Unclaimed())
	one.Stop()
	c.wait(one)
	require.NoError(t, w.Close())
	require.NoError(t, r.SetReadDeadline(time.Now().Add(5*time.Second)))
	_, err = r.Read(make([]byte, 1))
	require.ErrorIs(t, err, io.EOF)
}
