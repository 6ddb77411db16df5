//go:build containers

package containers

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// kubelet does with the engine what the kubelet does with pods, as far as it matters to a handoff: directories as it
// makes them, init containers, probes by exec at their periods and thresholds, restarts with its pauses, SIGTERM and
// the grace period, and a new image in a container that runs. The rest of Kubernetes, which decides when, is in the
// tests. Where no source is named, docs/concepts/workloads/pods/pod-lifecycle of Kubernetes' documentation has it.
type kubelet struct {
	r    *recipe
	dir  string // hostPath volumes are in here, and emptyDirs
	ctx  context.Context
	work sync.WaitGroup

	mu     sync.Mutex
	failed []error // where no test can be failed
	pods   int
}

func newKubelet(r *recipe) *kubelet {
	r.t.Helper()
	// The directory of a control socket has to be short, and no user but root may write to those above it.
	dir, err := os.MkdirTemp("/run", "handoff-test")
	require.NoError(r.t, err)
	require.NoError(r.t, os.Chmod(dir, 0o755))
	ctx, cancel := context.WithCancel(context.Background())
	k := &kubelet{r: r, dir: dir, ctx: ctx}
	r.t.Cleanup(func() {
		cancel()
		k.work.Wait()
		k.mu.Lock()
		defer k.mu.Unlock()
		for _, err := range k.failed {
			r.t.Error(err)
		}
		if err := os.RemoveAll(dir); err != nil {
			r.t.Error(err)
		}
	})
	return k
}

// docker runs the engine's tool. What it says after the end of the test is nobody's business.
func (k *kubelet) docker(args ...string) (proc.Result, error) {
	res, err := docker(k.ctx, args...)
	if err == nil && res.Code != 0 {
		err = fmt.Errorf("docker %s: %s%s", strings.Join(args, " "), res.Stdout, res.Stderr)
	}
	return res, err
}

