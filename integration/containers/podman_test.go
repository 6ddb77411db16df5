//go:build containers

package containers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// podmanState is where podman keeps images, volumes and containers of these tests, and of no others.
const podmanState = "/run/handoff-test-podman"

// podmanConfig is podman's configuration in these tests. By default podman raises both limits, for which root may lack
// the capability. Its own choice of a runtime, crun 1.8, runs nothing where cgroups of versions 1 and 2 are mixed. The
// other two are what goes without systemd.
const podmanConfig = `[containers]
default_ulimits = ["nofile=4096:4096", "nproc=4096:4096"]
[engine]
runtime = "runc"
cgroup_manager = "cgroupfs"
events_logger = "file"
`

// podmanIDs is the user to whom /etc/subuid and /etc/subgid must give numbers, of which podman takes those of
// --userns=auto. "make deps" does it.
const podmanIDs = "containers"

// checkPodman says what is missing for podman.
func checkPodman() error {
	if _, err := exec.LookPath("podman"); err != nil {
		return fmt.Errorf("%w (run make deps)", err)
	}
	for _, name := range []string{"/etc/subuid", "/etc/subgid"} {
		b, err := os.ReadFile(name)
		if err != nil {
			return err
		}
		if !strings.Contains("\n"+string(b), "\n"+podmanIDs+":") {
			return fmt.Errorf("%s has no line for %s (run make deps)", name, podmanIDs)
		}
	}
	if err := os.MkdirAll(podmanState, 0o711); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(podmanState, "containers.conf"), []byte(podmanConfig), 0o644)
}

// podman runs podman's command line tool.
func podman(ctx context.Context, args ...string) (proc.Result, error) {
	cmd := exec.Command("podman", append([]string{
		"--root", podmanState + "/root", "--runroot", podmanState + "/run", "--tmpdir", podmanState + "/tmp",
	}, args...)...)
	cmd.Env = append(os.Environ(), "CONTAINERS_CONF="+podmanState+"/containers.conf",
		"DISABLE_HC_SYSTEMD=true") // its timers are systemd's; the tests ask themselves
	return proc.Run(ctx, cmd)
}

// podmanImage gives the image under test to podman, once, and returns the name that it has there.
var podmanImage = sync.OnceValues(func() (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	name := runID + "image"
	dir, err := os.MkdirTemp("", "")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	archive := filepath.Join(dir, "image.tar")
	for _, step := range []struct {
		tool tool
		args []string
	}{
		{docker, []string{"tag", image, name}},
		{docker, []string{"save", "--output", archive, name}},
		{podman, []string{"load", "--quiet", "--input", archive}},
	} {
		if r, err := step.tool(ctx, step.args...); err != nil || r.Code != 0 {
			return "", errors.Join(err, fmt.Errorf("%s: %s", strings.Join(step.args, " "), r.Stderr))
		}
	}
	return "localhost/" + name, nil
})

// newPodman begins a recipe of podman's.
func newPodman(t *testing.T, name, short string) *recipe {
	t.Helper()
	r := newRecipe(t, name, short)
	of, err := podmanImage()
	require.NoError(t, err)
	r.tool, r.image = podman, of
	return r
}

// Two containers of podman's on the host's network take turns, by themselves and by podman stop.
func TestPodman(t *testing.T) {
	r := newPodman(t, "podman run, host network", "podman")
	volume, port := r.newVolume(), freePort(t)
	start := func(label string, more ...string) *container {
		return r.run(label, hardened("--network", "host", "--volume", volume+":/run/handoff"),
			append([]string{"--http", local(port), "--label", label, "--probation", "1s"}, more...)...)
	}
	v1 := start("v1")
	r.alone("v1")
	run := r.load(local(port))
	r.answers(run, 1, 200)
	v2 := start("v2")
	v1.exits(0)
	r.alone("v2")
	r.answers(run, 2, 500)

	v3 := start("v3", "--takeover", "standby")
	r.waitStatus("v3 is a standby", func(st proc.Status) bool { return st.In("standby").Label == "v3" })
	r.must("healthcheck", "run", v3.name) // healthy: it waits to be told
	v2.stop(patience)
	s, ok := v2.state()
	require.True(t, ok)
	require.Zero(t, s.ExitCode)
	require.EqualValues(t, 3, r.alone("v3").Serving().Generation)
	r.answers(run, 3, 500)
	r.must("healthcheck", "run", v3.name)
	r.noLoss(run, 2)
	v3.stop(patience) // with nobody to succeed it, a plain stop
	require.NoFileExists(t, r.socket)
}

