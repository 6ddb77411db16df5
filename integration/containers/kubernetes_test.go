//go:build containers

package containers

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// node is a node with a DaemonSet: its controller's part is in update.
type node struct {
	*recipe
	kube *kubelet
	set  kubeObject
	port int
}

// newNode reads deploy/kubernetes/daemonset.yaml. Of all that is in it only the port and the image are changed, and the
// hostPath is in a directory of the test.
func newNode(t *testing.T, name, short string) *node {
	t.Helper()
	r := newRecipe(t, name, short)
	n := &node{recipe: r, kube: newKubelet(r), set: readManifest(t, "daemonset.yaml", "DaemonSet"), port: freePort(t)}
	template := &n.set.Spec.Template.Spec
	*template.server(t) = template.server(t).with(t, fmt.Sprintf("--http=:%d", n.port))
	r.socket = filepath.Join(n.kube.dir, template.Volumes[0].HostPath.Path, "control.sock")
	return n
}

// minReady is how long a new pod has to be ready.
func (n *node) minReady() time.Duration {
	return time.Duration(n.set.Spec.MinReadySeconds) * time.Second
}

// first starts the pod that the DaemonSet has on a node to begin with.
func (n *node) first() *pod {
	n.t.Helper()
	p := n.kube.run("web", n.set.Spec.Template.Spec)
	n.eventually("the first pod is ready", func() bool { _, ok := p.ready(); return ok })
	n.serves(p.name)
	return p
}

// surge starts a new pod beside the old one: maxSurge is 1.
func (n *node) surge(spec podSpec) *pod {
	n.t.Helper()
	return n.kube.run("web", spec)
}

// turn waits until the controller deletes the old pod, which is when the new one is available, or when the old one is
// not ready (podsShouldBeOnNode in pkg/controller/daemon).
func (n *node) turn(old, next *pod) {
	n.t.Helper()
	n.eventually(next.name+" is available", func() bool {
		_, ready := old.ready()
		require.True(n.t, ready, "%s is not ready", old.name)
		return next.available(n.minReady())
	})
	require.Equal(n.t, "standby", n.stateOf(next), "%s serves before it was its turn", next.name)
	require.Equal(n.t, old.name, n.status().Serving().Label)
}

// stateOf is the state of a pod in the status of the service, or "" when it is not there.
func (n *node) stateOf(p *pod) string {
	for _, g := range n.status().Generations {
		if g.Label == p.name {
			return g.State
		}
	}
	return ""
}

// cleanly wants a pod that was deleted to have ended once, by itself and with 0.
func (n *node) cleanly(p *pod, took time.Duration) {
	n.t.Helper()
	require.Less(n.t, took, time.Duration(p.spec.Grace)*time.Second)
	for _, c := range p.containers {
		ends, starts, unready, illness := c.told()
		require.Equal(n.t, []int{0}, ends, "exit codes of %s", p.name)
		require.Equal(n.t, 1, starts)
		require.Empty(n.t, illness)
		require.LessOrEqual(n.t, unready, 1, "only while it ends")
	}
	n.t.Logf("%s ended %.1f s after it was told to", p.name, took.Seconds())
}

// Five updates of the DaemonSet, and nothing is lost.
func TestKubernetesDaemonSet(t *testing.T) {
	t.Parallel() // most of it is waiting
	n := newNode(t, "Kubernetes: DaemonSet, surge", "ds")
	old := n.first()

	// The kubelet's directory was root's, and the init container has given it to the server's user.
	info, err := os.Stat(filepath.Dir(n.socket))
	require.NoError(t, err)
	require.EqualValues(t, 65532, info.Sys().(*syscall.Stat_t).Uid)
	require.EqualValues(t, 0o700, info.Mode().Perm())

	run := n.load(local(n.port))
	n.answers(run, 1, 200)
	for g := uint64(2); g <= 6; g++ {
		next := n.surge(n.set.Spec.Template.Spec)
		n.turn(old, next)
		n.cleanly(old, old.delete())
		require.EqualValues(t, g, n.alone(next.name).Serving().Generation)
		n.answers(run, g, 500)
		old = next
	}
	n.noLoss(run, 5)
	n.cleanly(old, old.delete())
}

// A pod that somebody deletes: the controller makes the next one at once, before the old one has ended (what it counts
// for maxSurge are pods that are not being deleted). It comes while the old one still accepts, and is handed over to.
func TestKubernetesPodDeleted(t *testing.T) {
	t.Parallel() // most of it is waiting
	n := newNode(t, "Kubernetes: pod deleted, before the next one is there", "deleted")
	spec := n.set.Spec.Template.Spec
	patient := spec
	patient.Containers = slices.Clone(spec.Containers)
	patient.Containers[0].Args = append(slices.Clone(spec.Containers[0].Args), "--stop-delay=90s") // a busy machine is slow
	n.set.Spec.Template.Spec = patient
	old := n.first()
	run := n.load(local(n.port))
	n.answers(run, 1, 200)
	took := make(chan time.Duration, 1)
	n.kube.work.Go(func() { took <- old.delete() })
	n.waitStatus("it stops", func(st proc.Status) bool { return st.Serving().Stopping })
	next := n.surge(spec)
	n.cleanly(old, <-took)
	g := n.alone(next.name).Serving().Generation
	require.EqualValues(t, 2, g)
	n.answers(run, g, 500)
	n.noLoss(run, 1)
	next.delete()
}

