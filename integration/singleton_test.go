package integration

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/integration/proc"
)

// jobEnv makes the test binary a service that only has a singleton: its value is the path of the file in which each
// run says that it begins and ends. How it takes over is its argument.
const jobEnv = "HANDOFF_TEST_JOB"

// runJob serves until it is told to stop.
func runJob(path string) int {
	ctx := context.Background()
	takeover, err := handoff.ParseTakeover(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	journal, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	p, err := handoff.Start(ctx, handoff.Config{Takeover: takeover, Probation: -1})
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	defer p.Close()
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGTERM)
	go func() {
		<-signals
		p.Stop()
	}()
	p.Singleton("job", func(ctx context.Context) {
		fmt.Fprintln(journal, "begin", p.Generation())
		<-ctx.Done()
		fmt.Fprintln(journal, "end", p.Generation())
	})
	if err := p.Ready(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	if _, err := p.Wait(ctx); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

// TestSingletonAfterACrash: the standby's job begins when the incumbent was killed, and not before.
func TestSingletonAfterACrash(t *testing.T) {
	s := newService(t)
	journal := s.path("journal")
	t.Setenv(jobEnv, journal)
	t.Setenv(handoff.EnvSocket, s.socket)
	self, err := os.Executable()
	require.NoError(t, err)
	wrote := func(want ...string) {
		t.Helper()
		var got []string
		require.Eventually(t, func() bool {
			b, err := os.ReadFile(journal)
			got = strings.FieldsFunc(string(b), func(r rune) bool { return r == '\n' })
			return err == nil && len(got) >= len(want)
		}, patience, waitTick)
		require.Equal(t, want, got)
	}
	one := s.run("one", self, "auto")
	wrote("begin 1")
	two := s.run("two", self, "standby")
	s.waitStatus("a standby", func(st proc.Status) bool {
		return len(st.Generations) == 2 && st.Generations[1].State == "standby"
	})
	wrote("begin 1")
	s.kill(one, syscall.SIGKILL)
	wrote("begin 1", "begin 2")
	s.run("three", self, "auto")
	s.exits(two, 0, "it has handed over")
	wrote("begin 1", "begin 2", "end 2", "begin 3")
}
