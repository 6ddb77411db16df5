package main

import (
	"bytes"
	"io"
	"log/slog"
	"os"
	"runtime"
	"runtime/pprof"
	"sync"
)

// logFile is a file that several processes append to at once: while one
// generation succeeds another, both write the same file. A record is one
// write(2) with O_APPEND, which the kernel does not mix with another's.
type logFile struct {
	path string
	mu   sync.RWMutex // held for writing while it is exchanged
	f    *os.File
}

func openLogFile(path string) (*logFile, error) {
	l := &logFile{path: path}
	return l, l.reopen()
}

// reopen opens the path again, because what was there may have been moved
// away. If that can't be done the file before goes on being written.
func (l *logFile) reopen() error {
	f, err := os.OpenFile(l.path, os.O_WRONLY|os.O_APPEND|os.O_CREATE, 0o640)
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f != nil {
		l.f.Close()
	}
	l.f = f
	return nil
}

// Write appends one record.
func (l *logFile) Write(record []byte) (int, error) {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.f.Write(record)
}

func (l *logFile) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.f.Close()
}

// serverLog is where the log goes. What is written to Writer at once stays together.
type serverLog struct {
	*slog.Logger
	io.Writer
	level slog.LevelVar
	file  *logFile // nil: standard error
}

func openLog(o options, stderr io.Writer) (*serverLog, error) {
	l := &serverLog{Writer: stderr}
	if o.logFile != "" {
		var err error
		if l.file, err = openLogFile(o.logFile); err != nil {
			return nil, err
		}
		l.Writer = l.file
	}
	l.level.Set(o.logLevel)
	with := &slog.HandlerOptions{Level: &l.level}
	if o.jsonLog {
		l.Logger = slog.New(slog.NewJSONHandler(l.Writer, with))
	} else {
		l.Logger = slog.New(slog.NewTextHandler(l.Writer, with))
	}
	return l, nil
}

// reopen is for those who move log files away.
func (l *serverLog) reopen() error {
	if l.file == nil {
		return nil
	}
	return l.file.reopen()
}

func (l *serverLog) close() {
	if l.file != nil {
		l.file.Close()
	}
}

// goroutines writes what every goroutine is doing, equal ones together: with
// it, what held up a stop can be found out afterwards.
func (l *serverLog) goroutines(log *slog.Logger) {
	var b bytes.Buffer
	pprof.Lookup("goroutine").WriteTo(&b, 1)
	log.Warn("hammer time: what every goroutine is doing follows", "goroutines", runtime.NumGoroutine())
	l.Write(b.Bytes())
	log.Warn("hammer time: end of the goroutines")
}

// descriptors counts the open files of this process, -1 where that can't be
// told.
func descriptors() int {
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return -1
	}
	return len(entries) - 1 // the directory that was read
}
