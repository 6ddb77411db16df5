package main

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// options are the configuration, looked through.
type options struct {
	schema *schema
	config handoff.Config // all but Logger, Signals and hooks

	http, https []handoff.Socket
	echoes      echoes
	site        site
	cert, key   string
	openKey     bool            // everybody may read the file of the shared key
	admin       *handoff.Socket // nil: none
	preview     preview

	logFile  string
	jsonLog  bool
	logLevel slog.Level

	strange []string // variables that look like the server's
}

// loadOptions reads the configuration from the command line, the environment
// (as os.Environ has it) and the file that these name. The error is
// pflag.ErrHelp, or everything that was found wrong. Nothing is changed or left
// open.
func loadOptions(args, environ []string) (options, error) {
	o := options{schema: newSchema()}
	s := o.schema
	if err := s.Parse(args); err != nil || s.version {
		return o, err
	}
	var err error
	o.strange, err = s.read(environ)
	o.config = handoff.Config{Socket: s.socket, SelfSocket: s.selfSocket, Label: s.label, Takeover: s.takeover, AllowForeignNetns: s.foreignNetns, AllowNoClaim: s.noClaim}
	if err == nil { // or what is missing may be what was not understood
		err = o.missing()
	}
	err = errors.Join(
		err, o.readKey(), o.readDurations(), o.readAddresses(), o.readSite(), o.readCertificate(), o.readLog())
	if err == nil {
		err = o.config.Validate()
	}
	return o, err
}

func (o *options) missing() error {
	s := o.schema
	var errs []error
	if s.socket == "" {
		errs = append(errs, errors.New("--socket is missing (or set "+handoff.EnvSocket+")"))
	}
	if len(s.http)+len(s.https)+len(s.tcpEcho)+len(s.udpEcho) == 0 {
		errs = append(errs, errors.New("--http is missing: there is nothing to serve (nor is there --https, --tcp-echo or --udp-echo)"))
	}
	return errors.Join(errs...)
}

func (o *options) readKey() error {
	s := o.schema
	if s.sharedKey == "" {
		return nil
	}
	var err error
	if o.config.Key, err = handoff.ReadKey(s.sharedKey); err != nil {
		return fmt.Errorf("%s: %w", s.where("shared-key"), err)
	}
	if info, err := os.Stat(s.sharedKey); err == nil {
		o.openKey = info.Mode().Perm()&0o004 != 0
	}
	return nil
}

func (o *options) readDurations() error {
	s := o.schema
	var errs []error
	for _, d := range []struct {
		name string
		from time.Duration
		to   *time.Duration
	}{
		{"ready-timeout", s.readyTimeout, &o.config.ReadyTimeout},
		{"probation", s.probation, &o.config.Probation},
		{"drain-timeout", s.drainTimeout, &o.config.DrainTimeout},
		{"stop-delay", s.stopDelay, &o.config.StopDelay},
		{"drain-spread", s.drainSpread, &o.config.DrainSpread},
		{"step-timeout", s.stepTimeout, &o.config.StepTimeout},
		{"heartbeat", s.heartbeat, &o.config.Heartbeat},
		{"kill-silent", s.killSilent, &o.config.KillSilent},
	} {
		switch {
		case d.from < 0, d.from == 0 && (d.name == "ready-timeout" || d.name == "step-timeout"):
			errs = append(errs, fmt.Errorf("%s %v is too short", s.where(d.name), d.from))
		case d.from == 0 && (d.name == "stop-delay" || d.name == "kill-silent"):
		case d.from == 0 && d.name == "drain-spread" && !o.given("drain-spread"):
		case d.from == 0:
			*d.to = -1 // none; 0 is the library's default
		default:
			*d.to = d.from
		}
	}
	if !s.moveIdle {
		o.config.MoveIdle = handoff.MoveIdleOff
	}
	if o.config.MaxDraining = s.maxDraining; s.maxDraining < 0 {
		errs = append(errs, fmt.Errorf("%s %d is negative (0: any number)", s.where("max-draining"), s.maxDraining))
	}
	return errors.Join(errs...)
}

// given tells whether a flag has a value that is not its default.
func (o *options) given(flag string) bool { _, ok := o.schema.origins[flag]; return ok }

