package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// patience bounds each step of a run: one command, or the end of one process.
const patience = 30 * time.Second

// afterwards is for how long the load goes on after the last handoff, so that every client meets what that has done to
// its connection.
const afterwards = time.Second

// chain is a run in progress: one server after the other, in a directory of its own.
type chain struct {
	spec
	dir, socket string
	first       *proc.Process
	later       []*proc.Adopted // generation i+2
	load        *load.Run
}

// play runs one chain from beginning to end. An error means that it could not be run; what came of it is in figures.
func play(ctx context.Context, dir string, sp spec) (f figures, err error) {
	if err := os.Mkdir(dir, 0o700); err != nil {
		return f, err
	}
	c := &chain{spec: sp, dir: dir, socket: filepath.Join(dir, "ctl")}
	defer func() { err = errors.Join(err, c.end()) }()
	address, err := c.begin(ctx)
	if err != nil {
		return f, err
	}
	c.load, err = load.Start(ctx, load.Config{Streams: sp.streams(address), Timeout: sp.timeout, Max: limit})
	if err != nil {
		return f, err
	}
	defer c.load.Stop()
	progress("%s: load alone for %v", sp.title, sp.quiet)
	if err := sleep(ctx, sp.quiet); err != nil {
		return f, err
	}
	began := time.Now()
	moveOff, err := c.replace(ctx, began)
	if err != nil {
		return f, err
	}
	ended := time.Now()
	if err := sleep(ctx, afterwards); err != nil {
		return f, err
	}
	report := c.load.Stop()
	if err := os.WriteFile(filepath.Join(dir, "load.txt"), []byte(report.String()), 0o600); err != nil {
		return f, err
	}
	servers, err := c.finish(ctx)
	if err != nil {
		return f, err
	}
	f = figuresOf(sp, report, servers, began, ended)
	f.moveOff = moveOff
	return f, nil
}

// sleep lets load go on for a time.
func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// begin starts the first version and returns where it serves.
func (c *chain) begin(ctx context.Context) (address string, err error) {
	argv := c.server(c.socket)
	c.first, err = proc.Start(proc.Spec{Path: argv[0], Args: argv[1:], Env: c.env, Log: c.log(1)})
	if err != nil {
		return "", err
	}
	if _, err := c.ctl(ctx, "wait", "--for=serving", "--timeout=10s"); err != nil {
		return "", err
	}
	out, err := c.ctl(ctx, "sockets", "--json")
	if err != nil {
		return "", err
	}
	var sockets proc.Sockets
	if err := json.Unmarshal(out, &sockets); err != nil {
		return "", fmt.Errorf("handoffctl sockets: %w", err)
	}
	return sockets.Address(web)
}

func (c *chain) log(generation int) string {
	return filepath.Join(c.dir, fmt.Sprintf("%03d.log", generation))
}

// replace hands over as often as was asked for. It returns why the last version does not move connections, as its
// status has it: "" where it does.
func (c *chain) replace(ctx context.Context, began time.Time) (moveOff string, err error) {
	for i := range c.handoffs {
		if err := sleep(ctx, time.Until(began.Add(time.Duration(i)*c.every))); err != nil {
			return "", err
		}
		if err := c.handOver(ctx, i+2); err != nil {
			return "", err
		}
		if (i+1)%max(c.handoffs/4, 1) == 0 {
			n := c.load.Counts()
			progress("%s: %d of %d handoffs, %s requests answered, %s not, %s connections broken", c.title, i+1, c.handoffs,
				thousands(n.Answered), thousands(n.Lost), thousands(n.Broken))
		}
	}
	out, err := c.ctl(ctx, "status", "--json")
	if err != nil {
		return "", err
	}
	return moveOffOf(out)
}

