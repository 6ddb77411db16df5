package main

import (
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// tree makes a directory with everything that can be asked for, and things beside it that can't.
func tree(t *testing.T) string {
	t.Helper()
	base := t.TempDir()
	dir := filepath.Join(base, "site")
	for name, text := range map[string]string{
		"secret":                     "outside",
		"site/index.html":            "<p>home",
		"site/a.txt":                 "0123456789",
		"site/.env":                  "password",
		"site/.git/config":           "inside",
		"site/.well-known/acme/t":    "token",
		"site/.well-known/.hidden":   "hidden",
		"site/sub/b.txt":             "b",
		"site/sub/.c":                "c",
		"site/sub/java script:x.txt": "odd",
		"site/sub/<i>&.txt":          "odd too",
		"site/empty/.keep":           "",
	} {
		path := filepath.Join(base, name)
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
	}
	require.NoError(t, os.Symlink("a.txt", filepath.Join(dir, "link.txt")))
	require.NoError(t, os.Symlink("../secret", filepath.Join(dir, "out.txt")))
	require.NoError(t, os.Symlink(filepath.Join(base, "secret"), filepath.Join(dir, "far.txt")))
	require.NoError(t, os.Symlink("..", filepath.Join(dir, "up")))
	require.NoError(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	require.NoError(t, syscall.Mkfifo(filepath.Join(dir, "pipe"), 0o644))
	return dir
}

func serveFiles(t *testing.T, dir string) *httptest.Server {
	t.Helper()
	leak.Check(t)
	files, err := newFiles(dir, info)
	require.NoError(t, err)
	s := httptest.NewServer(files)
	t.Cleanup(func() { s.Close(); require.NoError(t, files.root.Close()) })
	return s
}

func TestFiles(t *testing.T) {
	s := serveFiles(t, tree(t))
	for _, tc := range []struct {
		method, path string
		want         int
		body         string
	}{
		{"GET", "/", 200, "<p>home"},
		{"GET", "/index.html", 200, "<p>home"},
		{"GET", "/a.txt", 200, "0123456789"},
		{"HEAD", "/a.txt", 200, ""},
		{"GET", "/sub/../a.txt", 200, "0123456789"},
		{"GET", "/link.txt", 200, "0123456789"},
		{"GET", "/sub/b.txt", 200, "b"},
		{"GET", "/.well-known/acme/t", 200, "token"},

		{"GET", "/missing", 404, "404 not found\n"},
		{"GET", "/a.txt/", 404, "404 not found\n"},
		{"GET", "/a.txt/b", 404, "404 not found\n"},
		{"GET", "/" + strings.Repeat("x", 300), 404, "404 not found\n"},
		{"GET", "/a%00b", 404, "404 not found\n"},
		{"GET", "/loop", 404, "404 not found\n"},
		{"GET", "/pipe", 404, "404 not found\n"},

		{"GET", "/out.txt", 404, "404 not found\n"},
		{"GET", "/far.txt", 404, "404 not found\n"},
		{"GET", "/up/secret", 404, "404 not found\n"},
		{"GET", "/../secret", 404, "404 not found\n"},
		{"GET", "/%2e%2e/secret", 404, "404 not found\n"},
		{"GET", "/..%2fsecret", 404, "404 not found\n"},

		{"GET", "/.env", 404, "404 not found\n"},
		{"GET", "/.git/config", 404, "404 not found\n"},
		{"GET", "/.git/", 404, "404 not found\n"},
		{"GET", "/sub/.c", 404, "404 not found\n"},
		{"GET", "/.well-known/.hidden", 404, "404 not found\n"},

		{"POST", "/a.txt", 405, "405 method not allowed\n"},
		{"DELETE", "/a.txt", 405, "405 method not allowed\n"},
		{"OPTIONS", "/a.txt", 204, ""},
	} {
		t.Run(tc.method+" "+tc.path[:min(len(tc.path), 40)], func(t *testing.T) {
			resp, body := do(t, tc.method, s.URL+tc.path, nil)
			require.Equal(t, tc.want, resp.StatusCode, "%s", body)
			require.Equal(t, tc.body, body)
			require.Equal(t, "7", resp.Header.Get(generationHeader))
			if tc.want == 405 || tc.want == 204 {
				require.Equal(t, "GET, HEAD, OPTIONS", resp.Header.Get("Allow"))
			}
			if tc.method == "HEAD" {
				require.EqualValues(t, 10, resp.ContentLength)
			}
		})
	}
}

func TestDirectoryWithoutSlash(t *testing.T) {
	s := serveFiles(t, tree(t))
	for path, want := range map[string]string{
		"/sub":             "/sub/",
		"/sub?q=1":         "/sub/?q=1",
		"//sub":            "/sub/", // and not another host
		"/empty/../sub":    "/sub/",
		"/.well-known":     "/.well-known/",
		"//example.org/..": "/",
	} {
		resp, _ := do(t, "GET", s.URL+path, nil)
		require.Equal(t, http.StatusMovedPermanently, resp.StatusCode, path)
		require.Equal(t, want, resp.Header.Get("Location"), path)
	}
}

func TestListing(t *testing.T) {
	s := serveFiles(t, tree(t))
	resp, body := do(t, "GET", s.URL+"/sub/", nil)
	require.Equal(t, "text/html; charset=utf-8", resp.Header.Get("Content-Type"))
	require.Contains(t, body, `<a href="./b.txt">b.txt</a>`)
	require.Contains(t, body, `<a href="./java%20script:x.txt">java script:x.txt</a>`)
	require.Contains(t, body, `<a href="./%3Ci%3E&amp;.txt">&lt;i&gt;&amp;.txt</a>`)
	require.NotContains(t, body, ".c<")
	_, body = do(t, "GET", s.URL+"/empty/", nil)
	require.NotContains(t, body, "<li>", "names that begin with a dot")
	resp, body = do(t, "HEAD", s.URL+"/sub/", nil)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Empty(t, body)
}

func TestFilesByCondition(t *testing.T) {
	dir := tree(t)
	s := serveFiles(t, dir)
	whole, _ := do(t, "GET", s.URL+"/a.txt", nil)
	etag, modified := whole.Header.Get("Etag"), whole.Header.Get("Last-Modified")
	require.Regexp(t, `^"[0-9a-f]+-a"$`, etag)
	require.NotEmpty(t, modified)
	ask := func(headers ...string) (*http.Response, string) {
		req := httptest.NewRequest("GET", "/a.txt", nil)
		for i := 0; i < len(headers); i += 2 {
			req.Header.Set(headers[i], headers[i+1])
		}
		rec := httptest.NewRecorder()
		s.Config.Handler.ServeHTTP(rec, req)
		return rec.Result(), rec.Body.String()
	}
	for _, tc := range []struct {
		name    string
		headers []string
		want    int
		body    string
	}{
		{"range", []string{"Range", "bytes=2-4"}, 206, "234"},
		{"last bytes", []string{"Range", "bytes=-2"}, 206, "89"},
		{"range beyond the end", []string{"Range", "bytes=20-"}, 416, "invalid range: failed to overlap\n"},
		{"unchanged", []string{"If-None-Match", etag}, 304, ""},
		{"unchanged since", []string{"If-Modified-Since", modified}, 304, ""},
		{"of another version", []string{"If-None-Match", `"other"`}, 200, "0123456789"},
		{"the rest of the same", []string{"Range", "bytes=5-", "If-Range", etag}, 206, "56789"},
		{"the rest of another", []string{"Range", "bytes=5-", "If-Range", `"other"`}, 200, "0123456789"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			resp, body := ask(tc.headers...)
			require.Equal(t, tc.want, resp.StatusCode)
			require.Equal(t, tc.body, body)
		})
	}
	require.NoError(t, os.WriteFile(filepath.Join(dir, "a.txt"), []byte("another"), 0o644))
	resp, body := ask("If-None-Match", etag)
	require.Equal(t, http.StatusOK, resp.StatusCode)
	require.Equal(t, "another", body)
}

// The directory is the one that was there at the start.
func TestFilesOfTheDirectoryThatWasOpened(t *testing.T) {
	dir := tree(t)
	s := serveFiles(t, dir)
	require.NoError(t, os.Rename(dir, dir+".old"))
	require.NoError(t, os.Mkdir(dir, 0o755))
	_, body := do(t, "GET", s.URL+"/a.txt", nil)
	require.Equal(t, "0123456789", body)
}

func TestNoDirectory(t *testing.T) {
	_, err := newFiles(filepath.Join(t.TempDir(), "missing"), info)
	require.ErrorIs(t, err, os.ErrNotExist)
	require.ErrorContains(t, err, "--root: ")
	file := filepath.Join(t.TempDir(), "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err = newFiles(file, info)
	require.ErrorContains(t, err, "not a directory")
}
