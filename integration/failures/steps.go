package main

import (
	"fmt"
	"slices"
	"strings"
)

// party is one of the processes of a handoff. The first server is the incumbent, the second the successor; the tool is
// the handoffctl that asked for what is under way.
type party string

const (
	incumbent party = "incumbent"
	successor party = "successor"
	tool      party = "handoffctl"
)

// fault is what is done to the victims.
type fault string

const (
	faultKill fault = "KILL" // SIGKILL
	faultStop fault = "STOP" // SIGSTOP, for longer than every deadline, then SIGCONT
)

// way is how the handoff comes to the step.
type way string

const (
	wayUpgrade  way = "upgrade"  // handoffctl upgrade
	wayStandby  way = "standby"  // handoffctl upgrade --wait=standby, which has ended
	wayHandover way = "handover" // then handoffctl handover
	wayRollback way = "rollback" // handoffctl upgrade --wait=committed, which has ended, then handoffctl rollback
)

// step is a point of the protocol at which something happens to somebody.
type step struct {
	name  string
	halt  party // who stops itself there; "" where nobody does and both run
	at    string
	way   way
	stage stage
	// toolEnds says that handoffctl has all that it waits for.
	toolEnds bool
	probed   bool // both sides are in probation and run: how long a stopped successor costs is bounded more closely
}

// stage is who could serve if the other died now.
type stage int

const (
	offered stage = iota // only the incumbent: nothing has been sent
	both                 // whoever lives: sockets that are on their way count for the successor
	revoked              // only the incumbent: the successor was told to stop
	said                 // whoever lives, but the successor has said that it is on its own, or will have when the fault comes
	alone                // only the successor: the incumbent has given the sockets up, or has when the fault comes
)

// steps are all of them, in the order of the protocol.
var steps = []step{
	{name: "sent hello", halt: successor, way: wayUpgrade},
	{name: "read hello", halt: incumbent, way: wayUpgrade},
	{name: "sent welcome", halt: incumbent, way: wayUpgrade},
	{name: "sent sockets", halt: incumbent, way: wayUpgrade, stage: both},
	{name: "read sockets", halt: successor, way: wayUpgrade, stage: both},
	{name: "sent got", halt: successor, way: wayUpgrade, stage: both},
	{name: "read got", halt: incumbent, way: wayUpgrade, stage: both},
	{name: "before ready", halt: successor, way: wayUpgrade, stage: both},
	{name: "sent ready", halt: successor, way: wayUpgrade, stage: both},
	{name: "read ready", halt: incumbent, way: wayUpgrade, stage: both},
	{name: "standby", way: wayStandby, stage: both},
	{name: "handover asked", at: "before serve", halt: incumbent, way: wayHandover, stage: both},
	{name: "before serve", halt: incumbent, way: wayUpgrade, stage: both},
	{name: "sent serve", halt: incumbent, way: wayUpgrade, stage: both},
	{name: "read serve", halt: successor, way: wayUpgrade, stage: both},
	{name: "before serving", halt: successor, way: wayUpgrade, stage: both},
	{name: "sent serving", halt: successor, way: wayUpgrade, stage: both},
	{name: "read serving", halt: incumbent, way: wayUpgrade, stage: both},
	{name: "probation", way: wayUpgrade, stage: both, probed: true},
	{name: "rollback asked", at: "before revoke", halt: incumbent, way: wayRollback, stage: both},
	{name: "read revoke", halt: successor, way: wayRollback, stage: revoked},
	{name: "before revoked", halt: successor, way: wayRollback, stage: revoked},
	{name: "sent release", halt: incumbent, way: wayUpgrade, stage: said},
	{name: "read release", halt: successor, way: wayUpgrade, stage: both},
	{name: "before released", halt: successor, way: wayUpgrade, stage: both},
	{name: "sent released", halt: successor, way: wayUpgrade, stage: alone},
	{name: "read released", halt: incumbent, way: wayUpgrade, stage: said},
	{name: "before draining", halt: incumbent, way: wayUpgrade, stage: alone},
	{name: "sent draining", halt: incumbent, way: wayUpgrade, stage: alone},
	{name: "read draining", halt: successor, way: wayUpgrade, stage: alone},
	{name: "sent bye", halt: incumbent, way: wayUpgrade, stage: alone, toolEnds: true},
	{name: "read bye", halt: successor, way: wayUpgrade, stage: alone},
}

// point is what FAULTS_HALT is set to, "" where nobody halts.
func (s step) point() string {
	switch {
	case s.halt == "":
		return ""
	case s.at != "":
		return s.at
	}
	return s.name
}

// cell is one run of the matrix.
type cell struct {
	step    step
	victims []party
	fault   fault
	without string // a rule that both servers do without: a negative control
}

func (c cell) id() string {
	return c.step.name + "/" + victimsName(c.victims) + "/" + string(c.fault)
}

func victimsName(victims []party) string {
	names := make([]string, len(victims))
	for i, v := range victims {
		names[i] = string(v)
	}
	return strings.Join(names, "+")
}

func (c cell) hits(p party) bool { return slices.Contains(c.victims, p) }

// kills says that a party is killed.
func (c cell) kills(p party) bool { return c.fault == faultKill && c.hits(p) }

// nobody says that nobody is left who may serve: the next server has to begin anew.
func (c cell) nobody() bool {
	return c.kills(incumbent) && (c.kills(successor) || c.step.stage == revoked) ||
		c.kills(successor) && c.step.stage == alone
}

// mayLose says that no living process holds the sockets, so that clients can't but notice.
func (c cell) mayLose() bool { return c.nobody() || c.kills(incumbent) && c.step.stage == offered }

// column is a set of victims and what happens to them: one table of the page has several.
type column struct {
	victims []party
	fault   fault
}

func (c column) String() string { return string(c.fault) }

// tables are the tables of the page, each with its columns.
var tables = []struct {
	title   string
	columns []column
}{
	{"The incumbent", []column{{[]party{incumbent}, faultKill}, {[]party{incumbent}, faultStop}}},
	{"The successor", []column{{[]party{successor}, faultKill}, {[]party{successor}, faultStop}}},
	{"handoffctl", []column{{[]party{tool}, faultKill}, {[]party{tool}, faultStop}}},
	{"Two at once", []column{
		{[]party{incumbent, tool}, faultKill},
		{[]party{successor, tool}, faultKill},
		{[]party{incumbent, successor}, faultKill},
	}},
}

// pointless says why a combination is left out, "" where it is not.
func (c cell) pointless() string {
	switch s := c.step; {
	case c.hits(tool) && s.way == wayStandby:
		return "while a standby waits no handoffctl runs"
	case c.hits(tool) && s.stage == revoked:
		return "a rollback is answered before the successor has read its `revoke`"
	case c.hits(tool) && s.toolEnds:
		return "the upgrade ends as soon as `bye` was read"
	case c.hits(incumbent) && s.name == "read bye":
		return "the incumbent has ended by the time its `bye` is read"
	}
	return ""
}

// cells is the whole matrix, in the order of the page.
func cells() (all []cell) {
	for _, t := range tables {
		for _, s := range steps {
			for _, col := range t.columns {
				c := cell{step: s, victims: col.victims, fault: col.fault}
				if c.pointless() == "" {
					all = append(all, c)
				}
			}
		}
	}
	return all
}

// stepNamed finds a step; the controls are written by name.
func stepNamed(name string) (step, error) {
	i := slices.IndexFunc(steps, func(s step) bool { return s.name == name })
	if i < 0 {
		return step{}, fmt.Errorf("no step %q", name)
	}
	return steps[i], nil
}
