//go:build containers

package containers

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// composeCommand is the tool that runs the files of deploy/compose, and its version: COMPOSE, or what deploy.sh would take.
func composeCommand(t *testing.T) (command, version string) {
	t.Helper()
	tools := []string{"docker compose", "docker-compose"}
	if asked := os.Getenv("COMPOSE"); asked != "" {
		tools = []string{asked}
	}
	var said strings.Builder
	for _, tool := range tools {
		out, err := exec.Command("/bin/sh", "-c", tool+" version --short").Output()
		if err == nil {
			return tool, strings.TrimPrefix(strings.TrimSpace(string(out)), "v")
		}
		fmt.Fprintf(&said, "%s: %v\n", tool, err)
	}
	require.FailNow(t, "there is no compose", "%s", said.String())
	return "", ""
}

// project is a compose file of deploy/compose, copied together with deploy.sh, as somebody would who uses it.
type project struct {
	*recipe
	compose string
	file    string
	port    int
	env     []string
}

// newProject copies the files. The probation is shortened.
func newProject(t *testing.T, name, short, file string) *project {
	t.Helper()
	compose, version := composeCommand(t)
	p := &project{recipe: newRecipe(t, "compose "+version+", "+name, short), compose: compose, port: freePort(t)}
	root, err := proc.ModuleRoot(t.Context())
	require.NoError(t, err)
	dir := t.TempDir()
	for _, f := range []string{file, "deploy.sh"} {
		text, err := os.ReadFile(filepath.Join(root, "deploy", "compose", f))
		require.NoError(t, err)
		if f == file {
			require.Contains(t, string(text), "--probation, 5s")
			text = []byte(strings.ReplaceAll(string(text), "--probation, 5s", "--probation, 1s"))
		}
		require.NoError(t, os.WriteFile(filepath.Join(dir, f), text, 0o700))
	}
	p.file = filepath.Join(dir, file)
	// COMPOSE is left as it is: without it deploy.sh finds by itself what there is.
	p.env = append(os.Environ(), "COMPOSE_PROJECT_NAME="+p.prefix+"p",
		"IMAGE="+image, "HOLDER_IMAGE="+image, "PORT="+strconv.Itoa(p.port))
	return p
}

// sh runs a command in the project's directory.
func (p *project) sh(command string) proc.Result {
	p.t.Helper()
	cmd := exec.Command("/bin/sh", "-c", command)
	cmd.Dir, cmd.Env = filepath.Dir(p.file), p.env
	r, err := proc.Run(p.ctx(), cmd)
	require.NoError(p.t, err)
	return r
}

// deploy runs the documented command.
func (p *project) deploy(label string, more ...string) proc.Result {
	p.t.Helper()
	return p.sh(strings.Join(more, " ") + " LABEL=" + label + " ./deploy.sh " + filepath.Base(p.file))
}

// mustDeploy wants the deploy to end with 0.
func (p *project) mustDeploy(label string) {
	p.t.Helper()
	r := p.deploy(label)
	require.Zero(p.t, r.Code, "%s%s", r.Stdout, r.Stderr)
}

// versions are the project's containers that run a version, at most blue and green.
func (p *project) versions() (names []string) {
	p.t.Helper()
	for name := range strings.FieldsSeq(p.must("ps", "--all", "--format", "{{.Names}}")) {
		if p.made(name) && (strings.Contains(name, "blue") || strings.Contains(name, "green")) {
			names = append(names, name)
		}
	}
	return names
}

// The files and the script of deploy/compose, each with clients where it is reached.
func TestComposeOnTheHostsNetwork(t *testing.T) {
	t.Parallel() // most of it is the start of compose, and waiting
	p := newProject(t, "host network", "comph", "host.yaml")
	p.backAndForth(local(p.port))
}

