package integration

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// clients talk to a service all the time, each on a connection of its own at a time, until the test has seen enough.
// What they count is changed by note only, and may be read after stop.
type clients struct {
	cancel context.CancelFunc
	wg     sync.WaitGroup

	mu      sync.Mutex
	changed chan struct{}
	errs    []error // of clients that had to give up
}

// begin starts n clients that run talk.
func (c *clients) begin(s *service, n int, talk func(ctx context.Context, number int) error) {
	ctx, cancel := context.WithCancel(s.t.Context()) // they go on for longer than a wait
	c.cancel, c.changed = cancel, make(chan struct{})
	for i := range n {
		c.wg.Go(func() {
			if err := talk(ctx, i); err != nil && ctx.Err() == nil {
				c.note(func() { c.errs = append(c.errs, fmt.Errorf("client %d: %w", i, err)) })
			}
		})
	}
	s.t.Cleanup(func() { c.stop() })
}

// stop ends the clients and returns what went wrong.
func (c *clients) stop() error {
	c.cancel()
	c.wg.Wait()
	return errors.Join(c.errs...)
}

func (c *clients) note(what func()) {
	c.mu.Lock()
	defer c.mu.Unlock()
	what()
	close(c.changed)
	c.changed = make(chan struct{})
}

// wait waits until enough holds for what was noted, or a client has given up.
func (c *clients) wait(ctx context.Context, enough func() bool) error {
	for {
		c.mu.Lock()
		done, err, changed := enough(), errors.Join(c.errs...), c.changed
		c.mu.Unlock()
		if done || err != nil {
			return err
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}
