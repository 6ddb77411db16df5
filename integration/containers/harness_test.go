//go:build containers

package containers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// patience bounds every wait. A test that passes needs a small part of it.
const patience = 3 * time.Minute

func TestMain(m *testing.M) { os.Exit(runAll(m)) }

// runAll removes what is left before and after, and prints the table.
func runAll(m *testing.M) int {
	ctx := context.Background()
	if err := checkEngine(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "containers:", err)
		return 1
	}
	if err := errors.Join(removeRunc(ctx, isLeft), removeAll(ctx, docker, isLeft), removeAll(ctx, podman, isLeft)); err != nil {
		fmt.Fprintln(os.Stderr, "containers:", err)
		return 1
	}
	code := m.Run()
	ours := func(name string) bool { return strings.HasPrefix(name, runID) }
	if err := errors.Join(removeAll(ctx, docker, ours), removeAll(ctx, podman, ours)); err != nil {
		fmt.Fprintln(os.Stderr, "containers:", err)
		code = 1
	}
	fmt.Print(results.table())
	return code
}

// checkEngine says what is missing. Nothing here is skipped: whoever asks for these tests has the tag.
func checkEngine(ctx context.Context) error {
	if image == "" {
		return fmt.Errorf("HANDOFF_IMAGE names no image (run make test-containers)")
	}
	if os.Getuid() != 0 {
		return fmt.Errorf("these tests need root")
	}
	r, err := docker(ctx, "image", "inspect", "--format", "{{.Id}}", image)
	if err != nil {
		return err
	}
	if r.Code != 0 {
		return fmt.Errorf("docker has no image %s (run make image): %s", image, r.Stderr)
	}
	return checkPodman()
}

// recipe is one way to run containers that hand over to each other, under load, and a line of the table. What it makes
// at the engine has names that begin with prefix, and is removed at the end of the test.
type recipe struct {
	t      *testing.T
	name   string // in the table
	prefix string
	tool   tool   // the engine's
	image  string // as the engine calls it
	socket string // the control socket as the host sees it, in the volume that newVolume made
}

// newRecipe begins a recipe. Short is a word for the names at the engine.
func newRecipe(t *testing.T, name, short string) *recipe {
	t.Helper()
	r := &recipe{t: t, name: name, prefix: runID + short + "-", tool: docker, image: image}
	t.Cleanup(func() {
		// The test's own context has ended.
		ctx, cancel := context.WithTimeout(context.Background(), patience)
		defer cancel()
		if t.Failed() {
			showLogs(ctx, t, r.tool, r.made)
		}
		if err := removeAll(ctx, r.tool, r.made); err != nil {
			t.Error(err)
		}
	})
	return r
}

// made says whether a name at the engine is the recipe's.
func (r *recipe) made(name string) bool { return strings.HasPrefix(name, r.prefix) }

// sub runs a part of the test under a name of its own; what it starts lives as long as the recipe.
func (r *recipe) sub(name string, f func()) {
	whole := r.t
	whole.Run(name, func(t *testing.T) {
		r.t = t
		defer func() { r.t = whole }()
		f()
	})
}

// ctx is bounded by patience and by the test.
func (r *recipe) ctx() context.Context {
	ctx, cancel := context.WithTimeout(r.t.Context(), patience)
	r.t.Cleanup(cancel)
	return ctx
}

// newVolume makes the volume of the control socket, and returns its name.
func (r *recipe) newVolume() string {
	r.t.Helper()
	return r.useVolume(r.must("volume", "create", r.prefix+"run"))
}

// useVolume is newVolume for one that somebody else has made: from now on its control socket is the recipe's.
func (r *recipe) useVolume(name string) string {
	r.t.Helper()
	r.socket = r.must("volume", "inspect", "--format", "{{.Mountpoint}}", name) + "/control.sock"
	return name
}

// hardened are the options that every recipe has: they take away what the programs do not need.
func hardened(more ...string) []string {
	return append([]string{"--read-only", "--cap-drop", "ALL", "--security-opt", "no-new-privileges"}, more...)
}

// waitStatus waits until the control socket tells of a status for which match holds. It asks from the host, as root,
// where every change of the status is waited for. Process numbers in it are those of the containers: 1.
func (r *recipe) waitStatus(what string, match func(proc.Status) bool) proc.Status {
	r.t.Helper()
	st, err := proc.WaitStatus(r.ctx(), r.socket, match)
	require.NoError(r.t, err, what)
	return st
}

// status is the status now.
func (r *recipe) status() proc.Status {
	r.t.Helper()
	return r.waitStatus("status", func(proc.Status) bool { return true })
}

