// Command server is a web server whose every restart is a handoff.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

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
	o, err := parse(args, stdout)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return exitDone
	case err != nil:
		fmt.Fprintf(stderr, "server: error: %v\nserver: hint: server --help\n", err)
		return exitUsage
	case o.version:
		fmt.Fprintln(stdout, "server", version())
		return exitDone
	}
	// A log whose reader has died is no reason to die.
	signal.Ignore(syscall.SIGPIPE)
	o.config.Logger = slog.New(handler(stderr, o.logFormat))
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	defer func() { signal.Stop(signals); close(signals) }()

	report, err := serve(o, signals)
	log := o.config.Logger
	switch {
	case err == nil && len(report.Cut) > 0:
		return exitCut
	case err == nil, errors.Is(err, handoff.ErrStopped):
		return exitDone
	case errors.Is(err, handoff.ErrRevoked):
		log.Error("ended", "error", err)
		return exitRevoked
	}
	log.Error("ended", "error", err)
	return exitFailed
}

func handler(w io.Writer, format string) slog.Handler {
	if format == "json" {
		return slog.NewJSONHandler(w, nil)
	}
	return slog.NewTextHandler(w, nil)
}

func version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}

// serve is the life of one generation. A signal means Stop, which means what
// the state says.
func serve(o options, signals <-chan os.Signal) (handoff.Report, error) {
	ctx, stop := context.WithCancelCause(context.Background())
	defer stop(nil)
	started := make(chan *handoff.Process, 1)
	go func() {
		var p *handoff.Process
		for sig := range signals {
			if p == nil {
				select {
				case p = <-started:
				default:
					stop(handoff.ErrStopped) // while looking for the incumbent
					continue
				}
			}
			p.Logger().Info("signal", "signal", sig.String(), "state", p.State().String())
			p.Stop()
		}
	}()
	p, err := handoff.Start(ctx, o.config)
	if err != nil {
		return handoff.Report{}, err
	}
	defer p.Close()
	started <- p
	if context.Cause(ctx) != nil {
		p.Stop()
	}
	return serveOn(p, o)
}

// serveOn opens what is to be served, becomes ready, and serves to the end.
func serveOn(p *handoff.Process, o options) (handoff.Report, error) {
	handler, err := o.site.handler(func() (uint64, string) { return p.Generation(), o.config.Label }, o.config.Logger)
	if err != nil {
		return handoff.Report{}, err
	}
	srv := &http.Server{
		Handler:                      handler,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            time.Minute,
		ErrorLog:                     slog.NewLogLogger(o.config.Logger.Handler(), slog.LevelWarn),
	}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	h := handoff.NewHTTPServer(p, srv)

	failed := make(chan error, len(o.listen))
	var lns []net.Listener
	for _, s := range o.listen {
		ln, err := p.ListenSocket(context.Background(), s)
		if err != nil {
			return handoff.Report{}, err
		}
		p.Logger().Info("listening", "name", s.Name, "address", ln.Addr().String())
		lns = append(lns, ln)
	}
	for _, ln := range lns {
		go func() {
			if err := h.Serve(ln); err != nil {
				failed <- err
			}
		}()
	}
	if err := o.echo.open(p, p.Logger()); err != nil {
		return handoff.Report{}, err
	}
	if err := p.Ready(context.Background()); err != nil {
		return handoff.Report{}, err
	}
	select {
	case err := <-failed:
		return handoff.Report{}, err
	case <-p.Done():
	}
	return p.Wait(context.Background())
}
