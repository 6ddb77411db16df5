package main

import (
	"context"
	"encoding/json"
	"fmt"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

const (
	web       = "127.0.0.1:0" // the kernel chooses the port; successors inherit it under this name
	probation = time.Second
	pause     = 1500 * time.Millisecond // of load on a version before the next step
	quiet     = 3 * time.Second         // of load alone, before the first handoff and after the last step
)

// demo is one play: a chain of servers and the load on it.
type demo struct {
	programs proc.Binaries
	dir      string
	socket   string
	began    time.Time
	first    *proc.Process // version 1; the others are left to themselves by handoffctl
	load     *load.Run
	handoffs []handoff
	failed   failedStart
}

// handoff is when the phases of a handoff ended.
type handoff struct {
	version                             int
	began, committed, released, drained time.Time
}

// failedStart is the attempt to hand over to a version that does not start.
type failedStart struct {
	began, ended time.Time
	said         string // by handoffctl
}

// say prints a line of progress.
func (d *demo) say(format string, args ...any) {
	fmt.Printf("%6.1f s  %s\n", time.Since(d.began).Seconds(), fmt.Sprintf(format, args...))
}

// play does everything in order and prints the account.
func (d *demo) play(ctx context.Context) error {
	fmt.Println("A server is replaced by its next version under load.")
	if err := d.begin(ctx); err != nil {
		return err
	}
	defer d.load.Stop()
	if err := d.pass(ctx, quiet); err != nil {
		return err
	}
	for version := 2; version <= 3; version++ {
		if err := d.handOver(ctx, version); err != nil {
			return err
		}
		if err := d.pass(ctx, pause); err != nil {
			return err
		}
	}
	if err := d.failToStart(ctx); err != nil {
		return err
	}
	if err := d.pass(ctx, quiet); err != nil {
		return err
	}
	report := d.load.Stop()
	if err := d.stop(ctx); err != nil {
		return err
	}
	d.account(report)
	return verdict(report)
}

// begin starts version 1 and puts load on it.
func (d *demo) begin(ctx context.Context) (err error) {
	d.first, err = proc.Start(proc.Spec{Path: d.programs.Server, Args: d.serverArgs(1), Log: d.log("version1")})
	if err != nil {
		return err
	}
	if _, err := d.ctl(ctx, "wait", "--for=serving", "--timeout=10s"); err != nil {
		return err
	}
	out, err := d.ctl(ctx, "sockets", "--json")
	if err != nil {
		return err
	}
	var sockets proc.Sockets
	if err := json.Unmarshal([]byte(out), &sockets); err != nil {
		return fmt.Errorf("handoffctl sockets: %w", err)
	}
	addr, err := sockets.Address(web)
	if err != nil {
		return err
	}
	d.say("version 1 serves http://%s (pid %d)", addr, d.first.PID())
	streams := []load.Stream{
		{Kind: load.KeepAlive, Address: addr, Conns: 100, Rate: 2000},
		{Kind: load.NewConn, Address: addr, Rate: 300},
	}
	d.load, err = load.Start(ctx, load.Config{Streams: streams})
	if err != nil {
		return err
	}
	d.say("load: %s POSTs/s on %d keep-alive connections, %.0f new connections/s, nothing is sent twice",
		thousands(uint64(streams[0].Rate)), streams[0].Conns, streams[1].Rate)
	return nil
}

func (d *demo) log(name string) string { return filepath.Join(d.dir, name+".log") }

// serverArgs is the command line of a version.
func (d *demo) serverArgs(version int) []string {
	return []string{
		"--socket", d.socket, "--http", web, "--label", fmt.Sprintf("version %d", version),
		"--probation", probation.String(),
	}
}

// pass lets time pass under load and says what happened meanwhile.
func (d *demo) pass(whole context.Context, t time.Duration) error {
	ctx, cancel := context.WithTimeout(whole, t)
	defer cancel()
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			c := d.load.Counts()
			d.say("%s requests answered, %d lost", thousands(c.Answered), c.Lost)
		case <-ctx.Done():
			return whole.Err()
		}
	}
}

