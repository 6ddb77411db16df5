package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"strings"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// adminSource is what the admin address tells about; a *handoff.Process is one.
type adminSource interface {
	State() handoff.State
	Ending() bool
	NetworkGone() []string
	Status(context.Context) (*handoff.Status, error)
}

// statusTimeout bounds the answer to /status.
const statusTimeout = 5 * time.Second

// newAdmin returns the handler of --admin: /healthz, /readyz and /status. Its
// address is handed over like any other, so that one stays the same and the
// generation that serves answers it. Each answer ends its connection, because one
// that stays open would stay with an older generation through its probation.
func newAdmin(p adminSource, id identity) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		if why := notReady(p); why != "" {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, why)
			return
		}
		fmt.Fprintln(w, "ok")
	})
	mux.HandleFunc("GET /status", func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), statusTimeout)
		defer cancel()
		st, err := p.Status(ctx)
		if err != nil {
			http.Error(w, err.Error(), http.StatusServiceUnavailable)
			return
		}
		text, err := json.MarshalIndent(st, "", "  ")
		if err != nil {
			http.Error(w, err.Error(), http.StatusInternalServerError)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		w.Write(append(text, '\n'))
	})
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		id.state(w.Header())
		w.Header().Set("Cache-Control", "no-store")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		w.Header().Set("Connection", "close")
		mux.ServeHTTP(w, r)
	})
}

// notReady says why the service takes no new requests, or "". This process
// accepted the connection, so it served then: if it has been succeeded
// meanwhile, the service is as ready as before, and to say anything else would
// take it out of a load balancer because of a handover.
func notReady(p adminSource) string {
	switch state := p.State(); state {
	case handoff.StateServing, handoff.StateParked, handoff.StateReleasing, handoff.StateDraining:
		if p.Ending() {
			return "it is about to stop"
		}
		if gone := p.NetworkGone(); len(gone) > 0 {
			return "the network of " + strings.Join(gone, ", ") + " is gone"
		}
		return ""
	default:
		return "it does not serve: it is " + state.String()
	}
}
