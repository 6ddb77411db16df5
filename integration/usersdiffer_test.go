package integration

import (
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"os"
	"os/exec"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// inNamespace is a program in a user namespace and a pid namespace of its own, as in a
// container: what is user 65532 there is another user of the machine in each.
func inNamespace(n int, path string, args ...string) *exec.Cmd {
	ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: n * 100_000, Size: 65_536}}
	cmd := exec.Command(path, args...)
	cmd.Dir = "/"
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID,
		UidMappings: ids, GidMappings: ids, GidMappingsEnableSetgroups: true,
		Credential: &syscall.Credential{Uid: 65532, Gid: 65532},
	}
	return cmd
}

// Two versions in two containers with user namespaces of their own: with one key the
// next one takes over, and a client notices nothing; without, it is told why not.
func TestRootUsersThatDiffer(t *testing.T) {
	needRoot(t)
	s := newService(t)
	require.NoError(t, os.Chmod(s.dir, 0o777|os.ModeSticky))
	key, other := s.path("key"), s.path("other")
	require.NoError(t, os.WriteFile(key, []byte("a secret of 16 bytes, and more\n"), 0o644))
	require.NoError(t, os.WriteFile(other, []byte("another secret of 16 bytes, and more\n"), 0o644))
	ln, err := net.Listen("tcp", "127.0.0.2:0") // an address that both can be told, and that no other test takes meanwhile
	require.NoError(t, err)
	addr := ln.Addr().String()
	require.NoError(t, ln.Close())
	run := func(n int, path string, args ...string) proc.Result {
		t.Helper()
		r, err := proc.Run(s.ctx(), inNamespace(n, path, append([]string{"--socket", s.socket}, args...)...))
		require.NoError(t, err)
		return r
	}
	start := func(n int, label string) *exec.Cmd {
		t.Helper()
		cmd := inNamespace(n, s.binary, s.args(label, "--http", addr, "--shared-key", key)...)
		log, err := os.Create(s.newLog(label))
		require.NoError(t, err)
		defer log.Close()
		cmd.Stdout, cmd.Stderr = log, log
		require.NoError(t, cmd.Start())
		t.Cleanup(func() { _ = cmd.Process.Kill(); _ = cmd.Wait() })
		return cmd
	}

	one := start(1, "one")
	status := func(n int, words ...string) {
		t.Helper()
		r := run(n, programs.Handoffctl, append([]string{"--shared-key", key}, words...)...)
		require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	}
	status(1, "wait", "--for=serving", "--timeout", "10s")
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	get := func() (label string, reused bool) {
		t.Helper()
		trace := &httptrace.ClientTrace{GotConn: func(i httptrace.GotConnInfo) { reused = i.Reused }}
		r, err := http.NewRequestWithContext(httptrace.WithClientTrace(s.ctx(), trace), http.MethodGet, "http://"+addr+"/whoami", nil)
		require.NoError(t, err)
		resp, err := client.Do(r)
		require.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(b), reused
	}
	label, _ := get()
	require.Contains(t, label, `"one"`)

	// Who has no key, or another, or asks from the machine.
	for _, tt := range []struct {
		name, flag, value, text string
	}{
		{"no key", "--log-level", "warn", "shared key"},
		{"another key", "--shared-key", other, "the shared keys differ"},
	} {
		r := run(2, s.binary, "--http", addr, tt.flag, tt.value)
		require.Equal(t, 1, r.Code, "%s: %s%s", tt.name, r.Stdout, r.Stderr)
		require.Contains(t, r.Stdout+r.Stderr, tt.text, tt.name)
	}
	r := run(2, programs.Handoffctl, "status")
	require.Equal(t, 5, r.Code, "%s", r.Stderr)
	require.Contains(t, r.Stderr, "give both sides the same shared key")
	require.Equal(t, 5, s.ctl("status").Code, "the machine's root is as strange")
	require.Contains(t, s.must("--shared-key", key, "status").Stdout, "serving")

	two := start(2, "two")
	require.NoError(t, one.Wait(), "it hands over, and ends with code 0")
	label, reused := get()
	require.Contains(t, label, `"two"`)
	require.True(t, reused, "the same connection")
	status(1, "status")
	status(2, "status")
	status(2, "stop", "--timeout", "10s")
	require.NoError(t, two.Wait())

	// In this directory only the first one's user may remove what it has bound.
	require.FileExists(t, s.socket)
	r = run(2, s.binary, "--http", addr, "--shared-key", key)
	require.Equal(t, 1, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.Contains(t, r.Stdout+r.Stderr, "remove it as that user, or as root")
	again := start(1, "again")
	status(1, "wait", "--for=serving", "--timeout", "10s")
	status(1, "stop", "--timeout", "10s")
	require.NoError(t, again.Wait())
	require.NoFileExists(t, s.socket)
}
