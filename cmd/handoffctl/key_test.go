package main

import (
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/internal/leak"
)

// The key is named by a flag, or by the environment, and what is wrong with its file is
// wrong usage. (That it lets an operator in whom nothing else does is tested where
// processes can be strangers: TestSiblingsHandOver of the library.)
func TestSharedKey(t *testing.T) {
	leak.Check(t)
	dir := t.TempDir()
	path, good, short := filepath.Join(dir, "s"), filepath.Join(dir, "key"), filepath.Join(dir, "short")
	require.NoError(t, os.WriteFile(good, []byte("0123456789abcdef\n"), 0o600))
	require.NoError(t, os.WriteFile(short, []byte("0123\n"), 0o600))
	key, err := handoff.ReadKey(good)
	require.NoError(t, err)
	p, err := handoff.Start(t.Context(), handoff.Config{Socket: path, Key: key, Logger: slog.New(slog.NewTextHandler(io.Discard, nil))})
	require.NoError(t, err)
	defer p.Close()
	require.NoError(t, p.Ready(t.Context()))

	for _, tt := range []struct {
		name, env string
		args      []string
		code      int
		stderr    string
	}{
		{"none is needed", "", nil, exitDone, ""},
		{"flag", "", []string{"--shared-key", good}, exitDone, ""},
		{"environment", good, nil, exitDone, ""},
		{"the flag goes first", short, []string{"--shared-key", good}, exitDone, ""},
		{"missing", "", []string{"--shared-key", good + ".not"}, exitUsage, "error: the shared key can't be read: open " + good + ".not: no such file or directory\n"},
		{"short", short, nil, exitUsage, "error: the shared key can't be read: " + short + ": a shared key has 16 to 4096 bytes, not 4"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("HANDOFF_SHARED_KEY", tt.env)
			got := ctl(t.Context(), append([]string{"--socket", path, "status"}, tt.args...)...)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Contains(t, got.stderr, tt.stderr)
		})
	}
}
