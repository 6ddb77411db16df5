package examples

import (
	"bufio"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
)

// jobTime is longer than the probation that follows its beginning.
const jobTime = 12 * time.Second

// One version at a time writes the journal, also after a take-back; and a job is finished by the version that began it.
func TestWorker(t *testing.T) {
	journal := filepath.Join(t.TempDir(), "journal")
	s := newService(t, "JOURNAL="+journal)
	program := s.build("worker")
	control := &handoff.Client{Socket: s.socket}

	first := s.start(program)
	s.serves(first)
	s.waitTick(journal, 1)
	second := s.start(program)
	s.serves(second)
	s.waitTick(journal, 2)
	_, err := control.Rollback(s.ctx())
	require.NoError(t, err)
	code, err := second.Wait(s.ctx())
	require.NoError(t, err)
	require.Equal(t, 1, code, "revoked")
	s.waitTick(journal, 1)

	a := request(s.ctx(), s.address(), http.MethodPost, "/jobs?name=report&for="+jobTime.String())
	require.Equal(t, http.StatusAccepted, a.status, "%+v", a)
	third := s.start(program)
	s.serves(third)
	s.waitTick(journal, 3)
	s.waitHold(control, "report")
	s.exits(first)
	lines := journalLines(t, journal)
	require.Contains(t, lines, "done report 1")
	require.Equal(t, []string{"tick 1", "tick 2", "tick 1", "tick 3"}, turns(lines))
	s.stop(third)
}

// waitTick waits until the journal's last tick is a generation's.
func (s *service) waitTick(journal string, generation int) {
	s.t.Helper()
	want := fmt.Sprintf("tick %d", generation)
	require.Eventually(s.t, func() bool {
		all := turns(journalLines(s.t, journal))
		return len(all) > 0 && all[len(all)-1] == want
	}, patience, tick, want)
}

// tick is between two looks at the journal.
const tick = 10 * time.Millisecond

// waitHold waits until generation 1 drains and is held by a job of that name alone.
func (s *service) waitHold(control *handoff.Client, name string) {
	s.t.Helper()
	ctx := s.ctx()
	var last *handoff.Status
	for {
		st, err := control.Watch(ctx, last)
		require.NoError(s.t, err)
		i := slices.IndexFunc(st.Generations, func(g handoff.GenerationStatus) bool { return g.Generation == 1 })
		require.GreaterOrEqual(s.t, i, 0, "generation 1 is gone before its job has ended")
		if g := st.Generations[i]; g.State == handoff.StateDraining.String() && g.Holds[name] == 1 {
			return
		}
		last = st
	}
}

func journalLines(t *testing.T, path string) (lines []string) {
	t.Helper()
	f, err := os.Open(path)
	require.NoError(t, err)
	defer f.Close()
	for in := bufio.NewScanner(f); in.Scan(); {
		lines = append(lines, in.Text())
	}
	return lines
}

// turns are the ticks without those that repeat the one before.
func turns(lines []string) (all []string) {
	for _, l := range lines {
		if strings.HasPrefix(l, "tick ") && (len(all) == 0 || all[len(all)-1] != l) {
			all = append(all, l)
		}
	}
	return all
}
