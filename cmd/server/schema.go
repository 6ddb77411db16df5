package main

import (
	"fmt"
	"io"
	"slices"
	"strings"
	"time"

	"github.com/spf13/pflag"

	"github.com/fdhandoff/handoff/handoff"
)

// schema is what can be configured: the flags. Each is also the environment
// variable HANDOFF_<FLAG> and a key of the configuration file, those in
// commandLineOnly aside.
type schema struct {
	*pflag.FlagSet
	groups  []group
	origins map[string]origin // where a flag's value came from; absent: it is the default
	values
}

// values are what the flags are written to, as they were given.
type values struct {
	config               string
	checkConfig, version bool

	socket, label string
	sharedKey     string
	takeover      handoff.Takeover
	readyTimeout  time.Duration
	probation     time.Duration
	stepTimeout   time.Duration
	heartbeat     time.Duration
	killSilent    time.Duration
	maxDraining   int
	moveIdle      bool
	foreignNetns  bool
	noClaim       bool

	http, https, tcpEcho, udpEcho []string
	cert, key                     string
	root, proxy                   string

	admin, selfSocket, preview string

	stopDelay, drainTimeout, drainSpread time.Duration

	logFile, logFormat, logLevel string
	accessLog                    bool
}

// group is a part of the help.
type group struct {
	title string
	flags *pflag.FlagSet
}

// commandLineOnly are flags that ask for something once, or say where the
// configuration is.
var commandLineOnly = []string{"config", "check-config", "version"}

// live are the flags whose values a reload can change.
var live = []string{"root", "proxy", "cert", "key", "log-level", "access-log"}

func newSchema() *schema {
	s := &schema{FlagSet: pflag.NewFlagSet("server", pflag.ContinueOnError), origins: map[string]origin{}}
	s.SortFlags = false
	s.SetOutput(io.Discard)
	s.Usage = func() {}

	s.group("Handing over", func(f *pflag.FlagSet) {
		f.StringVar(&s.socket, "socket", "", "control socket, one path per service")
		f.StringVar(&s.sharedKey, "shared-key", "", "`file` with a secret that both sides have, for those whose users can't be\ncompared, as in containers with user namespaces; whoever the directory of\n--socket lets may connect then")
		f.StringVar(&s.label, "label", "", "name of this version in logs, status and pages")
		f.TextVar(&s.takeover, "takeover", handoff.Auto, "when to take over: auto, standby, spare or never")
		f.DurationVar(&s.readyTimeout, "ready-timeout", 30*time.Second, "how long a successor may take to become ready")
		f.DurationVar(&s.probation, "probation", 5*time.Second, "how long to stay able to take back after handing over")
		f.DurationVar(&s.stepTimeout, "step-timeout", 5*time.Second, "how long each other answer of the peer may take during a handoff")
		f.DurationVar(&s.heartbeat, "heartbeat", time.Second, "how often to ask the other side whether it is there; three without an\nanswer, and it is silent (0s: never)")
		f.DurationVar(&s.killSilent, "kill-silent", 0, "how long an incumbent may be alive but silent before this successor ends it;\n2s at least (default: for ever)")
		f.IntVar(&s.maxDraining, "max-draining", 0, "how many older generations may drain at the same time; further successors\nare told busy (default: any number)")
		f.BoolVar(&s.moveIdle, "move-idle", true, "move idle keep-alive connections of --http to the next version, and take\nthose of the version before")
		f.BoolVar(&s.foreignNetns, "allow-foreign-netns", false, "serve sockets that live in another network namespace, and open others there\n(CAP_NET_ADMIN, CAP_SYS_ADMIN); they die with that network")
		f.BoolVar(&s.noClaim, "allow-no-claim", false, "succeed an incumbent none of whose addresses are served on, and let it close them\n(without it that is refused: it is usually another service)")
		f.StringVar(&s.preview, "preview", "", "private `address` on which a successor serves until it takes over;\nnever handed over")
	})
	s.group("Where to serve (repeatable; [NAME=]ADDR, where ADDR is host:port or unix:/path,\nand NAME, or ADDR as written, is its name from version to version)", func(f *pflag.FlagSet) {
		f.StringArrayVar(&s.http, "http", nil, "`address` for HTTP/1.1 and h2c")
		f.StringArrayVar(&s.https, "https", nil, "`address` for HTTP/2 and HTTP/1.1 over TLS")
		f.StringArrayVar(&s.tcpEcho, "tcp-echo", nil, "`address` for TCP, where what comes is sent back")
		f.StringArrayVar(&s.udpEcho, "udp-echo", nil, "`address` for UDP, likewise; unix:/path is a unixgram socket")
		f.StringVar(&s.cert, "cert", "", "`file` with the certificate of --https and its chain, PEM; read again on\nSIGHUP and when it changes")
		f.StringVar(&s.key, "key", "", "`file` with its key, PEM")
	})
	s.group("What to serve (neither: the built-in pages)", func(f *pflag.FlagSet) {
		f.StringVar(&s.root, "root", "", "`directory` of files to serve")
		f.StringVar(&s.proxy, "proxy", "", "pass requests on to this backend: http://host:port, https://host:port\nor unix:/path")
	})
	s.group("Watching", func(f *pflag.FlagSet) {
		f.StringVar(&s.admin, "admin", "", "`[NAME=]ADDR` of /healthz, /readyz and /status; handed over like the others")
		f.StringVar(&s.selfSocket, "self-socket", "", "`path` of a socket that tells of this process alone; never handed over")
		f.StringVar(&s.logFile, "log-file", "", "`file` to append the log to, instead of standard error; SIGUSR1 opens it again")
		f.StringVar(&s.logFormat, "log-format", "text", "text or json")
		f.StringVar(&s.logLevel, "log-level", "info", "debug, info, warn or error")
		f.BoolVar(&s.accessLog, "access-log", false, "write a line for each request")
	})
	s.group("Stopping", func(f *pflag.FlagSet) {
		f.DurationVar(&s.stopDelay, "stop-delay", 0, "how long to go on accepting with /readyz failing, when nobody succeeds")
		f.DurationVar(&s.drainTimeout, "drain-timeout", 30*time.Second, "how long open connections may take to finish")
		f.DurationVar(&s.drainSpread, "drain-spread", 0, "the time over which connections without an end are told, each at a random\nmoment (default a tenth of --drain-timeout; 0s: all at once)")
	})
	s.group("Configuration", func(f *pflag.FlagSet) {
		f.StringVar(&s.config, "config", "", "YAML or JSON `file` with the flags' names as keys, lists for what is\nrepeatable; SIGHUP reads it again")
		f.BoolVar(&s.checkConfig, "check-config", false, "print the configuration, or what is wrong with it, and exit")
		f.BoolVar(&s.version, "version", false, "print the version and exit")
	})
	return s
}

