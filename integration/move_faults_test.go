package integration

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// interrupted is a handoff whose successor was killed or stopped while connections moved to it.
type interrupted struct {
	*service
	first, second *proc.Process
	own           string // path of the first one's own socket, which answers whatever becomes of the other
	all           []*talker
}

// Where the successor is interrupted: it stops itself there, as those of integration/failures do. A batch has 128
// connections at most.
const (
	beforeAny = "read connections"   // it has read the first batch, and acknowledged none
	midway    = "read connections 5" // it has acknowledged four
)

// faulty is a server that stops itself, built once for all tests.
var faulty = sync.OnceValues(func() (string, error) {
	dir := filepath.Join(filepath.Dir(programs.Server), "faults")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return "", err
	}
	flags := []string{"-tags", "faults"}
	if raceEnabled {
		flags = append(flags, "-race")
	}
	b, err := proc.BuildWith(context.Background(), dir, flags...)
	return b.Server, err
})

// interruptMove begins a handoff with many idle connections, and sends a signal to the successor when that has come to
// halt.
func interruptMove(t *testing.T, sig syscall.Signal, halt string) *interrupted {
	t.Helper()
	conns := 300
	switch {
	case halt == midway && raceEnabled:
		conns = 2000
	case halt == midway:
		conns = 6000
	}
	needFiles(t, conns+1000)
	s := &interrupted{service: newService(t)}
	s.own = s.path("own")
	// The step timeout is for the time in which a stopped successor says nothing.
	args := []string{"--step-timeout", "3s", "--drain-timeout", "2m"}
	s.first = s.serving("v1", append(args, "--self-socket", s.own)...)
	addr := s.address(web)
	s.all = s.keepAlives("tcp", addr, conns)
	s.allAnsweredBy(s.all, 1)
	var err error
	s.binary, err = faulty()
	require.NoError(t, err)
	t.Setenv("FAULTS_HALT", halt)
	s.second = s.server("v2", args...)
	s.stopped(s.second.PID())
	s.kill(s.second, sig)
	return s
}

// moved is how many connections the other end has acknowledged.
func (s *interrupted) moved() int {
	s.t.Helper()
	st, err := proc.WaitStatus(s.ctx(), s.own, func(proc.Status) bool { return true })
	require.NoError(s.t, err)
	return int(st.Of(1).Moved)
}

// A successor that is killed while connections move takes with it those that it had acknowledged, and no other: the
// process that drains has the rest, and answers on them.
func TestMoveToASuccessorThatIsKilled(t *testing.T) {
	for name, halt := range map[string]string{"in the middle": midway, "before it acknowledged any": beforeAny} {
		t.Run(name, func(t *testing.T) {
			s := interruptMove(t, syscall.SIGKILL, halt)
			s.exits(s.second, -1, "killed")
			asked := s.askAll(s.all)
			asked.talking.Wait()
			gone := s.moved()
			t.Logf("%d connections, %d were acknowledged by the one that was killed", len(s.all), gone)
			if halt == beforeAny {
				require.Zero(t, gone)
			} else {
				require.Positive(t, gone)
			}
			require.Less(t, gone, len(s.all), "the move was over")
			require.Len(t, asked.failed, gone, "those that had moved, and no other")
			for _, err := range asked.failed {
				require.True(t, errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) || errors.Is(err, syscall.EPIPE), "%v", err)
			}
			require.Equal(t, len(s.all)-gone, asked.answered(1))
			endAllTalk(t, s.service, s.all)
			s.exits(s.first, 0, "nothing was cut")
			last := lastRecord(t, s.first)
			require.EqualValues(t, len(s.all)+asked.answered(1), last["answered"], "nothing was answered twice")
			require.EqualValues(t, gone, last["moved"])
			require.Nil(t, last["cut"])
		})
	}
}

// A successor that is stopped while connections move has those that it acknowledged, and answers on them when it goes
// on; the others the process that drains takes back after the step timeout, and answers on them meanwhile.
func TestMoveToASuccessorThatIsStopped(t *testing.T) {
	for name, halt := range map[string]string{"in the middle": midway, "before it acknowledged any": beforeAny} {
		t.Run(name, func(t *testing.T) {
			s := interruptMove(t, syscall.SIGSTOP, halt)
			s.stopped(s.second.PID())
			begin := time.Now()
			asked := s.askAll(s.all)
			kept := 0
			require.Eventually(t, func() bool {
				kept = len(s.all) - s.moved()
				return asked.answered(0) >= kept
			}, patience, waitTick, "the process that drains takes back what was not acknowledged")
			took := time.Since(begin)
			t.Logf("%d connections, %d were taken back and answered, after %s", len(s.all), kept, took.Round(time.Millisecond))
			require.Equal(t, kept, asked.answered(1))
			require.Positive(t, kept, "the move was over")
			require.Less(t, took, 20*time.Second)
			if halt == midway {
				require.Less(t, kept, len(s.all))
			}
			s.kill(s.second, syscall.SIGCONT)
			asked.talking.Wait()
			require.Empty(t, asked.failed, "the others were only late")
			require.Equal(t, kept, asked.answered(1))
			require.Equal(t, len(s.all)-kept, asked.answered(2))

			var open []*talker
			for _, k := range s.all {
				if !k.closed { // told to, as the one that drains did not know when the other would go on
					open = append(open, k)
				}
			}
			again := s.askAll(open)
			again.talking.Wait()
			require.Empty(t, again.failed)
			endAllTalk(t, s.service, s.all)
			s.exits(s.first, 0, "nothing was cut")
			s.alone(2)
			s.kill(s.second, syscall.SIGTERM)
			s.exits(s.second, 0, "a plain stop")
			answered, _ := answeredAndMoved(s.ended(2))
			require.EqualValues(t, 2*len(s.all)+len(open), answered, "nothing was answered twice")
		})
	}
}
