package proc

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os/exec"
	"syscall"
	"time"
)

// Result is how a command ended.
type Result struct {
	Code           int // exit code, -1 when a signal ended it
	Stdout, Stderr string
	Took           time.Duration
}

// Run runs a command to its end in a process group of its own. A code other than 0 is no error here.
func Run(ctx context.Context, cmd *exec.Cmd) (Result, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Setpgid = true
	// What the command leaves behind may hold its output open, which is an error then. A machine that stands still for
	// a second or two just when the command has ended is none.
	cmd.WaitDelay = 10 * time.Second
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return Result{}, err
	}
	stop := context.AfterFunc(ctx, func() { cmd.Process.Kill() })
	defer stop()
	err := cmd.Wait()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return Result{}, err
	}
	if ctx.Err() != nil {
		return Result{}, fmt.Errorf("%s: %w\n%s%s", cmd, ctx.Err(), stdout.Bytes(), stderr.Bytes())
	}
	return Result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String(), time.Since(begin)}, nil
}

// Status is what the control socket tells, as far as it is used here. It is written down here again, apart from the
// library, so that a change of the format shows.
type Status struct {
	Schema      int                `json:"schema"`
	Instance    string             `json:"instance"`
	Revision    uint64             `json:"revision"`
	Generation  uint64             `json:"generation"`
	PID         int                `json:"pid"`
	Generations []GenerationStatus `json:"generations"`
	Waiting     []struct {
		PID    int    `json:"pid"`
		Label  string `json:"label"`
		Reason string `json:"reason"`
		Text   string `json:"text"`
	} `json:"waiting"`
	Requests []struct {
		ID      string `json:"id"`
		Outcome string `json:"outcome"`
	} `json:"requests"`
	Last *struct {
		Outcome string `json:"outcome"`
		Reason  string `json:"reason"`
	} `json:"last"`
}

// GenerationStatus is one living process of the chain.
type GenerationStatus struct {
	Generation uint64         `json:"generation"`
	State      string         `json:"state"`
	Takeover   string         `json:"takeover"`
	PID        int            `json:"pid"`
	Label      string         `json:"label"`
	Sockets    int            `json:"sockets"`
	Unclaimed  []string       `json:"unclaimed"`
	Open       map[string]int `json:"open"`
	Stopping   bool           `json:"stopping"`

	SilentSeconds float64 `json:"silent_seconds"`

	Moved   uint64 `json:"moved"`
	Adopted uint64 `json:"adopted"`
	MoveOff string `json:"move_off"`
}

// Serving is the generation that serves, the zero value when none does.
func (s Status) Serving() GenerationStatus { return s.In("serving") }

// In is the newest generation in a state, the zero value when there is none.
func (s Status) In(state string) GenerationStatus {
	for i := len(s.Generations) - 1; i >= 0; i-- {
		if s.Generations[i].State == state {
			return s.Generations[i]
		}
	}
	return GenerationStatus{}
}

// Of is a generation by number, the zero value when it is gone.
func (s Status) Of(generation uint64) GenerationStatus {
	for _, g := range s.Generations {
		if g.Generation == generation {
			return g
		}
	}
	return GenerationStatus{}
}

// retryPause is between two attempts to reach a control socket where nobody answers yet.
const retryPause = 5 * time.Millisecond

// WaitStatus asks the control socket until match holds, and returns that status; each answer is waited for, so that
// nothing is asked twice. Nobody at the socket is waited for too. On an error it returns the status seen last.
func WaitStatus(ctx context.Context, socket string, match func(Status) bool) (Status, error) {
	var last Status
	var reason error
	for ctx.Err() == nil {
		err := eachStatus(ctx, socket, func(s Status) bool {
			last = s
			return match(s)
		})
		if err == nil {
			return last, nil
		}
		reason = err
		select {
		case <-time.After(retryPause):
		case <-ctx.Done():
		}
	}
	return last, fmt.Errorf("status of %s: %w (%v); seen last: %+v", socket, ctx.Err(), reason, last)
}

// eachStatus gives every change of the status to f until f returns true, over one connection.
func eachStatus(ctx context.Context, socket string, f func(Status) bool) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.SetDeadline(time.Unix(1, 0)) })()
	ask := map[string]any{"type": "status"}
	buf := make([]byte, 64<<10)
	for {
		frame, err := json.Marshal(ask)
		if err != nil {
			return err
		}
		if _, err := conn.Write(frame); err != nil {
			return err
		}
		n, err := conn.Read(buf)
		if err != nil {
			return err
		}
		var answer struct {
			Type, Code, Text string
			Status           *Status
		}
		if err := json.Unmarshal(buf[:n], &answer); err != nil {
			return err
		}
		if answer.Status == nil {
			return fmt.Errorf("answer %q: %s %s", answer.Type, answer.Code, answer.Text)
		}
		if f(*answer.Status) {
			return nil
		}
		ask["after"] = map[string]any{"instance": answer.Status.Instance, "revision": answer.Status.Revision}
		ask["wait_ms"] = 250 // open connections change without a revision
	}
}

// Sockets is what "handoffctl sockets --json" prints, as far as it is used here.
type Sockets struct {
	Schema  int `json:"schema"`
	Sockets []struct {
		Name    string `json:"name"`
		Network string `json:"network"`
		Address string `json:"address"`
		State   string `json:"state"`
	} `json:"sockets"`
}

// Address is the local address of a socket by its name.
func (s Sockets) Address(name string) (string, error) {
	for _, k := range s.Sockets {
		if k.Name == name {
			return k.Address, nil
		}
	}
	return "", fmt.Errorf("no socket %q in %+v", name, s.Sockets)
}
