package integration

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// blockOf is the block of code in a language that follows a marker in one of the project's pages.
func blockOf(t *testing.T, page, marker, language string) string {
	t.Helper()
	root, err := proc.ModuleRoot(t.Context())
	require.NoError(t, err)
	text, err := os.ReadFile(filepath.Join(root, page))
	require.NoError(t, err)
	_, after, found := strings.Cut(string(text), marker+"\n")
	require.True(t, found, "%s has no %s", page, marker)
	block := regexp.MustCompile("(?s)^```" + language + "\n(.*?)```").FindStringSubmatch(after)
	require.NotNil(t, block, "no block of %s follows %s in %s", language, marker, page)
	return block[1]
}

// program builds a program of one of the pages, in a module of its own and in the way that the pages tell, and returns
// its path. The port is the kernel's choice.
func (s *service) program(name, source string) string {
	s.t.Helper()
	root, err := proc.ModuleRoot(s.ctx())
	require.NoError(s.t, err)
	dir := s.path(name)
	require.NoError(s.t, os.Mkdir(dir, 0o700))
	anyPort := regexp.MustCompile(`127\.0\.0\.1:8\d\d\d`).ReplaceAllString(source, web)
	require.NotEqual(s.t, source, anyPort)
	require.NoError(s.t, os.WriteFile(filepath.Join(dir, "main.go"), []byte(anyPort), 0o600))
	for _, args := range [][]string{
		{"mod", "init", "example.org/" + name},
		{"mod", "edit", "-require=github.com/fdhandoff/handoff@v0.0.0", "-replace=github.com/fdhandoff/handoff=" + root},
		{"mod", "tidy"},
		{"build", "-o", "app", "."},
	} {
		cmd := exec.CommandContext(s.t.Context(), "go", args...)
		cmd.Dir = dir
		out, err := cmd.CombinedOutput()
		require.NoError(s.t, err, "go %v: %s", args, out)
	}
	return filepath.Join(dir, "app")
}

// sh runs commands of one of the pages in dir, with the programs in the PATH and the service's control socket.
func (s *service) sh(dir, script string, args ...string) proc.Result {
	s.t.Helper()
	s.t.Cleanup(s.endStrays)
	cmd := exec.Command("/bin/sh", append([]string{"-c", script, "sh"}, args...)...)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "HANDOFF_SOCKET="+s.socket, "PATH="+filepath.Dir(programs.Server)+":"+os.Getenv("PATH"))
	r, err := proc.Run(s.ctx(), cmd)
	require.NoError(s.t, err)
	return r
}

// endStrays ends what a script left behind: what has the service's control socket in its environment.
func (s *service) endStrays() {
	environs, err := filepath.Glob("/proc/[0-9]*/environ")
	if err != nil {
		s.t.Errorf("look for processes left: %v", err)
	}
	for _, file := range environs {
		var pid int
		b, err := os.ReadFile(file)
		if err != nil || !bytes.Contains(b, []byte("HANDOFF_SOCKET="+s.socket+"\x00")) {
			continue
		}
		if _, err := fmt.Sscanf(file, "/proc/%d/environ", &pid); err != nil || s.adopted[pid] != nil {
			continue
		}
		if a, err := proc.Adopt(pid); err == nil {
			a.End()
		}
	}
}

// Every link from one of the pages to a file, or to a heading in one, leads somewhere.
func TestLinksOfThePages(t *testing.T) {
	root, err := proc.ModuleRoot(t.Context())
	require.NoError(t, err)
	pages, err := filepath.Glob(filepath.Join(root, "docs", "*.md"))
	require.NoError(t, err)
	pages = append(pages, filepath.Join(root, "README.md"))
	link := regexp.MustCompile(`\]\(([^)\s#]*)(#[^)\s]*)?\)`)
	for _, page := range pages {
		text, err := os.ReadFile(page)
		require.NoError(t, err)
		for _, m := range link.FindAllStringSubmatch(string(text), -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			target := page
			if m[1] != "" {
				target = filepath.Join(filepath.Dir(page), m[1])
			}
			_, err := os.Stat(target)
			require.NoError(t, err, "%s links to it", page)
			if m[2] != "" {
				require.Contains(t, anchors(t, target), m[2], "%s links to %s", page, target)
			}
		}
	}
}

// anchors are the headings of a page as links name them.
func anchors(t *testing.T, page string) (all []string) {
	t.Helper()
	text, err := os.ReadFile(page)
	require.NoError(t, err)
	for _, m := range regexp.MustCompile(`(?m)^#+ (.*)$`).FindAllStringSubmatch(string(text), -1) {
		name := regexp.MustCompile(`[^\p{L}\p{N} _-]`).ReplaceAllString(strings.ToLower(m[1]), "")
		all = append(all, "#"+strings.ReplaceAll(name, " ", "-"))
	}
	return all
}