// serves waits until a generation with that label serves.
func (r *recipe) serves(label string) proc.Status {
	r.t.Helper()
	return r.waitStatus(label+" serves", func(st proc.Status) bool { return st.Serving().Label == label })
}

// alone waits until a generation with that label serves and no other process of the chain is left.
func (r *recipe) alone(label string) proc.Status {
	r.t.Helper()
	return r.waitStatus(label+" is alone", func(st proc.Status) bool {
		return len(st.Generations) == 1 && st.Serving().Label == label
	})
}

// given are the ports that freePort has given: the kernel may choose one again before its container listens.
var given sync.Map

// freePort is a port that nobody listens at, by the kernel's choice, and no other test was given.
func freePort(t *testing.T) int {
	t.Helper()
	for {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		port := ln.Addr().(*net.TCPAddr).Port
		ln.Close()
		if _, known := given.LoadOrStore(port, true); !known {
			return port
		}
	}
}

// local is the address at which the load reaches a port of the host.
func local(port int) string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(port)) }

// keptOpen is the number of connections that stay open under the usual load.
const keptOpen = 20

// load puts the usual load on the addresses, between which it is divided: POSTs that nobody repeats, over connections
// that stay open and over new ones. It ends with the test at the latest.
func (r *recipe) load(addresses ...string) *load.Run {
	r.t.Helper()
	var streams []load.Stream
	part := len(addresses)
	for _, a := range addresses {
		streams = append(streams,
			load.Stream{Kind: load.KeepAlive, Address: a, Conns: keptOpen / part, Rate: 500 / float64(part)},
			load.Stream{Kind: load.GoClient, Address: a, Rate: 100 / float64(part)},
			load.Stream{Kind: load.NewConn, Address: a, Rate: 50 / float64(part)},
		)
	}
	return r.loadOf(streams...)
}

// loadOf puts load of another kind. It ends with the test at the latest.
func (r *recipe) loadOf(streams ...load.Stream) *load.Run {
	r.t.Helper()
	// A machine that is busy with other things answers late, and that is no loss; what a handover loses is reset, refused
	// or never answered.
	run, err := load.Start(r.t.Context(), load.Config{Streams: streams, Timeout: time.Minute, Max: 15 * time.Minute})
	require.NoError(r.t, err)
	r.t.Cleanup(func() { run.Stop() })
	return run
}

// answers waits until a generation has answered n requests of the run, over connections of every kind.
func (r *recipe) answers(run *load.Run, generation, n uint64) {
	r.t.Helper()
	if err := run.Wait(r.ctx(), load.Answers(generation, n)); err != nil {
		require.NoError(r.t, err, "generation %d answers: %s", generation, run.Report())
	}
}

// noLoss ends the run, wants every request answered and no connection broken, and writes the recipe's line.
func (r *recipe) noLoss(run *load.Run, handovers int) load.Report {
	r.t.Helper()
	rep := run.Stop()
	results.add(result{recipe: r.name, handovers: handovers, requests: rep.Sent, lost: rep.Lost}) // also what fails
	require.Zero(r.t, rep.Lost, "%s", rep)
	require.Zero(r.t, rep.Broken, "%s", rep)
	require.EqualValues(r.t, keptOpen, rep.ByKind[load.KeepAlive].Dials, "connections that stay open are dialled once: %s", rep)
	return rep
}

// mustLose ends the run of a negative control, which has to lose something: else nothing that the others say counts.
func (r *recipe) mustLose(run *load.Run, restarts int) {
	r.t.Helper()
	rep := run.Stop()
	require.NotZero(r.t, rep.Lost+rep.Broken, "the load does not see a restart: %s", rep)
	require.NotZero(r.t, rep.Lost, "%s", rep)
	results.add(result{recipe: r.name, handovers: restarts, requests: rep.Sent, lost: rep.Lost, control: true})
}

// result is a line of the table.
type result struct {
	recipe         string
	handovers      int
	requests, lost uint64
	control        bool // the usual way: what it hands over are restarts, and it must lose something
}

// resultList is what the recipes have reported so far.
type resultList struct {
	mu  sync.Mutex
	all []result
}

var results resultList

func (l *resultList) add(r result) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.all = append(l.all, r)
}

func (l *resultList) table() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var b strings.Builder
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "recipe\thandovers\trequests\tlost")
	for _, r := range l.all {
		handovers := strconv.Itoa(r.handovers)
		if r.control {
			handovers += " restarts"
		}
		fmt.Fprintf(w, "%s\t%s\t%d\t%d\n", r.recipe, handovers, r.requests, r.lost)
	}
	w.Flush() // into memory: it cannot fail
	return b.String()
}
