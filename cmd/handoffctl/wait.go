package main

import (
	"context"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

func newWait(a *app) *cobra.Command {
	what := &choice{words: []string{
		handoff.OutcomeStandby, waitServing, handoff.OutcomeCommitted, handoff.OutcomeReleased, waitDrained,
	}}
	cmd := &cobra.Command{
		Use:   "wait --for=STATE",
		Short: "Wait until the service is in a state, and for the socket to appear",
		Long: `  standby    a successor is ready and waits for a handover; spares do not count
  serving    some generation serves
  committed  the newest generation serves; spares do not count
  released   one generation has the service and no handoff is under way;
             standbys and spares may wait, and older generations may drain
  drained    released, and no generation drains any more

To wait for one certain handoff, use the waiting of upgrade and handover.`,
		Example: `  handoffctl wait --for=serving --timeout 30s
  handoffctl wait --for=drained --timeout 0
  handoffctl wait --for=standby && handoffctl handover`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if what.value == "" {
				return &failure{code: exitUsage, text: "--for is missing", hint: helpHint(cmd)}
			}
			return a.ask(cmd, func(ctx context.Context, c *handoff.Client) error {
				return a.waitFor(ctx, c, what.value)
			})
		},
	}
	choiceFlag(cmd, what, "for", "the `STATE` to wait for")
	a.timeoutFlag(cmd, waitTimeout)
	return cmd
}

func (a *app) waitFor(ctx context.Context, c *handoff.Client, what string) error {
	r := a.newResult("wait", c)
	f := &follower{c: c}
	looks := 0
	err := f.until(ctx, func(st *handoff.Status) (bool, error) {
		looks++
		return st != nil && reached(what, st), nil
	})
	switch {
	case err == nil:
		r.Outcome, r.Changed, r.Generation = what, looks > 1, f.last.Generation
		r.Text = what + ": " + whoServes(f.last)
		if what == waitDrained {
			r.Cut = cut(f.last, 0)
			err = cutFailure(r)
		}
	case ctx.Err() != nil:
		err = f.stopped(ctx, a.timeout, "not "+what+" yet")
	}
	return a.finish(r, f.last, err)
}
