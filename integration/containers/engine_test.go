//go:build containers

package containers

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// image is what the recipes run: its programs are the ones under test.
var image = os.Getenv("HANDOFF_IMAGE")

// namePrefix begins every name at the engine that belongs to these tests.
const namePrefix = "handoff-test-"

// runID begins the names of this run: with its process and its time, so that a later run knows what was left behind.
var runID = fmt.Sprintf("%s%d-%d-", namePrefix, os.Getpid(), time.Now().Unix())

// leftAfter is how old a run is that certainly is over, though its process number is in use.
const leftAfter = time.Hour

// isLeft says whether a name at the engine is what an earlier run left behind, because it was killed. A run that goes on
// at the same time, from another checkout, is none.
func isLeft(name string) bool {
	rest, ours := strings.CutPrefix(name, namePrefix)
	if !ours || strings.HasPrefix(name, runID) {
		return false
	}
	parts := strings.SplitN(rest, "-", 3)
	if len(parts) < 3 {
		return false
	}
	began, err := strconv.ParseInt(parts[1], 10, 64)
	if err != nil {
		return false
	}
	_, err = os.Stat("/proc/" + parts[0])
	return os.IsNotExist(err) || time.Since(time.Unix(began, 0)) > leftAfter
}

// kinds are what the tests make at an engine, in the order in which it can be removed. Services come first: the
// engine replaces their containers. Podman has no services, and Docker has no pods.
var kinds = []struct {
	name         string
	list, remove []string
}{
	{"service", []string{"service", "ls", "--format", "{{.Name}}"}, []string{"service", "rm"}},
	{"pod", []string{"pod", "ls", "--format", "{{.Name}}"}, []string{"pod", "rm", "--force"}},
	{"container", []string{"ps", "--all", "--format", "{{.Names}}"}, []string{"rm", "--force", "--volumes"}},
	{"network", []string{"network", "ls", "--format", "{{.Name}}"}, []string{"network", "rm"}},
	{"image", []string{"image", "ls", "--format", "{{.Repository}}"}, []string{"image", "rm", "--force"}},
	{"volume", []string{"volume", "ls", "--format", "{{.Name}}"}, []string{"volume", "rm", "--force"}},
}

// removeAll removes everything at the engine whose name is meant.
func removeAll(ctx context.Context, engine tool, meant func(name string) bool) error {
	for _, k := range kinds {
		list, err := engine(ctx, k.list...)
		if err != nil {
			return err
		}
		if list.Code != 0 {
			continue // it has none of that kind; nor has an engine that is in no swarm any services
		}
		for name := range strings.FieldsSeq(list.Stdout) {
			name = strings.TrimPrefix(name, "localhost/") // podman's word for an image that is from no registry
			if !meant(name) {
				continue
			}
			gone := func() (bool, error) {
				r, err := engine(ctx, append(k.remove, name)...)
				return err == nil && (r.Code == 0 || strings.Contains(r.Stderr, "o such "+k.name)), err
			}
			// What has just been removed may still hold a network or a volume for a moment.
			if err := poll(ctx, gone); err != nil {
				return fmt.Errorf("remove %s %s: %w", k.name, name, err)
			}
		}
	}
	return nil
}

// tool runs an engine's command line tool: docker, or podman.
type tool func(ctx context.Context, args ...string) (proc.Result, error)

// docker runs the engine's command line tool.
func docker(ctx context.Context, args ...string) (proc.Result, error) {
	return proc.Run(ctx, exec.Command("docker", args...))
}

