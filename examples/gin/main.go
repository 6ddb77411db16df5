// Command gin is a gin server that its next version replaces: a request under
// way is answered by the version that got it, the next one by the next version.
//
//	(cd ../.. && make build) && export PATH=$PATH:$PWD/../../bin
//	go build -o pong .
//	go build -o pong1 -ldflags "-X main.answer=pong1" .
//	mkdir -p -m 700 run && export HANDOFF_SOCKET=$PWD/run/control
//	./pong &
//	handoffctl wait --for=serving
//	curl http://127.0.0.1:8080/ping &   # 5 s later: pong
//	sleep 1                             # curl has to be there first
//	handoffctl upgrade --wait=committed -- ./pong1
//	curl http://127.0.0.1:8080/ping     # 5 s later: pong1
//	handoffctl wait --for=drained && handoffctl stop
package main

import (
	"cmp"
	"context"
	"errors"
	"log"
	"net/http"
	"os"
	"time"

	"github.com/gin-gonic/gin"

	"github.com/fdhandoff/handoff/handoff"
)

// answer is what tells one version from another.
var answer = "pong"

func main() {
	router := gin.Default()
	router.GET("/ping", func(c *gin.Context) {
		time.Sleep(5 * time.Second)
		c.String(http.StatusOK, answer)
	})

	srv := &http.Server{
		Addr:              cmp.Or(os.Getenv("ADDR"), "127.0.0.1:8080"),
		Handler:           router,
		ReadHeaderTimeout: 10 * time.Second,
	}
	cfg := handoff.Config{Label: answer, Signals: &handoff.Signals{}}
	err := handoff.ListenAndServe(context.Background(), cfg, srv)
	if err != nil && !errors.Is(err, handoff.ErrStopped) { // ErrStopped: stopped before it served
		log.Fatal(err)
	}
}
