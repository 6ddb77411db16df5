package main

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"
)

// watcher tells when files may have changed, by whatever means: written to,
// replaced by rename(2), or reached by a symbolic link that now leads elsewhere,
// as Kubernetes replaces a mounted secret. The directories are watched, because
// a watched file that is replaced is the old one for ever.
type watcher struct {
	w     *fsnotify.Watcher
	quiet time.Duration // for which nothing must happen before it tells
	most  time.Duration // after which it tells although something happens all the time
	stop  chan struct{} // closed to end it
	done  chan struct{} // closed when it has ended

	names map[string]bool // what is on the way to a file, links included
}

const (
	watchQuiet = 100 * time.Millisecond
	watchMost  = time.Second
)

// watchFiles calls changed, from one goroutine, after something happened to one
// of the files that paths names. paths is asked again after each time, and when
// moved receives. Close ends it; what closes the watcher must not hold up changed.
func watchFiles(paths func() []string, moved <-chan struct{}, changed func(), failed func(error)) (*watcher, error) {
	return watchFilesWithin(watchQuiet, watchMost, paths, moved, changed, failed)
}

func watchFilesWithin(quiet, most time.Duration, paths func() []string, moved <-chan struct{}, changed func(), failed func(error)) (*watcher, error) {
	notify, err := fsnotify.NewWatcher()
	if err != nil {
		return nil, os.NewSyscallError("inotify_init1", err)
	}
	w := &watcher{w: notify, quiet: quiet, most: most, stop: make(chan struct{}), done: make(chan struct{})}
	if err := w.follow(paths()); err != nil {
		notify.Close()
		return nil, err
	}
	go func() {
		defer close(w.done)
		w.run(paths, moved, changed, failed)
	}()
	return w, nil
}

func (w *watcher) run(paths func() []string, moved <-chan struct{}, changed func(), failed func(error)) {
	timer := time.NewTimer(0)
	<-timer.C
	var first time.Time // when what is to be told began; zero: nothing is
	for {
		select {
		case <-w.stop:
			return
		case ev := <-w.w.Events:
			if !w.names[ev.Name] {
				continue
			}
			if first.IsZero() {
				first = time.Now()
			}
			timer.Reset(min(w.quiet, max(0, time.Until(first.Add(w.most)))))
			continue
		case err := <-w.w.Errors:
			// Events were lost, if it is an overflow: anything may have happened.
			failed(err)
			first = time.Now()
			timer.Reset(w.quiet)
			continue
		case <-moved:
		case <-timer.C:
		}
		first = time.Time{}
		// Watch first: what happens while the files are read is told of afterwards.
		if err := w.follow(paths()); err != nil {
			failed(err)
		}
		changed()
	}
}

// follow watches what is on the way to the files now, and nothing else.
func (w *watcher) follow(files []string) error {
	var err error
	// A directory that is gone before it is watched was led to by a link that leads
	// elsewhere now, or is missing itself, and then the way ends before it.
	for range maxLinks {
		if err = w.followOnce(files); !errors.Is(err, fs.ErrNotExist) {
			break
		}
	}
	return err
}

func (w *watcher) followOnce(files []string) error {
	w.names = map[string]bool{}
	for _, f := range files {
		for _, name := range way(f) {
			w.names[name] = true
		}
	}
	var dirs []string
	var failed error
	for name := range w.names {
		dir := filepath.Dir(name)
		if slices.Contains(dirs, dir) {
			continue
		}
		dirs = append(dirs, dir)
		// Adding it again finds a directory that another one has replaced.
		if err := w.w.Add(dir); err != nil {
			failed = &os.PathError{Op: "watch", Path: dir, Err: err}
		}
	}
	for _, dir := range w.w.WatchList() {
		if !slices.Contains(dirs, dir) {
			w.w.Remove(dir) // fails where the directory is gone
		}
	}
	return failed
}

// close ends it. changed is not called any more when it returns.
func (w *watcher) close() {
	close(w.stop)
	<-w.done
	w.w.Close() // not before: adding a directory to a closed one fails, and would be reported
}

// maxLinks is how many symbolic links the kernel follows (path_resolution(7)).
const maxLinks = 40

// way lists the symbolic links that lead to a file, and the file itself, each by
// a path without further links in it. What does not exist ends the list.
func way(file string) (names []string) {
	rest, err := filepath.Abs(file)
	if err != nil {
		return nil
	}
	at := "/"
	for links := 0; rest != "" && links <= maxLinks; {
		part, more, _ := strings.Cut(strings.Trim(rest, "/"), "/")
		name := filepath.Join(at, part)
		target, err := os.Readlink(name)
		if errors.Is(err, fs.ErrNotExist) {
			return append(names, name)
		}
		if err != nil { // it is no link
			if at, rest = name, more; more == "" {
				names = append(names, name)
			}
			continue
		}
		names = append(names, name)
		links++
		if filepath.IsAbs(target) {
			at = "/"
		}
		rest = target + "/" + more // not cleaned: .. behind a link is relative to where it leads
	}
	return names
}