// fail keeps an error for the end of the test.
func (k *kubelet) fail(err error) {
	if k.ctx.Err() != nil {
		return
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.failed = append(k.failed, err)
}

// pod is a pod on this node.
type pod struct {
	k          *kubelet
	name       string
	spec       podSpec
	sandbox    string // the container that holds its network, if that is not the node's, and its /dev/shm
	binds      map[string]string
	containers []*kubeContainer

	ending chan struct{} // closed when it is deleted
}

// run starts a pod, and returns when its init containers have ended and the others are being started.
func (k *kubelet) run(name string, spec podSpec) *pod {
	t := k.r.t
	t.Helper()
	k.pods++
	p := &pod{k: k, name: fmt.Sprintf("%s-%d", name, k.pods), spec: spec, binds: map[string]string{}, ending: make(chan struct{})}
	for _, v := range spec.Volumes {
		switch {
		case v.HostPath != nil:
			// DirectoryOrCreate: 0755, root (k8s.io/api, HostPathType). Below the test's own directory, so that tests do
			// not meet.
			p.binds[v.Name] = filepath.Join(k.dir, v.HostPath.Path)
			require.NoError(t, os.MkdirAll(p.binds[v.Name], 0o755))
		case v.EmptyDir != nil:
			// 0777 whatever the umask, root (pkg/volume/emptydir), and the pod's own.
			p.binds[v.Name] = filepath.Join(k.dir, p.name, v.Name)
			require.NoError(t, os.MkdirAll(p.binds[v.Name], 0o777))
			require.NoError(t, os.Chmod(p.binds[v.Name], 0o777))
		default:
			require.Fail(t, "volume of an unknown kind", v.Name)
		}
	}
	network := "bridge"
	if spec.HostNetwork {
		network = "host"
	}
	p.sandbox = k.r.prefix + p.name + "-sandbox"
	k.r.must("run", "--detach", "--name", p.sandbox, "--network", network, "--ipc", "shareable", "--no-healthcheck",
		"--entrypoint", "/pause", image)
	for _, spec := range spec.InitContainers {
		out, err := k.docker(p.args("run", k.r.prefix+p.name+"-"+spec.Name, spec)...)
		require.NoError(t, err)
		t.Logf("%s: init container %s: %s", p.name, spec.Name, strings.TrimSpace(out.Stdout))
	}
	for _, spec := range spec.Containers {
		c := &kubeContainer{pod: p, spec: spec, done: make(chan struct{})}
		p.containers = append(p.containers, c)
		k.work.Go(c.run)
	}
	return p
}

// address is where clients reach a port of the pod.
func (p *pod) address(port int) string {
	p.k.r.t.Helper()
	ip := "127.0.0.1"
	if !p.spec.HostNetwork {
		ip = (&container{p.k.r, p.sandbox}).address()
	}
	return fmt.Sprintf("%s:%d", ip, port)
}

// args are those of docker run for a container of the pod.
func (p *pod) args(how, name string, c containerSpec) []string {
	args := strings.Fields(how)
	// Also /dev/shm outlives a container: the next one finds the self socket of one that was killed.
	network, ipc := "container:"+p.sandbox, "container:"+p.sandbox
	if p.spec.HostNetwork {
		network = "host"
	}
	sc := c.SecurityContext
	uid, gid := either(sc.RunAsUser, p.spec.SecurityContext.RunAsUser), either(sc.RunAsGroup, p.spec.SecurityContext.RunAsGroup)
	args = append(args, "--name", name, "--network", network, "--ipc", ipc, "--user", fmt.Sprintf("%d:%d", uid, gid))
	if sc.ReadOnlyRootFilesystem {
		args = append(args, "--read-only")
	}
	if sc.AllowPrivilegeEscalation != nil && !*sc.AllowPrivilegeEscalation {
		args = append(args, "--security-opt", "no-new-privileges")
	}
	for _, c := range sc.Capabilities.Drop {
		args = append(args, "--cap-drop", c)
	}
	for _, c := range sc.Capabilities.Add {
		args = append(args, "--cap-add", c)
	}
	for _, e := range c.Env {
		value := e.Value
		if e.ValueFrom.FieldRef.FieldPath == "metadata.name" {
			value = p.name
		}
		args = append(args, "--env", e.Name+"="+value)
	}
	for _, m := range c.VolumeMounts {
		args = append(args, "--volume", p.binds[m.Name]+":"+m.MountPath)
	}
	command := c.Command
	if len(command) > 0 {
		args = append(args, "--entrypoint", command[0])
		command = command[1:]
	}
	return slices.Concat(args, []string{c.Image}, command, c.Args)
}

// either is *a, or *b, or root as an image has it that says nothing. (Ours says 65532; the manifests do not rely on it.)
func either(a, b *int) int {
	switch {
	case a != nil:
		return *a
	case b != nil:
		return *b
	}
	return 0
}

// ready says since when all containers are ready, as the pod's condition Ready does.
func (p *pod) ready() (since time.Time, ok bool) {
	for _, c := range p.containers {
		c.mu.Lock()
		at := c.readySince
		c.mu.Unlock()
		if at.IsZero() {
			return time.Time{}, false
		}
		if at.After(since) {
			since = at
		}
	}
	return since, true
}

// available says whether it has been ready for so long: what a controller waits for.
func (p *pod) available(minReady time.Duration) bool {
	since, ok := p.ready()
	return ok && time.Since(since) >= minReady
}

// isEnding says whether the pod is being deleted.
func (p *pod) isEnding() bool {
	select {
	case <-p.ending:
		return true
	default:
		return false
	}
}

// delete is what follows when somebody deletes the pod: SIGTERM to all containers at once, SIGKILL after the grace
// period, no restart. It returns how long that took. Liveness and startup probes stop before the first signal
// (StopLivenessAndStartup in pkg/kubelet/prober, since Kubernetes 1.22), readiness probes go on.
func (p *pod) delete() time.Duration {
	p.k.r.t.Helper()
	began := time.Now()
	close(p.ending)
	var stops sync.WaitGroup
	for _, c := range p.containers {
		stops.Go(func() {
			c.stop(p.spec.Grace)
			<-c.done
		})
	}
	stops.Wait()
	took := time.Since(began)
	p.k.r.must("rm", "--force", p.sandbox)
	return took
}

// container is one of its containers, by its name in the manifest.
func (p *pod) container(name string) *kubeContainer {
	p.k.r.t.Helper()
	i := slices.IndexFunc(p.containers, func(c *kubeContainer) bool { return c.spec.Name == name })
	require.GreaterOrEqual(p.k.r.t, i, 0, name)
	return p.containers[i]
}

// kubeContainer is a container of a pod, through all of its restarts.
type kubeContainer struct {
	pod  *pod
	done chan struct{} // closed when it will not start any more

	mu         sync.Mutex
	spec       containerSpec
	name       string // at the engine, while it is there
	image      string // of what runs, or ran last: as in the status of the container
	starts     int
	stopping   bool
	changed    bool      // it has another image now, and starts again without a pause
	readySince time.Time // zero: not ready
	unready    int       // how often it ceased to be, but for its end
	ends       []int     // exit codes
	illness    []string  // what liveness and startup probes said that were the last straw
}

// firstPause is before the second restart; the first one comes at once. It doubles up to longestPause
// (pkg/kubelet, backOffPeriod and MaxContainerBackOff).
const (
	firstPause   = 10 * time.Second
	longestPause = 5 * time.Minute
)

// run starts the container again and again, until the pod is deleted. "Always" is the only policy there is here.
func (c *kubeContainer) run() {
	defer close(c.done)
	pause := time.Duration(0)
	for c.start() {
		probing, stop := context.WithCancel(c.pod.k.ctx)
		var probes sync.WaitGroup
		probes.Go(func() { c.probe(probing, &probes) })
		code, err := c.pod.k.docker("wait", c.name)
		stop()
		probes.Wait()
		if err != nil {
			c.pod.k.fail(err)
			return
		}
		if c.ended(code.Stdout) {
			pause = 0
			continue
		}
		select {
		case <-c.pod.ending:
			return
		case <-c.pod.k.ctx.Done():
			return
		case <-time.After(pause):
			pause = min(max(2*pause, firstPause), longestPause)
		}
	}
}

// start starts the container unless the pod ends; nobody stops it before it is there.
func (c *kubeContainer) start() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pod.isEnding() {
		return false
	}
	c.starts++
	c.image, c.readySince = c.spec.Image, time.Time{}
	c.name = fmt.Sprintf("%s%s-%s-%d", c.pod.k.r.prefix, c.pod.name, c.spec.Name, c.starts)
	if _, err := c.pod.k.docker(c.pod.args("run --detach", c.name, c.spec)...); err != nil {
		c.pod.k.fail(err)
		return false
	}
	return true
}

