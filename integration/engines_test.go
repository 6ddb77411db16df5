package integration

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v4"

	"github.com/fdhandoff/handoff/integration/proc"
)

// fleet is a few hosts, all of them on this machine.
type fleet struct {
	*service // for all that they have in common; its directory has bin, which comes first in the PATH
	hosts    []*service
}

func newFleet(t *testing.T, hosts int) *fleet {
	t.Helper()
	f := &fleet{service: newService(t)}
	require.NoError(t, os.Mkdir(f.path("bin"), 0o700))
	// Whether somebody serves is what the recipes' check comes to; curl need not be there.
	f.tool("curl", "exec handoffctl check --state serving")
	for i := range hosts {
		dir := f.path(fmt.Sprintf("host%d", i))
		require.NoError(t, os.Mkdir(dir, 0o700))
		f.hosts = append(f.hosts, &service{t: t, dir: dir, socket: filepath.Join(dir, "ctl")})
	}
	return f
}

// tool makes a program that recipes find before any other of that name.
func (f *fleet) tool(name, body string) {
	f.t.Helper()
	text := "#!/bin/sh\n" + body + "\n"
	require.NoError(f.t, os.WriteFile(f.path("bin/"+name), []byte(text), 0o700))
}

// pathsOf are the paths and the address in the recipes, and what they are on one of the hosts.
func (f *fleet) pathsOf(s *service) [][2]string {
	return [][2]string{
		{"/run/web/control.sock", s.socket},
		{"/var/log/web.log", s.path("web.log")},
		{"/opt/web/", s.path("opt") + "/"},
		{"127.0.0.1:8080", web},
	}
}

// localised is a recipe's text with the paths of one host in it.
func (f *fleet) localised(text string, s *service) string {
	f.t.Helper()
	for _, r := range f.pathsOf(s) {
		require.Contains(f.t, text, r[0])
		text = strings.ReplaceAll(text, r[0], r[1])
	}
	return text
}

// sedOf is the same for sed, quoted for a shell.
func sedOf(paths [][2]string) string {
	var all []string
	for _, r := range paths {
		all = append(all, fmt.Sprintf("-e 's#%s#%s#g'", r[0], r[1]))
	}
	return strings.Join(all, " ")
}

// install puts versions where the recipes look for them.
func (f *fleet) install(s *service, versions ...string) {
	f.t.Helper()
	for _, v := range versions {
		dir := s.path("opt/" + v)
		require.NoError(f.t, os.MkdirAll(dir, 0o700))
		require.NoError(f.t, os.Symlink(programs.Server, filepath.Join(dir, "server")))
	}
}

// recipe runs a recipe's command. The versions have a short probation, which is enough for their check.
func (f *fleet) recipe(env []string, command ...string) proc.Result {
	f.t.Helper()
	f.t.Cleanup(f.endStrays)
	cmd := exec.Command("env", command...)
	cmd.Dir = f.dir
	cmd.Env = append(os.Environ(), "HANDOFF_PROBATION=2s",
		"PATH="+f.path("bin")+":"+filepath.Dir(programs.Server)+":"+os.Getenv("PATH"))
	cmd.Env = append(cmd.Env, env...)
	r, err := proc.Run(f.ctx(), cmd)
	require.NoError(f.t, err)
	return r
}

// serves waits until one generation of that label is all that a host has.
func (f *fleet) serves(host *service, label string, generation uint64) {
	f.t.Helper()
	st := host.alone(generation)
	require.Equal(f.t, label, st.Serving().Label)
	if pid := st.Serving().PID; f.adopted[pid] == nil {
		f.adopt(pid)
	}
}

