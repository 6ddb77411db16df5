//go:build containers

package containers

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// Two containers on the host's network that share a volume hand over to each other, in turn.
func TestHostNetwork(t *testing.T) {
	r := newRecipe(t, "docker run, host network", "host")
	volume, port := r.newVolume(), freePort(t)
	start := func(label string) *container {
		return r.run(label, hardened("--network", "host", "--volume", volume+":/run/handoff"),
			"--http", local(port), "--label", label, "--probation", "1s")
	}
	old := start("v1")
	old.healthy()
	run := r.load(local(port))
	r.answers(run, 1, 200)
	for g := uint64(2); g <= 4; g++ {
		label := fmt.Sprintf("v%d", g)
		next := start(label)
		require.Equal(t, g, r.serves(label).Serving().Generation)
		old.exits(0)
		old.remove()
		r.answers(run, g, 500)
		next.healthy()
		old = next
	}
	r.noLoss(run, 3)
	old.signal("TERM") // with nobody to succeed it, a plain stop
	old.exits(0)
	require.NoFileExists(t, r.socket)
}

// The first commands of docs/containers.md lead from nothing to a handover, and there are fewer than ten.
func TestFirstCommandsOfContainers(t *testing.T) {
	r := newRecipe(t, "docs/containers.md, the first commands", "page")
	root, err := proc.ModuleRoot(t.Context())
	require.NoError(t, err)
	page, err := os.ReadFile(filepath.Join(root, "docs", "containers.md"))
	require.NoError(t, err)
	block := regexp.MustCompile("(?s)<!-- run: first -->\n```sh\n# tested\n(.*?)```").FindStringSubmatch(string(page))
	require.NotNil(t, block)
	commands := strings.Split(strings.TrimSpace(strings.ReplaceAll(block[1], "\\\n", " ")), "\n")
	require.Less(t, len(commands), 10)

	address := local(freePort(t))
	built := r.prefix + "image" // and not the one under test, which would change under the other tests
	mine := strings.NewReplacer("make image", "make image IMAGE="+built, "handoff:dev", built, "127.0.0.1:8080", address,
		"app-", r.prefix, "create app", "create "+r.prefix+"run", " app:", " "+r.prefix+"run:")
	var run *load.Run
	for _, command := range commands {
		cmd := exec.Command("/bin/sh", "-c", mine.Replace(command))
		cmd.Dir = root
		res, err := proc.Run(r.ctx(), cmd)
		require.NoError(t, err)
		require.Zero(t, res.Code, "%s: %s%s", command, res.Stdout, res.Stderr)
		switch {
		case strings.Contains(command, "wait --for=serving"):
			run = r.load(address)
			r.answers(run, 1, 100)
		case strings.HasPrefix(command, "docker wait"):
			require.Equal(t, "0\n", res.Stdout)
		case strings.Contains(command, "status"):
			require.Contains(t, res.Stdout, "last handoff: 1 to 2 released")
		}
	}
	r.answers(run, 2, 100)
	r.noLoss(run, 1)
	r.useVolume(r.prefix + "run")
	require.Len(t, r.alone("v2").Generations, 1)
}

// The usual way, on which the same load has to see something: the old container is stopped, and the next one started.
func TestUsualWayLoses(t *testing.T) {
	r := newRecipe(t, "control: docker stop, docker run", "usual")
	volume, port := r.newVolume(), freePort(t)
	start := func(label string) *container {
		return r.run(label, hardened("--network", "host", "--volume", volume+":/run/handoff"),
			"--http", local(port), "--label", label)
	}
	old := start("v1")
	old.healthy()
	run := r.load(local(port))
	r.answers(run, 1, 200)
	old.stop(30 * time.Second)
	old.remove()
	start("v2").healthy()
	require.NoError(t, run.Wait(r.ctx(), run.More(200)))
	r.mustLose(run, 1)
}
