package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
)

func TestOptions(t *testing.T) {
	args := strings.Fields("--http :8080 --http web=127.0.0.1:0 --http unix:/run/a=b --http api=unix:/run/api --http [::1]:80 " +
		"--label v1 --takeover standby --ready-timeout 1s --probation 0s --drain-timeout 2m --log-format json")
	o, err := loadOptions(args, []string{"HANDOFF_SOCKET=/run/env"})
	require.NoError(t, err)
	require.Equal(t, handoff.Config{
		Socket: "/run/env", Label: "v1", Takeover: handoff.Standby,
		ReadyTimeout: time.Second, Probation: -1, DrainTimeout: 2 * time.Minute,
		StepTimeout: 5 * time.Second, Heartbeat: time.Second,
	}, o.config)
	require.Equal(t, []handoff.Socket{
		{Name: ":8080", Network: "tcp", Address: ":8080"},
		{Name: "web", Network: "tcp", Address: "127.0.0.1:0"},
		{Name: "unix:/run/a=b", Network: "unix", Address: "/run/a=b"},
		{Name: "api", Network: "unix", Address: "/run/api"},
		{Name: "[::1]:80", Network: "tcp", Address: "[::1]:80"},
	}, o.http)
	require.True(t, o.jsonLog)
}

// TestMoveIdle: on unless it is said otherwise, and --check-config shows which.
func TestMoveIdle(t *testing.T) {
	for _, tc := range []struct {
		name, args string
		environ    []string
		want       handoff.MoveIdle
		shown      string
	}{
		{name: "default", want: handoff.MoveIdleOn, shown: "move-idle: true # default\n"},
		{name: "flag", args: "--move-idle=false", want: handoff.MoveIdleOff, shown: "move-idle: false # --move-idle\n"},
		{name: "variable", environ: []string{"HANDOFF_MOVE_IDLE=false"}, want: handoff.MoveIdleOff, shown: "move-idle: false # HANDOFF_MOVE_IDLE\n"},
		{name: "flag over variable", args: "--move-idle", environ: []string{"HANDOFF_MOVE_IDLE=false"}, want: handoff.MoveIdleOn, shown: "move-idle: true # --move-idle\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, err := loadOptions(strings.Fields("--socket s --http :0 "+tc.args), tc.environ)
			require.NoError(t, err)
			require.Equal(t, tc.want, o.config.MoveIdle)
			var out bytes.Buffer
			require.NoError(t, o.schema.print(&out))
			require.Contains(t, out.String(), tc.shown)
		})
	}
}

// TestSharedKey: the key is the file's, and a file that everybody may read is told of.
func TestSharedKey(t *testing.T) {
	path := filepath.Join(t.TempDir(), "key")
	require.NoError(t, os.WriteFile(path, []byte("0123456789abcdef\n"), 0o600))
	args := strings.Fields("--socket s --http :0 --shared-key " + path)
	for mode, open := range map[os.FileMode]bool{0o600: false, 0o440: false, 0o444: true} {
		require.NoError(t, os.Chmod(path, mode))
		o, err := loadOptions(args, nil)
		require.NoError(t, err)
		require.Equal(t, "0123456789abcdef", string(o.config.Key))
		require.Equal(t, open, o.openKey, "%04o", mode)
	}
	o, err := loadOptions(args[:4], []string{"HANDOFF_SHARED_KEY=" + path})
	require.NoError(t, err)
	require.Equal(t, "0123456789abcdef", string(o.config.Key))
	require.NoError(t, os.Chmod(path, 0o600))
	require.NoError(t, os.WriteFile(path, []byte("too short\n"), 0o600))
	_, err = loadOptions(args, nil)
	require.ErrorContains(t, err, "--shared-key: "+path+": a shared key has 16 to 4096 bytes, not 9")

	// The log has it before anything else can go wrong.
	require.NoError(t, os.WriteFile(path, []byte("0123456789abcdef"), 0o600))
	require.NoError(t, os.Chmod(path, 0o444))
	var out, errs bytes.Buffer
	require.Equal(t, exitFailed, run(strings.Fields("--socket /dev/null --http 127.0.0.1:0 --shared-key "+path), &out, &errs))
	require.Contains(t, errs.String(), "everybody may read the file of the shared key")
}