// The containers of a pod share its network, and its port on the host.
func TestPodmanPod(t *testing.T) {
	r := newPodman(t, "podman pod: two containers take turns, published port", "pod")
	volume, port, pod := r.newVolume(), freePort(t), r.prefix+"web"
	r.must("pod", "create", "--name", pod, "--publish", local(port)+":8080")
	start := func(label string) *container {
		// They share /dev/shm, too.
		return r.run(label, hardened("--pod", pod, "--volume", volume+":/run/handoff", "--env", "HANDOFF_SELF_SOCKET=/dev/shm/"+label),
			"--http", ":8080", "--label", label, "--probation", "1s")
	}
	old := start("v1")
	r.alone("v1")
	run := r.load(local(port))
	r.answers(run, 1, 200)
	for g := uint64(2); g <= 3; g++ {
		next := start(fmt.Sprintf("v%d", g))
		old.exits(0)
		old.remove()
		r.answers(run, g, 500)
		old = next
	}
	r.must("healthcheck", "run", old.name)
	r.noLoss(run, 2)
}

// Each container has numbers of its own.
func TestPodmanUserNamespaces(t *testing.T) {
	options := func(more ...string) []string {
		return hardened(append([]string{
			"--userns", "auto", "--network", "host",
			"--volume", "/sys:/sys:ro", // which runc could not mount without rights over the host's network; crun need not be told
		}, more...)...)
	}
	ids := func(c *container) string {
		s, ok := c.state()
		require.True(t, ok && s.Running, "%s", c.logs())
		b, err := os.ReadFile(fmt.Sprintf("/proc/%d/uid_map", s.Pid))
		require.NoError(t, err)
		return string(b)
	}

	t.Run("without a key", func(t *testing.T) {
		r := newPodman(t, "refused: podman --userns=auto", "auto")
		volume, address := r.newVolume(), local(freePort(t))
		start := func(label string) *container {
			return r.run(label, options("--volume", volume+":/run/handoff"), "--http", address, "--label", label)
		}
		old := start("v1") // a new volume becomes its user's
		res := old.ctl("wait", "--for", "serving")
		require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
		run := r.load(address)
		r.answers(run, 1, 100)
		next := start("v2")
		next.exits(1)
		next.logged("same shared key")
		r.answers(run, 1, run.Counts().Generations[1]+100)
		r.noLoss(run, 0)
	})

	t.Run("with a key", func(t *testing.T) {
		r := newPodman(t, "podman --userns=auto, --shared-key", "autokey")
		address, parent := local(freePort(t)), t.TempDir()
		require.NoError(t, os.Chmod(filepath.Dir(parent), 0o711)) // for the other users
		dir, key := filepath.Join(parent, "run"), filepath.Join(parent, "key")
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.Chmod(dir, 0o777|os.ModeSticky)) // the one before has to reach it, too
		secret := make([]byte, 32)
		rand.Read(secret)
		require.NoError(t, os.WriteFile(key, []byte(hex.EncodeToString(secret)+"\n"), 0o444))
		start := func(label string) *container {
			// U: the directory is the next version's, and so is the socket that is in it, which can be removed by it then.
			return r.run(label, options("--volume", dir+":/run/handoff:U", "--volume", key+":/key:ro"),
				"--http", address, "--label", label, "--probation", "1s", "--shared-key", "/key")
		}
		ctl := func(c *container, args ...string) string {
			res := c.ctl(append([]string{"--shared-key", "/key"}, args...)...)
			require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
			return res.Stdout
		}
		old := start("v1")
		ctl(old, "wait", "--for", "serving")
		run := r.load(address)
		r.answers(run, 1, 200)
		for g := uint64(2); g <= 3; g++ {
			next := start(fmt.Sprintf("v%d", g))
			require.NotEqual(t, ids(old), ids(next))
			old.exits(0)
			r.answers(run, g, 500)
			old = next
		}
		require.Contains(t, ctl(old, "status"), "last handoff: 2 to 3 released")
		r.noLoss(run, 2)

		// The service may be stopped, or die, and be started again.
		old.stop(patience)
		require.NoFileExists(t, filepath.Join(dir, "control.sock"))
		died := start("v4")
		ctl(died, "wait", "--for", "serving")
		before := ids(died)
		died.killProcess()
		died.exits(137)
		require.FileExists(t, filepath.Join(dir, "control.sock"))
		next := start("v5")
		ctl(next, "wait", "--for", "serving")
		require.NotEqual(t, before, ids(next))
	})
}
