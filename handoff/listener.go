package handoff

import (
	"net"
	"sync"
	"syscall"
	"time"
)

// listener is what a program accepts on. It outlives the changes below it: while
// this process waits or is parked there is no listener of the net package, and
// the socket is only a duplicate outside the poller (a descriptor that merely
// stays in epoll wakes its process for each connection that another accepts).
//
// Accept never reports a passing error because of a change, since http.Server
// would log it and back off for up to a second.
type listener struct {
	mu      sync.Mutex
	inner   net.Listener // nil: does not accept
	addr    net.Addr
	of      manifestItem  // what it is called, and is
	netns   uint64        // cookie of the network namespace it lives in
	shut    bool          // take what is queued, then end
	ended   bool          //
	changed chan struct{} // closed and replaced at each change
	done    chan struct{} // closed when ended
	giveUp  func()        // the program closed it: the socket leaves the set
}

// shutGrace bounds how long a listener that is shut waits for its program to
// take the connections that are queued already.
const shutGrace = time.Second

func newListener(giveUp func()) *listener {
	return &listener{changed: make(chan struct{}), done: make(chan struct{}), giveUp: giveUp}
}

// item names the listener to whoever takes its connections.
func (l *listener) item() manifestItem {
	l.mu.Lock()
	defer l.mu.Unlock()
	return manifestItem{Name: l.of.Name, Kind: kindStream, Network: l.of.Network, Local: l.addr.String()}
}

// change runs f under the lock and wakes whoever waits.
func (l *listener) change(f func()) {
	l.mu.Lock()
	defer l.mu.Unlock()
	f()
	close(l.changed)
	l.changed = make(chan struct{})
}

// accept begins to accept on inner, which the listener closes.
func (l *listener) accept(inner net.Listener) {
	l.change(func() {
		if l.ended {
			inner.Close()
			return
		}
		l.inner = inner
	})
}

func (l *listener) accepts() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.inner != nil || l.ended
}

// park stops accepting; the socket is untouched.
func (l *listener) park() {
	l.change(func() {
		if l.inner != nil {
			l.inner.Close() // this end only: the Process holds a duplicate
			l.inner = nil
		}
	})
}

// shutDown accepts what is queued and then ends.
func (l *listener) shutDown() {
	l.change(func() {
		if l.inner == nil {
			l.endLocked()
			return
		}
		l.shut = true
		// A deadline in the past wakes a blocked Accept and takes nothing out
		// of the queue.
		if d, ok := l.inner.(interface{ SetDeadline(time.Time) error }); ok {
			d.SetDeadline(time.Unix(1, 0))
		}
		time.AfterFunc(shutGrace, l.end)
	})
}

func (l *listener) end() { l.change(l.endLocked) }

func (l *listener) endLocked() {
	if l.ended {
		return
	}
	l.ended = true
	if l.inner != nil {
		l.inner.Close()
		l.inner = nil
	}
	close(l.done)
}

// Accept implements net.Listener.
func (l *listener) Accept() (net.Conn, error) {
	for {
		l.mu.Lock()
		inner, shut, ended, changed := l.inner, l.shut, l.ended, l.changed
		l.mu.Unlock()
		switch {
		case ended:
			return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
		case inner == nil:
			<-changed
			continue
		case shut:
			if c, err := acceptNow(inner.(syscall.Conn)); err == nil {
				return c, nil
			}
			l.end()
			continue
		}
		c, err := inner.Accept()
		if err == nil {
			return c, nil
		}
		l.mu.Lock()
		same := l.inner == inner && !l.shut
		l.mu.Unlock()
		if same {
			return nil, err
		}
	}
}

// Close implements net.Listener: the program gives the socket up.
func (l *listener) Close() error {
	l.mu.Lock()
	ended := l.ended
	l.mu.Unlock()
	if ended {
		return net.ErrClosed
	}
	l.end()
	l.giveUp()
	return nil
}

// Addr implements net.Listener.
func (l *listener) Addr() net.Addr {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.addr
}
