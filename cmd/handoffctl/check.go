package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"github.com/fdhandoff/handoff/handoff"
)

// checkTimeout is short: whoever probes has a deadline of his own, and asks again.
const checkTimeout = 2 * time.Second

// Further words for --state, beyond the states' names.
const (
	checkReady = "ready" // serves, no stop has begun, and clients reach its sockets
	checkAlive = "alive" // answers
)

func newCheck(a *app) *cobra.Command {
	var self string
	states := &stateList{list: []string{checkReady}}
	cmd := &cobra.Command{
		Use:   "check",
		Short: "Probe one process by its own socket, or the service, for a container's health",
		Long: `With --self-socket, or HANDOFF_SELF_SOCKET, it asks the one process that has
this private socket, and no other generation answers for it: this is the probe
of a container. Otherwise it asks the control socket, and it is enough that one
generation of the service is in a wanted state. A --socket that is given goes
before HANDOFF_SELF_SOCKET.

  ready  it serves, no stop has begun, and no socket's network is gone
  alive  it answers, whatever its state
  STATE  starting, standby, serving, parked, releasing, draining or revoked

It prints one line. Exit code 0 is healthy, 1 another state; every one but 0 is
a no to a container engine.`,
		Example: `  handoffctl check --self-socket /run/app/self.sock
  handoffctl check --self-socket /run/app/self.sock --state standby,ready
  handoffctl --socket /run/app/control.sock check --state alive --timeout 500ms`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			// What is asked for on this command line goes before the environment.
			given, control := cmd.Flags().Changed("self-socket"), cmd.Flags().Changed("socket")
			if given && control {
				return &failure{code: exitUsage, text: "--socket and --self-socket name two different sockets", hint: "give one of them"}
			}
			if !control {
				self = cmp.Or(self, os.Getenv(handoff.EnvSelfSocket))
			} else {
				self = ""
			}
			if given && self == "" {
				return &failure{code: exitUsage, text: "--self-socket is empty", hint: helpHint(cmd)}
			}
			own := self != ""
			if own {
				a.socket = self
			}
			return a.ask(cmd, func(ctx context.Context, c *handoff.Client) error {
				return a.check(ctx, c, own, states.list)
			})
		},
	}
	cmd.Flags().StringVar(&self, "self-socket", "", "`PATH` of the private socket of the process to probe (default $HANDOFF_SELF_SOCKET)")
	cmd.Flags().Var(states, "state", "`STATE` that is wanted, or several with commas between them")
	err := cmd.RegisterFlagCompletionFunc("state", states.complete)
	if err != nil {
		panic(err) // the flag was added one line above
	}
	a.timeoutFlag(cmd, checkTimeout)
	return cmd
}

// stateList is a flag that takes words for states, with commas between them.
type stateList struct{ list []string }

// stateWords are the words that it takes.
var stateWords = []string{
	checkReady, checkAlive, "starting", "standby", "serving", "parked", "releasing", "draining", "revoked",
}

func (l *stateList) String() string { return strings.Join(l.list, ",") }
func (l *stateList) Type() string   { return "string" }

func (l *stateList) Set(s string) error {
	words := strings.Split(s, ",")
	for _, w := range words {
		if !slices.Contains(stateWords, w) {
			return fmt.Errorf("%q must be one of %s", w, strings.Join(stateWords, ", "))
		}
	}
	l.list = words
	return nil
}

// complete offers the words for what stands behind the last comma.
func (l *stateList) complete(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
	before := typed[:strings.LastIndex(typed, ",")+1]
	var all []string
	for _, w := range stateWords {
		all = append(all, before+w)
	}
	return all, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveKeepOrder
}

// check asks once. own says that the socket is one process's alone.
func (a *app) check(ctx context.Context, c *handoff.Client, own bool, states []string) error {
	r := a.newResult("check", c)
	st, err := c.Status(ctx)
	switch {
	case own && errors.Is(err, handoff.ErrNobody):
		err = &failure{
			code: exitNobody, text: explain(err).text, err: err,
			hint: "has the process ended, or was it started without a self socket (--self-socket, HANDOFF_SELF_SOCKET)?",
		}
	case err == nil:
		err = judge(r, st, own, states)
	}
	return a.finish(r, st, err)
}

// judge fills in r by what st says of the process that answers, or of the whole
// service.
func judge(r *result, st *handoff.Status, own bool, states []string) error {
	asked := st.Generations
	if own {
		asked = inState(st, func(g handoff.GenerationStatus) bool { return g.Generation == st.Generation && g.PID == st.PID })
	}
	for _, want := range states {
		for _, g := range slices.Backward(asked) { // the youngest first
			if isIn(want, g) {
				r.Outcome, r.Generation = want, g.Generation
				r.Text = want + ": " + situation(g)
				return nil
			}
		}
	}
	var found []string
	for _, g := range asked {
		if s := situation(g); len(g.NetworkGone) > 0 {
			found = append(found, s+": "+strings.Join(g.NetworkGone, ", "))
		} else {
			found = append(found, s)
		}
	}
	return &failure{
		code: exitRefused, text: fmt.Sprintf("not %s: %s", strings.Join(states, " or "), cmp.Or(strings.Join(found, "; "), "no generation lives")),
		hint: cmp.Or(silenceRemedy(st), goneRemedy(asked)),
	}
}

// isIn says whether g is in a state by one of stateWords. Who is silent is in
// none: what it does is not known.
func isIn(word string, g handoff.GenerationStatus) bool {
	if isSilent(g) {
		return false
	}
	switch word {
	case checkReady:
		return g.State == "serving" && !g.Stopping && len(g.NetworkGone) == 0
	case checkAlive:
		return true
	}
	return g.State == word
}

// situation says in a few words what one generation does.
func situation(g handoff.GenerationStatus) string {
	return name(g) + " is " + stateWord(g)
}