// handOver replaces the version that serves.
func (d *demo) handOver(ctx context.Context, version int) error {
	name := fmt.Sprintf("version%d", version)
	h := handoff{version: version, began: time.Now()}
	args := []string{"upgrade", "--wait=committed", "--timeout=20s", "--log", d.log(name), "--", d.programs.Server}
	if _, err := d.ctl(ctx, append(args, d.serverArgs(version)...)...); err != nil {
		return err
	}
	h.committed = time.Now()
	d.say("version %d serves; version %d keeps its connections and can take back", version, version-1)
	if _, err := d.ctl(ctx, "wait", "--for=released", "--timeout=20s"); err != nil {
		return err
	}
	h.released = time.Now()
	d.say("version %d is released and drains", version-1)
	if _, err := d.ctl(ctx, "wait", "--for=drained", "--timeout=20s"); err != nil {
		return err
	}
	h.drained = time.Now()
	d.say("version %d is gone", version-1)
	d.handoffs = append(d.handoffs, h)
	return d.load.Wait(ctx, load.Answers(uint64(version), 1))
}

// failToStart tries a version that asks for a socket it cannot have. That it fails is what is wanted.
func (d *demo) failToStart(ctx context.Context) error {
	d.failed.began = time.Now()
	args := []string{"upgrade", "--timeout=10s", "--log", d.log("version4"), "--", d.programs.Server}
	args = append(append(args, d.serverArgs(4)...), "--http", "unix:"+filepath.Join(d.dir, "missing", "socket"))
	r, err := d.run(ctx, args...)
	if err != nil {
		return err
	}
	d.failed.ended = time.Now()
	if r.Code != 1 {
		return fmt.Errorf("upgrade to a version that cannot start: exit code %d, want 1\n%s%s", r.Code, r.Stdout, r.Stderr)
	}
	for line := range strings.Lines(r.Stderr) {
		if reason, ok := strings.CutPrefix(line, "handoffctl: error: "); ok {
			d.failed.said = strings.TrimSpace(reason)
		}
	}
	d.say("version 4 does not start: %s", d.failed.said)
	st, err := proc.WaitStatus(ctx, d.socket, func(proc.Status) bool { return true })
	if err != nil {
		return err
	}
	if serving := st.Serving(); serving.Generation != 3 || serving.Label != "version 3" {
		return fmt.Errorf("version 3 should serve on, but generation %d (%q) does", serving.Generation, serving.Label)
	}
	return nil
}

// stop ends the last version and waits until it is gone.
func (d *demo) stop(ctx context.Context) error {
	st, err := proc.WaitStatus(ctx, d.socket, func(proc.Status) bool { return true })
	if err != nil {
		return err
	}
	last, err := proc.Adopt(st.Serving().PID)
	if err != nil {
		return err
	}
	defer last.End()
	if _, err := d.ctl(ctx, "stop"); err != nil {
		return err
	}
	if err := endsWell(ctx, "version 3", last); err != nil {
		return err
	}
	return endsWell(ctx, "version 1", d.first)
}

// endsWell waits for a process's end and wants exit code 0.
func endsWell(ctx context.Context, name string, p interface {
	Wait(ctx context.Context) (int, error)
},
) error {
	code, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	if code != 0 {
		return fmt.Errorf("%s ended with exit code %d", name, code)
	}
	return nil
}

// ctl runs handoffctl and wants success; it returns what it printed.
func (d *demo) ctl(ctx context.Context, args ...string) (string, error) {
	r, err := d.run(ctx, args...)
	if err != nil {
		return "", err
	}
	if r.Code != 0 {
		return "", fmt.Errorf("handoffctl %s: exit code %d\n%s%s", args[0], r.Code, r.Stdout, r.Stderr)
	}
	return r.Stdout, nil
}

func (d *demo) run(ctx context.Context, args ...string) (proc.Result, error) {
	return proc.Run(ctx, exec.Command(d.programs.Handoffctl, append([]string{"--socket", d.socket}, args...)...))
}

// end kills what is left of the play, which after a good one is nothing.
func (d *demo) end() error {
	if d.first != nil {
		d.first.End()
	}
	pids, err := proc.Mentioning(d.dir + "/")
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if p, err := proc.Adopt(pid); err == nil {
			p.End()
		}
	}
	return nil
}
