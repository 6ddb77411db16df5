package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	endTime   = 5 * time.Second       // between SIGTERM and SIGKILL
	groupPoll = 20 * time.Millisecond // how often a process group is looked for
	tailBytes = 4 << 10               // of the log are shown, and
	tailLines = 20                    // lines at most
)

// child is the command that upgrade starts. It is to outlive this process: it
// has a session of its own, so that no Ctrl-C reaches it, and its log is a file
// of its own, so that nothing of it runs through this process.
type child struct {
	pid  int
	log  string // path
	from int64  // where in the log this child's output begins
	done chan struct{}
	err  error // of the command; read it after done
}

// findCommand looks up CMD as a shell does.
func findCommand(name string) (string, error) {
	path, err := exec.LookPath(name)
	if err == nil {
		return path, nil
	}
	var cause *exec.Error
	if errors.As(err, &cause) {
		err = cause.Err
	}
	f := &failure{code: exitNotRun, text: fmt.Sprintf("%s can't be run: %v", name, err), err: err}
	if errors.Is(err, exec.ErrNotFound) || errors.Is(err, os.ErrNotExist) {
		f.code, f.text = exitNotFound, name+" is not found"
		if !strings.Contains(name, "/") {
			f.hint = "CMD is looked for in PATH; for one in this directory, write ./" + name
		}
	}
	return "", f
}

// startChild starts argv. The log at logPath is appended to; with "" it is a
// temporary file, which stays.
func startChild(path string, argv, env []string, logPath, request string) (*child, error) {
	log, err := openLog(logPath, request)
	if err != nil {
		return nil, &failure{code: exitRefused, text: fmt.Sprintf("the log can't be opened: %v", err), err: err}
	}
	defer log.Close() // the child has its own
	from, err := log.Seek(0, io.SeekEnd)
	if err != nil {
		from = 0 // not a regular file
	}
	if err := keepToOurselves(); err != nil {
		return nil, err
	}
	cmd := exec.Command(path, argv[1:]...)
	cmd.Args[0] = argv[0]
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = log, log // stdin is /dev/null
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		if logPath == "" {
			_ = os.Remove(log.Name())
		}
		return nil, &failure{code: exitNotRun, text: fmt.Sprintf("%s can't be run: %v", argv[0], err), err: err}
	}
	c := &child{pid: cmd.Process.Pid, log: log.Name(), from: from, done: make(chan struct{})}
	go func() { // ends with the child, or with this process
		c.err = cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

func openLog(path, request string) (*os.File, error) {
	if path == "" {
		return os.CreateTemp("", "handoffctl-"+filepath.Base(request)+"-*.log")
	}
	// Opening a pipe that nobody reads would wait for ever otherwise.
	f, err := os.OpenFile(path, os.O_APPEND|os.O_CREATE|os.O_WRONLY|unix.O_NONBLOCK, 0o640)
	if err != nil {
		return nil, err
	}
	if err := unix.SetNonblock(int(f.Fd()), false); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// keepToOurselves closes for the child whatever this process was started with
// beyond the three standard files. A lock that a deploy script holds on such a
// descriptor would otherwise be held for as long as the server lives.
func keepToOurselves() error {
	dir, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return err
	}
	for _, e := range dir {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 2 {
			unix.CloseOnExec(n)
		}
	}
	return nil
}

// running says that the command itself, not what it started, still runs.
func (c *child) running() bool {
	select {
	case <-c.done:
		return false
	default:
		return true
	}
}

// end ends the command and its process group if it still runs: SIGTERM, and
// SIGKILL to what is left of the group after grace. It says whether there was
// anything to end.
func (c *child) end(grace time.Duration) bool {
	if !c.running() {
		return false
	}
	_ = syscall.Kill(-c.pid, syscall.SIGTERM)
	late := time.NewTimer(grace)
	defer late.Stop()
	poll := time.NewTicker(groupPoll)
	defer poll.Stop()
	for {
		select {
		case <-late.C:
			_ = syscall.Kill(-c.pid, syscall.SIGKILL)
			<-c.done
			return true
		case <-poll.C:
			// The group's number can't be given away while the group has members.
			if !c.running() && syscall.Kill(-c.pid, 0) != nil {
				return true
			}
		}
	}
}

// tail returns the last lines of what this child wrote.
func (c *child) tail() []string {
	f, err := os.Open(c.log)
	if err != nil {
		return nil
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil || !st.Mode().IsRegular() {
		return nil
	}
	at := max(c.from, st.Size()-tailBytes)
	b := make([]byte, tailBytes)
	n, _ := f.ReadAt(b, at)
	text := string(b[:n])
	if at > c.from {
		_, text, _ = strings.Cut(text, "\n") // the first line is a part of one
	}
	text = strings.TrimRight(text, "\n")
	if text == "" {
		return nil
	}
	lines := strings.Split(text, "\n")
	return lines[max(0, len(lines)-tailLines):]
}
