package proc

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// BecomeSubreaper makes the processes that this process's descendants leave behind its own children, so that it can
// wait for them and see how they ended. A server that handoffctl started is one. (prctl(2), PR_SET_CHILD_SUBREAPER)
func BecomeSubreaper() error {
	return os.NewSyscallError("prctl", unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0))
}

// Adopted is a process that a descendant started and left behind.
type Adopted struct {
	PID  int
	proc *os.Process
	done chan struct{}
	code int
	err  error
}

// Adopt takes over a process whose parent has ended; BecomeSubreaper must have been called before. It is held by a
// pidfd, so that no signal meets another process that got its number.
func Adopt(pid int) (*Adopted, error) {
	p, err := os.FindProcess(pid)
	if err != nil {
		return nil, err
	}
	if err := p.Signal(syscall.Signal(0)); err != nil && !errors.Is(err, os.ErrProcessDone) {
		return nil, fmt.Errorf("process %d: %w", pid, err)
	}
	a := &Adopted{PID: pid, proc: p, done: make(chan struct{})}
	go func() {
		defer close(a.done)
		state, err := p.Wait()
		if err != nil {
			a.err = fmt.Errorf("wait for process %d: %w", pid, err)
			return
		}
		a.code = state.ExitCode()
	}()
	return a, nil
}

// Signal sends a signal to the process.
func (a *Adopted) Signal(s syscall.Signal) error { return a.proc.Signal(s) }

// Wait returns the exit code once the process has ended, -1 when a signal ended it.
func (a *Adopted) Wait(ctx context.Context) (int, error) {
	select {
	case <-a.done:
		return a.code, a.err
	case <-ctx.Done():
		return 0, fmt.Errorf("process %d still runs: %w", a.PID, ctx.Err())
	}
}

// End kills the process if it still runs and waits for it.
func (a *Adopted) End() {
	a.proc.Signal(syscall.SIGKILL) // fails when it has ended already
	<-a.done
}

// Mentioning lists the processes, apart from this one, whose command line contains text: those that belong to a test
// whose directory has that name.
func Mentioning(text string) ([]int, error) {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, err
	}
	var pids []int
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == os.Getpid() {
			continue
		}
		line, err := os.ReadFile("/proc/" + e.Name() + "/cmdline")
		if err != nil {
			continue // it has ended
		}
		if strings.Contains(strings.ReplaceAll(string(line), "\x00", " "), text) {
			pids = append(pids, pid)
		}
	}
	return pids, nil
}
