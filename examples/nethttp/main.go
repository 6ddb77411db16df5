// Command nethttp is a net/http server that its next version replaces without
// a client noticing, with each step of its life written out. The short form is
// handoff.ListenAndServe, which the examples gin and chi use.
//
//	mkdir -p -m 700 run && export HANDOFF_SOCKET=$PWD/run/control
//	go run . &
//	curl http://127.0.0.1:8080/events &   # ends with a word, and comes back to the next version
//	go run .   # takes over
package main

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

func main() {
	cut, err := serve(context.Background())
	switch {
	case err != nil:
		log.Fatal(err)
	case cut > 0:
		log.Printf("%d connections were cut at the deadline", cut)
		os.Exit(6)
	}
}

// serve is the whole life of one version. It returns how many connections it
// had to cut.
func serve(ctx context.Context) (cut int, err error) {
	// The sockets of the version that runs are here when Start returns; where
	// none runs, this is the first.
	p, err := handoff.Start(ctx, handoff.Config{
		Signals:      &handoff.Signals{},
		DrainTimeout: time.Minute,
		OnState: func(from, to handoff.State) {
			log.Printf("%v, was %v", to, from)
		},
		// For a service registry: a handover never deregisters, a stop does.
		BeforeStop: func(context.Context) error {
			log.Print("deregister")
			return nil
		},
	})
	if err != nil {
		return 0, err
	}
	defer p.Close()

	// The same call whether the listener is inherited or fresh. Nothing is
	// accepted before Ready.
	ln, err := p.Listen(ctx, "tcp", cmp.Or(os.Getenv("ADDR"), "127.0.0.1:8080"))
	if err != nil {
		return 0, err
	}
	srv := handoff.NewHTTPServer(p, &http.Server{Handler: routes(p), ReadHeaderTimeout: 10 * time.Second})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()

	// Here the process becomes the one that serves. Load what takes long before.
	if err := p.Ready(ctx); err != nil {
		return 0, err
	}

	select {
	case err := <-served: // an error only if accepting is broken
		if err != nil {
			return 0, err
		}
	case <-p.Done():
	}
	// Nobody is accepted any more. Wait for those who are still here.
	report, err := p.Wait(ctx)
	for _, n := range report.Cut {
		cut += n
	}
	return cut, err
}

func routes(p *handoff.Process) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Header().Set("X-Handoff-Generation", fmt.Sprint(p.Generation()))
		w.Write(body)
	})
	mux.HandleFunc("GET /events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.Header().Set("X-Handoff-Generation", fmt.Sprint(p.Generation()))
		tick := time.NewTicker(time.Second)
		defer tick.Stop()
		for {
			fmt.Fprintf(w, "data: generation %d\n\n", p.Generation())
			if err := http.NewResponseController(w).Flush(); err != nil {
				return
			}
			select {
			case <-tick.C:
			case <-r.Context().Done():
				return
			case <-handoff.Draining(r.Context()):
				// An answer without an end has to end now, with a word for the
				// client, which comes back and finds the next version.
				fmt.Fprint(w, "event: drain\ndata: come back\n\n")
				return
			}
		}
	})
	return mux
}