// ended takes notice of the exit code, and says whether the container has changed since it was started.
func (c *kubeContainer) ended(code string) (changed bool) {
	n, err := strconv.Atoi(strings.TrimSpace(code))
	if err != nil {
		c.pod.k.fail(err)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends = append(c.ends, n)
	c.readySince, c.name, c.stopping = time.Time{}, "", false
	changed, c.changed = c.changed, false
	return changed
}

// stop is SIGTERM, and SIGKILL after the grace period. It returns when the container has ended.
func (c *kubeContainer) stop(grace int) {
	c.mu.Lock()
	name := c.name
	if name != "" {
		c.stopping = true
	}
	c.mu.Unlock()
	if name == "" {
		return
	}
	if _, err := c.pod.k.docker("stop", "--time", strconv.Itoa(grace), name); err != nil {
		c.pod.k.fail(err)
	}
}

// setImage is "kubectl set image" on the pod: the container is stopped and started again with another image, without a
// pause, since pauses are counted for each form of a container (getStableKey in pkg/kubelet/kuberuntime). It returns when
// the pod's status knows of the end of the old one: until then it would be ready.
func (c *kubeContainer) setImage(image string) {
	c.pod.k.r.t.Helper()
	c.mu.Lock()
	c.spec.Image, c.changed = image, true
	before := len(c.ends)
	c.mu.Unlock()
	c.stop(c.pod.spec.Grace)
	c.pod.k.r.eventually(c.spec.Name+" has ended", func() bool {
		ends, _, _, _ := c.told()
		return len(ends) > before
	})
}

// runs says whether the container has been started with that image.
func (c *kubeContainer) runs(image string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.image == image
}

// probe asks until the container has ended: first whether it has started, then whether it is ready and alive.
func (c *kubeContainer) probe(ctx context.Context, work *sync.WaitGroup) {
	c.mu.Lock()
	spec := c.spec
	c.mu.Unlock()
	if !c.every(ctx, spec.Startup, true, func(ok bool) bool { return ok }) {
		return
	}
	work.Go(func() { c.every(ctx, spec.Liveness, true, func(bool) bool { return false }) })
	c.every(ctx, spec.Readiness, false, func(ok bool) bool {
		c.mu.Lock()
		defer c.mu.Unlock()
		switch {
		case ok && c.readySince.IsZero():
			c.readySince = time.Now()
		case !ok && !c.readySince.IsZero():
			c.readySince = time.Time{}
			c.unready++
		}
		return false
	})
}

// every asks at the probe's period, and calls f with each success and with each failure that reaches the threshold,
// until f wants no more. Such a failure of a vital probe ends the container.
func (c *kubeContainer) every(ctx context.Context, p *probe, vital bool, f func(ok bool) (enough bool)) bool {
	if p == nil {
		c.pod.k.fail(fmt.Errorf("%s has too few probes", c.spec.Name))
		return false
	}
	tick := time.NewTicker(time.Duration(p.PeriodSeconds) * time.Second)
	defer tick.Stop()
	for failures := 0; ; {
		if vital && c.pod.isEnding() {
			return false
		}
		ok, said := c.ask(ctx, p)
		switch {
		case ctx.Err() != nil:
			return false
		case ok:
			failures = 0
			if f(true) {
				return true
			}
		default:
			failures++
			if failures < p.FailureThreshold {
				break
			}
			if vital {
				c.die(p, said)
				return false
			}
			if f(false) {
				return true
			}
		}
		select {
		case <-ctx.Done():
			return false
		case <-tick.C:
		}
	}
}

// ask runs the probe's command in the container. The kubelet counts a time-out as a failure.
func (c *kubeContainer) ask(ctx context.Context, p *probe) (ok bool, said string) {
	bounded, cancel := context.WithTimeout(ctx, time.Duration(p.TimeoutSeconds)*time.Second)
	defer cancel()
	res, err := proc.Run(bounded, exec.Command("docker", append([]string{"exec", c.name}, p.Exec.Command...)...))
	if err != nil {
		return false, err.Error()
	}
	return res.Code == 0, res.Stdout + res.Stderr
}

// die ends a container for its probe.
func (c *kubeContainer) die(p *probe, said string) {
	c.mu.Lock()
	known := c.stopping
	if !known {
		c.illness = append(c.illness, said)
	}
	c.mu.Unlock()
	if known || c.pod.isEnding() {
		return
	}
	grace := c.pod.spec.Grace
	if p.Grace != nil {
		grace = *p.Grace
	}
	// The probes end with the container, so it must not be waited for here.
	c.pod.k.work.Go(func() { c.stop(grace) })
}

// told is what has become of the container so far.
func (c *kubeContainer) told() (ends []int, starts, unready int, illness []string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ends), c.starts, c.unready, slices.Clone(c.illness)
}

// killProcess ends the process of the container that runs now, by SIGKILL.
func (c *kubeContainer) killProcess() {
	c.pod.k.r.t.Helper()
	(&container{c.pod.k.r, c.running()}).killProcess()
}

// running is the name that the container has at the engine.
func (c *kubeContainer) running() string {
	c.pod.k.r.t.Helper()
	c.mu.Lock()
	at := c.name
	c.mu.Unlock()
	require.NotEmpty(c.pod.k.r.t, at, "%s does not run", c.spec.Name)
	return at
}