// A new version that never gets ready: the update does not go on, whatever the reason, and the old pod serves as if
// nothing were. Then the update is withdrawn.
func TestKubernetesNeverReady(t *testing.T) {
	t.Parallel() // most of it is waiting
	n := newNode(t, "Kubernetes: new version never ready", "never")
	old := n.first()
	run := n.load(local(n.port))
	n.answers(run, 1, 200)
	for _, tc := range []struct {
		name   string
		spec   func(containerSpec) containerSpec
		starts int // at least, before the update is withdrawn
	}{
		{"it hangs", func(c containerSpec) containerSpec {
			c.Command, c.Args = []string{"/pause"}, nil
			c.Startup.FailureThreshold = 3 // instead of two minutes
			return c
		}, 2},
		{"it crashes", func(c containerSpec) containerSpec { c.Args = append(c.Args, "--nonsense"); return c }, 3},
	} {
		n.sub(tc.name, func() {
			o := readManifest(n.t, "daemonset.yaml", "DaemonSet") // of its own, since it is changed
			spec := o.Spec.Template.Spec
			*spec.server(n.t) = tc.spec(spec.server(n.t).with(n.t, fmt.Sprintf("--http=:%d", n.port)))
			next := n.surge(spec)
			n.eventually("it was restarted", func() bool {
				_, ready := next.ready()
				require.False(n.t, ready)
				_, starts, _, _ := next.container("server").told()
				return starts >= tc.starts
			})
			_, ready := old.ready()
			require.True(n.t, ready, "the controller would delete it")
			require.Equal(n.t, old.name, n.status().Serving().Label)
			next.delete()
		})
	}
	require.NoError(t, run.Wait(n.ctx(), run.More(500)))
	n.noLoss(run, 0)
	n.cleanly(old, old.delete())
}

// A new version that is a good standby, and dies as soon as it serves: by then the old pod was told to stop. It takes
// back; the kubelet starts the new container again; and the old pod, which has not forgotten what it was told, hands
// over to it. Connections that stay open are the old pod's all the time.
func TestKubernetesDiesInProbation(t *testing.T) {
	t.Parallel() // most of it is waiting
	n := newNode(t, "Kubernetes: new version dies in probation", "dies")
	old := n.first()
	run := n.keptLoad(local(n.port))
	n.answers(run, 1, 200)
	next := n.surge(n.set.Spec.Template.Spec)
	n.turn(old, next)
	took := make(chan time.Duration, 1)
	n.kube.work.Go(func() { took <- old.delete() })
	n.waitStatus("in probation", func(st proc.Status) bool { return st.Serving().Label == next.name })
	next.container("server").killProcess()
	// That the old one serves for a moment need not be seen: the third generation is one that it has handed over to.
	n.waitStatus("taken back, and handed over again", func(st proc.Status) bool {
		return st.Serving().Label == next.name && st.Serving().Generation == 3
	})
	n.cleanly(old, <-took)
	ends, starts, _, illness := next.container("server").told()
	require.Equal(t, []int{137}, ends)
	require.Equal(t, 2, starts)
	require.Empty(t, illness)
	g := n.alone(next.name).Serving().Generation
	require.EqualValues(t, 3, g)
	n.answers(run, g, 200)
	n.noLoss(run, 2)
	n.eventually("ready again", func() bool { _, ok := next.ready(); return ok })
	next.delete()
}

// keptLoad is load over connections that stay open only: those are not touched by a version that comes and dies.
func (n *node) keptLoad(address string) *load.Run {
	n.t.Helper()
	return n.loadOf(
		load.Stream{Kind: load.KeepAlive, Address: address, Conns: keptOpen, Rate: 500},
		load.Stream{Kind: load.GoClient, Address: address, Rate: 100},
	)
}

