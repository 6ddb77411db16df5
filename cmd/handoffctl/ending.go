package main

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

// The verbs that end a process, and the waiting for that.

func newDrain(a *app) *cobra.Command {
	wait := &choice{value: waitDrained, words: []string{waitAccepted, waitDrained}}
	cmd := &cobra.Command{
		Use:   "drain",
		Short: "Take the service out on this machine: nobody succeeds, and it finishes what is open",
		Long: `A successor that waits or starts is sent away and no other is let in. Then the
process that serves turns its readiness false, stops accepting, finishes what is
open within its drain timeout, and ends. While it does, how far it got is
printed on stderr. In probation it is refused: wait, or roll back.`,
		Example: `  handoffctl drain
  handoffctl drain --wait=accepted
  handoffctl drain --timeout 10m --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd, func(ctx context.Context, c *handoff.Client) error {
				e := ending{command: "drain", verb: "drains", ask: c.Drain}
				if wait.value == waitDrained {
					e.askAndWait = c.DrainAndWait
				}
				return a.end(ctx, c, e)
			})
		},
	}
	choiceFlag(cmd, wait, "wait", "what to wait `FOR`")
	a.timeoutFlag(cmd, waitTimeout)
	return cmd
}

func newStop(a *app) *cobra.Command {
	wait := &choice{value: waitDrained, words: []string{waitAccepted, waitDrained}}
	var generation uint64
	cmd := &cobra.Command{
		Use:   "stop",
		Short: "Stop the process that answers, or one generation, and wait until it is gone",
		Long: `It does what SIGTERM does: with a standby it hands over, and otherwise it
drains and ends. How far it got is printed on stderr meanwhile.

With --generation it is about that one. If it drains, or was revoked, it closes
at once what it has open, which counts as done (exit 0) and is said; one that
waits or starts is sent away; the one that answers is stopped as above. One that
serves in probation is not stopped: roll back instead.`,
		Example: `  handoffctl stop
  handoffctl stop --generation 3 --timeout 5s
  handoffctl stop --wait=accepted --json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("generation") && generation == 0 {
				return &failure{code: exitUsage, text: "--generation counts from 1", hint: "handoffctl status lists the living ones"}
			}
			return a.ask(cmd, func(ctx context.Context, c *handoff.Client) error {
				e := ending{command: "stop", verb: "stops", generation: generation, ask: c.Stop, askAndWait: c.StopAndWait}
				if generation != 0 {
					e.ask = func(ctx context.Context) (handoff.Answer, error) { return c.StopGeneration(ctx, generation) }
					e.askAndWait = func(ctx context.Context) (handoff.Answer, error) {
						return c.StopGenerationAndWait(ctx, generation)
					}
				}
				if wait.value == waitAccepted {
					e.askAndWait = nil
				}
				return a.end(ctx, c, e)
			})
		},
	}
	choiceFlag(cmd, wait, "wait", "what to wait `FOR`")
	cmd.Flags().Uint64Var(&generation, "generation", 0, "`NUMBER` of the generation to stop (default the one that answers)")
	a.timeoutFlag(cmd, waitTimeout)
	return cmd
}

// ending is a verb that ends a process.
type ending struct {
	command    string
	verb       string // what the process does then
	generation uint64 // which one is to end; 0 is the one that answers
	ask        func(context.Context) (handoff.Answer, error)
	askAndWait func(context.Context) (handoff.Answer, error) // nil: the answer is enough
}

func (a *app) end(ctx context.Context, c *handoff.Client, e ending) error {
	r := a.newResult(e.command, c)
	f := &follower{c: c}
	err := a.endAndWait(ctx, f, r, e)
	return a.finish(r, f.last, err)
}

