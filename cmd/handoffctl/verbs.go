package main

import (
	"context"
	"errors"
	"fmt"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

func newHandover(a *app) *cobra.Command {
	wait := &choice{
		value: handoff.OutcomeReleased,
		words: []string{waitAccepted, handoff.OutcomeCommitted, handoff.OutcomeReleased, waitDrained},
	}
	var request string
	cmd := &cobra.Command{
		Use:   "handover",
		Short: "Tell the incumbent to hand over to its standby, and wait for the outcome",
		Long: `With --request-id it may be repeated: a handover that was done, or is under
way, is not asked for again. Time running out, or the end of this command,
changes nothing about the handover.`,
		Example: `  handoffctl handover
  handoffctl handover --wait=drained --timeout 5m
  handoffctl handover --request-id deploy-42 --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := checkRequest(cmd, request); err != nil {
				return err
			}
			return a.ask(cmd, func(ctx context.Context, c *handoff.Client) error {
				return a.handover(ctx, c, request, wait.value)
			})
		},
	}
	choiceFlag(cmd, wait, "wait", "what to wait `FOR`")
	requestFlag(cmd, &request)
	a.timeoutFlag(cmd, waitTimeout)
	return cmd
}

func requestFlag(cmd *cobra.Command, request *string) {
	cmd.Flags().StringVar(request, "request-id", "", "`ID` under which status shows the outcome, and which makes repeating harmless")
}

// maxRequest is how long a request id may be.
const maxRequest = 128

// checkRequest refuses what can't stand in a log line, a table and a shell.
func checkRequest(cmd *cobra.Command, id string) error {
	if len(id) > maxRequest || plain(id) != id {
		return &failure{
			code: exitUsage, text: fmt.Sprintf("--request-id must be printable and at most %d bytes", maxRequest), hint: helpHint(cmd),
		}
	}
	return nil
}

func (a *app) handover(ctx context.Context, c *handoff.Client, request, wait string) error {
	r := a.newResult("handover", c)
	r.Request = request
	f := &follower{c: c}
	err := a.handOver(ctx, f, r, wait)
	return a.finish(r, f.last, err)
}

func (a *app) handOver(ctx context.Context, f *follower, r *result, wait string) error {
	t := target{request: r.Request}
	if t.request != "" {
		st, err := f.c.Status(ctx)
		if err != nil {
			return err
		}
		f.last, f.seen = st, true
		p := t.in(st)
		if p.failed() {
			return ended(r, p, st)
		}
		r.Changed = p.rank() < ranks[handoff.OutcomeCommitted]
	}
	if t.request == "" || r.Changed {
		answer, err := f.c.Handover(ctx, t.request)
		if err != nil {
			return noStandby(err)
		}
		r.Outcome, r.Changed, r.Text = waitAccepted, !answer.Already, answer.Text
		t = target{request: answer.Request, generation: answer.Generation}
		if r.Request == "" {
			r.Request = answer.Request
		}
		r.Generation = answer.Generation
	}
	if wait == waitAccepted {
		r.Text = acceptedText(r)
		return nil
	}
	return a.followTo(ctx, f, t, r, wait)
}

func acceptedText(r *result) string {
	s := "accepted"
	if !r.Changed {
		s = "already asked for"
	}
	if r.Generation != 0 {
		s += fmt.Sprintf(": handover to generation %d", r.Generation)
	}
	return s
}

// noStandby adds the remedy, where the process that refused gave none.
func noStandby(err error) error {
	var no *handoff.RemoteError
	if errors.As(err, &no) && no.Code == handoff.CodeNoStandby && no.Hint == "" {
		return &failure{
			code: exitRefused, text: no.Error(), err: err,
			hint: "start the next version as a standby first, or let handoffctl upgrade start it",
		}
	}
	return err
}

// followTo waits until t got as far as wait, and fills in r.
func (a *app) followTo(ctx context.Context, f *follower, t target, r *result, wait string) error {
	err := f.until(ctx, func(st *handoff.Status) (bool, error) {
		if st == nil {
			return false, nil
		}
		p := t.in(st)
		if p.failed() || p.outcome == "" && p.generation != 0 {
			return true, ended(r, p, st)
		}
		t.generation = p.generation
		r.Outcome, r.Generation = p.outcome, p.generation
		return p.reached(wait), nil
	})
	if ctx.Err() != nil && errors.Is(err, ctx.Err()) {
		return f.stopped(ctx, a.timeout, "not "+wait+" yet")
	}
	if err != nil {
		return err
	}
	return succeeded(r, f.last, wait)
}

// ended is the failure for a handoff that came to a bad end.
func ended(r *result, p progress, st *handoff.Status) error {
	what := "the handoff"
	if r.Request != "" {
		what = "request " + r.Request
	}
	r.Outcome, r.Reason, r.Generation = p.outcome, p.reason, p.generation
	f := &failure{code: exitRefused}
	switch {
	case p.outcome == "":
		// Nobody remembers it, and its successor lives no more.
		f.text = what + " has ended, and the process that answers does not know how"
	case p.reason != "" && p.reason != p.outcome:
		f.text = fmt.Sprintf("%s: %s (%s)", what, words(p.outcome), because(p.outcome, p.reason))
	default:
		f.text = what + ": " + words(p.outcome)
	}
	f.text += "; " + whoServes(st)
	return f
}

// succeeded fills in r; what was done, but cut connections, is a failure of its own.
func succeeded(r *result, st *handoff.Status, wait string) error {
	if wait == waitDrained {
		r.Outcome, r.Cut = waitDrained, cut(st, r.Generation)
	}
	r.Text = r.Outcome + ": " + whoServes(st)
	if !r.Changed {
		r.Text = "already " + r.Text
	}
	return cutFailure(r)
}

func newRollback(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "rollback",
		Short: "Let the incumbent take back the service, which it can until it has released",
		Example: `  handoffctl rollback
  handoffctl --socket /run/app/control.sock rollback
  handoffctl rollback --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd, a.rollback)
		},
	}
	a.timeoutFlag(cmd, answerTimeout)
	return cmd
}

func (a *app) rollback(ctx context.Context, c *handoff.Client) error {
	r := a.newResult("rollback", c)
	f := &follower{c: c}
	answer, err := c.Rollback(ctx)
	if err == nil {
		f.look(ctx)
		r.Outcome, r.Changed, r.Generation, r.Request = handoff.OutcomeRolledBack, !answer.Already, answer.Generation, answer.Request
		r.Text = "rolled back: " + f.who()
	}
	return a.finish(r, f.last, err)
}