// deploy/ssh/deploy.sh, with an ssh that goes nowhere: what it would run on the hosts is run here.
func TestDeployBySSH(t *testing.T) {
	root, err := proc.ModuleRoot(t.Context())
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "deploy/ssh/deploy.sh"))
	require.NoError(t, err)

	f := newFleet(t, 2)
	// The remote side of ssh joins its arguments and gives them to the user's shell. Each host has paths of its own here.
	var scripts []string
	for i, h := range f.hosts {
		f.install(h, "v1", "v2", "bad")
		require.NoError(t, os.Remove(h.path("opt/bad/server"))) // it was not brought there
		scripts = append(scripts, fmt.Sprintf("host%d) sed %s ;;", i, sedOf(f.pathsOf(h))))
	}
	f.tool("ssh", `host=$1; shift
case $host in
`+strings.Join(scripts, "\n")+`
esac >"$0.$host"
[ -s "$0.$host" ] || exit 255
exec sh -c "$*" <"$0.$host"`)
	script := f.path("deploy.sh")
	require.NoError(t, os.WriteFile(script, text, 0o700))
	deploy := func(id, version string, hosts ...string) proc.Result {
		t.Helper()
		var env []string
		if id != "" {
			env = append(env, "DEPLOY_ID="+id)
		}
		return f.recipe(env, append([]string{script, version}, hosts...)...)
	}
	serves := func(version string, generation uint64) {
		t.Helper()
		for _, h := range f.hosts {
			f.serves(h, version, generation)
		}
	}

	r := deploy("", "v1", "host0", "host1")
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.Regexp(t, `^deploy v1-\d{8}T\d{6}Z\nhost0\n`, r.Stdout)
	serves("v1", 1)
	r = deploy("42", "v2", "host0", "host1")
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	serves("v2", 2)
	r = deploy("42", "v2", "host0", "host1")
	require.Zero(t, r.Code, "the same deploy again: %s%s", r.Stdout, r.Stderr)
	serves("v2", 2)

	r = deploy("", "bad", "host0", "host1")
	require.Equal(t, 127, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.NotContains(t, r.Stdout, "host1", "none after the first that fails")
	r = deploy("", "v1", "nosuchhost", "host1")
	require.Equal(t, 255, r.Code)
	require.NotContains(t, r.Stdout, "host1")
	serves("v2", 2)
	r = deploy("", "v1", "host0", "host1")
	require.Zero(t, r.Code, "back: %s%s", r.Stdout, r.Stderr)
	serves("v1", 3)
	require.Equal(t, 2, deploy("", "").Code, "usage")
}

// task is a task of the playbook, as far as it runs something.
type task struct {
	Command struct {
		Argv []string `yaml:"argv"`
	} `yaml:"ansible.builtin.command"`
	Environment map[string]string `yaml:"environment"`
	Register    string            `yaml:"register"`
	Changed     string            `yaml:"changed_when"`
	Failed      string            `yaml:"failed_when"`
}

// deploy/ansible/deploy.yaml: its command, with the variables filled in as Ansible does, and the two conditions.
// Ansible itself is not needed for it.
func TestDeployByAnsible(t *testing.T) {
	root, err := proc.ModuleRoot(t.Context())
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, "deploy/ansible/deploy.yaml"))
	require.NoError(t, err)
	f := newFleet(t, 1)
	s := f.hosts[0]
	f.install(s, "v1", "v2")
	var plays []struct {
		Serial int               `yaml:"serial"`
		Most   int               `yaml:"max_fail_percentage"`
		Vars   map[string]string `yaml:"vars"`
		Tasks  []task            `yaml:"tasks"`
	}
	require.NoError(t, yaml.Unmarshal([]byte(f.localised(string(text), s)), &plays))
	require.Len(t, plays, 1)
	play := plays[0]
	require.Equal(t, 1, play.Serial)
	require.Zero(t, play.Most)
	upgrade := play.Tasks[0]
	require.NotEmpty(t, upgrade.Command.Argv)
	require.Equal(t, "(upgrade.stdout | default('{}', true) | from_json).changed | default(false)", upgrade.Changed)
	require.Equal(t, "upgrade.rc not in [0, 6]", upgrade.Failed)

	deploy := func(version, id string) (code int, changed bool) {
		t.Helper()
		fill := strings.NewReplacer("{{ program }}", play.Vars["program"])
		filled := strings.NewReplacer("{{ version }}", version, "{{ deploy_id }}", id)
		var argv []string
		for _, a := range upgrade.Command.Argv {
			argv = append(argv, filled.Replace(fill.Replace(a)))
		}
		require.NotContains(t, strings.Join(argv, " "), "{{")
		var env []string
		for k, v := range upgrade.Environment {
			env = append(env, k+"="+v)
		}
		r := f.recipe(env, argv...)
		if r.Stdout == "" {
			return r.Code, false
		}
		var said struct{ Changed bool }
		require.NoError(t, json.Unmarshal([]byte(r.Stdout), &said), "%s", r.Stdout)
		return r.Code, said.Changed
	}
	want := func(version, id string, code int, changed bool, label string, generation uint64) {
		t.Helper()
		c, ch := deploy(version, id)
		require.Equal(t, code, c)
		require.Equal(t, changed, ch, "changed")
		f.serves(s, label, generation)
	}
	want("v1", "41", 0, true, "v1", 1)
	want("v2", "42", 0, true, "v2", 2)
	want("v2", "42", 0, false, "v2", 2)
	want("none", "43", 127, false, "v2", 2)
	want("v1", "44", 0, true, "v1", 3)
}
