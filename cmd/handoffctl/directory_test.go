package main

import (
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// A user's own directory: what is made, what is left alone, and what is refused.
func TestDirectory(t *testing.T) {
	const made, left, mended = "is uid", "already", "is uid"
	for _, tc := range []struct {
		name    string
		before  func(t *testing.T, dir string)
		code    int
		changed bool
		says    string
		mode    fs.FileMode
	}{
		{name: "missing", changed: true, says: made, mode: 0o700},
		{name: "fit", before: mkdir(0o750), says: left, mode: 0o750},
		{name: "others may write", before: mkdir(0o777), changed: true, says: mended, mode: 0o700},
		{name: "sticky", before: mkdir(0o777 | fs.ModeSticky), says: left, mode: 0o777 | fs.ModeSticky},
		{name: "the owner can't write", before: mkdir(0o500), changed: true, says: mended, mode: 0o700},
		{
			name: "not empty, and others may write", code: exitRefused, says: "is not empty, so it may be needed by others as it is", mode: 0o777,
			before: func(t *testing.T, dir string) {
				mkdir(0o777)(t, dir)
				require.NoError(t, os.WriteFile(filepath.Join(dir, "file"), nil, 0o600))
			},
		},
		{
			name: "not empty, and fit", says: left, mode: 0o700,
			before: func(t *testing.T, dir string) {
				mkdir(0o700)(t, dir)
				require.NoError(t, os.WriteFile(filepath.Join(dir, "control.sock"), nil, 0o600))
			},
		},
		{
			name: "a file", code: exitRefused, says: "is not a directory", mode: 0o600,
			before: func(t *testing.T, dir string) { require.NoError(t, os.WriteFile(dir, nil, 0o600)) },
		},
		{
			name: "a link", code: exitRefused, says: "is not a directory", mode: fs.ModeSymlink | 0o777,
			before: func(t *testing.T, dir string) { require.NoError(t, os.Symlink(t.TempDir(), dir)) },
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run")
			if tc.before != nil {
				tc.before(t, dir)
			}
			got := ctl(t.Context(), "--socket", filepath.Join(dir, "control.sock"), "directory", "--json")
			require.Equal(t, tc.code, got.code, got.stderr)
			var r result
			require.NoError(t, json.Unmarshal([]byte(got.stdout), &r))
			require.Equal(t, tc.changed, r.Changed)
			require.Contains(t, r.Text+r.Error, tc.says)
			info, err := os.Lstat(dir)
			require.NoError(t, err)
			require.Equal(t, tc.mode, info.Mode()&^fs.ModeDir)
			if tc.code != exitDone {
				return
			}
			again := ctl(t.Context(), "--socket", filepath.Join(dir, "control.sock"), "directory")
			require.Equal(t, fmt.Sprintf("%s is uid %d's already\n", dir, os.Geteuid()), again.stdout)
		})
	}
	got := ctl(t.Context(), "--socket", filepath.Join(t.TempDir(), "no/such/control.sock"), "directory")
	require.Equal(t, exitRefused, got.code)
	require.Contains(t, got.stderr, "does not exist")
}

// A directory that has taken the place of the one that was looked at is left alone.
func TestDirectoryReplaced(t *testing.T) {
	above := t.TempDir()
	dir, other := filepath.Join(above, "run"), filepath.Join(above, "other")
	mkdir(0o755)(t, dir)
	info, err := os.Lstat(dir)
	require.NoError(t, err)
	mkdir(0o755)(t, other)
	require.NoError(t, os.Rename(dir, dir+"-before")) // its inode stays in use
	require.NoError(t, os.Rename(other, dir))
	err = giveAway(dir, info, owner{os.Geteuid(), os.Getegid()})
	require.EqualError(t, err, dir+" was replaced by another directory just now")
	info, err = os.Lstat(dir)
	require.NoError(t, err)
	require.EqualValues(t, 0o755, info.Mode().Perm())
}

// Who is not root can give nothing away.
func TestDirectoryOwner(t *testing.T) {
	for _, wrong := range []string{"app", "-1", "1:", ":1", "1:2:3", "4294967295"} {
		got := ctl(t.Context(), "--socket", "/run/app/s", "directory", "--owner", wrong)
		require.Equal(t, exitUsage, got.code, wrong)
		require.Contains(t, got.stderr, "must be a number", wrong)
	}
	o := new(owner)
	require.NoError(t, o.Set("7"))
	require.Equal(t, owner{7, 7}, *o)
	require.NoError(t, o.Set("7:8"))
	require.Equal(t, owner{7, 8}, *o)
}

// Root gives its own and what it made to another user, and nobody else's.
func TestRootDirectoryOfAnotherUser(t *testing.T) {
	needRoot(t)
	for _, tc := range []struct {
		name   string
		before func(t *testing.T, dir string)
		code   int
		says   string
		uid    uint32
		mode   fs.FileMode
	}{
		{name: "missing", says: "is uid 65532's\n", uid: 65532, mode: 0o700},
		{name: "as the kubelet makes that of a hostPath", before: mkdir(0o755), says: "is uid 65532's\n", uid: 65532, mode: 0o700},
		{name: "as the kubelet makes an emptyDir", before: mkdir(0o777), says: "is uid 65532's\n", uid: 65532, mode: 0o700},
		{name: "as /dev/shm is", before: mkdir(0o777 | fs.ModeSticky), says: "already\n", uid: 0, mode: 0o777 | fs.ModeSticky},
		{
			name: "of a third user", code: exitRefused, says: "belongs to uid 1000, and not to root or to uid 65532", uid: 1000, mode: 0o700,
			before: func(t *testing.T, dir string) {
				mkdir(0o700)(t, dir)
				require.NoError(t, os.Chown(dir, 1000, 1000))
			},
		},
		{
			name: "in use by root", code: exitRefused, says: "is not empty", uid: 0, mode: 0o755,
			before: func(t *testing.T, dir string) {
				mkdir(0o755)(t, dir)
				require.NoError(t, os.Mkdir(filepath.Join(dir, "lock"), 0o700))
			},
		},
	} {
		t.Run(tc.name, func(t *testing.T) {
			dir := filepath.Join(t.TempDir(), "run")
			if tc.before != nil {
				tc.before(t, dir)
			}
			got := ctl(t.Context(), "--socket", filepath.Join(dir, "control.sock"), "directory", "--owner", "65532")
			require.Equal(t, tc.code, got.code, got.stderr)
			require.Contains(t, got.stdout+got.stderr, tc.says)
			info, err := os.Lstat(dir)
			require.NoError(t, err)
			require.Equal(t, tc.uid, info.Sys().(*syscall.Stat_t).Uid)
			require.Equal(t, tc.mode, info.Mode()&^fs.ModeDir)
		})
	}
}

// mkdir makes a directory of that mode, whatever the umask.
func mkdir(mode fs.FileMode) func(t *testing.T, dir string) {
	return func(t *testing.T, dir string) {
		t.Helper()
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.Chmod(dir, mode))
	}
}

// needRoot is called by every TestRoot…: it skips what only root can run. Where HANDOFF_TEST_ROOT is set it fails instead.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	require.Empty(t, os.Getenv("HANDOFF_TEST_ROOT"), "this test needs root")
	t.Skip("needs root; HANDOFF_TEST_ROOT=1 makes this a failure")
}