func (o *options) readAddresses() error {
	s := o.schema
	var errs []error
	all := newAddresses()
	one := func(flag, spec string, packet bool) handoff.Socket {
		socket, err := all.parse(spec, packet)
		if err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", s.where(flag), spec, err))
		}
		return socket
	}
	for _, f := range []struct {
		name   string
		from   []string
		packet bool
		to     *[]handoff.Socket
	}{
		{"http", s.http, false, &o.http},
		{"https", s.https, false, &o.https},
		{"tcp-echo", s.tcpEcho, false, &o.echoes.stream},
		{"udp-echo", s.udpEcho, true, &o.echoes.packet},
	} {
		for _, spec := range f.from {
			*f.to = append(*f.to, one(f.name, spec, f.packet))
		}
	}
	if s.admin != "" {
		admin := one("admin", s.admin, false)
		o.admin = &admin
	}
	if s.selfSocket != "" && s.socket != "" && filepath.Clean(s.selfSocket) == filepath.Clean(s.socket) {
		errs = append(errs, fmt.Errorf("%s %q: this is the path of the control socket", s.where("self-socket"), s.selfSocket))
	}
	if s.preview != "" {
		var err error
		if o.preview.network, o.preview.address, err = parseAddress(s.preview, false); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", s.where("preview"), s.preview, err))
		} else if all.taken(o.preview.network, o.preview.address) {
			errs = append(errs, fmt.Errorf("%s %q: the address %s is used twice", s.where("preview"), s.preview, o.preview.address))
		}
	}
	return errors.Join(errs...)
}

func (o *options) readSite() error {
	s := o.schema
	var errs []error
	o.site.root, o.site.accessLog = s.root, s.accessLog
	if s.root != "" && s.proxy != "" {
		errs = append(errs, fmt.Errorf("%s and %s exclude each other", s.where("root"), s.where("proxy")))
	}
	if s.root != "" {
		if info, err := os.Stat(s.root); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", s.where("root"), s.root, withoutPath(err)))
		} else if !info.IsDir() {
			errs = append(errs, fmt.Errorf("%s %q: it is not a directory", s.where("root"), s.root))
		}
	}
	if s.proxy != "" {
		var err error
		if o.site.proxy, err = parseBackend(s.proxy); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: %w", s.where("proxy"), s.proxy, err))
		}
	}
	return errors.Join(errs...)
}

func (o *options) readCertificate() error {
	s := o.schema
	o.cert, o.key = s.cert, s.key
	switch {
	case s.cert == "" && s.key == "" && len(s.https) == 0:
		return nil
	case s.cert == "" || s.key == "":
		return errors.New("--cert and --key are needed, both, for --https")
	}
	if _, err := loadPair(s.cert, s.key); err != nil {
		return fmt.Errorf("%s and %s: %w", s.where("cert"), s.where("key"), err)
	}
	return nil
}

// levels are the names of --log-level.
var levels = map[string]slog.Level{
	"debug": slog.LevelDebug, "info": slog.LevelInfo, "warn": slog.LevelWarn, "error": slog.LevelError,
}

func (o *options) readLog() error {
	s := o.schema
	var errs []error
	o.logFile, o.jsonLog = s.logFile, s.logFormat == "json"
	if s.logFormat != "text" && s.logFormat != "json" {
		errs = append(errs, fmt.Errorf("%s %q is neither text nor json", s.where("log-format"), s.logFormat))
	}
	level, ok := levels[s.logLevel]
	if !ok {
		errs = append(errs, fmt.Errorf("%s %q is none of debug, info, warn, error", s.where("log-level"), s.logLevel))
	}
	o.logLevel = level
	if s.logFile != "" {
		// The file itself is made when the server starts.
		if info, err := os.Stat(filepath.Dir(s.logFile)); err != nil {
			errs = append(errs, fmt.Errorf("%s %q: its directory: %w", s.where("log-file"), s.logFile, withoutPath(err)))
		} else if !info.IsDir() {
			errs = append(errs, fmt.Errorf("%s %q: its directory is none", s.where("log-file"), s.logFile))
		}
	}
	return errors.Join(errs...)
}

// withoutPath is for messages that name the path already.
func withoutPath(err error) error {
	if e := (*fs.PathError)(nil); errors.As(err, &e) {
		return e.Err
	}
	return err
}

// changed lists the flags whose values differ between two configurations.
func changed(before, after options) (names []string) {
	for _, f := range before.schema.configurable() {
		if !slices.Equal(valueOf(f), valueOf(after.schema.Lookup(f.Name))) {
			names = append(names, f.Name)
		}
	}
	return names
}
