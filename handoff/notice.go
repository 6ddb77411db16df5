package handoff

import (
	"context"
	"math/rand/v2"
	"sync"
	"time"
)

// notice is how whoever serves one connection learns of the drain: that it has
// begun, by a channel, and that its time is up, by a context.
type notice struct {
	draining chan struct{}

	mu     sync.Mutex
	told   bool                    // draining is closed
	timer  *time.Timer             // that will close it
	cancel context.CancelCauseFunc // of the context; nil: nobody has asked for it
	over   error                   // why the context has ended
}

func newNotice() *notice { return &notice{draining: make(chan struct{})} }

// context derives from parent what ends with the connection and, with cause
// ErrDrainDeadline, at the deadline. It is called once.
func (n *notice) context(parent context.Context) context.Context {
	ctx, cancel := context.WithCancelCause(parent)
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cancel = cancel
	if n.over != nil {
		cancel(n.over)
	}
	return ctx
}

// begin tells of the drain at a random moment within spread.
func (n *notice) begin(spread time.Duration) {
	if spread <= 0 {
		n.tell()
		return
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.timer == nil {
		n.timer = time.AfterFunc(rand.N(spread), n.tell)
	}
}

func (n *notice) tell() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if !n.told {
		n.told = true
		close(n.draining)
	}
}

// deadline tells that the time is up, and of the drain if that is not known yet.
func (n *notice) deadline() {
	n.tell()
	n.end(ErrDrainDeadline)
}

// end ends the context. Calls after the first do nothing.
func (n *notice) end(why error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.timer != nil {
		n.timer.Stop()
	}
	if n.over != nil {
		return
	}
	n.over = why
	if n.cancel != nil {
		n.cancel(why)
	}
}
