package main

import (
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

func newUpgrade(a *app) *cobra.Command {
	u := &upgrade{a: a}
	wait := &choice{
		value: handoff.OutcomeReleased,
		words: []string{handoff.OutcomeStandby, handoff.OutcomeCommitted, handoff.OutcomeReleased, waitDrained},
	}
	cmd := &cobra.Command{
		Use:   "upgrade [flags] -- CMD [ARG...]",
		Short: "Start the next version and wait until it has taken over",
		Long: `CMD is the server itself, or something that starts it elsewhere and exits 0.
It runs in a session of its own, with HANDOFF_SOCKET and HANDOFF_REQUEST set,
and outlives this command. A standby is told to serve, unless --wait=standby.
Where nobody serves yet, CMD becomes the first generation.

Before the commit, a failure or --timeout ends the attempt: the request is
withdrawn and CMD is ended (exit 1). After it, --timeout ends only the waiting
(exit 4), as an interrupt always does. Repeating a --request-id never starts CMD
twice: it waits for that request, or says how it ended.`,
		Example: `  handoffctl upgrade -- ./app-v2 --config app.toml
  handoffctl upgrade --wait=drained --timeout 5m --log /var/log/app.log -- ./app-v2
  handoffctl upgrade --request-id deploy-42 -- systemctl start app@v2`,
		Args: func(cmd *cobra.Command, args []string) error {
			switch {
			case len(args) == 0:
				return &failure{code: exitUsage, text: "CMD is missing", hint: "handoffctl upgrade [flags] -- CMD [ARG...]"}
			case cmd.ArgsLenAtDash() != 0:
				return &failure{code: exitUsage, text: "-- must stand between the flags and CMD", hint: "handoffctl upgrade [flags] -- CMD [ARG...]"}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := checkRequest(cmd, u.t.request); err != nil {
				return err
			}
			u.argv, u.wait = args, wait.value
			return a.ask(cmd, u.run)
		},
	}
	choiceFlag(cmd, wait, "wait", "what to wait `FOR`")
	requestFlag(cmd, &u.t.request)
	cmd.Flags().StringVar(&u.logPath, "log", "", "`FILE` to which the output of CMD is appended (default a temporary one)")
	a.timeoutFlag(cmd, waitTimeout)
	return cmd
}

const (
	// withdrawTime bounds the taking back of a request after the time ran out.
	withdrawTime = 5 * time.Second
	// settleTime is how long a committed successor whose command failed is watched
	// for what becomes of it.
	settleTime = 2 * time.Second
)

// upgrade is one run of the command.
type upgrade struct {
	a       *app
	f       *follower
	r       *result
	t       target
	wait    string
	logPath string
	argv    []string
	child   *child // nil if CMD was not started by this run
	unlock  func() // lets other runs with the same request id look
}

func (u *upgrade) run(ctx context.Context, c *handoff.Client) error {
	path, err := findCommand(u.argv[0])
	if err != nil {
		return err
	}
	if u.t.request == "" {
		u.t.request = "upgrade-" + strings.ToLower(rand.Text()[:12])
	}
	u.f, u.r = &follower{c: c}, u.a.newResult("upgrade", c)
	u.r.Request = u.t.request
	err = u.upgrade(ctx, path)
	if err != nil && u.child != nil && !errors.Is(ctx.Err(), context.Canceled) && explain(err).code != exitCut {
		u.a.showTail(u.child)
	}
	return u.a.finish(u.r, u.f.last, err)
}

// upgrade starts CMD unless the request is known already, and waits.
func (u *upgrade) upgrade(ctx context.Context, path string) error {
	var err error
	if u.unlock, err = lockRequest(ctx, u.f.c.Socket, u.t.request); err != nil {
		return err
	}
	defer u.unlock()
	known, err := u.known(ctx)
	if err != nil {
		return err
	}
	switch {
	case known.failed():
		f := explain(ended(u.r, known, u.f.last))
		f.hint = "CMD was not started: another --request-id makes a new attempt"
		return f
	case known.outcome != "" && known.reached(u.wait):
		u.r.Outcome, u.r.Generation = known.outcome, known.generation
		err := succeeded(u.r, u.f.last, u.wait)
		u.r.Text = fmt.Sprintf("request %s is finished, CMD was not started: %s", u.t.request, u.r.Text)
		return err
	case known.outcome == "":
		if err := u.start(path); err != nil {
			return err
		}
	}
	u.r.Changed = true
	return u.follow(ctx)
}

// known asks how far the request got in an earlier run.
func (u *upgrade) known(ctx context.Context) (progress, error) {
	ctx, cancel := context.WithTimeout(ctx, answerTimeout)
	defer cancel()
	st, err := u.f.c.Status(ctx)
	if errors.Is(err, handoff.ErrNobody) {
		return progress{}, nil // CMD will be the first
	}
	if err != nil {
		return progress{}, err
	}
	u.f.last, u.f.seen = st, true
	return u.t.in(st), nil
}

func (u *upgrade) start(path string) error {
	socket, err := filepath.Abs(u.f.c.Socket)
	if err != nil {
		return err
	}
	env := []string{"HANDOFF_SOCKET=" + socket, "HANDOFF_REQUEST=" + u.t.request}
	u.child, err = startChild(path, u.argv, env, u.logPath, u.t.request)
	if err != nil {
		return err
	}
	u.r.PID, u.r.Log = u.child.pid, u.child.log
	if u.logPath == "" {
		u.a.say("log", u.child.log)
	}
	return nil
}

// update is what the watching goroutine of follow has to say.
type update struct {
	st  *handoff.Status // nil if nobody answers
	err error
}

// follow waits for the wanted outcome, CMD's failure, or the end of ctx.
func (u *upgrade) follow(ctx context.Context) error {
	updates, stop := u.watch(ctx)
	defer func() { stop() }()
	var exited chan struct{} // nil when there is nothing to wait for
	if u.child != nil {
		exited = u.child.done
	}
	if done, err := u.see(ctx, update{st: u.f.last}); done || err != nil {
		stop()
		return u.conclude(ctx, err)
	}
	for {
		select {
		case up := <-updates:
			if isTimeout(up.err) {
				// The question met its own deadline: the case below says it.
				updates = nil
				continue
			}
			if done, err := u.see(ctx, up); done || err != nil {
				stop()
				return u.conclude(ctx, err)
			}
		case <-exited:
			if exited = nil; u.child.err == nil {
				continue // it started the server elsewhere
			}
			stop()
			return u.giveUp(ctx, &failure{text: fmt.Sprintf("CMD ended: %v", u.child.err)}, true)
		case <-ctx.Done():
			stop()
			if !errors.Is(ctx.Err(), context.DeadlineExceeded) {
				return u.interrupted(ctx)
			}
			text := fmt.Sprintf("time ran out after %v, not %s yet", u.a.timeout, u.wait)
			if u.r.Outcome == "" {
				text += ": CMD has not connected to the control socket"
			}
			return u.giveUp(ctx, &failure{text: text}, false)
		}
	}
}

func isTimeout(err error) bool {
	return errors.Is(err, os.ErrDeadlineExceeded) || errors.Is(err, context.DeadlineExceeded)
}

// watch sends each new status until stop is called, which joins the goroutine
// and may be called twice. Between the two, the follower is the goroutine's.
func (u *upgrade) watch(ctx context.Context) (<-chan update, func()) {
	ctx, cancel := context.WithCancel(ctx)
	updates, done := make(chan update), make(chan struct{})
	f := *u.f
	go func() {
		defer close(done)
		for {
			st, err := f.next(ctx)
			if ctx.Err() != nil {
				return
			}
			select {
			case updates <- update{st: st, err: err}:
			case <-ctx.Done():
				return
			}
			if err != nil {
				return
			}
		}
	}()
	return updates, func() { cancel(); <-done }
}

// see judges one update. done says that the wanted outcome is reached.
func (u *upgrade) see(ctx context.Context, up update) (done bool, err error) {
	if up.err != nil {
		return false, up.err
	}
	if u.f.last = up.st; up.st == nil {
		return false, nil
	}
	u.f.seen = true
	p := u.t.in(up.st)
	if p.outcome != "" {
		u.unlock()
	}
	u.r.Outcome, u.r.Generation, u.r.Reason = p.outcome, p.generation, p.reason
	switch {
	case p.failed():
		return false, ended(u.r, p, up.st)
	case p.reached(u.wait):
		return true, nil
	case p.outcome == handoff.OutcomeStandby && p.successor != nil && p.successor.Takeover != "auto":
		return false, u.commit(ctx, *p.successor)
	}
	return false, nil
}

// commit tells the incumbent to hand over to the standby that CMD started.
func (u *upgrade) commit(ctx context.Context, g handoff.GenerationStatus) error {
	if isSpare(g) {
		return &failure{
			code: exitRefused, text: "CMD started a spare, which serves only after the incumbent's death",
			hint: "start it as auto or standby, or use --wait=standby",
		}
	}
	_, err := u.f.c.Handover(ctx, u.t.request)
	var no *handoff.RemoteError
	if !errors.As(err, &no) {
		return nil // whatever was lost, the next status shows
	}
	if st := u.f.look(ctx); st != nil && u.t.in(st).outcome != handoff.OutcomeStandby {
		return nil // it was overtaken by events
	}
	return err
}

// conclude ends a wait that was decided by a status, or by an error.
func (u *upgrade) conclude(ctx context.Context, err error) error {
	if err == nil {
		return succeeded(u.r, u.f.last, u.wait)
	}
	switch u.r.Outcome {
	case handoff.OutcomeRolledBack:
		// It may have connections to finish, and ends by itself.
		return u.leftRunning(explain(err), "it was told to end")
	case handoff.OutcomeFailed, handoff.OutcomeWithdrawn:
		u.withdraw(ctx) // so that a late one of the same attempt is refused
		return u.endChild(explain(err))
	}
	return u.giveUp(ctx, explain(err), false)
}

// giveUp ends the attempt if it can be ended. The exit code follows from the
// state that is found then.
func (u *upgrade) giveUp(ctx context.Context, why *failure, commandFailed bool) error {
	if done, err := u.decided(ctx, why.text, commandFailed); done {
		return err
	}
	err := u.withdraw(ctx)
	var no *handoff.RemoteError
	refused := errors.As(err, &no)
	switch {
	case err == nil:
		f := &failure{code: exitRefused, text: why.text + "; the request is withdrawn", hint: cmp.Or(why.hint, u.blocked())}
		u.r.Outcome = handoff.OutcomeWithdrawn
		return u.endChild(u.serving(ctx, f))
	case !refused && !errors.Is(err, handoff.ErrNobody):
		f := &failure{code: exitUnknown, text: fmt.Sprintf("%s; the request could not be withdrawn: %s", why.text, explain(err).text), err: err}
		return u.leftRunning(f, "it may serve")
	}
	if done, err := u.decided(ctx, why.text, commandFailed); done {
		return err // it was committed in the meantime
	}
	// There is no incumbent that could refuse CMD: it is certain not to come only
	// once it has ended.
	f := &failure{code: exitRefused, text: why.text, hint: why.hint}
	if u.child == nil || !u.child.running() && u.child.err == nil {
		f.code, f.hint = exitUnknown, "what CMD started elsewhere may still come"
	}
	f = u.endChild(f)
	return u.serving(ctx, f)
}

// decided looks whether the request got to where it can't be withdrawn.
func (u *upgrade) decided(ctx context.Context, why string, commandFailed bool) (bool, error) {
	st := u.f.look(ctx)
	if st == nil {
		// Who committed and is silent now may serve.
		if ranks[u.r.Outcome] < ranks[handoff.OutcomeCommitted] || commandFailed {
			return false, nil
		}
		return true, u.leftRunning(&failure{code: exitUnknown, text: why + "; " + u.f.who()}, "it may serve")
	}
	if p := u.t.in(st); commandFailed && p.rank() >= ranks[handoff.OutcomeCommitted] && !p.reached(u.wait) {
		st = u.settle(ctx)
	}
	if st == nil {
		return false, nil
	}
	p := u.t.in(st)
	if p.outcome != "" {
		u.r.Outcome, u.r.Generation, u.r.Reason = p.outcome, p.generation, p.reason
	}
	switch {
	case p.failed():
		f := explain(ended(u.r, p, st))
		f.text = why + "; " + f.text
		return true, u.conclude(ctx, f)
	case p.reached(u.wait):
		return true, succeeded(u.r, st, u.wait)
	case p.rank() >= ranks[handoff.OutcomeCommitted]:
		return true, &failure{
			code: exitUnknown, text: fmt.Sprintf("%s, but %s: %s", why, p.outcome, whoServes(st)),
			hint: "it goes on; handoffctl rollback takes back until it is released",
		}
	}
	return false, nil
}

// settle watches a committed request whose command failed until it is decided.
func (u *upgrade) settle(ctx context.Context) *handoff.Status {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), settleTime)
	defer cancel()
	_ = u.f.until(ctx, func(st *handoff.Status) (bool, error) {
		if st == nil {
			return false, nil
		}
		p := u.t.in(st)
		return p.failed() || p.reached(u.wait), nil
	})
	return u.f.last
}

