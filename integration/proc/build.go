// Package proc builds the project's programs and runs them as real processes: their log lines can be waited for, their
// end and exit code too, and none outlives the one who started it.
package proc

import (
	"bytes"
	"context"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
)

// Binaries are the programs under test.
type Binaries struct {
	Server     string // path of cmd/server
	Handoffctl string // path of cmd/handoffctl
}

// Build compiles both programs into dir. With race they are built with the race detector.
func Build(ctx context.Context, dir string, race bool) (Binaries, error) {
	if race {
		return BuildWith(ctx, dir, "-race")
	}
	return BuildWith(ctx, dir)
}

// BuildWith compiles both programs into dir with further flags for go build.
func BuildWith(ctx context.Context, dir string, flags ...string) (Binaries, error) {
	root, err := ModuleRoot(ctx)
	if err != nil {
		return Binaries{}, err
	}
	args := append([]string{"build", "-o", dir + string(filepath.Separator)}, flags...)
	cmd := exec.CommandContext(ctx, "go", append(args, "./cmd/server", "./cmd/handoffctl")...)
	cmd.Dir = root
	if out, err := cmd.CombinedOutput(); err != nil {
		return Binaries{}, fmt.Errorf("go build: %w\n%s", err, out)
	}
	return Binaries{Server: filepath.Join(dir, "server"), Handoffctl: filepath.Join(dir, "handoffctl")}, nil
}

// ModuleRoot is the directory of the module that the working directory is in.
func ModuleRoot(ctx context.Context) (string, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Dir}}")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return "", fmt.Errorf("go list -m: %w: %s", err, stderr.Bytes())
	}
	return strings.TrimSpace(string(out)), nil
}
