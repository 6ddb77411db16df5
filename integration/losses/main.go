// Losses sends requests to a server and tells what became of each: nothing is sent twice, and nothing is forgotten.
//
//	go run ./integration/losses --address 127.0.0.1:8080 --time 20s
//
// The server must answer POST /echo with the request's body. Exit codes: 0 nothing was lost, 1 something was, 2 usage.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/fdhandoff/handoff/integration/load"
)

func main() {
	address := flag.String("address", "127.0.0.1:8080", "`host:port` of the server")
	conns := flag.Int("conns", 100, "keep-alive connections")
	rate := flag.Float64("rate", 1000, "POSTs a second over the keep-alive connections together; 0 is none")
	fresh := flag.Float64("new", 200, "POSTs a second on connections of their own; 0 is none")
	length := flag.Duration("time", 20*time.Second, "how long to send; an interrupt ends it too")
	flag.Parse()
	if flag.NArg() > 0 {
		fmt.Fprintf(os.Stderr, "losses: error: unexpected argument %q\n", flag.Arg(0))
		os.Exit(2)
	}
	var streams []load.Stream
	if *rate > 0 {
		streams = append(streams, load.Stream{Kind: load.KeepAlive, Address: *address, Conns: *conns, Rate: *rate})
	}
	if *fresh > 0 {
		streams = append(streams, load.Stream{Kind: load.NewConn, Address: *address, Rate: *fresh})
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, *length)
	defer cancel()
	run, err := load.Start(ctx, load.Config{Streams: streams, Max: *length})
	if err != nil {
		fmt.Fprintf(os.Stderr, "losses: error: %v\n", err)
		os.Exit(2)
	}
	fmt.Printf("sending to %s for %v; an interrupt ends it sooner\n", *address, *length)
	<-ctx.Done()
	r := run.Stop()
	fmt.Print(r)
	if r.Lost > 0 || r.Broken > 0 || r.Answered == 0 {
		fmt.Printf("%d of %d requests were lost\n", r.Lost, r.Sent)
		os.Exit(1)
	}
	fmt.Printf("nothing was lost: %d requests, %d answers\n", r.Sent, r.Answered)
}
