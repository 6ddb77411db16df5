package proc

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// Line is one line that a process wrote to its standard output or error.
type Line struct {
	Text   string
	Fields map[string]any // of a JSON log line, else nil
}

// Field is a field of a JSON log line as text, "" where there is none.
func (l Line) Field(name string) string {
	v, ok := l.Fields[name]
	if !ok {
		return ""
	}
	return fmt.Sprint(v)
}

// Process is a program that runs, or has ended. Its methods may be called from any goroutine.
type Process struct {
	Name string // for messages
	Log  string // path of the file with all that it wrote
	cmd  *exec.Cmd

	mu      sync.Mutex
	changed *sync.Cond
	lines   []Line
	eof     bool // nothing more will be written
	exited  chan struct{}
	output  io.Closer
	reader  sync.WaitGroup
}

// Spec is what to run.
type Spec struct {
	Name string // "" means Path
	Path string
	Args []string
	Env  []string // added to the environment of this process
	Log  string   // file for its output; created, or appended to
}

// Start runs a program in a process group of its own, so that a signal typed at the terminal does not reach it. The
// caller must end it with End.
func Start(spec Spec) (*Process, error) {
	logFile, err := os.OpenFile(spec.Log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, err
	}
	r, w, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, logFile.Close())
	}
	p := &Process{Name: cmp.Or(spec.Name, spec.Path), Log: spec.Log, exited: make(chan struct{}), output: r}
	p.changed = sync.NewCond(&p.mu)
	p.cmd = exec.Command(spec.Path, spec.Args...)
	p.cmd.Env = append(os.Environ(), spec.Env...)
	p.cmd.Stdout, p.cmd.Stderr = w, w
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	err = p.cmd.Start()
	w.Close()
	if err != nil {
		return nil, errors.Join(err, logFile.Close(), r.Close())
	}
	p.reader.Go(func() { p.follow(r, logFile) })
	go func() {
		p.cmd.Wait() // the state is in cmd.ProcessState
		close(p.exited)
	}()
	return p, nil
}

// follow copies what the process writes to its log file and keeps it for WaitLog.
func (p *Process) follow(r io.Reader, logFile io.WriteCloser) {
	defer logFile.Close()
	br := bufio.NewReader(r)
	for {
		text, err := br.ReadString('\n')
		if text != "" {
			io.WriteString(logFile, text) // a log that is not written shows when it is read
			p.add(strings.TrimSuffix(text, "\n"))
		}
		if err != nil {
			p.mu.Lock()
			p.eof = true
			p.mu.Unlock()
			p.changed.Broadcast()
			return
		}
	}
}

func (p *Process) add(text string) {
	line := Line{Text: text}
	if strings.HasPrefix(text, "{") && json.Unmarshal([]byte(text), &line.Fields) != nil {
		line.Fields = nil
	}
	p.mu.Lock()
	p.lines = append(p.lines, line)
	p.mu.Unlock()
	p.changed.Broadcast()
}

// PID is the process's number. It stays its own until the process has ended and was waited for.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Signal sends a signal to the process alone. It fails with os.ErrProcessDone when it has ended.
func (p *Process) Signal(s syscall.Signal) error { return p.cmd.Process.Signal(s) }

// Exited is closed when the process has ended.
func (p *Process) Exited() <-chan struct{} { return p.exited }

// Wait returns the exit code once the process has ended, -1 when a signal ended it.
func (p *Process) Wait(ctx context.Context) (int, error) {
	select {
	case <-p.exited:
		return p.cmd.ProcessState.ExitCode(), nil
	case <-ctx.Done():
		return 0, fmt.Errorf("%s (pid %d) still runs: %w", p.Name, p.PID(), ctx.Err())
	}
}

// WaitLog returns the first line, from the beginning on, for which match holds. It fails when ctx ends, or when the
// output does without such a line.
func (p *Process) WaitLog(ctx context.Context, match func(Line) bool) (Line, error) {
	stop := context.AfterFunc(ctx, func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.changed.Broadcast()
	})
	defer stop()
	p.mu.Lock()
	defer p.mu.Unlock()
	for i := 0; ; {
		for ; i < len(p.lines); i++ {
			if match(p.lines[i]) {
				return p.lines[i], nil
			}
		}
		switch {
		case p.eof:
			return Line{}, fmt.Errorf("%s: its output ended without the line waited for", p.Name)
		case ctx.Err() != nil:
			return Line{}, fmt.Errorf("%s: no such line yet: %w", p.Name, ctx.Err())
		}
		p.changed.Wait()
	}
}

// Lines is what the process wrote so far.
func (p *Process) Lines() []Line {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]Line(nil), p.lines...)
}

// Descriptors is the number of file descriptors that a process has open.
func Descriptors(pid int) (int, error) {
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	return len(entries), err
}

// End kills the process if it still runs, waits for it and frees everything. It may be called again.
func (p *Process) End() {
	p.Signal(syscall.SIGKILL) // fails when it has ended already
	<-p.exited
	// A process that it started may hold its output open: that one is not waited for.
	drained := make(chan struct{})
	go func() { p.reader.Wait(); close(drained) }()
	select {
	case <-drained:
	case <-time.After(time.Second):
	}
	p.output.Close()
	<-drained
}
