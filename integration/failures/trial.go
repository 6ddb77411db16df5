package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// The deadlines of the servers under test: short, and yet such that a process that runs keeps them on a busy machine.
const (
	heartbeat    = 300 * time.Millisecond
	stepTimeout  = time.Second
	readyTimeout = 2 * time.Second
	probation    = 2 * time.Second
	drainTimeout = 2 * time.Second
	// stopFor is how long a stopped process stays so: longer than probation and what follows it take together.
	stopFor = 3500 * time.Millisecond
	// patience bounds every wait of a trial. One that passes needs a small part of it.
	patience = 15 * time.Second
	// toolTimeout is how long handoffctl waits where nobody is left to tell it anything.
	toolTimeout = 8 * time.Second
)

var serverFlags = []string{
	"--log-format", "json", "--heartbeat", heartbeat.String(), "--step-timeout", stepTimeout.String(),
	"--ready-timeout", readyTimeout.String(), "--probation", probation.String(), "--drain-timeout", drainTimeout.String(),
}

// trial is one cell under way: its processes, and a directory that goes with them.
type trial struct {
	cell
	bin    proc.Binaries
	dir    string
	socket string
	port   int // reserved: an open socket without a listener keeps it
	// patience bounds its waits for what follows the fault.
	patience time.Duration

	first *proc.Process
	one   *process // the first server, again
	two   *process // the second, nil until it was started
	ctl   *proc.Process
	logs  []string
	run   *load.Run
}

func newTrial(c cell, bin proc.Binaries) (*trial, error) {
	dir, err := os.MkdirTemp("", "hf")
	if err != nil {
		return nil, err
	}
	t := &trial{cell: c, bin: bin, dir: dir, socket: filepath.Join(dir, "s"), patience: patience}
	if c.without != "" {
		t.patience /= 3 // it will not come to rest
	}
	return t, nil
}