// The old container is killed while a new pod waits beside it: the standby serves at once, and no connection is
// refused. What the dead process had accepted is lost, as it has to be. The kubelet starts it again, as a standby.
func TestKubernetesIncumbentKilled(t *testing.T) {
	t.Parallel() // most of it is waiting
	n := newNode(t, "Kubernetes: old container killed beside a standby", "killed")
	old := n.first()
	next := n.surge(n.set.Spec.Template.Spec)
	n.waitStatus("a standby", func(st proc.Status) bool { return n.isIn(st, next, "standby") })
	run := n.newLoad(local(n.port))
	n.answers(run, 1, 200)
	old.container("server").killProcess()
	killed := time.Now()
	n.serves(next.name)
	n.answers(run, 2, 200)
	n.waitStatus("the old one is a standby", func(st proc.Status) bool { return n.isIn(st, old, "standby") })
	rep := run.Stop()
	for _, l := range rep.Losses {
		require.NotContains(t, l.Error, "refused", "%s", rep)
		require.False(t, l.Dialed.After(killed), "%s after the death: %s", l.Dialed.Sub(killed), rep)
	}
	// At most what was under way in an instant: on a machine that stood still just then, a second's requests.
	require.LessOrEqual(t, rep.Lost, uint64(newRate), "%s", rep)
	results.add(result{recipe: n.name, handovers: 1, requests: rep.Sent, lost: rep.Lost})
	require.Less(t, old.delete(), time.Duration(old.spec.Grace)*time.Second, "a standby ends by itself")
	n.alone(next.name)
	next.delete()
}

func (n *node) isIn(st proc.Status, p *pod, state string) bool {
	for _, g := range st.Generations {
		if g.Label == p.name && g.State == state {
			return true
		}
	}
	return false
}

// newRate is how many requests newLoad sends in a second.
const newRate = 200

// newLoad is load over a connection for each request.
func (n *node) newLoad(address string) *load.Run {
	n.t.Helper()
	return n.loadOf(load.Stream{Kind: load.NewConn, Address: address, Rate: newRate})
}

// After a crash of the node its directory still has the sockets of processes that are no more, if it is not on a tmpfs.
// Nobody has to clean up.
func TestKubernetesNodeCrash(t *testing.T) {
	t.Parallel() // most of it is waiting
	n := newNode(t, "Kubernetes: node crash", "crash")
	old := n.first()
	server := old.container("server")
	close(old.ending) // the node does not start it again; its controller makes another pod
	server.killProcess()
	<-server.done
	_, err := os.Lstat(n.socket)
	require.NoError(t, err, "a stale file is left")
	next := n.first()
	require.EqualValues(t, 1, n.status().Serving().Generation)
	run := n.load(local(n.port))
	n.answers(run, 1, 200)
	n.noLoss(run, 0)
	next.delete()
}

// A pod whose two containers take turns: each gets a new image in its turn, five times, and nothing is lost. At the end
// the pod is deleted, and both are told to stop at once.
func TestKubernetesPodWithHolder(t *testing.T) {
	t.Parallel() // most of it is waiting
	r := newRecipe(t, "Kubernetes: pod, image set in place", "pod")
	k := newKubelet(r)
	o := readManifest(t, "pod-with-holder.yaml", "Pod")
	for i := range o.Spec.Containers {
		c := &o.Spec.Containers[i]
		c.Args = append(c.Args, "--ready-timeout=10s") // what its end may wait for: see below
	}
	p := k.run("web", o.Spec.podSpec)
	r.socket = filepath.Join(k.dir, p.name, "run", "web", "control.sock")
	ready := func() bool { _, ok := p.ready(); return ok }
	r.eventually("both are ready", ready)
	require.Len(t, r.status().Generations, 2)
	for _, c := range p.containers {
		r.must("exec", c.running(), "/handoffctl", "status") // finds the socket by itself
	}
	run := r.load(p.address(8080))
	r.answers(run, r.status().Serving().Generation, 200)
	handovers := 0
	for i, name := range []string{"green", "blue", "green", "blue", "green"} {
		c := p.container(name)
		before := r.status().Serving()
		tag := fmt.Sprintf("%simage%d", r.prefix, i)
		r.must("tag", image, tag)
		c.setImage(tag)
		// In this order, as in README.md: until the new container is there, the status is that of the old one.
		r.eventually(name+" runs "+tag, func() bool { return c.runs(tag) })
		r.eventually(name+" is ready with "+tag, ready)
		after := r.status().Serving()
		if before.Label == name {
			handovers++
			require.NotEqual(t, name, after.Label)
		} else {
			require.Equal(t, before.Generation, after.Generation, "nobody hands over for a standby")
		}
		r.answers(run, after.Generation, 500)
	}
	require.GreaterOrEqual(t, handovers, 4)
	for _, c := range p.containers {
		ends, _, _, illness := c.told()
		require.NotContains(t, ends, 137, c.spec.Name)
		require.Empty(t, strings.Join(illness, ""), c.spec.Name)
		for _, code := range ends {
			require.Zero(t, code, "%s: %v", c.spec.Name, ends)
		}
	}
	r.noLoss(run, handovers)
	// Both are told to stop at once. If the one that serves is first, it hands over, and takes back from the other, which
	// ends in turn; then it waits for another one, for as long as one may take to be ready, and stops by itself.
	took := p.delete()
	t.Logf("the pod ended %.1f s after it was deleted", took.Seconds())
	for _, c := range p.containers {
		ends, _, _, _ := c.told()
		require.Zero(t, ends[len(ends)-1], "%s was killed, or cut something", c.spec.Name)
	}
}
