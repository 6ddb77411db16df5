// Command server is a web server whose every restart is a handoff.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"github.com/spf13/pflag"

	"github.com/fdhandoff/handoff/handoff"
)

// Exit codes.
const (
	exitDone    = 0
	exitFailed  = 1
	exitUsage   = 2
	exitCut     = 6
	exitRevoked = 7
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(args []string, stdout, stderr io.Writer) int {
	environ := os.Environ()
	o, err := loadOptions(args, environ)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		fmt.Fprint(stdout, o.schema.help())
		return exitDone
	case err != nil:
		for line := range strings.Lines(err.Error()) {
			fmt.Fprintf(stderr, "server: error: %s\n", strings.TrimSuffix(line, "\n"))
		}
		fmt.Fprintln(stderr, "server: hint: server --help")
		return exitUsage
	case o.schema.version:
		fmt.Fprintln(stdout, "server", version())
		return exitDone
	case o.schema.checkConfig:
		for _, name := range o.strange {
			fmt.Fprintf(stderr, "server: warning: the environment variable %s means nothing to this server\n", name)
		}
		if err := o.schema.print(stdout); err != nil {
			fmt.Fprintf(stderr, "server: error: %v\n", err)
			return exitFailed
		}
		return exitDone
	}
	// A log whose reader has died is no reason to die.
	signal.Ignore(syscall.SIGPIPE)
	forgetEnvironment()
	log, err := openLog(o, stderr)
	if err != nil {
		fmt.Fprintf(stderr, "server: error: %v\n", err)
		return exitFailed
	}
	defer log.close()
	return newServer(o, args, environ, log).run()
}

// exitCode is decided from how the process ended.
func exitCode(report handoff.Report, err error) int {
	switch {
	case err == nil && len(report.Cut) > 0:
		return exitCut
	case err == nil, errors.Is(err, handoff.ErrStopped):
		return exitDone
	case errors.Is(err, handoff.ErrRevoked), errors.Is(err, handoff.ErrUnhealthy):
		return exitRevoked
	}
	return exitFailed
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
