package main

import (
	"bytes"
	"context"
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

	"github.com/fdhandoff/handoff/handoff"
)

// prechecks are commands that try the next version while it stands by. Only one
// that passed all of them is committed.
type prechecks struct {
	commands []string
	passed   int    // how many did, in their order
	running  *child // the one that runs, or nil
	// over says that there is nothing more to check: all passed, an earlier run of
	// the request committed, or nobody served.
	over bool
}

// done is closed when the check that runs has ended; nil if none runs.
func (p *prechecks) done() <-chan struct{} {
	if p.running == nil {
		return nil
	}
	return p.running.done
}

// label names the check that is next or runs.
func (p *prechecks) label() string {
	return fmt.Sprintf("precheck %d of %d (%s)", p.passed+1, len(p.commands), p.commands[p.passed])
}

const (
	checkDelay = time.Second // for what a check leaves behind to let go of its output
	checkLine  = 1000        // bytes after which a line of it is broken
)

// startCheck runs a command by the shell, in a process group of its own, so that
// all of it can be ended. What it writes is shown.
func (a *app) startCheck(command string, env []string) (*child, error) {
	out := &lines{print: func(s string) { fmt.Fprintln(a.stderr, "  | "+plain(s)) }}
	cmd := exec.Command("sh", "-c", command)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdout, cmd.Stderr = out, out // stdin is /dev/null
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.WaitDelay = checkDelay
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	c := &child{pid: cmd.Process.Pid, done: make(chan struct{})}
	go func() { // ends with the command
		err := cmd.Wait()
		if !errors.Is(err, exec.ErrWaitDelay) { // it left something behind, and was content
			c.err = err
		}
		out.flush()
		close(c.done)
	}()
	return c, nil
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
		if !whole && len(l.rest) <= checkLine {
			return len(b), nil
		}
		if len(line) > checkLine {
			line, rest = l.rest[:checkLine], l.rest[checkLine:]
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

// needShell looks for what runs the checks before anything is started.
func (p *prechecks) needShell() error {
	for _, c := range p.commands {
		if strings.TrimSpace(c) == "" {
			return &failure{code: exitUsage, text: "--precheck is empty", hint: "give the command that tries the next version"}
		}
	}
	if len(p.commands) == 0 {
		return nil
	}
	if _, err := exec.LookPath("sh"); err != nil {
		return &failure{code: exitRefused, text: "prechecks need a shell, and sh is not found", err: err}
	}
	return nil
}

// unchecked says that CMD must not serve yet.
func (u *upgrade) unchecked() bool { return !u.checks.over && u.checks.passed < len(u.checks.commands) }

// beforeCommit does what is due at p while checks are still to pass.
func (u *upgrade) beforeCommit(ctx context.Context, p progress) error {
	g := p.successor
	switch {
	case p.outcome == handoff.OutcomeServing:
		// Nobody served, so there is nothing between standby and commit.
		u.a.say("note", "nobody served, so no precheck was run")
		u.checks.over = true
	case p.rank() >= ranks[handoff.OutcomeCommitted]:
		return u.tooEarly(ctx, p)
	case g == nil:
	case g.Takeover == "auto":
		return &failure{code: exitRefused, text: "CMD takes over as auto, which leaves no time for prechecks", hint: standbyHint}
	case isSpare(*g):
		return startedSpare()
	case g.State == "standby" && u.checks.running == nil:
		return u.startNext(g.Generation)
	}
	return nil
}

const standbyHint = "start it with --takeover standby: HANDOFF_TAKEOVER=standby did not reach it, or it does not heed that"

// startNext starts the check that is next.
func (u *upgrade) startNext(generation uint64) error {
	u.a.say("precheck", u.checks.label())
	socket, err := filepath.Abs(u.f.c.Socket)
	if err != nil {
		return err
	}
	u.checks.running, err = u.a.startCheck(u.checks.commands[u.checks.passed], []string{
		handoff.EnvSocket + "=" + socket, handoff.EnvRequest + "=" + u.t.request, "HANDOFF_GENERATION=" + strconv.FormatUint(generation, 10),
	})
	if err != nil {
		return &failure{code: exitRefused, text: fmt.Sprintf("%s can't be run: %v", u.checks.label(), err), err: err}
	}
	return nil
}

// checked judges the check that has just ended.
func (u *upgrade) checked() error {
	err := u.checks.running.err
	u.checks.running = nil
	if err == nil {
		u.checks.passed++
		return nil
	}
	f := &failure{code: exitRefused, text: fmt.Sprintf("%s did not pass: %v", u.checks.label(), err), err: err}
	return u.atCheck(f)
}

// atCheck makes f a failure of the check that is next or ran.
func (u *upgrade) atCheck(f *failure) *failure {
	u.r.Precheck = u.checks.commands[u.checks.passed]
	if u.child != nil {
		f.hint = "what CMD wrote is in " + u.child.log
	}
	return f
}

// endCheck ends the check that runs, and says whether one did.
func (u *upgrade) endCheck() bool {
	if u.checks.running == nil {
		return false
	}
	u.checks.running.end(endTime)
	u.checks.running = nil
	return true
}

// tooEarly is the failure for a CMD that has the service although not all checks
// have passed. One that took it by itself is taken back from; what an operator
// did, or the incumbent's end, stays. Nothing is left to be given up then.
func (u *upgrade) tooEarly(ctx context.Context, p progress) *failure {
	u.endCheck()
	u.final = true
	f := &failure{
		code: exitUnknown, text: fmt.Sprintf("generation %d serves although the prechecks have not passed", p.generation),
		hint: "somebody else handed over to it, or its incumbent ended; handoffctl rollback takes back until it is released",
	}
	if p.successor != nil && p.successor.Takeover == "auto" {
		f.hint = standbyHint
		if p.outcome == handoff.OutcomeCommitted {
			ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
			defer cancel()
			if _, err := u.f.c.Rollback(ctx); err == nil {
				f.code, u.r.Outcome = exitRefused, handoff.OutcomeRolledBack
				f.text = fmt.Sprintf("generation %d took over before the prechecks had passed, and was rolled back", p.generation)
			}
		}
	}
	return u.leftRunning(u.serving(ctx, f), "it ends by itself, or serves")
}
