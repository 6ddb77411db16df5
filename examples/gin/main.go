// Command gin is a gin server that its next version replaces: a request under
// way is answered by the version that got it, the next one by the next version.
//
//	go build -o pong .
//	go build -o pong1 -ldflags "-X main.answer=pong1" .
//	mkdir -m 700 run && export HANDOFF_SOCKET=$PWD/run/control
//	./pong &
//	curl http://127.0.0.1:8080/ping &   # 5 s later: pong
//	./pong1 &
//	curl http://127.0.0.1:8080/ping     # 5 s later: pong1
package main

import (
	"cmp"
	"context"
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
	if err := handoff.ListenAndServe(context.Background(), cfg, srv); err != nil {
		log.Fatal(err)
	}
}
