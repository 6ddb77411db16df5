package main

import (
	"cmp"
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"runtime"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// server is the life of one generation.
type server struct {
	args, environ []string // where the configuration is read from again
	log           *serverLog
	begun         time.Time
	process       atomic.Pointer[handoff.Process] // nil until it has started
	cert          *certificate                    // nil without --https
	site          liveHandler
	options       options // what is in effect; what a reload changes of it is read by reloads only
}

func newServer(o options, args, environ []string, log *serverLog) *server {
	return &server{args: args, environ: environ, log: log, begun: time.Now(), options: o}
}

// run serves from beginning to end and returns the exit code. The last record
// of its log says how it went.
func (s *server) run() int {
	// Before Start and after Wait they mean nothing.
	outlive(syscall.SIGHUP, syscall.SIGUSR1, syscall.SIGUSR2)
	if len(s.options.strange) > 0 {
		s.log.Warn("environment variables that look like this server's mean nothing to it", "names", s.options.strange)
	}
	if s.options.openKey {
		s.log.Warn("everybody may read the file of the shared key", "file", s.options.schema.sharedKey, "hint", "chmod o-r, unless nobody else lives where the file is seen")
	}
	report, err := s.serve()
	code := exitCode(report, err)
	log := s.logger()
	level := slog.LevelInfo
	attrs := []any{
		"reason", cmp.Or(report.Reason, "not_started"), "exit_code", code,
		"uptime", time.Since(s.begun), "drain", report.Duration,
		"answered", report.Answered, "moved", report.Moved, "open", report.Open, "cut", report.Cut, "holds", report.Holds,
		"goroutines", runtime.NumGoroutine(), "descriptors", descriptors(),
	}
	switch code {
	case exitDone:
	case exitCut:
		level = slog.LevelWarn
	default:
		level = slog.LevelError
	}
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	log.Log(context.Background(), level, "ended", attrs...)
	return code
}

// logger is the log, with the generation once there is one.
func (s *server) logger() *slog.Logger {
	if p := s.process.Load(); p != nil {
		return p.Logger()
	}
	return s.log.Logger
}

// identify tells which generation answers.
func (s *server) identify() (generation uint64, label string) {
	if p := s.process.Load(); p != nil {
		generation = p.Generation()
	}
	return generation, s.options.config.Label
}

// serve starts the process and serves until it has ended. Reading the
// certificate and whatever else can fail without disturbing anybody comes first.
func (s *server) serve() (handoff.Report, error) {
	if len(s.options.https) > 0 {
		var err error
		if s.cert, err = newCertificate(pairFiles{s.options.cert, s.options.key}, s.log.Logger); err != nil {
			return handoff.Report{}, err
		}
		unwatched := func(err error) {
			s.log.Warn("the certificate's files can't be watched: send SIGHUP when they change", "error", err)
		}
		if w, err := watchFiles(s.cert.paths, s.cert.changed, s.cert.reload, unwatched); err != nil {
			unwatched(err)
		} else {
			defer w.close()
		}
	}
	h, err := s.options.site.handler(s.identify, s.log.Logger)
	if err != nil {
		return handoff.Report{}, err
	}
	s.site.store(h)
	config := s.options.config
	config.Logger = s.log.Logger
	config.OnHammer = func() { s.log.goroutines(s.logger()) }
	config.Signals = &handoff.Signals{Reload: s.reload, Reopen: s.log.reopen}
	p, err := handoff.Start(context.Background(), config)
	// One that comes when all is over must not change the exit code.
	outlive(syscall.SIGTERM, syscall.SIGINT)
	if err != nil {
		return handoff.Report{}, err
	}
	defer p.Close()
	s.process.Store(p)
	if err := s.serveOn(p); err != nil {
		p.Close()
		report, _ := p.Wait(context.Background())
		return report, err
	}
	return p.Wait(context.Background())
}

// outlive keeps signals from ending this program where nobody handles them.
func outlive(signals ...os.Signal) { signal.Notify(make(chan os.Signal, 1), signals...) }

// serveOn opens what is to be served, becomes ready, and serves until this
// process's part is over.
func (s *server) serveOn(p *handoff.Process) error {
	h := handoff.NewHTTPServer(p, s.newHTTPServer(&s.site))
	var starts []func() error
	open := func(socket handoff.Socket, serve func(net.Listener) error) error {
		ln, err := p.ListenSocket(context.Background(), socket)
		if err != nil {
			return err
		}
		p.Logger().Info("listening", "name", socket.Name, "address", ln.Addr().String())
		starts = append(starts, func() error { return serve(ln) })
		return nil
	}
	for _, socket := range s.options.http {
		if err := open(socket, h.Serve); err != nil {
			return err
		}
	}
	for _, socket := range s.options.https {
		if err := open(socket, func(ln net.Listener) error { return h.ServeTLS(ln, "", "") }); err != nil {
			return err
		}
	}
	if s.options.admin != nil {
		srv := s.newHTTPServer(newAdmin(p, s.identify))
		srv.Protocols.SetUnencryptedHTTP2(false) // its connections end with each answer
		if err := open(*s.options.admin, handoff.NewHTTPServer(p, srv).Serve); err != nil {
			return err
		}
	}
	if err := s.options.echoes.open(p, p.Logger()); err != nil {
		return err
	}
	failed := make(chan error, len(starts))
	for _, start := range starts {
		go func() {
			if err := start(); err != nil {
				failed <- err
			}
		}()
	}
	closePreview, err := s.openPreview(p)
	if err != nil {
		return err
	}
	defer closePreview()
	if err := p.Ready(context.Background()); err != nil {
		return err
	}
	go closePreview()
	select {
	case err := <-failed:
		return err
	case <-p.Done():
		return nil
	}
}

// openPreview serves the site at the private address of a successor, until
// the function that it returns was called.
func (s *server) openPreview(p *handoff.Process) (closeIt func(), err error) {
	if s.options.preview.address == "" {
		return func() {}, nil
	}
	if p.Generation() <= 1 {
		p.Logger().Info("no preview: nobody serves yet, so this process will at once")
		return func() {}, nil
	}
	v, err := s.options.preview.open(s.newHTTPServer(&s.site), p.Logger())
	if err != nil {
		return nil, fmt.Errorf("--preview: %w", err)
	}
	return v.close, nil
}

// newHTTPServer returns a server for handler, with TLS if there is a certificate.
func (s *server) newHTTPServer(handler http.Handler) *http.Server {
	srv := &http.Server{
		Handler:                      handler,
		DisableGeneralOptionsHandler: true,
		ReadHeaderTimeout:            time.Minute,
		ErrorLog:                     slog.NewLogLogger(s.log.Handler(), slog.LevelWarn),
	}
	srv.Protocols = new(http.Protocols)
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetHTTP2(s.cert != nil)
	srv.Protocols.SetUnencryptedHTTP2(true)
	if s.cert != nil {
		srv.TLSConfig = &tls.Config{MinVersion: tls.VersionTLS12, GetCertificate: s.cert.get}
	}
	return srv
}

// liveHandler is a handler that can be exchanged while it serves. Requests
// that are under way finish with the one that they began with.
type liveHandler struct{ now atomic.Pointer[http.Handler] }

func (l *liveHandler) store(h http.Handler) { l.now.Store(&h) }

func (l *liveHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	(*l.now.Load()).ServeHTTP(w, r)
}
