// Command crash is a bad version of the server: it becomes ready, and dies the moment it is to serve.
package main

import (
	"context"
	"fmt"
	"net/http"
	"os"

	"github.com/spf13/pflag"

	"github.com/fdhandoff/handoff/handoff"
)

func main() {
	// It is started as the server is, and takes what it needs of that.
	flags := pflag.NewFlagSet("crash", pflag.ContinueOnError)
	flags.ParseErrorsAllowlist.UnknownFlags = true
	address := flags.String("http", "", "")
	cfg := handoff.Config{Label: "crash"}
	flags.TextVar(&cfg.Takeover, "takeover", handoff.Auto, "")
	err := flags.Parse(os.Args[1:])
	if err == nil {
		cfg.OnState = func(_, to handoff.State) {
			if to == handoff.StateServing {
				fmt.Fprintln(os.Stderr, "crash: here it ends")
				os.Exit(1)
			}
		}
		err = handoff.ListenAndServe(context.Background(), cfg, &http.Server{Addr: *address})
	}
	fmt.Fprintln(os.Stderr, "crash:", err)
	os.Exit(1)
}
