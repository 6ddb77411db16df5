//go:build containers

package containers

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// stack is deploy/swarm/stack.yaml, deployed as a stack with a name of the recipe's.
type stack struct {
	*recipe
	file, name string
	port       int
}

// newStack copies the file with other times. The engine must be in newSwarm's swarm.
func newStack(t *testing.T, name, short, probation, monitor string) *stack {
	t.Helper()
	s := &stack{recipe: newRecipe(t, name, short), port: freePort(t)}
	s.name = s.prefix + "s"
	root, err := proc.ModuleRoot(t.Context())
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "deploy", "swarm", "stack.yaml"))
	require.NoError(t, err)
	other := string(text)
	for _, change := range [][2]string{
		{"--probation, 10s", "--probation, " + probation},
		{"monitor: 20s", "monitor: " + monitor}, // of updates
		{"monitor: 20s", "monitor: 1s"},         // of rollbacks, to which the old version comes back
	} {
		require.Contains(t, other, change[0])
		other = strings.Replace(other, change[0], change[1], 1)
	}
	s.file = filepath.Join(t.TempDir(), "stack.yaml")
	require.NoError(t, os.WriteFile(s.file, []byte(other), 0o600))
	return s
}

// deploy runs the documented command and returns at once, as that does.
func (s *stack) deploy(image, label string) {
	s.t.Helper()
	cmd := exec.Command("docker", "stack", "deploy", "--compose-file", s.file, s.name)
	cmd.Env = append(os.Environ(), "IMAGE="+image, "LABEL="+label, fmt.Sprintf("PORT=%d", s.port))
	r, err := proc.Run(s.ctx(), cmd)
	require.NoError(s.t, err)
	require.Zero(s.t, r.Code, "%s%s", r.Stdout, r.Stderr)
}

// first deploys the first version, which serves when this returns.
func (s *stack) first(label string) {
	s.t.Helper()
	s.deploy(image, label)
	s.eventually("the engine has made the volume", func() bool {
		return s.engine("volume", "inspect", s.name+"_handoff").Code == 0
	})
	s.useVolume(s.name + "_handoff")
	s.alone(label)
	s.eventually("its task runs", func() bool {
		return strings.HasPrefix(s.must("service", "ps", "--format", "{{.CurrentState}}", s.name+"_web"), "Running")
	})
}

// update deploys the next version and waits until the engine calls the update by the word.
func (s *stack) update(image, label, word string) {
	s.t.Helper()
	var before, now struct{ State, StartedAt, Message string }
	state := func() []byte {
		return []byte(s.must("service", "inspect", "--format", "{{json .UpdateStatus}}", s.name+"_web"))
	}
	require.NoError(s.t, json.Unmarshal(state(), &before))
	s.deploy(image, label)
	s.eventually("update: "+word, func() bool {
		require.NoError(s.t, json.Unmarshal(state(), &now))
		return now.State == word && now.StartedAt != before.StartedAt
	})
}

// newSwarm makes the engine a swarm of its own for the test. One that is in a swarm already is left alone.
func newSwarm(t *testing.T) {
	t.Helper()
	state := func() string {
		out, err := exec.Command("docker", "info", "--format", "{{.Swarm.LocalNodeState}}").Output()
		require.NoError(t, err)
		return strings.TrimSpace(string(out))
	}
	require.Equal(t, "inactive", state(), "this engine is in a swarm already, which is not touched: if an earlier run has left it behind, docker swarm leave --force")
	out, err := exec.Command("docker", "swarm", "init", "--advertise-addr", "127.0.0.1").CombinedOutput()
	require.NoError(t, err, "%s", out)
	t.Cleanup(func() {
		out, err := exec.Command("docker", "swarm", "leave", "--force").CombinedOutput()
		if err != nil {
			t.Errorf("docker swarm leave: %v: %s", err, out)
		}
	})
}

// A rolling update is a handover: the engine starts the next task, waits for its health, and tells the old one to stop.
// What fails is rolled back by the engine.
func TestSwarm(t *testing.T) {
	t.Parallel() // most of it is waiting for the engine
	newSwarm(t)
	t.Run("update", func(t *testing.T) {
		s := newStack(t, "swarm, rolling update", "swarm", "1s", "2s")
		s.first("v1")
		run := s.load(local(s.port))
		s.answers(run, 1, 200)
		for g := uint64(2); g <= 3; g++ {
			label := fmt.Sprintf("v%d", g)
			s.update(image, label, "completed")
			require.EqualValues(t, g, s.alone(label).Serving().Generation)
			s.answers(run, g, 200)
		}
		s.noLoss(run, 2)
	})
	for _, tc := range []struct {
		name, short string
		image       func(r *recipe) string
		handovers   int // that end well
	}{
		// The old task was never told to stop.
		{"swarm, rolled back: does not start", "rbstart", (*recipe).brokenImage, 0},
		// The old task was told to stop and took back; it hands over to the task of the rollback.
		{"swarm, rolled back: dies when it is to serve", "rbcrash", (*recipe).crashImage, 1},
		{"swarm, rolled back: unhealthy when it serves", "rbsick", (*recipe).sickImage, 1},
	} {
		t.Run(tc.short, func(t *testing.T) {
			// The engine may be slow to send SIGTERM to the old task, and it monitors from before that on.
			s := newStack(t, tc.name, tc.short, "4s", "30s")
			bad := tc.image(s.recipe)
			s.first("good")
			run := s.load(local(s.port))
			s.answers(run, 1, 200)
			s.update(bad, "bad", "rollback_completed")
			st := s.waitStatus("the good version is alone", func(st proc.Status) bool {
				again := tc.handovers == 0 || st.Serving().Generation > 1
				return again && len(st.Generations) == 1 && st.Serving().Label == "good"
			})
			g := st.Serving().Generation
			require.Equal(t, tc.handovers == 0, g == 1)
			s.answers(run, g, run.Counts().Generations[g]+200)
			s.noLoss(run, tc.handovers)
		})
	}
}
