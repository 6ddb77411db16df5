// Command worker has work in the background: a journal that only one process
// may write at a time, and jobs that go on after the request that began them.
//
//	mkdir -p -m 700 run && export HANDOFF_SOCKET=$PWD/run/control
//	go run . &
//	curl -X POST 'http://127.0.0.1:8080/jobs?name=report&for=10s'
//	go run .   # takes over at once; the first process ends when its job has
package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// tick is how often the journal gets a line.
const tick = 10 * time.Millisecond

func main() {
	if err := serve(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context) error {
	journal, err := os.OpenFile(cmp.Or(os.Getenv("JOURNAL"), "journal"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer journal.Close()
	p, err := handoff.Start(ctx, handoff.Config{Signals: &handoff.Signals{}, DrainTimeout: time.Minute})
	if err != nil {
		return err
	}
	defer p.Close()
	ln, err := p.Listen(ctx, "tcp", cmp.Or(os.Getenv("ADDR"), "127.0.0.1:8080"))
	if err != nil {
		return err
	}

	// The journal has one writer in the whole chain of versions: this one, from
	// each time that this process begins to serve to the end of ctx, and before
	// another begins.
	p.Singleton("journal", func(ctx context.Context) {
		t := time.NewTicker(tick)
		defer t.Stop()
		for {
			select {
			case <-t.C:
				fmt.Fprintf(journal, "tick %d\n", p.Generation())
			case <-ctx.Done():
				return
			}
		}
	})

	mux := http.NewServeMux()
	mux.HandleFunc("POST /jobs", func(w http.ResponseWriter, r *http.Request) {
		d, err := time.ParseDuration(r.FormValue("for"))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		name := cmp.Or(r.FormValue("name"), "job")
		// The job outlives the request, and this process outlives the job, up
		// to the drain's deadline.
		ctx, release := p.Hold(context.WithoutCancel(r.Context()), name)
		go func() {
			defer release()
			if err := work(ctx, d); err != nil {
				fmt.Fprintf(journal, "gave up %s: %v\n", name, err)
				return
			}
			fmt.Fprintf(journal, "done %s %d\n", name, p.Generation())
		}()
		w.WriteHeader(http.StatusAccepted)
	})
	srv := handoff.NewHTTPServer(p, &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second})
	go func() {
		if err := srv.Serve(ln); err != nil {
			log.Print(err)
			p.Stop()
		}
	}()
	if err := p.Ready(ctx); err != nil {
		return err
	}
	_, err = p.Wait(ctx)
	return err
}

// work stands for a job of the length d.
func work(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		if errors.Is(context.Cause(ctx), handoff.ErrDrainDeadline) {
			return errors.New("no time left; it has to be begun again")
		}
		return context.Cause(ctx)
	}
}
