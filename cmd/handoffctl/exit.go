package main

import (
	"context"
	"errors"
	"fmt"
	"os"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

// Exit codes, the same for every command, decided from the state at the end.
const (
	exitDone       = 0
	exitRefused    = 1
	exitUsage      = 2
	exitNobody     = 3
	exitUnknown    = 4
	exitPermission = 5
	exitCut        = 6
	exitNotRun     = 126
	exitNotFound   = 127
)

type exitCode struct {
	code        int
	meaning     string
	upgradeOnly bool
}

// exitCodes says what each means; the help and the man pages show it.
var exitCodes = []exitCode{
	{exitDone, "done, or already so", false},
	{exitRefused, "refused, failed or rolled back: what served before still serves", false},
	{exitUsage, "wrong usage, or the path is not that of a control socket", false},
	{exitNobody, "nobody answers at the socket", false},
	{exitUnknown, "time ran out, or the answer was lost: the outcome is not known yet", false},
	{exitPermission, "not permitted", false},
	{exitCut, "done, but connections were cut at the drain deadline", false},
	{exitNotRun, "CMD can't be run", true},
	{exitNotFound, "CMD is not found", true},
}

// exitCodesOf are those that a command may end with; the program's are all.
func exitCodesOf(cmd *cobra.Command) (codes []exitCode) {
	for _, e := range exitCodes {
		if !e.upgradeOnly || cmd.Name() == "upgrade" || !cmd.HasParent() {
			codes = append(codes, e)
		}
	}
	return codes
}

// failure is an error that knows its exit code and what to do about it.
type failure struct {
	code int
	text string
	hint string
	err  error // the cause, or nil
}

func (f *failure) Error() string { return f.text }
func (f *failure) Unwrap() error { return f.err }

// causes maps what the client reports to an exit code and a remedy. The first
// that matches counts.
var causes = []struct {
	is   error
	code int
	hint string
}{
	{handoff.ErrNobody, exitNobody, "start the service, or name its socket with --socket or HANDOFF_SOCKET"},
	{handoff.ErrPermission, exitPermission, "run this as the service's user or as root, name the service's user with --allow-uid, or its key with --shared-key"},
	{handoff.ErrNotHandoff, exitUsage, "--socket must name the path that the service was started with"},
	{handoff.ErrNotSocket, exitUsage, "--socket must name the path that the service was started with"},
	{handoff.ErrPathTooLong, exitUsage, ""},
	{handoff.ErrNoAnswer, exitUnknown, "handoffctl status shows what became of it"},
	{handoff.ErrBadAnswer, exitUnknown, "is --socket the right one, and handoffctl of the service's version?"},
	{context.DeadlineExceeded, exitUnknown, "the process is alive but does not answer, or --timeout is too short"},
	{os.ErrDeadlineExceeded, exitUnknown, "the process is alive but does not answer, or --timeout is too short"},
	{context.Canceled, exitUnknown, "what was asked for before goes on; handoffctl status shows it"},
}

// explain turns any error into a failure. nil stays nil.
func explain(err error) *failure {
	if err == nil {
		return nil
	}
	var f *failure
	if errors.As(err, &f) {
		return f
	}
	f = &failure{code: exitRefused, text: err.Error(), err: err}
	var op *handoff.OpError
	if errors.As(err, &op) {
		f.text = fmt.Sprintf("%s: %v", op.Path, op.Err)
	}
	var no *handoff.RemoteError
	if errors.As(err, &no) {
		f.text, f.hint = no.Error(), no.Hint
		if no.Code == handoff.CodePermission {
			f.code = exitPermission
		}
		return f
	}
	for _, c := range causes {
		if errors.Is(err, c.is) {
			f.code, f.hint = c.code, c.hint
			break
		}
	}
	return f
}

// report prints err, if any, and returns the exit code.
func (a *app) report(err error) int {
	f := explain(err)
	if f == nil {
		return exitDone
	}
	if f.text != "" {
		a.say("error", f.text)
	}
	if f.hint != "" {
		a.say("hint", f.hint)
	}
	return f.code
}
