package main

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

func newStatus(a *app) *cobra.Command {
	watch := false
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show every living generation, oldest first, and how the last handoff ended",
		Long: `With --watch it prints one line for each change, with --json one object, until
it is interrupted, or as long as --timeout says. It goes on through handoffs,
and while nobody answers.`,
		Example: `  handoffctl status
  handoffctl status --watch --timeout 10m
  handoffctl status --json | jq '.generations[] | select(.state == "serving").pid'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				if !cmd.Flags().Changed("timeout") {
					a.timeout = 0
				}
				return a.ask(cmd, a.watch)
			}
			return a.ask(cmd, a.status)
		},
	}
	cmd.Flags().BoolVar(&watch, "watch", false, "print each change, until interrupted")
	a.timeoutFlag(cmd, answerTimeout)
	return cmd
}

func (a *app) status(ctx context.Context, c *handoff.Client) error {
	st, err := c.Status(ctx)
	if err != nil {
		return err
	}
	if a.json {
		return a.printJSON(st)
	}
	return a.printStatus(st)
}

// ask runs f within --timeout.
func (a *app) ask(cmd *cobra.Command, f func(context.Context, *handoff.Client) error) error {
	c, err := a.client(cmd)
	if err != nil {
		return err
	}
	ctx, cancel, err := a.bounded(cmd)
	if err != nil {
		return err
	}
	defer cancel()
	return f(ctx, c)
}

func (a *app) bounded(cmd *cobra.Command) (context.Context, context.CancelFunc, error) {
	switch {
	case a.timeout < 0:
		return nil, nil, &failure{code: exitUsage, text: "--timeout is negative", hint: helpHint(cmd)}
	case a.timeout == 0:
		ctx, cancel := context.WithCancel(cmd.Context())
		return ctx, cancel, nil
	}
	ctx, cancel := context.WithTimeout(cmd.Context(), a.timeout)
	return ctx, cancel, nil
}

func (a *app) printStatus(st *handoff.Status) error {
	rows := [][]string{{"GENERATION", "STATE", "PID", "AGE", "LABEL", "SOCKETS", "ANSWERED", "OPEN", "HOLDS", "LEFT"}}
	for _, g := range st.Generations {
		state := stateWord(g)
		if isSilent(g) {
			state = g.State + " (silent " + age(g.SilentSeconds) + ")"
		}
		rows = append(rows, []string{
			strconv.FormatUint(g.Generation, 10), state, positive(g.PID), age(g.AgeSeconds), g.Label,
			strconv.Itoa(g.Sockets), strconv.FormatUint(g.Answered, 10), counts(g.Open), counts(g.Holds), timeLeft(g.LeftSeconds),
		})
	}
	if err := a.printTable(rows); err != nil {
		return err
	}
	for _, g := range st.Generations {
		if len(g.Unclaimed) > 0 {
			line := fmt.Sprintf("the successor of generation %d does not take: %s", g.Generation, strings.Join(g.Unclaimed, ", "))
			if err := a.println(plain(line)); err != nil {
				return err
			}
		}
	}
	for _, line := range append(foreignLines(st), movingLines(st)...) {
		if err := a.println(plain(line)); err != nil {
			return err
		}
	}
	for _, w := range st.Waiting {
		if err := a.println(plain(waitingLine(w, st.Time))); err != nil {
			return err
		}
	}
	if g := silentDecider(st); g != nil {
		if err := a.println(plain(silence(*g) + ": " + silenceRemedy(st))); err != nil {
			return err
		}
	}
	return a.println(plain("last handoff: " + lastHandoff(st)))
}

// movingLines say how a drain gets on that moves connections, and who can't move
// them: its drain takes as long as its clients are silent.
func movingLines(st *handoff.Status) (lines []string) {
	for _, g := range st.Generations {
		if g.Moved > 0 {
			verb := "drains"
			if g.State != "draining" {
				verb = "is " + g.State
			}
			lines = append(lines, fmt.Sprintf("generation %d %s: %s moved, %d open", g.Generation, verb, connections(g.Moved), total(g.Open)))
		}
		if g.MoveOff != "" {
			lines = append(lines, fmt.Sprintf("generation %d does not move idle connections: %s", g.Generation, g.MoveOff))
		}
	}
	return lines
}

func connections(n uint64) string {
	if n == 1 {
		return "1 connection"
	}
	return fmt.Sprintf("%d connections", n)
}

// waitingLine says who can't be admitted yet, and why.
func waitingLine(w handoff.WaitingStatus, now time.Time) string {
	who := "a successor"
	if w.Label != "" {
		who += " labelled " + w.Label
	}
	return fmt.Sprintf("%s (pid %d) has waited for %s: %s: %s", who, w.PID, age(now.Sub(w.Since).Seconds()), words(w.Reason), w.Text)
}

// stateWord adds what a waiting generation waits for, and that one is silent, about
// to stop, or was told to, or that its clients do not reach it.
func stateWord(g handoff.GenerationStatus) string {
	switch {
	case isSilent(g):
		return g.State + " (silent)"
	case isSpare(g):
		return g.State + " (spare)"
	case g.Stopping:
		return g.State + " (stopping)"
	case g.StopOwed:
		return g.State + " (told to stop)"
	case len(g.NetworkGone) > 0:
		return g.State + " (network gone)"
	}
	return g.State
}

func positive(n int) string {
	if n <= 0 {
		return ""
	}
	return strconv.Itoa(n)
}

func timeLeft(seconds float64) string {
	if seconds <= 0 {
		return ""
	}
	return age(seconds)
}

func lastHandoff(st *handoff.Status) string {
	l := st.Last
	if l == nil {
		return "none"
	}
	if l.From == 0 { // it had nobody to take over from
		return fmt.Sprintf("none; generation %d has served for %s", l.To, age(st.Time.Sub(l.Time).Seconds()))
	}
	s := fmt.Sprintf("%d to %d %s %s ago", l.From, l.To, words(l.Outcome), age(st.Time.Sub(l.Time).Seconds()))
	if l.Reason != "" {
		s += ": " + because(l.Outcome, l.Reason)
	}
	if cut := counts(l.Cut); cut != "" {
		s += "; cut at the deadline: " + cut
	}
	// Most drains are over before anybody looks: who took the connections tells.
	for _, g := range st.Generations {
		if g.Generation == l.To && g.Adopted > 0 {
			s += fmt.Sprintf("; %s moved to %d", connections(g.Adopted), l.To)
		}
	}
	return s
}

// words prints a code such as rolled_back for people.
func words(code string) string { return strings.ReplaceAll(code, "_", " ") }

// because tells a reason for people. The code itself is in it, since that is
// what docs/errors.md lists.
func because(outcome, reason string) string {
	if reason == "foreign_netns" {
		return "foreign netns: it runs in another network namespace than the sockets; let both versions share one, or start it with --allow-foreign-netns"
	}
	if outcome == handoff.OutcomeRolledBack {
		switch reason {
		case "silent":
			return "silent: it did not answer heartbeats"
		case "unhealthy":
			return "unhealthy: it said so itself"
		}
	}
	return words(reason)
}

func newSockets(a *app) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "sockets",
		Short: "List the sockets and files that the answering process holds",
		Long: `A foreign socket lives in another network namespace than the process
(--allow-foreign-netns). Its network is gone when no client reaches it there any
more, as after the end of the container that the namespace was made for.`,
		Example: `  handoffctl sockets
  handoffctl --socket /run/app/control.sock sockets
  handoffctl sockets --json | jq -r '.sockets[].address'`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.ask(cmd, a.sockets)
		},
	}
	a.timeoutFlag(cmd, answerTimeout)
	return cmd
}

func (a *app) sockets(ctx context.Context, c *handoff.Client) error {
	list, err := c.Sockets(ctx)
	if err != nil {
		return err
	}
	if a.json {
		if list == nil {
			list = []handoff.SocketInfo{} // an empty list, not null
		}
		return a.printJSON(struct {
			Schema  int                  `json:"schema"`
			Socket  string               `json:"socket"`
			Sockets []handoff.SocketInfo `json:"sockets"`
		}{schema, c.Socket, list})
	}
	rows := [][]string{{"INDEX", "NAME", "NETWORK", "ADDRESS", "STATE"}}
	for _, s := range list {
		rows = append(rows, []string{strconv.Itoa(s.Index), s.Name, s.Network, s.Address, socketState(s)})
	}
	return a.printTable(rows)
}
