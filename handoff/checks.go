package handoff

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"
)

// Check looks at something that this program can't serve without: a database, a
// cache, a file. It is one of Config.Checks.
type Check struct {
	// Name is what the error calls it: at most 128 bytes of UTF-8 without control
	// characters, and no other check's.
	Name string

	// Timeout bounds Run. 0 is 10 s; negative is 24 h.
	Timeout time.Duration

	// Run returns nil if all is well. It is called in a goroutine of its own, and
	// should return when ctx ends: at the timeout, when Ready's context ends, or
	// when this process's part does. One that does not is left behind, and
	// counts as failed.
	Run func(ctx context.Context) error
}

func (c *Check) timeout() time.Duration {
	switch {
	case c.Timeout == 0:
		return 10 * time.Second
	case c.Timeout < 0:
		return 24 * time.Hour
	}
	return c.Timeout
}

// checkChecks refuses checks that can't be told apart, or can't be run.
func checkChecks(all []Check) error {
	for i, c := range all {
		if err := checkName(c.Name); err != nil {
			return fmt.Errorf("handoff: Config.Checks: %w", err)
		}
		if c.Run == nil {
			return fmt.Errorf("handoff: Config.Checks: %s has no Run", c.Name)
		}
		if slices.ContainsFunc(all[:i], func(o Check) bool { return o.Name == c.Name }) {
			return fmt.Errorf("handoff: Config.Checks: two are called %s", c.Name)
		}
	}
	return nil
}

// runChecks runs every check that has to pass before this process counts as
// ready, all at once. Once they have passed they are not run again. Where this
// process's part ends meanwhile it returns nil, since Ready knows better why.
func (p *Process) runChecks(ctx context.Context) error {
	p.mu.Lock()
	passed := p.passed
	p.mu.Unlock()
	if passed || len(p.cfg.Checks) == 0 {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	results := make([]chan error, len(p.cfg.Checks))
	for i := range p.cfg.Checks {
		results[i] = make(chan error, 1)
		go func() { results[i] <- p.cfg.Checks[i].run(ctx) }()
	}
	var failed checkErrors
	for i, result := range results {
		select {
		case err := <-result:
			if err != nil {
				failed = append(failed, fmt.Errorf("%s: %w", p.cfg.Checks[i].Name, err))
			}
		case <-p.done:
			return nil
		}
	}
	switch {
	case ctx.Err() != nil: // what failed may be due to that
		return context.Cause(ctx)
	case len(failed) > 0:
		return fmt.Errorf("handoff: %w: %w", ErrCheck, failed)
	}
	p.mu.Lock()
	p.passed = true
	p.mu.Unlock()
	return nil
}

// run runs one check, and does not wait for it beyond its time.
func (c *Check) run(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, c.timeout())
	defer cancel()
	result := make(chan error, 1)
	go func() { result <- c.Run(ctx) }()
	select {
	case err := <-result:
		return err
	case <-ctx.Done():
	}
	select {
	case err := <-result: // it has more to say than that it took too long
		return err
	default:
		return fmt.Errorf("no answer within %v: %w", c.timeout(), ctx.Err())
	}
}

// checkErrors are the checks that did not pass, in the order of Config.Checks,
// on one line.
type checkErrors []error

func (e checkErrors) Error() string {
	var all []string
	for _, err := range e {
		all = append(all, err.Error())
	}
	return strings.Join(all, "; ")
}

func (e checkErrors) Unwrap() []error { return e }
