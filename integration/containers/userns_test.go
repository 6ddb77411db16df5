//go:build containers

package containers

import (
	"context"
	"crypto/rand"
	"encoding/hex"
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

// runcState is where runc keeps what it knows of the containers of these tests, and of no others.
const runcState = "/run/handoff-test-runc"

// firstID is the host's number of user 0 in runc's containers.
const firstID = 200000

func runc(args ...string) *exec.Cmd {
	return exec.Command("runc", append([]string{"--root", runcState}, args...)...)
}

// removeRunc ends the containers of runc whose name is meant.
func removeRunc(ctx context.Context, meant func(name string) bool) error {
	entries, err := os.ReadDir(runcState)
	if err != nil && !os.IsNotExist(err) {
		return err
	}
	for _, e := range entries {
		if !meant(e.Name()) {
			continue
		}
		r, err := proc.Run(ctx, runc("delete", "--force", e.Name()))
		if err != nil {
			return err
		}
		if r.Code != 0 {
			return fmt.Errorf("runc delete %s: %s", e.Name(), r.Stderr)
		}
	}
	return nil
}

// runMapped starts a container of the image in a user namespace of its own, on the host's network, with the directory of
// the control socket and more files mounted from the host. Docker has one user namespace for all of its containers; this
// is runc, which Docker runs containers by.
func (r *recipe) runMapped(name string, files map[string]string, args ...string) *proc.Process {
	r.t.Helper()
	bundle := r.t.TempDir()
	require.NoError(r.t, os.Chmod(filepath.Dir(bundle), 0o711)) // for the other root
	rootfs := filepath.Join(bundle, "rootfs")
	require.NoError(r.t, os.Mkdir(rootfs, 0o755))
	made := r.must("create", "--name", r.prefix+name+"-rootfs", image)
	out, err := exec.Command("/bin/sh", "-c", fmt.Sprintf(
		"docker export %s | tar --extract --directory %s && chown -R %d:%d %s", made, rootfs, firstID, firstID, rootfs)).CombinedOutput()
	require.NoError(r.t, err, "%s", out)

	type object = map[string]any
	mounts := []object{
		{"destination": "/proc", "type": "proc", "source": "proc"},
		{"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": []string{"nosuid", "mode=755"}},
		{"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": []string{"nosuid", "nodev", "noexec", "mode=1777"}},
		{"destination": "/run/handoff", "type": "bind", "source": filepath.Dir(r.socket), "options": []string{"bind"}},
	}
	for inside, outside := range files {
		require.NoError(r.t, os.WriteFile(filepath.Join(rootfs, inside), nil, 0o600)) // to mount on
		mounts = append(mounts, object{"destination": inside, "type": "bind", "source": outside, "options": []string{"bind", "ro"}})
	}
	ids := []object{{"containerID": 0, "hostID": firstID, "size": 65536}}
	config, err := json.Marshal(object{
		"ociVersion": "1.0.2",
		"root":       object{"path": "rootfs", "readonly": true},
		"process": object{
			"user": object{"uid": 65532, "gid": 65532}, "cwd": "/", "noNewPrivileges": true,
			"args": append([]string{"/server"}, args...),
			"env":  []string{"HANDOFF_SOCKET=/run/handoff/control.sock", "HANDOFF_SELF_SOCKET=/dev/shm/handoff.sock"},
		},
		"mounts": mounts,
		"linux": object{
			"uidMappings": ids, "gidMappings": ids,
			"namespaces": []object{{"type": "user"}, {"type": "pid"}, {"type": "mount"}, {"type": "ipc"}},
		},
	})
	require.NoError(r.t, err)
	require.NoError(r.t, os.WriteFile(filepath.Join(bundle, "config.json"), config, 0o600))
	cmd := runc("run", "--bundle", bundle, r.prefix+name)
	p, err := proc.Start(proc.Spec{Name: name, Path: cmd.Path, Args: cmd.Args[1:], Log: filepath.Join(bundle, "log")})
	require.NoError(r.t, err)
	r.t.Cleanup(func() {
		if r.t.Failed() {
			for _, line := range p.Lines() {
				r.t.Logf("%s: %s", name, line.Text)
			}
		}
		if err := removeRunc(context.Background(), r.made); err != nil {
			r.t.Error(err)
		}
		p.End()
	})
	return p
}

// Where user namespaces differ, nobody can tell by numbers who the other is.
func TestUserNamespaces(t *testing.T) {
	t.Run("without a key", func(t *testing.T) {
		r := newRecipe(t, "refused: two user namespaces", "users")
		volume, address := r.newVolume(), local(freePort(t))
		r.run("v1", hardened("--network", "host", "--volume", volume+":/run/handoff"), "--http", address, "--label", "v1")
		r.alone("v1")
		run := r.load(address)
		r.answers(run, 1, 100)
		next := r.runMapped("v2", nil, "--http", address, "--label", "v2")
		code, err := next.Wait(r.ctx())
		require.NoError(t, err)
		require.Equal(t, 1, code)
		_, err = next.WaitLog(r.ctx(), func(l proc.Line) bool {
			return strings.Contains(l.Text, "level=ERROR") && strings.Contains(l.Text, "same shared key")
		})
		require.NoError(t, err)
		require.EqualValues(t, 1, r.alone("v1").Serving().Generation)
		r.answers(run, 1, run.Counts().Generations[1]+100)
		r.noLoss(run, 0)
	})

	// There and back again.
	t.Run("with a key", func(t *testing.T) {
		r := newRecipe(t, "two user namespaces, --shared-key", "key")
		volume, address := r.newVolume(), local(freePort(t))
		// Each of them has to reach the socket, and none may replace that of the other. Without nocopy the volume
		// would become the image's user's when it is mounted.
		require.NoError(t, os.Chmod(filepath.Dir(r.socket), 0o777|os.ModeSticky))
		secret := make([]byte, 32)
		rand.Read(secret)
		key := filepath.Join(t.TempDir(), "key")
		require.NoError(t, os.WriteFile(key, []byte(hex.EncodeToString(secret)+"\n"), 0o444))
		docker := func(label string) *container {
			return r.run(label, hardened("--network", "host", "--volume", volume+":/run/handoff:nocopy", "--volume", key+":/key:ro"),
				"--http", address, "--label", label, "--probation", "1s", "--shared-key", "/key")
		}
		old := docker("v1")
		old.healthy()
		run := r.load(address)
		r.answers(run, 1, 200)
		mapped := r.runMapped("v2", map[string]string{"/key": key},
			"--http", address, "--label", "v2", "--probation", "1s", "--shared-key", "/key")
		old.exits(0)
		r.answers(run, 2, 200)
		back := docker("v3")
		code, err := mapped.Wait(r.ctx())
		require.NoError(t, err)
		require.Zero(t, code)
		r.answers(run, 3, 200)
		res := back.ctl("--shared-key", "/key", "status")
		require.Zero(t, res.Code, "%s%s", res.Stdout, res.Stderr)
		require.Contains(t, res.Stdout, "last handoff: 2 to 3 released")
		r.noLoss(run, 2)
	})
}
