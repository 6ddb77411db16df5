package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
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
It runs in a session of its own, with HANDOFF_SOCKET, HANDOFF_REQUEST and any
HANDOFF_SHARED_KEY set, and outlives this command. A standby is told to serve,
unless --wait=standby. Where nobody serves yet, CMD becomes the first generation.

Before the commit, a failure or --timeout ends the attempt: the request is
withdrawn and CMD is ended (exit 1). After it, --timeout ends only the waiting
(exit 4), as an interrupt always does. Repeating a --request-id never starts CMD
twice: it waits for that request, or says how it ended.

Each --precheck is a shell command that is run while CMD stands by, with
HANDOFF_SOCKET, HANDOFF_REQUEST and HANDOFF_GENERATION (CMD's number) set. CMD
gets HANDOFF_TAKEOVER=standby to that end. The first that fails, --timeout or an
interrupt ends the attempt: nothing has changed then (exit 1). Where nobody
serves yet none is run. Once committed a repeated --request-id runs none again.

Each --check is one that is run while CMD serves in probation, in rounds until
the release. The first that fails, and one that has not passed once when the
probation is nearly over, rolls back (exit 1), and so does --timeout or an
interrupt before all have passed once. It needs a probation in the version that
runs. If this command is killed the handoff goes on without checks.`,
		Example: `  handoffctl upgrade -- ./app-v2 --config app.toml
  handoffctl upgrade --precheck 'curl -f localhost:81' --check 'curl -f localhost' -- ./app-v2 --preview localhost:81
  handoffctl upgrade -- systemd-run -E HANDOFF_SOCKET -E HANDOFF_REQUEST -E HANDOFF_TAKEOVER app-v2`,
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
			if err := needShell("precheck", u.prechecks.commands); err != nil {
				return err
			}
			if err := needShell("check", u.checks.commands); err != nil {
				return err
			}
			if err := u.checks.usage(cmd, wait.value); err != nil {
				return err
			}
			u.argv, u.wait = args, wait.value
			return a.ask(cmd, u.run)
		},
	}
	choiceFlag(cmd, wait, "wait", "what to wait `FOR`")
	requestFlag(cmd, &u.t.request)
	cmd.Flags().StringArrayVar(&u.prechecks.commands, "precheck", nil, "shell `COMMAND` that CMD must pass before it is committed; repeatable, run in order")
	cmd.Flags().StringArrayVar(&u.checks.commands, "check", nil, "shell `COMMAND` that CMD must pass in probation; repeatable, run in rounds")
	cmd.Flags().DurationVar(&u.checks.interval, "check-interval", time.Second, "`DURATION` between two rounds of checks")
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
	a         *app
	f         *follower
	r         *result
	t         target
	wait      string
	logPath   string
	argv      []string
	prechecks prechecks
	checks    checks
	final     bool   // the failure is: there is nothing to withdraw or to end
	child     *child // nil if CMD was not started by this run
	unlock    func() // lets other runs with the same request id look
	before    uint64 // the generation that answered at the beginning; 0: nobody did
	said      []string
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
	if err != nil && u.child != nil && u.r.Precheck == "" && u.r.Check == "" && !errors.Is(ctx.Err(), context.Canceled) && explain(err).code != exitCut {
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
	u.prechecks.over = known.rank() >= ranks[handoff.OutcomeCommitted] // an earlier run saw to them
	u.checks.over = known.reached(handoff.OutcomeReleased)
	switch {
	case known.failed():
		f := explain(ended(u.r, known, u.f.last))
		f.hint = "CMD was not started: another --request-id makes a new attempt"
		return f
	case known.outcome != "" && known.reached(u.wait) && !u.prechecks.pending():
		u.r.Outcome, u.r.Generation = known.outcome, known.generation
		err := succeeded(u.r, u.f.last, u.wait)
		u.r.Text = fmt.Sprintf("request %s is finished, CMD was not started: %s", u.t.request, u.r.Text)
		return err
	case known.outcome == "":
		if err := u.mayStart(); err != nil {
			return err
		}
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
		f := explain(err)
		if isTimeout(err) {
			// It may be stopped or hung; a successor would wait for it as well.
			f = &failure{
				code: exitUnknown, text: fmt.Sprintf("the process at %s does not answer", u.f.c.Socket), err: err,
				hint: "it may be stopped or hung: look at it, and end it if it stays so",
			}
		}
		f.text += "; CMD was not started"
		return progress{}, f
	}
	u.f.last, u.f.seen, u.before = st, true, st.Generation
	return u.t.in(st), nil
}

// mayStart says why CMD had better not be started.
func (u *upgrade) mayStart() error {
	if g := silentDecider(u.f.last); g != nil {
		return &failure{code: exitUnknown, text: silence(*g) + "; CMD was not started", hint: silenceRemedy(u.f.last)}
	}
	if err := u.needProbation(u.f.last); err != nil {
		f := explain(err)
		f.text += "; CMD was not started"
		return f
	}
	return nil
}

// environment is what CMD, and what tries it, has to know.
func (u *upgrade) environment() ([]string, error) {
	socket, err := filepath.Abs(u.f.c.Socket)
	if err != nil {
		return nil, err
	}
	env := []string{handoff.EnvSocket + "=" + socket, handoff.EnvRequest + "=" + u.t.request}
	if u.a.keyFile == "" {
		return env, nil
	}
	key, err := filepath.Abs(u.a.keyFile)
	return append(env, envKeyFile+"="+key), err
}

func (u *upgrade) start(path string) error {
	env, err := u.environment()
	if err != nil {
		return err
	}
	if len(u.prechecks.commands) > 0 {
		env = append(env, handoff.EnvTakeover+"=standby")
	}
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
	defer u.checks.stop()
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
		case <-u.prechecks.done():
			err, done := u.prechecked(), false
			if err == nil {
				done, err = u.see(ctx, update{st: u.f.last})
			}
			if done || err != nil {
				stop()
				return u.conclude(ctx, err)
			}
		case <-u.checks.ended():
			if err := u.checked(); err != nil {
				stop()
				return u.takeBack(ctx, explain(err))
			}
		case <-u.checks.due():
			if err := u.nextRound(); err != nil {
				stop()
				return u.takeBack(ctx, explain(err))
			}
		case <-u.checks.nearlyOver():
			stop()
			return u.takeBack(ctx, u.tooSlow())
		case <-exited:
			if exited = nil; u.child.err == nil {
				continue // it started the server elsewhere
			}
			stop()
			return u.giveUp(ctx, &failure{text: fmt.Sprintf("CMD ended: %v", u.child.err)}, true)
		case <-ctx.Done():
			stop()
			return u.timeUp(ctx)
		}
	}
}

// timeUp ends a wait whose time ran out, or that was interrupted.
func (u *upgrade) timeUp(ctx context.Context) error {
	prechecking := u.endPrecheck()
	switch {
	case !errors.Is(ctx.Err(), context.DeadlineExceeded):
		return u.interrupted(ctx)
	case prechecking:
		text := fmt.Sprintf("time ran out after %v, %s still ran", u.a.timeout, u.prechecks.label())
		return u.giveUp(ctx, u.atPrecheck(&failure{text: text}), false)
	case u.checks.running != nil && u.checks.pending():
		text := fmt.Sprintf("time ran out after %v, %s has not passed", u.a.timeout, u.checks.label())
		return u.giveUp(ctx, u.atCheck(&failure{text: text}), false)
	}
	text := fmt.Sprintf("time ran out after %v, not %s yet", u.a.timeout, u.wait)
	if u.r.Outcome == "" {
		// It may have come since the last status.
		if st := u.f.look(ctx); st == nil || u.t.in(st).outcome == "" {
			text += ": CMD " + u.absent()
		}
	}
	return u.giveUp(ctx, &failure{text: text}, false)
}

// absent says why nothing is known of CMD.
func (u *upgrade) absent() string {
	if w := u.held(); w != nil {
		return "waits to be let in (" + words(w.Reason) + ")"
	}
	return "has not connected to the control socket"
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
	if p.outcome != "" && !u.prechecks.pending() && !u.checks.watching() {
		u.unlock() // another run would check too
	}
	u.r.Outcome, u.r.Generation, u.r.Reason = p.outcome, p.generation, p.reason
	u.notes(p)
	if p.failed() {
		return false, ended(u.r, p, up.st)
	}
	if u.prechecks.pending() {
		if err := u.beforeCommit(ctx, p); err != nil || u.prechecks.pending() {
			return false, err
		}
	}
	if u.checks.watching() {
		if err := u.inProbation(ctx, up.st, p); err != nil {
			return false, err
		}
	}
	switch {
	case p.reached(u.wait):
		return true, nil
	case p.outcome == handoff.OutcomeStandby && p.successor != nil && p.successor.Takeover != "auto":
		return false, u.commit(ctx, *p.successor)
	}
	return false, nil
}

// notes says once what a deployer would want to know while he waits.
func (u *upgrade) notes(p progress) {
	var notes []string
	if w := u.held(); w != nil {
		notes = append(notes, "CMD is not let in yet: "+w.Text)
	}
	for _, g := range u.f.last.Generations {
		if g.Generation < p.generation && len(g.Unclaimed) > 0 && p.rank() >= ranks[handoff.OutcomeStandby] {
			notes = append(notes, "CMD does not take "+strings.Join(g.Unclaimed, ", ")+": closed at release")
		}
	}
	for _, n := range notes {
		if !slices.Contains(u.said, n) {
			u.said = append(u.said, n)
			u.a.say("note", n)
		}
	}
}

// commit tells the incumbent to hand over to the standby that CMD started.
func (u *upgrade) commit(ctx context.Context, g handoff.GenerationStatus) error {
	if isSpare(g) {
		return startedSpare()
	}
	_, err := u.f.c.Handover(ctx, u.t.request)
	var no *handoff.RemoteError
	if !errors.As(err, &no) {
		return nil // whatever was lost, the next status shows
	}
	if no.Code == handoff.CodeSilent {
		// It may answer again, or end and leave the service to CMD: that is waited for.
		u.a.say("note", "the handover waits: "+no.Error())
		return nil
	}
	if st := u.f.look(ctx); st != nil && u.t.in(st).outcome != handoff.OutcomeStandby {
		return nil // it was overtaken by events
	}
	return err
}

func startedSpare() error {
	return &failure{
		code: exitRefused, text: "CMD started a spare, which serves only after the incumbent's death",
		hint: "start it as auto or standby, or use --wait=standby",
	}
}

// conclude ends a wait that was decided by a status, or by an error.
func (u *upgrade) conclude(ctx context.Context, err error) error {
	u.endPrecheck()
	if err == nil {
		return succeeded(u.r, u.f.last, u.wait)
	}
	if u.final {
		return err
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