func (s *schema) group(title string, define func(*pflag.FlagSet)) {
	f := pflag.NewFlagSet(title, pflag.ContinueOnError)
	f.SortFlags = false
	define(f)
	s.groups = append(s.groups, group{title, f})
	s.AddFlagSet(f)
}

// configurable are the flags that may stand in the environment and in the file.
func (s *schema) configurable() (flags []*pflag.Flag) {
	s.VisitAll(func(f *pflag.Flag) {
		if !slices.Contains(commandLineOnly, f.Name) {
			flags = append(flags, f)
		}
	})
	return flags
}

const usage = `Usage: server --socket PATH --http [NAME=]ADDR … [flags]

Serves HTTP, and is replaced by its next version without a client noticing:
start the next version with the same --socket and it takes over.

Examples:
  server --socket /run/app/handoff.sock --http :8080 --label v1
  server --socket /run/app/handoff.sock --http web=127.0.0.1:8080 --http unix:/run/app/http.sock
  server --socket /run/app/handoff.sock --http :8080 --takeover standby   # waits for handoffctl handover
  server --socket /run/app/handoff.sock --https :8443 --cert tls.crt --key tls.key --root /srv/www
  server --socket /run/app/handoff.sock --http :8080 --proxy http://127.0.0.1:9000 --admin 127.0.0.1:9090
  server --config /etc/app/server.yaml --check-config

%s
A flag beats its environment variable, HANDOFF_ and the flag in upper case with
_ for -, which beats the file's key; a variable has spaces between several values.

Signals:
  SIGTERM, SIGINT  hand over to a waiting standby, or stop; a second one: SIGUSR2
  SIGUSR2          hammer time: cut what a stop or a drain still waits for
  SIGHUP           read certificates and configuration again
  SIGUSR1          open the log file again

Exit codes: 0 done, 1 refused or failed, 2 usage or configuration,
  6 connections were cut at the deadline, 7 revoked by the incumbent
`

func (s *schema) help() string {
	var b strings.Builder
	for _, g := range s.groups {
		fmt.Fprintf(&b, "%s:\n%s\n", g.title, g.flags.FlagUsages())
	}
	return fmt.Sprintf(usage, strings.TrimSuffix(b.String(), "\n"))
}