func (a *app) endAndWait(ctx context.Context, f *follower, r *result, e ending) error {
	st, err := f.c.Status(ctx)
	if err != nil {
		return err
	}
	f.last, f.seen = st, true
	r.Generation = st.Generation
	if e.generation != 0 {
		r.Generation = e.generation
		switch {
		case lives(st, e.generation):
		case e.generation < st.Generation: // a number that was given before
			r.Outcome, r.Text = waitDrained, fmt.Sprintf("generation %d is gone already: %s", e.generation, whoServes(st))
			return nil
		default:
			return &failure{code: exitRefused, text: fmt.Sprintf("no generation %d lives: %s", e.generation, whoServes(st))}
		}
	}
	if e.askAndWait == nil {
		answer, err := e.ask(ctx)
		if err != nil {
			return e.refused(err, f)
		}
		r.Outcome, r.Changed = waitAccepted, !answer.Already
		r.Text = fmt.Sprintf("accepted: generation %d %s", r.Generation, e.verb)
		return nil
	}
	m := &meter{a: a, generation: r.Generation}
	f.c.Progress = func(st *handoff.Status) { f.last = st; m.show(st) }
	answer, err := e.askAndWait(ctx)
	f.c.Progress = nil
	switch {
	case ctx.Err() != nil && errors.Is(err, ctx.Err()) && answer.Generation != 0:
		return f.stopped(ctx, a.timeout, fmt.Sprintf("generation %d is not gone yet", r.Generation))
	case errors.Is(err, handoff.ErrNoAnswer) && !lives(f.look(ctx), r.Generation):
		// It took the answer with it.
	case err != nil:
		return e.refused(err, f)
	}
	return e.done(r, st, f.look(ctx), answer)
}

// refused adds which generations live, where another one was named.
func (e ending) refused(err error, f *follower) error {
	var no *handoff.RemoteError
	if e.generation == 0 || !errors.As(err, &no) || no.Code != handoff.CodeNotNow {
		return err
	}
	return &failure{code: exitRefused, text: no.Error() + ": " + whoServes(f.last), hint: no.Hint, err: err}
}

// done fills in r when the generation is gone. before and now are the status
// then and now; now is nil if nobody answers.
func (e ending) done(r *result, before, now *handoff.Status, answer handoff.Answer) error {
	if r.Generation == before.Generation && answer.Generation != 0 {
		r.Generation = answer.Generation // who answered may have changed meanwhile
	}
	r.Outcome, r.Changed, r.Cut = waitDrained, !answer.Already, answer.Cut
	r.Text = fmt.Sprintf("generation %d is gone: %s", r.Generation, whoServes(now))
	if r.Generation == before.Generation {
		return cutFailure(r)
	}
	// Of an older one, cutting is what was asked for.
	if now != nil && now.Last != nil && now.Last.From == r.Generation {
		r.Cut = now.Last.Cut
	}
	if what := counts(r.Cut); what != "" {
		r.Text += "; cut: " + what
	}
	return nil
}

func lives(st *handoff.Status, generation uint64) bool {
	return st != nil && len(inState(st, func(g handoff.GenerationStatus) bool { return g.Generation == generation })) > 0
}

// meterPause is how often the same is said again, with less time left.
const meterPause = 10 * time.Second

// meter shows on stderr how a generation comes to its end.
type meter struct {
	a          *app
	generation uint64
	said       string // what was shown last, the time left aside
	at         time.Time
}

// show prints a line if there is something new, or if nothing was for long.
func (m *meter) show(st *handoff.Status) {
	for _, g := range st.Generations {
		if g.Generation != m.generation {
			continue
		}
		what := goingOn(g)
		if what == m.said && time.Since(m.at) < meterPause {
			return
		}
		m.said, m.at = what, time.Now()
		if g.LeftSeconds > 0 {
			what += ", " + age(g.LeftSeconds) + " left"
		}
		m.a.say("progress", what)
		return
	}
}

// goingOn says what a generation that ends does, and what it waits for.
func goingOn(g handoff.GenerationStatus) string {
	parts := []string{situation(g)}
	if open := counts(g.Open); open != "" {
		parts = append(parts, "open: "+open)
	}
	if holds := counts(g.Holds); holds != "" {
		parts = append(parts, "held by: "+holds)
	}
	return strings.Join(parts, ", ")
}