// What befalls a deploy from without: deploy.sh removes no container that may serve. A command in the place of compose
// has it happen at a certain moment.
func TestComposeInTrouble(t *testing.T) {
	t.Parallel() // most of it is the start of compose, and waiting
	p := newProject(t, "deploys in trouble", "compt", "host.yaml")
	p.mustDeploy("v1")
	p.useVolume(p.prefix + "p_handoff")
	p.alone("v1")
	run := p.load(local(p.port))
	p.answers(run, 1, 200)
	deploy := func(label, when, what string) proc.Result {
		t.Helper()
		// The arguments of compose are "$*" to it, and "real" runs the compose that it stands for.
		script := fmt.Sprintf("#!/bin/sh\nreal() { %s \"$@\"; }\ncase \"$*\" in %s)\n%s\nesac\nreal \"$@\"\n", p.compose, when, what)
		file := filepath.Join(filepath.Dir(p.file), label+".sh")
		require.NoError(t, os.WriteFile(file, []byte(script), 0o700))
		return p.deploy(label, "COMPOSE="+file)
	}

	// The engine is slow, or in trouble: nobody says that it serves, but somebody does.
	r := deploy("slow", "*' exec '*", "exit 1;;")
	require.Equal(t, 4, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.Contains(t, r.Stderr, "neither blue nor green says that it serves, and handoffctl status ended with 0; nothing was changed")
	require.Len(t, p.versions(), 1)

	// Another deploy begins while one is under way.
	r = deploy("v2", "*' ctl handover'*", "LABEL=second ./deploy.sh host.yaml 9<&-; echo second: $? >&2;;")
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.Contains(t, r.Stderr, "another deploy of host.yaml is under way")
	require.Contains(t, r.Stderr, "second: 1\n")
	p.alone("v2")

	// Compose fails when the handover is done.
	r = deploy("v3", "*' ctl handover'*", "real \"$@\"; exit 1;;")
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	g := p.alone("v3").Serving().Generation
	p.answers(run, g, 200)
	p.noLoss(run, 2)

	// The old one dies just before the handover, and the engine starts it again, as a standby of the next one, which
	// would hand over to it.
	old := p.versions()
	require.Len(t, old, 1)
	state, ok := (&container{p.recipe, old[0]}).state()
	require.True(t, ok)
	r = deploy("v4", "*' ctl wait '*", fmt.Sprintf(
		"real \"$@\" && kill -KILL %d && real run --rm -T ctl wait --for=standby; exit;;", state.Pid))
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	p.alone("v4")
	require.Len(t, p.versions(), 1)
	require.NotEqual(t, old, p.versions())
}

// Docker has two ways to a published port: from the host itself by way of a process, docker-proxy, and for all others by a
// rule of the packet filter, which also is met by way of the bridge's address.
//
// It is not parallel to TestSwarm: when an engine leaves its swarm, it cuts off the networks that docker-compose 1.29 has
// made (they are "attachable").
func TestComposeWithHolder(t *testing.T) {
	p := newProject(t, "a holder's published port", "compn", "holder.yaml")
	gateway := p.must("network", "inspect", "--format", "{{(index .IPAM.Config 0).Gateway}}", "bridge")
	p.backAndForth(local(p.port), net.JoinHostPort(gateway, strconv.Itoa(p.port)))
}

// backAndForth deploys five times under load, and then versions that fail.
func (p *project) backAndForth(addresses ...string) {
	t := p.t
	t.Helper()
	p.mustDeploy("v1")
	p.useVolume(p.prefix + "p_handoff")
	p.alone("v1")
	run := p.load(addresses...)
	p.answers(run, 1, 200)
	was := p.versions()
	require.Len(t, was, 1)
	const rounds = 5
	for n := 2; n <= rounds+1; n++ {
		label := fmt.Sprintf("v%d", n)
		p.mustDeploy(label)
		st := p.alone(label)
		p.answers(run, st.Serving().Generation, 200)
		now := p.versions()
		require.Len(t, now, 1, "the old container is removed")
		require.NotEqual(t, was, now, "blue and green take turns")
		was = now
	}

	good := p.status().Serving().Generation

	// "up" by habit, with whatever LABEL is there: it would restart who serves, if it meant blue and green. It ends with 0
	// or 1, as compose is made.
	r := p.sh("LABEL=up " + p.compose + " --file " + filepath.Base(p.file) + " up --detach --remove-orphans")
	require.Contains(t, []int{0, 1}, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.Equal(t, was, p.versions())
	require.Equal(t, good, p.alone(fmt.Sprintf("v%d", rounds+1)).Serving().Generation)

	// Versions that do not start, or die when they are to serve: they are removed, and nobody notices.
	for _, bad := range []struct{ name, image, timeout, want string }{
		{"does not start", p.brokenImage(), "3s", "did not become ready; "},
		{"dies when it is to serve", p.crashImage(), "60s", "did not take over; "},
	} {
		p.sub(bad.name, func() {
			r := p.deploy("bad", "TIMEOUT="+bad.timeout+" IMAGE="+bad.image)
			require.Equal(p.t, 1, r.Code, "%s%s", r.Stdout, r.Stderr)
			require.Contains(p.t, r.Stderr, bad.want)
			require.Equal(p.t, was, p.versions())
			require.Equal(p.t, good, p.status().Serving().Generation)
			p.answers(run, good, run.Counts().Generations[good]+50)
		})
	}
	p.noLoss(run, rounds)
}
