package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// silenceLook is after how long a watch in which nothing changes makes sure that
// the process still answers.
const silenceLook = 3 * time.Second

// watcher prints what changes at a socket.
type watcher struct {
	a     *app
	c     *handoff.Client
	seen  bool            // somebody answered at some time
	last  *handoff.Status // nil while nobody answers
	quiet time.Duration   // silenceLook
	said  string          // what was printed last, its time and its notes aside
}

// watch prints one line for each change until ctx ends, by a signal or by
// --timeout. That is no failure if there was somebody to watch.
func (a *app) watch(ctx context.Context, c *handoff.Client) error {
	w := &watcher{a: a, c: c, quiet: silenceLook}
	for {
		st, trouble, err := w.next(ctx)
		switch {
		case ctx.Err() != nil && !w.seen && errors.Is(ctx.Err(), context.DeadlineExceeded):
			f := &follower{c: c}
			f.look(ctx)
			return f.stopped(ctx, a.timeout, "nothing was seen")
		case ctx.Err() != nil:
			return nil
		case err != nil:
			return err
		}
		if err := w.show(st, trouble); err != nil {
			return err
		}
		if st == nil {
			pause(ctx, nobodyPause)
		}
	}
}

// next is the next status that differs from the last one, or the same after
// a while. st is nil if there is none, and trouble says why.
func (w *watcher) next(ctx context.Context) (st *handoff.Status, trouble string, err error) {
	some, cancel := context.WithTimeout(ctx, w.quiet)
	defer cancel()
	st, err = w.c.Watch(some, w.last)
	if err != nil && some.Err() != nil && w.last != nil {
		// Nothing has changed, or it is silent.
		once, cancel := context.WithTimeout(ctx, lookTime)
		defer cancel()
		st, err = w.c.Status(once)
	}
	switch {
	case err == nil:
		w.seen = true
		return st, "", nil
	case errors.Is(err, handoff.ErrNobody):
		return nil, "nobody answers at the socket", nil
	case isTimeout(err), errors.Is(err, handoff.ErrNoAnswer):
		return nil, "the process at the socket does not answer", nil
	}
	return nil, "", err
}

// watched is one line of --watch --json: the whole status, or why there is none.
type watched struct {
	*handoff.Status
	Error string `json:"error,omitempty"`
}

// show prints st, or the trouble that there is none, if it is news.
func (w *watcher) show(st *handoff.Status, trouble string) error {
	var notes []string
	now, says := time.Now(), trouble
	if st != nil {
		notes = changes(w.last, st)
		now, says = st.Time, states(st, true)
	}
	w.last = st
	// Connections come and go all the time at those that serve.
	key := says
	if st != nil {
		key = states(st, false)
	}
	if key == w.said && len(notes) == 0 {
		return nil
	}
	w.said = key
	if w.a.json {
		if st == nil {
			st = &handoff.Status{Schema: schema, Socket: w.c.Socket, Time: now, Generations: []handoff.GenerationStatus{}}
		}
		e := json.NewEncoder(w.a.stdout)
		e.SetEscapeHTML(false)
		return e.Encode(watched{Status: st, Error: trouble})
	}
	line := now.Local().Format(time.RFC3339) + "  " + says
	if len(notes) > 0 {
		line += " | " + strings.Join(notes, "; ")
	}
	return w.a.println(plain(line))
}

// states says what each generation does and has open. all includes what changes
// all the time.
func states(st *handoff.Status, all bool) string {
	var parts []string
	for _, g := range st.Generations {
		s := fmt.Sprintf("%d %s", g.Generation, stateWord(g))
		ends := g.State == "draining" || g.State == "revoked" || g.Stopping
		if open := counts(g.Open); open != "" && (all || ends) {
			s += ", " + open
		}
		if holds := counts(g.Holds); holds != "" && (all || ends) {
			s += ", held by " + holds
		}
		if left := timeLeft(g.LeftSeconds); left != "" && all {
			s += ", " + left + " left"
		}
		parts = append(parts, s)
	}
	if len(parts) == 0 {
		return "no generation lives"
	}
	return strings.Join(parts, "; ")
}

// changes says what is new in now. before is nil where nobody answered.
func changes(before, now *handoff.Status) (notes []string) {
	note := func(format string, args ...any) { notes = append(notes, fmt.Sprintf(format, args...)) }
	if before == nil || before.Instance != now.Instance {
		answering := handoff.GenerationStatus{Generation: now.Generation, PID: now.PID}
		for _, g := range now.Generations {
			if g.Generation == now.Generation && g.PID == now.PID {
				answering = g
			}
		}
		note("%s answers", name(answering))
	}
	for _, g := range now.Generations {
		switch old := find(before, g); {
		case isSilent(g) && (old == nil || !isSilent(*old)):
			note("%d is silent", g.Generation)
		case old != nil && isSilent(*old) && !isSilent(g):
			note("%d answers again", g.Generation)
		}
	}
	if before == nil {
		return notes
	}
	for _, g := range now.Generations {
		old := find(before, g)
		switch {
		case old == nil:
			note("%s came", name(g))
		case old.State != g.State:
			note("%d: %s to %s", g.Generation, stateWord(*old), stateWord(g))
		case !old.Stopping && g.Stopping:
			note("%d stops", g.Generation)
		case len(old.NetworkGone) == 0 && len(g.NetworkGone) > 0:
			note("the network of %d is gone: %s", g.Generation, strings.Join(g.NetworkGone, ", "))
		case len(old.NetworkGone) > 0 && len(g.NetworkGone) == 0:
			note("the network of %d is back", g.Generation)
		}
	}
	for _, g := range now.Generations {
		adopted := g.Adopted
		if old := find(before, g); old != nil {
			adopted -= min(old.Adopted, adopted)
		}
		if adopted > 0 {
			note("%s moved to %d", connections(adopted), g.Generation)
		}
	}
	for _, g := range before.Generations {
		if find(now, g) == nil {
			note("%d is gone", g.Generation)
		}
	}
	// The first of a chain has taken over from nobody (From is 0).
	if l := now.Last; l != nil && l.From > 0 && (before.Last == nil || before.Last.ID != l.ID || before.Last.To != l.To || before.Last.Outcome != l.Outcome) {
		s := fmt.Sprintf("handoff %d to %d %s", l.From, l.To, words(l.Outcome))
		if l.Reason != "" {
			s += ": " + because(l.Outcome, l.Reason)
		}
		notes = append(notes, s)
	}
	if l := now.Last; l != nil && total(l.Cut) > 0 && (before.Last == nil || total(before.Last.Cut) == 0) {
		note("%d cut %s", l.From, counts(l.Cut))
	}
	for _, r := range now.Requests {
		same := func(o handoff.RequestStatus) bool { return o.ID == r.ID && o.Outcome == r.Outcome }
		if r.Outcome == handoff.OutcomeWithdrawn && !slices.ContainsFunc(before.Requests, same) {
			note("request %s withdrawn", r.ID)
		}
	}
	return notes
}

// find is the process in st that g is, or nil.
func find(st *handoff.Status, g handoff.GenerationStatus) *handoff.GenerationStatus {
	if st == nil {
		return nil
	}
	for i, o := range st.Generations {
		if o.Generation == g.Generation && o.PID == g.PID {
			return &st.Generations[i]
		}
	}
	return nil
}
