package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/fdhandoff/handoff/handoff"
)

// options is what the command line says.
type options struct {
	config    handoff.Config
	listen    []handoff.Socket
	site      site
	echo      echoes
	logFormat string
	version   bool
}

const usage = `Usage: server --socket PATH --http [NAME=]ADDR … [flags]

Serves HTTP, and is replaced by its next version without a client noticing:
start the next version with the same --socket and it takes over.

Examples:
  server --socket /run/app/handoff.sock --http :8080 --label v1
  server --socket /run/app/handoff.sock --http web=127.0.0.1:8080 --http unix:/run/app/http.sock
  server --socket /run/app/handoff.sock --http :8080 --takeover standby   # waits for handoffctl handover

Flags:
%s
Exit codes: 0 done, 1 refused or failed, 2 usage,
  6 connections were cut at the deadline, 7 revoked by the incumbent
`

// parse reads the command line. It returns pflag.ErrHelp after it has printed
// the help to out.
func parse(args []string, out io.Writer) (options, error) {
	var o options
	var http, tcpEcho, udpEcho []string
	var proxy string
	f := pflag.NewFlagSet("server", pflag.ContinueOnError)
	f.SortFlags = false
	f.SetOutput(io.Discard)
	f.StringVar(&o.config.Socket, "socket", os.Getenv(handoff.EnvSocket), "control socket, one path per service (default $"+handoff.EnvSocket+")")
	f.StringArrayVar(&http, "http", nil, "serve HTTP/1.1 and h2c here; ADDR is host:port or unix:/path,\nits name from version to version is NAME or ADDR as written; repeatable")
	f.StringVar(&o.site.root, "root", "", "serve the files of this directory instead of the built-in application")
	f.StringVar(&proxy, "proxy", "", "pass requests to this backend instead: http://host:port, https://host:port or unix:/path")
	f.BoolVar(&o.site.accessLog, "access-log", false, "log every request")
	f.StringArrayVar(&tcpEcho, "tcp-echo", nil, "send back what comes by TCP here; [NAME=]ADDR as for --http; repeatable")
	f.StringArrayVar(&udpEcho, "udp-echo", nil, "send back datagrams that come here; unix:/path is a unixgram socket; repeatable")
	f.StringVar(&o.config.Label, "label", "", "name of this version in logs, status and pages")
	f.TextVar(&o.config.Takeover, "takeover", handoff.Auto, "when to take over: auto, standby, spare or never")
	ready := f.Duration("ready-timeout", 30*time.Second, "how long a successor may take to become ready")
	probation := f.Duration("probation", 5*time.Second, "how long to stay able to take back after handing over")
	drain := f.Duration("drain-timeout", 30*time.Second, "how long open connections may take to finish")
	f.StringVar(&o.logFormat, "log-format", "text", "text or json")
	f.BoolVar(&o.version, "version", false, "print the version and exit")
	f.Usage = func() {}
	if err := f.Parse(args); err != nil {
		if errors.Is(err, pflag.ErrHelp) {
			fmt.Fprintf(out, usage, f.FlagUsages())
		}
		return o, err
	}
	if o.version {
		return o, nil
	}
	if o.config.Socket == "" {
		return o, errors.New("--socket is missing (or set " + handoff.EnvSocket + ")")
	}
	if f.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", f.Arg(0))
	}
	if o.logFormat != "text" && o.logFormat != "json" {
		return o, fmt.Errorf("--log-format %q is neither text nor json", o.logFormat)
	}
	for _, d := range []struct {
		name string
		from *time.Duration
		to   *time.Duration
	}{
		{"ready-timeout", ready, &o.config.ReadyTimeout},
		{"probation", probation, &o.config.Probation},
		{"drain-timeout", drain, &o.config.DrainTimeout},
	} {
		switch {
		case *d.from < 0, *d.from == 0 && d.name == "ready-timeout":
			return o, fmt.Errorf("--%s %v is too short", d.name, *d.from)
		case *d.from == 0:
			*d.to = -1 // none; 0 is the library's default
		default:
			*d.to = *d.from
		}
	}
	if o.site.root != "" && proxy != "" {
		return o, errors.New("--root and --proxy exclude each other")
	}
	if proxy != "" {
		u, err := parseBackend(proxy)
		if err != nil {
			return o, fmt.Errorf("--proxy %q: %w", proxy, err)
		}
		o.site.proxy = u
	}
	if len(http)+len(tcpEcho)+len(udpEcho) == 0 {
		return o, errors.New("--http is missing: there is nothing to serve")
	}
	seen := map[string]bool{}
	for _, l := range []struct {
		flag   string
		specs  []string
		packet bool
		to     *[]handoff.Socket
	}{
		{"http", http, false, &o.listen},
		{"tcp-echo", tcpEcho, false, &o.echo.stream},
		{"udp-echo", udpEcho, true, &o.echo.packet},
	} {
		for _, spec := range l.specs {
			s, err := parseListen(spec)
			if err != nil {
				return o, fmt.Errorf("--%s %q: %w", l.flag, spec, err)
			}
			if l.packet {
				s.Network = map[string]string{"tcp": "udp", "unix": "unixgram"}[s.Network]
			}
			if key := s.Network + " " + s.Name; seen[key] {
				return o, fmt.Errorf("--%s %q: the name %s is used twice; give one of them another NAME=", l.flag, spec, s.Name)
			} else {
				seen[key] = true
			}
			*l.to = append(*l.to, s)
		}
	}
	return o, nil
}

// parseListen reads [NAME=]host:port or [NAME=]unix:/path. The name is the
// address as written unless one is given.
func parseListen(spec string) (handoff.Socket, error) {
	s := handoff.Socket{Network: "tcp", Address: spec}
	if name, addr, ok := strings.Cut(spec, "="); ok && !strings.ContainsAny(name, ":/[") {
		if name == "" {
			return s, errors.New("the name before = is empty")
		}
		s.Name, s.Address = name, addr
	}
	if s.Name == "" {
		s.Name = s.Address
	}
	if path, ok := strings.CutPrefix(s.Address, "unix:"); ok {
		s.Network, s.Address = "unix", path
		if path == "" {
			return s, errors.New("unix: needs a path")
		}
		return s, nil
	}
	if !strings.Contains(s.Address, ":") {
		return s, errors.New("an address is host:port, :port or unix:/path")
	}
	return s, nil
}
