// Command echo is an Echo server that its next version replaces without a
// client noticing: a connection that is kept open goes on with the next version.
//
//	mkdir -p -m 700 run && export HANDOFF_SOCKET=$PWD/run/control
//	go build -o v1 .
//	go build -o v2 -ldflags "-X main.version=v2" .
//	./v1 &
//	curl -s --rate 60/m -w ' by %{num_connects} new connections\n' 'http://127.0.0.1:8080/version?[1-20]' &
//	sleep 3
//	./v2   # takes over; 5 s later curl's next answer on its first connection is v2
package main

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/labstack/echo/v5"
	"github.com/labstack/echo/v5/middleware"

	"github.com/fdhandoff/handoff/handoff"
)

// version is set by go build -ldflags "-X main.version=v2".
var version = "v1"

func main() {
	e := echo.New()
	e.Use(middleware.RequestID(), middleware.Recover(), middleware.BodyLimit(1<<20))
	e.GET("/version", func(c *echo.Context) error {
		return c.String(http.StatusOK, version)
	})
	e.POST("/echo", func(c *echo.Context) error {
		body, err := io.ReadAll(c.Request().Body)
		if err != nil {
			return err // BodyLimit's is 413
		}
		return c.Blob(http.StatusOK, echo.MIMEOctetStream, body)
	})

	// e.Start would open a listener of its own. An Echo is a handler too.
	srv := &http.Server{
		Addr:              cmp.Or(os.Getenv("ADDR"), "127.0.0.1:8080"),
		Handler:           e,
		ReadHeaderTimeout: 10 * time.Second,
	}
	cfg := handoff.Config{Label: version, Signals: &handoff.Signals{}}
	err := handoff.ListenAndServe(context.Background(), cfg, srv)
	if err != nil && !errors.Is(err, handoff.ErrStopped) { // ErrStopped: stopped before it served
		log.Fatal(err)
	}
}
