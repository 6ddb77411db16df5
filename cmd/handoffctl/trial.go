package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// A trial is a shell command that says by its exit code whether the next version
// is good: a precheck while it stands by, a check while it serves in probation.

const (
	trialDelay = time.Second // for what a trial leaves behind to let go of its output
	trialLine  = 1000        // bytes after which a line of it is broken
)

// startTrial runs a command by the shell, in a process group of its own, so that
// all of it can be ended. show is given what it writes, line by line.
//
// It does not outlive this process: the kernel kills the shell then. What the
// shell has started by then ends by itself.
func startTrial(command string, env []string, show func(string)) (*child, error) {
	out := &lines{print: show}
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out // stdin is /dev/null
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGKILL}
	cmd.WaitDelay = trialDelay
	c := &child{done: make(chan struct{})}
	started := make(chan error)
	go func() { // ends with the command
		// The signal comes when the thread that started the command ends, not the
		// process (prctl(2)), so the thread is kept until then.
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		if err == nil {
			c.pid = cmd.Process.Pid
		}
		started <- err
		if err != nil {
			return
		}
		err = cmd.Wait()
		if !errors.Is(err, exec.ErrWaitDelay) { // it left something behind, and was content
			c.err = err
		}
		out.flush()
		close(c.done)
	}()
	if err := <-started; err != nil {
		return nil, err
	}
	return c, nil
}

// tryCMD starts a trial of the generation that CMD is.
func (u *upgrade) tryCMD(command string, generation uint64, show func(string)) (*child, error) {
	env, err := u.environment()
	if err != nil {
		return nil, err
	}
	return startTrial(command, append(env, "HANDOFF_GENERATION="+strconv.FormatUint(generation, 10)), show)
}

// showLine prints what a trial wrote.
func (a *app) showLine(s string) { fmt.Fprintln(a.stderr, "  | "+plain(s)) }

// needShell looks for what runs trials before anything is started. what is the
// flag's name.
func needShell(what string, commands []string) error {
	for _, c := range commands {
		if strings.TrimSpace(c) == "" {
			return &failure{code: exitUsage, text: "--" + what + " is empty", hint: "give the command that tries the next version"}
		}
	}
	if len(commands) == 0 {
		return nil
	}
	if _, err := exec.LookPath("sh"); err != nil {
		return &failure{code: exitRefused, text: what + "s need a shell, and sh is not found", err: err}
	}
	return nil
}

// lines prints what is written to it line by line.
type lines struct {
	print func(string)
	rest  []byte
}

func (l *lines) Write(b []byte) (int, error) {
	l.rest = append(l.rest, b...)
	for {
		line, rest, whole := bytes.Cut(l.rest, []byte("\n"))
		if !whole && len(l.rest) <= trialLine {
			return len(b), nil
		}
		if len(line) > trialLine {
			line, rest = l.rest[:trialLine], l.rest[trialLine:]
		}
		l.print(string(line))
		l.rest = rest
	}
}

// flush prints what has no end of line.
func (l *lines) flush() {
	if len(l.rest) > 0 {
		l.print(string(l.rest))
		l.rest = nil
	}
}

var _ io.Writer = (*lines)(nil)
