//go:build containers

package containers

import (
	"os"
	"os/exec"
	"path/filepath"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// brokenImage is a version that can't start: its configuration is wrong.
func (r *recipe) brokenImage() string {
	r.t.Helper()
	return r.derived("broken", "ENV HANDOFF_HEARTBEAT=never", "")
}

// crashImage is a version that becomes ready, and dies the moment it is to serve.
func (r *recipe) crashImage() string {
	r.t.Helper()
	return r.derived("crash", "COPY crash /server", "./crash")
}

// sickImage is a version that is healthy until it serves, as far as the engine can see.
func (r *recipe) sickImage() string {
	r.t.Helper()
	const check = `HEALTHCHECK --interval=1s --timeout=5s --retries=1 CMD ["/handoffctl", "check", "--state", "standby"]`
	return r.derived("sick", check, "")
}

// derived builds an image from the one under test and one more line of a Dockerfile, for which a program may be built.
// It is removed with the test.
func (r *recipe) derived(name, line, program string) string {
	r.t.Helper()
	dir := r.t.TempDir()
	if program != "" {
		cmd := exec.Command("go", "build", "-o", dir+"/", program)
		cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
		out, err := cmd.CombinedOutput()
		require.NoError(r.t, err, "%s", out)
	}
	require.NoError(r.t, os.WriteFile(filepath.Join(dir, "Dockerfile"), []byte("FROM "+image+"\n"+line+"\n"), 0o600))
	res, err := proc.Run(r.ctx(), exec.Command("docker", "build", "--quiet", "--tag", r.prefix+name, dir))
	require.NoError(r.t, err)
	require.Zero(r.t, res.Code, "%s%s", res.Stdout, res.Stderr)
	return r.prefix + name
}
