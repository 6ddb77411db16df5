package main

import (
	"cmp"
	"errors"
	"fmt"
	"html"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"syscall"
)

// files serves a directory. It is opened once: a generation serves the one that
// was at the path when it started, also when the path is another's later.
//
// Nothing outside the directory is served, wherever symbolic links point, and
// nothing whose name begins with a dot, nor what is below it, but for
// /.well-known (RFC 8615). A directory without index.html is listed.
type files struct {
	root *os.Root
	id   identity
}

func newFiles(dir string, id identity) (*files, error) {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return nil, fmt.Errorf("--root: %w", err)
	}
	return &files{root: root, id: id}, nil
}

const filesMethods = "GET, HEAD, OPTIONS"

func (f *files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.id.state(w.Header())
	switch r.Method {
	case http.MethodGet, http.MethodHead:
		f.serve(w, r)
	case http.MethodOptions:
		w.Header().Set("Allow", filesMethods)
		w.WriteHeader(http.StatusNoContent)
	default:
		w.Header().Set("Allow", filesMethods)
		http.Error(w, "405 method not allowed", http.StatusMethodNotAllowed)
	}
}

func (f *files) serve(w http.ResponseWriter, r *http.Request) {
	name := path.Clean("/" + r.URL.Path)
	file, info, err := f.open(name)
	if err != nil {
		f.refuse(w, err)
		return
	}
	defer file.Close()
	switch slash := strings.HasSuffix(r.URL.Path, "/"); {
	case !info.IsDir() && slash:
		f.refuse(w, fs.ErrNotExist)
		return
	case info.IsDir() && !slash:
		to := url.URL{Path: strings.TrimSuffix(name, "/") + "/", RawQuery: r.URL.RawQuery}
		w.Header().Set("Location", to.String()) // begins with one slash: it stays on this host
		w.WriteHeader(http.StatusMovedPermanently)
		return
	case info.IsDir():
		index, indexInfo, err := f.open(path.Join(name, "index.html"))
		if errors.Is(err, fs.ErrNotExist) {
			f.list(w, r, file)
			return
		}
		if err != nil {
			f.refuse(w, err)
			return
		}
		defer index.Close()
		file, info = index, indexInfo
	}
	w.Header().Set("Etag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	http.ServeContent(w, r, info.Name(), info.ModTime(), file)
}

// open opens a regular file or a directory; whatever else there is does not
// exist for clients. name is absolute and clean.
func (f *files) open(name string) (_ *os.File, _ fs.FileInfo, err error) {
	if hidden(name) || strings.ContainsRune(name, 0) {
		return nil, nil, fs.ErrNotExist
	}
	// Without O_NONBLOCK a named pipe would hold the request until somebody writes to it.
	file, err := f.root.OpenFile(cmp.Or(name[1:], "."), os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() && !info.IsDir() {
		err = fs.ErrNotExist
	}
	if err != nil {
		file.Close()
		return nil, nil, err
	}
	return file, info, nil
}

// hidden tells whether a part of an absolute path begins with a dot.
func hidden(name string) bool {
	for i, part := range strings.Split(name[1:], "/") {
		if strings.HasPrefix(part, ".") && (i > 0 || part != ".well-known") {
			return true
		}
	}
	return false
}

// refuse says no more than that the file is not here or not for everybody: an
// error's text has paths of this machine in it.
func (f *files) refuse(w http.ResponseWriter, err error) {
	var errno syscall.Errno
	switch {
	case errors.Is(err, fs.ErrPermission):
		http.Error(w, "403 forbidden", http.StatusForbidden)
	case errors.Is(err, fs.ErrNotExist), !errors.As(err, &errno), // os.Root's own: it leads out of the directory
		errno == syscall.ENOTDIR, errno == syscall.ELOOP, errno == syscall.ENAMETOOLONG, errno == syscall.ENXIO:
		http.Error(w, "404 not found", http.StatusNotFound)
	default:
		http.Error(w, "500 the file can't be read", http.StatusInternalServerError)
	}
}

func (f *files) list(w http.ResponseWriter, r *http.Request, dir *os.File) {
	entries, err := dir.ReadDir(-1)
	if err != nil {
		f.refuse(w, err)
		return
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	if r.Method == http.MethodHead {
		return
	}
	fmt.Fprint(w, "<!doctype html>\n<meta charset=\"utf-8\">\n<meta name=\"viewport\" content=\"width=device-width\">\n<ul>\n")
	for _, e := range entries {
		name := e.Name()
		if strings.HasPrefix(name, ".") {
			continue
		}
		if e.IsDir() {
			name += "/"
		}
		// A relative reference must not look like a scheme: ./ is before it.
		link := url.URL{Path: "./" + name}
		fmt.Fprintf(w, "<li><a href=\"%s\">%s</a>\n", html.EscapeString(link.String()), html.EscapeString(name))
	}
	fmt.Fprint(w, "</ul>\n")
}
