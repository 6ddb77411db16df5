package integration

import (
	"bufio"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// A download goes on while versions change, and is whole; the next generation serves the directory that is at the path
// when it starts, and says by the ETag whether a file is still the same.
func TestFilesAcrossHandoffs(t *testing.T) {
	s := newService(t)
	old, next := s.path("old"), s.path("next")
	big := make([]byte, 32<<20) // more than the sockets' buffers hold
	rand.Read(big)
	for dir, text := range map[string]string{old: "one", next: "two"} {
		require.NoError(t, os.Mkdir(dir, 0o700))
		require.NoError(t, os.WriteFile(filepath.Join(dir, "index.html"), []byte(text), 0o600))
	}
	require.NoError(t, os.WriteFile(filepath.Join(old, "big"), big, 0o600))
	require.NoError(t, os.Link(filepath.Join(old, "big"), filepath.Join(next, "big")))
	current := s.path("current")
	require.NoError(t, os.Symlink(old, current))

	first := s.serving("v1", "--root", current)
	addr := s.address(web)
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, ask(conn, "/big"))
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	require.NoError(t, err)
	etag := resp.Header.Get("Etag")
	require.NotEmpty(t, etag)
	sum := sha256.New()
	_, err = io.CopyN(sum, resp.Body, 1<<20)
	require.NoError(t, err)

	require.NoError(t, os.Remove(current))
	require.NoError(t, os.Symlink(next, current))
	s.upgrade("v2", []string{"--wait=released"}, "--root", current)
	s.waitStatus("1 drains with the download under way", func(st proc.Status) bool {
		return st.Of(1).State == "draining" && st.Of(1).Open["active"] == 1
	})
	a := get(s.ctx(), "tcp", addr, "/")
	require.NoError(t, a.err)
	require.Equal(t, answer{status: 200, generation: 2, body: "two"}, a)
	_, err = io.Copy(sum, resp.Body)
	require.NoError(t, err)
	require.Equal(t, sha256.Sum256(big), [sha256.Size]byte(sum.Sum(nil)))
	require.NoError(t, conn.Close()) // the answer began before the drain, and could not say that it is the last
	s.exits(first, 0, "generation 1")

	req, err := http.NewRequestWithContext(s.ctx(), http.MethodGet, "http://"+addr+"/big", nil)
	require.NoError(t, err)
	req.Header.Set("If-None-Match", etag)
	resp, err = (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
	require.NoError(t, err)
	require.NoError(t, resp.Body.Close())
	require.Equal(t, http.StatusNotModified, resp.StatusCode)
	require.Equal(t, "2", resp.Header.Get("X-Handoff-Generation"))
}