// reserve finds a port that stays free for the servers of this trial, who share none with each other but by handoff:
// a bound socket keeps it from everybody who does not ask for it by number, and SO_REUSEADDR lets one who does listen.
func (t *trial) reserve() (release func(), err error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	close := func() { unix.Close(fd) }
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		close()
		return nil, os.NewSyscallError("setsockopt", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		close()
		return nil, os.NewSyscallError("bind", err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		close()
		return nil, os.NewSyscallError("getsockname", err)
	}
	t.port = name.(*unix.SockaddrInet4).Port
	return close, nil
}

func (t *trial) address() string { return net.JoinHostPort("127.0.0.1", strconv.Itoa(t.port)) }

// end kills what is left of the trial and waits for it.
func (t *trial) end() {
	if t.run != nil {
		t.run.Stop()
	}
	for _, p := range []*proc.Process{t.ctl, t.first} {
		if p != nil {
			p.End()
		}
	}
	// A handoffctl that lived had the second server for its child, or a third one that never served; now they are this
	// process's.
	pids, err := proc.Mentioning(t.socket)
	if err != nil {
		panic(err) // there is no /proc: nothing here would work
	}
	if t.two != nil && !slices.Contains(pids, t.two.pid) {
		pids = append(pids, t.two.pid) // it has ended, and is waited for
	}
	for _, pid := range pids {
		if a, err := proc.Adopt(pid); err == nil {
			a.End()
		}
	}
	t.one.close()
	t.two.close()
}

// forget removes the trial's directory, with the logs.
func (t *trial) forget() { os.RemoveAll(t.dir) }

// env is what a server of this trial finds in its environment; it halts at the cell's step if it is that party.
func (t *trial) env(p party) []string {
	env := []string{"FAULTS_HALT=", "FAULTS_WITHOUT=" + t.without}
	if t.step.halt == p {
		env[0] += t.step.point()
	}
	return env
}

func (t *trial) serverArgs(label string, more ...string) []string {
	args := append([]string{"--socket", t.socket, "--label", label, "--http", t.address()}, serverFlags...)
	return append(args, more...)
}

func (t *trial) log(name string) string {
	path := filepath.Join(t.dir, name+".log")
	t.logs = append(t.logs, path)
	return path
}

// startFirst starts the server that is to be the incumbent and waits until it serves.
func (t *trial) startFirst(ctx context.Context) (err error) {
	t.first, err = proc.Start(proc.Spec{
		Name: "v1", Path: t.bin.Server, Args: t.serverArgs("v1"), Env: t.env(incumbent), Log: t.log("v1"),
	})
	if err != nil {
		return err
	}
	if t.one, err = hold(t.first.PID()); err != nil {
		return err
	}
	_, err = proc.WaitStatus(ctx, t.socket, func(s proc.Status) bool { return s.Serving().Label == "v1" })
	return err
}

// startLoad puts clients on the service: on new connections, and on connections that stay.
func (t *trial) startLoad(ctx context.Context) (err error) {
	t.run, err = load.Start(ctx, load.Config{
		Timeout: stopFor + 2*time.Second,
		Streams: []load.Stream{
			{Kind: load.NewConn, Address: t.address(), Rate: 50},
			{Kind: load.KeepAlive, Address: t.address(), Conns: 10, Rate: 100},
			// They keep a process that drains for a while.
			{Kind: load.KeepAlive, Address: t.address(), Conns: 4, Rate: 4},
		},
	})
	if err != nil {
		return err
	}
	return t.run.Wait(ctx, load.Answers(1, 30))
}

// handoffctl starts the tool; what ran before has ended.
func (t *trial) handoffctl(name string, args ...string) (err error) {
	if t.ctl != nil {
		t.ctl.End()
	}
	t.ctl, err = proc.Start(proc.Spec{
		Name: name, Path: t.bin.Handoffctl, Args: append([]string{"--socket", t.socket}, args...),
		Env: t.env(successor), Log: t.log(name), // what it starts inherits the environment
	})
	return err
}

// upgrade starts the second server by the tool and finds out which process it is.
func (t *trial) upgrade(ctx context.Context, wait string, more ...string) error {
	args := append([]string{"upgrade", "--timeout", toolTimeout.String(), "--wait=" + wait, "--log", t.log("v2"), "--", t.bin.Server}, t.serverArgs("v2", more...)...)
	if err := t.handoffctl("upgrade", args...); err != nil {
		return err
	}
	return until(ctx, "upgrade starts a server", func() bool {
		// It may have ended by now: then its child is this process's.
		for _, pid := range append(children(t.ctl.PID()), children(os.Getpid())...) {
			p, err := hold(pid)
			if err != nil {
				continue // it has ended
			}
			if t.isServer(pid, "v2") {
				t.two = p
				return true
			}
			p.close()
		}
		return false
	})
}

// isServer says whether a process is this trial's server with that label. A child that has not become one yet, by
// execve(2), is none; Go's runtime starts others, too, to see what the kernel can.
func (t *trial) isServer(pid int, label string) bool {
	line, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	if err != nil {
		return false
	}
	args := strings.Split(string(line), "\x00")
	return args[0] == t.bin.Server && slices.Contains(args, t.socket) && slices.Contains(args, label)
}

// must waits until the tool has ended well: it was only the way to the step.
func (t *trial) must(ctx context.Context) error {
	code, err := t.ctl.Wait(ctx)
	if err == nil && code != 0 {
		err = fmt.Errorf("%s ended with %d before the step", t.ctl.Name, code)
	}
	return err
}

// begin goes the cell's way to its step.
func (t *trial) begin(ctx context.Context) error {
	switch t.step.way {
	case wayUpgrade:
		return t.upgrade(ctx, "drained")
	case wayStandby, wayHandover:
		if err := errors.Join(t.upgrade(ctx, "standby", "--takeover", "standby"), t.must(ctx)); err != nil {
			return err
		}
		if t.step.way == wayHandover {
			return t.handoffctl("handover", "handover", "--timeout", toolTimeout.String())
		}
	case wayRollback:
		if err := errors.Join(t.upgrade(ctx, "committed"), t.must(ctx)); err != nil {
			return err
		}
		return t.handoffctl("rollback", "rollback", "--timeout", toolTimeout.String())
	}
	return nil
}

// of is a party's process, nil where there is none.
func (t *trial) of(p party) *process {
	switch p {
	case incumbent:
		return t.one
	case successor:
		return t.two
	}
	return nil
}

// reach waits until somebody has stopped itself at the step, or, where nobody does, until both sides are there.
func (t *trial) reach(ctx context.Context) error {
	if p := t.of(t.step.halt); p != nil {
		return until(ctx, fmt.Sprintf("the %s stops at %q", t.step.halt, t.step.point()), func() bool { return p.stopped() || p.ended() })
	}
	_, err := proc.WaitStatus(ctx, t.socket, func(s proc.Status) bool {
		if t.step.way == wayStandby {
			return s.In("standby").Label == "v2"
		}
		return s.Serving().Label == "v2" && s.In("parked").Label == "v1"
	})
	return err
}

// kill sends a signal to a party.
func (t *trial) kill(p party, s syscall.Signal) error {
	if p == tool {
		err := t.ctl.Signal(s)
		if errors.Is(err, os.ErrProcessDone) {
			return fmt.Errorf("%s has ended before the step", t.ctl.Name)
		}
		return err
	}
	return t.of(p).signal(s)
}

// seeStopped waits until nothing of a party runs any more.
func (t *trial) seeStopped(ctx context.Context, p party) error {
	v := t.of(p)
	if p == tool {
		var err error
		if v, err = hold(t.ctl.PID()); err != nil {
			return err
		}
		defer v.close()
	}
	if err := until(ctx, fmt.Sprintf("the %s stops", p), func() bool { return v.stopped() || v.ended() }); err != nil {
		return err
	}
	if v.ended() {
		return fmt.Errorf("the %s has ended before the step", p)
	}
	return nil
}
