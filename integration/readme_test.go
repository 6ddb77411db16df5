package integration

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// scriptMarker stands above the deploy script in README.md.
const scriptMarker = "<!-- deploy script -->"

// The deploy script of README.md works as it stands but for the port, twice in a row, and no client notices. It finds the programs in
// its PATH and in bin/ of its directory, and the control socket in HANDOFF_SOCKET.
func TestDeployScriptOfTheReadme(t *testing.T) {
	script := strings.ReplaceAll(blockOf(t, "README.md", scriptMarker, "sh"), "127.0.0.1:8080", web)
	require.LessOrEqual(t, len(strings.Split(strings.TrimSpace(script), "\n")), 6, "it is said to have six lines")
	s := newService(t)
	dir := s.path("checkout")
	require.NoError(t, os.Mkdir(dir, 0o700))
	require.NoError(t, os.Symlink(filepath.Dir(programs.Server), filepath.Join(dir, "bin")))
	file := filepath.Join(dir, "deploy")
	require.NoError(t, os.WriteFile(file, []byte(script), 0o700))

	// The first version listens where the script's versions will.
	listen := regexp.MustCompile(`--http[ =](\S+)`).FindStringSubmatch(script)
	require.NotNil(t, listen, "the script starts a server with --http")
	s.serving("v1", "--http", listen[1])
	addr := s.address(listen[1])
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 300},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 100},
	)
	s.answers(run, 1, 20)
	for g := uint64(2); g <= 3; g++ {
		cmd := exec.Command("/bin/sh", file, fmt.Sprintf("v%d", g))
		cmd.Dir = dir
		cmd.Env = append(os.Environ(),
			"HANDOFF_SOCKET="+s.socket, "PATH="+filepath.Dir(programs.Server)+":"+os.Getenv("PATH"))
		r, err := proc.Run(s.ctx(), cmd)
		require.NoError(t, err)
		require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
		st := s.status()
		require.Equal(t, g, st.Serving().Generation)
		s.adopt(st.Serving().PID)
		s.answers(run, g, 20)
	}
	s.noLoss(run)
}

// programMarker stands above the Go program in README.md.
const programMarker = "<!-- go program -->"

// The program of README.md builds in a module of its own as README.md says, and hands over to itself.
func TestProgramOfTheReadme(t *testing.T) {
	s := newService(t)
	app := s.program("program", blockOf(t, "README.md", programMarker, "go"))
	s.must("upgrade", "--wait=released", "--log", s.newLog("one"), "--", app)
	s.adopt(s.status().Serving().PID)
	s.must("upgrade", "--wait=drained", "--log", s.newLog("two"), "--", app)
	s.adopt(s.status().Serving().PID)
	require.EqualValues(t, 2, s.status().Serving().Generation)
}