// moveOffOf reads the reason from what "handoffctl status --json" prints, of the generation that serves.
func moveOffOf(status []byte) (string, error) {
	var st struct {
		Generations []struct {
			State   string `json:"state"`
			MoveOff string `json:"move_off"`
		} `json:"generations"`
	}
	if err := json.Unmarshal(status, &st); err != nil {
		return "", fmt.Errorf("handoffctl status: %w", err)
	}
	for _, g := range st.Generations {
		if g.State == "serving" {
			return g.MoveOff, nil
		}
	}
	return "", fmt.Errorf("handoffctl status: nobody serves: %s", status)
}

// handOver starts a version that takes over, and returns when the one before was released.
func (c *chain) handOver(ctx context.Context, generation int) error {
	args := []string{"upgrade", "--json", "--wait=released", "--timeout=20s", "--log", c.log(generation), "--"}
	out, err := c.ctl(ctx, append(args, c.server(c.socket)...)...)
	if err != nil {
		return err
	}
	var did struct {
		Generation int `json:"generation"`
		PID        int `json:"pid"`
	}
	if err := json.Unmarshal(out, &did); err != nil {
		return fmt.Errorf("handoffctl upgrade: %w", err)
	}
	if did.Generation != generation {
		return fmt.Errorf("handoffctl upgrade made generation %d, not %d", did.Generation, generation)
	}
	p, err := proc.Adopt(did.PID)
	if err != nil {
		return err
	}
	c.later = append(c.later, p)
	return nil
}

// finish stops the last version, waits for the end of all, and returns their last records, oldest first.
func (c *chain) finish(ctx context.Context) (servers []record, err error) {
	if _, err := c.ctl(ctx, "stop"); err != nil {
		return nil, err
	}
	for i := range c.handoffs + 1 {
		code, err := c.wait(ctx, i)
		if err != nil {
			return nil, err
		}
		log, err := os.ReadFile(c.log(i + 1))
		if err != nil {
			return nil, err
		}
		r := lastRecord(log)
		r.code = code
		servers = append(servers, r)
	}
	return servers, nil
}

// wait returns the exit code of a version, counted from 0, and its log is whole then.
func (c *chain) wait(ctx context.Context, i int) (int, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if i > 0 {
		return c.later[i-1].Wait(ctx)
	}
	code, err := c.first.Wait(ctx)
	if err == nil {
		c.first.End() // it has ended: its output is read to the end
	}
	return code, err
}

// record is what a server writes at its end, as far as it is used here.
type record struct {
	written         bool // one that crashed has none
	answered, moved uint64
	drain           time.Duration // from the release to its end
	code            int           // exit code: 6 where it cut something
}

// lastRecord finds a server's record "ended" in its log, the zero value where there is none.
func lastRecord(log []byte) record {
	for line := range bytes.Lines(log) {
		var r struct {
			Msg      string  `json:"msg"`
			Answered *uint64 `json:"answered"`
			Moved    uint64  `json:"moved"`
			Drain    int64   `json:"drain"` // nanoseconds
		}
		if json.Unmarshal(line, &r) == nil && r.Msg == "ended" && r.Answered != nil {
			return record{written: true, answered: *r.Answered, moved: r.Moved, drain: time.Duration(r.Drain)}
		}
	}
	return record{}
}

// ctl runs handoffctl, wants success, and returns what it printed.
func (c *chain) ctl(ctx context.Context, args ...string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	cmd := exec.Command(c.tool, append([]string{"--socket", c.socket}, args...)...)
	cmd.Env = append(os.Environ(), c.env...)
	r, err := proc.Run(ctx, cmd)
	if err != nil {
		return nil, err
	}
	if r.Code != 0 {
		return nil, fmt.Errorf("handoffctl %s: exit code %d\n%s%s", args[0], r.Code, r.Stdout, r.Stderr)
	}
	return []byte(r.Stdout), nil
}

// end kills what is left, which after a good run is nothing.
func (c *chain) end() error {
	if c.first != nil {
		c.first.End()
	}
	for _, p := range c.later {
		p.End()
	}
	// One that handoffctl started and did not name, because it failed.
	pids, err := proc.Mentioning(c.socket)
	for _, pid := range pids {
		if p, err := proc.Adopt(pid); err == nil {
			p.End()
		}
	}
	return err
}
