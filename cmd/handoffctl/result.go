package main

import (
	"errors"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// result is how a command ended that changes something or waits.
type result struct {
	Schema  int    `json:"schema"`
	Command string `json:"command"`
	Socket  string `json:"socket"`
	// Outcome is how far it got: accepted, one of the outcomes of a request,
	// drained, or "" where nothing is known.
	Outcome string `json:"outcome,omitempty"`
	// Changed is false where everything was already so.
	Changed    bool           `json:"changed"`
	Request    string         `json:"request,omitempty"`
	Generation uint64         `json:"generation,omitempty"`
	Reason     string         `json:"reason,omitempty"`
	PID        int            `json:"pid,omitempty"`      // of CMD
	Log        string         `json:"log,omitempty"`      // what CMD writes
	Precheck   string         `json:"precheck,omitempty"` // the one that CMD did not pass
	Check      string         `json:"check,omitempty"`    // likewise, in probation
	Cut        map[string]int `json:"cut,omitempty"`
	Seconds    float64        `json:"seconds"`
	// Generations are those that live at the end.
	Generations []handoff.GenerationStatus `json:"generations"`
	Text        string                     `json:"text,omitempty"`
	Error       string                     `json:"error,omitempty"`
	Exit        int                        `json:"exit"`

	began time.Time
}

func (a *app) newResult(command string, c *handoff.Client) *result {
	return &result{Schema: schema, Command: command, Socket: c.Socket, began: time.Now()}
}

// finish prints the result: on success one line, or with --json one object,
// which tells of a failure too. The failure is for run to report.
func (a *app) finish(r *result, st *handoff.Status, err error) error {
	f := explain(err)
	if a.json {
		r.Seconds, r.Generations = seconds(time.Since(r.began)), []handoff.GenerationStatus{}
		if st != nil {
			r.Generations = st.Generations
		}
		if f != nil {
			r.Error, r.Exit = f.text, f.code
		}
		return errors.Join(err, a.printJSON(r))
	}
	if f == nil || f.code == exitCut {
		return errors.Join(err, a.println(plain(r.Text)))
	}
	return err
}

// cutHint: what carried no request would not have finished either.
func cutHint(cut map[string]int) string {
	if cut["idle"]+cut["new"] == total(cut) {
		return "they carried no request, and were open because they could not move to the next version (TLS, or it did not take them)"
	}
	return "a longer drain timeout in the service lets them finish"
}

// cutFailure is for what was done, but not without closing connections.
func cutFailure(r *result) error {
	if total(r.Cut) == 0 {
		return nil
	}
	return &failure{
		code: exitCut,
		text: "connections were cut at the drain deadline: " + counts(r.Cut),
		hint: cutHint(r.Cut),
	}
}
