package main

import (
	"strings"
	"time"

	"github.com/fdhandoff/handoff/integration/load"
)

// part is what --only chooses: runs that mean something together.
type part struct {
	name string
	runs func(s settings, bin programs) []spec
}

// parts are all of them, in the order in which they are run.
var parts = []part{
	{"a", func(s settings, bin programs) []spec { return []spec{handoffs(s, bin)} }},
	{"b", func(s settings, bin programs) []spec { return []spec{plainShutdown(s, bin)} }},
}

func partsText() string {
	var names []string
	for _, p := range parts {
		names = append(names, p.name)
	}
	return strings.Join(names, ",")
}

// spec is one run: a chain of servers under load, and what must come of it.
type spec struct {
	title    string // the column's head
	line     string // what the line below the table begins with; "" is no line
	handoffs int
	every    time.Duration
	quiet    time.Duration
	conns    int // of the stream that keeps its connections
	tool     string
	// server is the command line of every version, but for --label.
	server func(socket string) []string
	env    []string
	// streams is the load on an address.
	streams func(address string) []load.Stream
	timeout time.Duration // of a request; 0: load's
	judge   func(f figures) []string
}

// base is what all runs have in common.
func (s settings) base(bin programs) spec {
	return spec{
		handoffs: s.handoffs, every: s.every, quiet: s.quiet, conns: s.conns, tool: bin.Handoffctl,
		streams: func(address string) []load.Stream {
			return []load.Stream{
				{Kind: load.KeepAlive, Address: address, Conns: s.conns, Rate: s.rate},
				{Kind: load.NewConn, Address: address, Rate: s.fresh},
			}
		},
	}
}

// handoffs is what is to be proved.
func handoffs(s settings, bin programs) spec {
	sp := s.base(bin)
	sp.title, sp.line = "handoff", "handoff"
	sp.server = func(socket string) []string { return serverArgs(bin.Server, socket) }
	sp.judge = func(f figures) []string { return mustLoseNothing(f) }
	return sp
}

// plainShutdown is a control: the listener is handed over in the same way, under the same load, and the old version
// drains by http.Server.Shutdown.
func plainShutdown(s settings, bin programs) spec {
	sp := s.base(bin)
	sp.title, sp.line = "Shutdown", "http.Server.Shutdown"
	sp.server = func(socket string) []string { return []string{bin.shutdown, "--socket", socket, "--address", web} }
	sp.judge = func(f figures) []string { return mustLose(f) }
	return sp
}

// web is where the first version listens: the kernel chooses the port, and the others inherit it under this name.
const web = "127.0.0.1:0"

func serverArgs(program, socket string) []string {
	return []string{program, "--socket", socket, "--http", web, "--log-format", "json", "--probation", "0s"}
}