func (u *upgrade) withdraw(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), withdrawTime)
	defer cancel()
	_, err := u.f.c.Withdraw(ctx, u.t.request)
	return err
}

// serving adds who serves after all of it.
func (u *upgrade) serving(ctx context.Context, f *failure) *failure {
	u.f.look(ctx)
	f.text += "; " + u.f.who()
	return f
}

// blocked is the remedy where another standby was in the way of CMD.
func (u *upgrade) blocked() string {
	if u.f.last == nil {
		return ""
	}
	for _, g := range u.f.last.Generations {
		if g.State == "standby" && !isSpare(g) && g.Request != u.t.request {
			return fmt.Sprintf("%s waits as a standby, and only one successor is let in: hand over to it, or end it", name(g))
		}
	}
	return ""
}

// endChild ends a CMD that came to nothing: never one that has clients.
func (u *upgrade) endChild(f *failure) *failure {
	if u.child != nil && u.serves(u.f.look(context.Background())) {
		return u.leftRunning(f, "it has clients")
	}
	if u.child != nil && u.child.end(endTime) {
		f.text += fmt.Sprintf("; CMD (pid %d) was ended", u.child.pid)
	}
	return f
}

// serves says whether CMD, or what came with its request, accepts or drains.
func (u *upgrade) serves(st *handoff.Status) bool {
	return st != nil && len(inState(st, func(g handoff.GenerationStatus) bool {
		return (g.PID == u.child.pid || g.Request == u.t.request) && g.State != "starting" && g.State != "standby"
	})) > 0
}

func (u *upgrade) leftRunning(f *failure, why string) *failure {
	if u.child != nil && u.child.running() {
		f.text += fmt.Sprintf("; CMD (pid %d) still runs: %s", u.child.pid, why)
	}
	return f
}

// interrupted: a signal ends the waiting, and nothing else.
func (u *upgrade) interrupted(ctx context.Context) error {
	u.f.look(ctx)
	f := u.f.stopped(ctx, u.a.timeout, "not "+u.wait+" yet")
	f.text = fmt.Sprintf("%s; request %s goes on", f.text, u.t.request)
	f.hint = "the same command with --request-id " + u.t.request + " waits for it again"
	return u.leftRunning(f, "it is on its own")
}

// showTail prints the end of what CMD wrote.
func (a *app) showTail(c *child) {
	lines := c.tail()
	if len(lines) == 0 {
		a.say("log", c.log+" has nothing of this run")
		return
	}
	a.say("log", "the end of "+c.log+":")
	for _, line := range lines {
		fmt.Fprintln(a.stderr, "  | "+plain(line))
	}
}