// poll asks until ok or an error, with a moment between two tries: the engine has no way to wait for most things.
func poll(ctx context.Context, ok func() (bool, error)) error {
	for {
		done, err := ok()
		if done || err != nil {
			return err
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// engine runs the engine's tool, and fails the test if it can't be run.
func (r *recipe) engine(args ...string) proc.Result {
	r.t.Helper()
	res, err := r.tool(r.ctx(), args...)
	require.NoError(r.t, err)
	return res
}

// must runs the engine's tool, wants it to end with 0, and returns what it printed.
func (r *recipe) must(args ...string) string {
	r.t.Helper()
	res := r.engine(args...)
	require.Zero(r.t, res.Code, "%s: %s%s", strings.Join(args, " "), res.Stdout, res.Stderr)
	return strings.TrimSpace(res.Stdout)
}

// eventually waits until ok, which may fail the test itself.
func (r *recipe) eventually(what string, ok func() bool) {
	r.t.Helper()
	require.NoError(r.t, poll(r.ctx(), func() (bool, error) { return ok(), nil }), what)
}

// address is the container's in a network of the engine; "" on the host's network, or in another container's.
func (c *container) address() string {
	c.r.t.Helper()
	return c.r.must("inspect", "--format", "{{range .NetworkSettings.Networks}}{{.IPAddress}}{{end}}", c.name)
}

// hold starts a container that only has a network, for others.
func (r *recipe) hold(options ...string) *container {
	r.t.Helper()
	c := r.container("holder")
	all := append([]string{"run", "--detach", "--name", c.name, "--no-healthcheck", "--entrypoint", "/pause"}, options...)
	r.must(append(all, r.image)...)
	return c
}

// container is one container by its name at the engine.
type container struct {
	r    *recipe
	name string
}

// run starts a container of the image with options for docker run and arguments for the server. It ends with the test.
func (r *recipe) run(name string, options []string, args ...string) *container {
	r.t.Helper()
	c := r.container(name)
	all := append([]string{"run", "--detach", "--name", c.name}, options...)
	r.must(append(append(all, r.image), args...)...)
	return c
}

// container is the recipe's container of that name, whoever has started it.
func (r *recipe) container(name string) *container { return &container{r, r.prefix + name} }

// ctl runs handoffctl in the container. There it knows the sockets by the environment.
func (c *container) ctl(args ...string) proc.Result {
	c.r.t.Helper()
	return c.r.engine(append([]string{"exec", c.name, "/handoffctl"}, args...)...)
}

// containerState is what docker inspect says, as far as it is used here.
type containerState struct {
	Status   string // created, running, exited …
	Running  bool
	ExitCode int
	Pid      int // as the host sees it; 0 when it does not run
	Health   *struct {
		Status string
		Log    []struct {
			ExitCode int
			Output   string
		}
	}
}

// state is the container's state; ok is false when there is none of that name.
func (c *container) state() (s containerState, ok bool) {
	c.r.t.Helper()
	res := c.r.engine("container", "inspect", "--format", "{{json .State}}", c.name)
	if res.Code != 0 {
		require.Contains(c.r.t, res.Stderr, "o such container")
		return s, false
	}
	require.NoError(c.r.t, json.Unmarshal([]byte(res.Stdout), &s), "%s", res.Stdout)
	return s, true
}

// health is what the image's HEALTHCHECK says: starting, healthy or unhealthy; "" when there is none.
func (c *container) health() string {
	c.r.t.Helper()
	s, ok := c.state()
	if !ok || s.Health == nil {
		return ""
	}
	return s.Health.Status
}

// healthy waits for the image's HEALTHCHECK.
func (c *container) healthy() {
	c.r.t.Helper()
	c.r.eventually(c.name+" is healthy", func() bool {
		s, ok := c.state()
		require.True(c.r.t, ok && s.Status != "exited", "%s has ended, with %d", c.name, s.ExitCode)
		return s.Health != nil && s.Health.Status == "healthy"
	})
}

// exits waits until the container's process has ended, and wants that exit code.
func (c *container) exits(code int) {
	c.r.t.Helper()
	require.Equal(c.r.t, strconv.Itoa(code), c.r.must("wait", c.name), "exit code of %s", c.name)
}

// signal sends a signal to the container's process, by name.
func (c *container) signal(name string) {
	c.r.t.Helper()
	c.r.must("kill", "--signal", name, c.name)
}

// killProcess ends the container's process by SIGKILL, as the kernel does when memory is short. docker kill would be taken
// for the wish that it stays ended.
func (c *container) killProcess() {
	c.r.t.Helper()
	s, ok := c.state()
	require.True(c.r.t, ok && s.Running)
	require.NoError(c.r.t, syscall.Kill(s.Pid, syscall.SIGKILL))
}

// stop is docker stop: SIGTERM, and SIGKILL after the grace period.
func (c *container) stop(grace time.Duration) {
	c.r.t.Helper()
	c.r.must("stop", "--time", strconv.Itoa(int(grace.Seconds())), c.name)
}

// remove removes the container, also while it runs.
func (c *container) remove() {
	c.r.t.Helper()
	c.r.must("rm", "--force", c.name)
}

// logs is what the container's process wrote so far.
func (c *container) logs() string {
	c.r.t.Helper()
	res := c.r.engine("logs", c.name)
	return res.Stdout + res.Stderr
}

// logged waits for a text in the container's log.
func (c *container) logged(text string) {
	c.r.t.Helper()
	c.r.eventually(fmt.Sprintf("%s logs %q", c.name, text), func() bool { return strings.Contains(c.logs(), text) })
}

// showLogs prints the state and the end of the log of every container whose name is meant.
func showLogs(ctx context.Context, t *testing.T, engine tool, meant func(name string) bool) {
	list, err := engine(ctx, "ps", "--all", "--format", "{{.Names}}")
	if err != nil {
		t.Logf("list containers: %v", err)
		return
	}
	for name := range strings.FieldsSeq(list.Stdout) {
		if !meant(name) {
			continue
		}
		for _, args := range [][]string{
			{"inspect", "--format", "{{.State.Status}} ({{.State.ExitCode}}) since {{.State.StartedAt}}, {{.RestartCount}} restarts", name},
			{"logs", "--tail", "60", name},
		} {
			if res, err := engine(ctx, args...); err == nil {
				t.Logf("%s:\n%s%s", name, res.Stdout, res.Stderr)
			}
		}
	}
}
