// Command chi is a chi server that its next version replaces without a client
// noticing.
//
//	mkdir -p -m 700 run && export HANDOFF_SOCKET=$PWD/run/control
//	go run . &
//	curl -d hello http://127.0.0.1:8080/echo
//	go run .   # takes over
package main

import (
	"cmp"
	"context"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/go-chi/chi/v5/middleware"

	"github.com/fdhandoff/handoff/handoff"
)

// version is set by go build -ldflags "-X main.version=v2".
var version = "v1"

func main() {
	router := chi.NewRouter()
	router.Use(middleware.RequestID, middleware.Recoverer)
	router.Get("/version", func(w http.ResponseWriter, _ *http.Request) {
		io.WriteString(w, version)
	})
	router.Post("/echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		w.Write(body)
	})

	srv := &http.Server{
		Addr:              cmp.Or(os.Getenv("ADDR"), "127.0.0.1:8080"),
		Handler:           router,
		ReadHeaderTimeout: 10 * time.Second,
	}
	cfg := handoff.Config{
		Label:   version,
		Signals: &handoff.Signals{},
		// Nobody is sent here before what this version needs is there.
		Checks: []handoff.Check{{Name: "temporary directory", Run: func(context.Context) error {
			_, err := os.Stat(os.TempDir())
			return err
		}}},
	}
	if err := handoff.ListenAndServe(context.Background(), cfg, srv); err != nil {
		log.Fatal(err)
	}
}
