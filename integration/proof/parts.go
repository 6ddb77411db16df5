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
	{"c", func(s settings, bin programs) []spec {
		return []spec{
			pipelined(s, bin, "pipelined", "", mustLoseNothing),
			pipelined(s, bin, "without the rule", "boundary-rule,self-check", mustAnswerWrongly),
			pipelined(s, bin, "with the check alone", "boundary-rule", mustNoticeItself),
		}
	}},
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
	sp.judge = mustLoseNothing
	return sp
}

// plainShutdown is a control: the listener is handed over in the same way, under the same load, and the old version
// drains by http.Server.Shutdown.
func plainShutdown(s settings, bin programs) spec {
	sp := s.base(bin)
	sp.title, sp.line = "Shutdown", "Shutdown"
	sp.server = func(socket string) []string { return []string{bin.shutdown, "--socket", socket, "--address", web} }
	sp.judge = mustLose
	return sp
}

const (
	// trains is the rate of the pipelined load, of one to four requests each: few enough that a connection is idle most
	// of the time, and so many that at any moment some have sent a part of a request behind their last one.
	trains = 1000
	// fewer is the most handoffs under it: each meets several such connections.
	fewer = 30
)

// pipelined is a run under the load that the boundary rule is for: requests in pieces, several in a row, the last one
// incomplete for a while. The servers do without some rules (handoff/faults.go), "" without none. The last two runs are
// controls: what moves too early must be answered wrongly, or this load does not see it; and where nothing but the rule
// is missing, the check at a server's start must see that.
func pipelined(s settings, bin programs, title, without string, judge func(f figures) []string) spec {
	sp := s.base(bin)
	sp.title, sp.judge = title, judge
	sp.handoffs, sp.quiet = min(s.handoffs, fewer), min(s.quiet, time.Second)
	sp.env = []string{"FAULTS_WITHOUT=" + without}
	sp.server = func(socket string) []string { return serverArgs(bin.faulty, socket) }
	sp.streams = func(address string) []load.Stream {
		return []load.Stream{{Kind: load.Pipelined, Address: address, Conns: s.conns, Rate: trains}}
	}
	sp.timeout = 3 * time.Second // a request of which a part went astray is never answered
	return sp
}

// web is where the first version listens: the kernel chooses the port, and the others inherit it under this name.
const web = "127.0.0.1:0"

func serverArgs(program, socket string) []string {
	return []string{program, "--socket", socket, "--http", web, "--log-format", "json", "--probation", "0s"}
}