// TestZeroDurations: 0 is what it says, where the library's zero value is a default.
func TestZeroDurations(t *testing.T) {
	o, err := loadOptions(strings.Fields("--socket s --http :0"), nil)
	require.NoError(t, err)
	require.Zero(t, o.config.DrainSpread)
	require.Zero(t, o.config.StopDelay)
	o, err = loadOptions(strings.Fields("--socket s --http :0 --drain-spread 0 --drain-timeout 0 --probation 0"), nil)
	require.NoError(t, err)
	require.Negative(t, o.config.DrainSpread)
	require.Negative(t, o.config.DrainTimeout)
	require.Negative(t, o.config.Probation)
}

func TestUsageErrors(t *testing.T) {
	t.Setenv(handoff.EnvSocket, "")
	for _, tc := range []struct{ args, want string }{
		{"--http :0", "--socket is missing"},
		{"--socket s", "--http is missing"},
		{"--socket s --http 8080", "host:port"},
		{"--socket s --http :http-but-not", "known service"},
		{"--socket s --http :70000", "known service"},
		{"--socket s --http =:80", "name before ="},
		{"--socket s --http unix:", "needs a path"},
		{"--socket s --http a=:1 --http a=:2", "used twice"},
		{"--socket s --http :1 --https a=:1 --cert c --key k", "the address :1 is used twice"},
		{"--socket s --http :1 --label " + strings.Repeat("x", 129), "at most 128 are allowed"},
		{"--socket " + strings.Repeat("x", 108) + " --http :1", "path is too long"},
		{"--socket s --http :1 --preview :1", "the address :1 is used twice"},
		{"--socket s --http :1 --self-socket ./s", "the path of the control socket"},
		{"--socket s --http :1 --preview 80", "host:port"},
		{"--socket s --https :1", "--cert and --key are needed"},
		{"--socket s --http :1 --cert c", "--cert and --key are needed"},
		{"--socket s --https :1 --cert /no/c --key /no/k", "/no/c"},
		{"--socket s --http :1 --root /dev/null", "not a directory"},
		{"--socket s --http :1 --root /no/such", "no such file"},
		{"--socket s --http :1 --root / --proxy http://h", "exclude each other"},
		{"--socket s --http :1 --log-file /no/such/log", "its directory"},
		{"--socket s --http :1 --log-file /dev/null/log", "its directory is none"},
		{"--socket s --http :1 --log-level all", "all"},
		{"--socket s --http :1 extra", `"extra"`},
		{"--socket s --http :1 --takeover later", "later"},
		{"--socket s --http :1 --log-format xml", "xml"},
		{"--socket s --http :1 --probation -1s", "too short"},
		{"--socket s --http :1 --stop-delay -1s", "too short"},
		{"--socket s --http :1 --drain-spread -1s", "too short"},
		{"--socket s --http :1 --ready-timeout 0", "too short"},
		{"--socket s --http :1 --step-timeout 0", "too short"},
		{"--socket s --http :1 --heartbeat -1s", "too short"},
		{"--socket s --http :1 --shared-key /no/such", "--shared-key: open /no/such: no such file"},
		{"--socket s --http :1 --shared-key /dev/null", "--shared-key: /dev/null: the file of a shared key is a regular one"},
		{"--socket s --http :1 --max-draining -1", "is negative (0: any number)"},
		{"--socket s --http :1 --move-idle=no-not-that", "--move-idle"},
		{"--socket s --http :1 --no-such-flag", "no-such-flag"},
	} {
		t.Run(tc.args, func(t *testing.T) {
			var out, errs bytes.Buffer
			require.Equal(t, exitUsage, run(strings.Fields(tc.args), &out, &errs))
			require.Contains(t, errs.String(), tc.want)
			require.Contains(t, errs.String(), "server: error: ")
			require.Contains(t, errs.String(), "server: hint: ")
			require.Empty(t, out.String())
		})
	}
}

func TestHelpAndVersion(t *testing.T) {
	var out, errs bytes.Buffer
	require.Equal(t, exitDone, run([]string{"--help"}, &out, &errs))
	for _, word := range []string{"Usage:", "Examples:", "Exit codes:", "Signals:", "Stopping:", "--takeover", "--drain-timeout"} {
		require.Contains(t, out.String(), word)
	}
	out.Reset()
	require.Equal(t, exitDone, run([]string{"--version"}, &out, &errs))
	require.True(t, strings.HasPrefix(out.String(), "server "))
	require.Empty(t, errs.String())
}

func TestStartThatFails(t *testing.T) {
	path := filepath.Join(t.TempDir(), "taken")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	var out, errs bytes.Buffer
	require.Equal(t, exitFailed, run([]string{"--socket", path, "--http", "127.0.0.1:0"}, &out, &errs))
	require.Contains(t, errs.String(), path)
	require.Contains(t, errs.String(), handoff.ErrNotSocket.Error())
}
