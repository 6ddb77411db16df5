package handoff

import (
	"errors"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Idle HTTP connections that came from another process, or came back: each rests as
// a bare descriptor until its client says something, and only then has net/http. If
// that had it before, the times for a request would begin to run at once, and it would
// be cut; and a connection that rests costs no goroutine, and moves on as it is.

// idleConn is such a connection. Whoever takes it out of idleConns has it.
type idleConn struct {
	movedConn
	id    uint64
	timer *time.Timer // the end of the server's patience; nil: there is none
}

// idleConns are those of one HTTP server. They wait in an epoll instance of their own
// (epoll(7)), which waits in the runtime's poller.
type idleConns struct {
	drain *httpDrain
	f     *os.File // the epoll instance
	epoll syscall.RawConn

	mu   sync.Mutex
	last uint64
	all  map[uint64]*idleConn
}

// resting makes room for idle connections, if there is none.
func (d *httpDrain) resting() (*idleConns, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	switch {
	case d.ended:
		return nil, net.ErrClosed
	case d.idle != nil:
		return d.idle, nil
	}
	n, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, os.NewSyscallError("epoll_create1", err)
	}
	if err := unix.SetNonblock(n, true); err != nil { // or it would not go into the poller
		unix.Close(n)
		return nil, os.NewSyscallError("fcntl", err)
	}
	i := &idleConns{drain: d, f: os.NewFile(uintptr(n), "idle connections"), all: map[uint64]*idleConn{}}
	if i.epoll, err = i.f.SyscallConn(); err != nil {
		i.f.Close()
		return nil, err
	}
	d.idle = i
	go i.watch()
	return i, nil
}

// adopt keeps the connection, which is non-blocking and is its own from here on, until
// its client says something, and serves it then as one of m.from's. false means that it
// was closed, since nothing is served here any more.
func (m *movedConn) adopt() bool {
	d := m.from.drain
	c := &idleConn{movedConn: *m}
	d.travelling.Add(1)
	i, err := d.resting()
	switch back := m.from.returned(); {
	case errors.Is(err, net.ErrClosed), isClosed(back.done):
		c.close()
		return false
	case err != nil:
		go c.serve() // it can't rest: net/http waits
	default:
		i.rest(c)
	}
	if k := d.carrier.Load(); k != nil && err == nil {
		i.leave(c.id, k)
	}
	return true
}

// rest lets c rest, which is travelling. Where it can't, net/http waits.
func (i *idleConns) rest(c *idleConn) {
	if !i.add(c) {
		go c.serve()
	}
}

// add says whether c can rest.
func (i *idleConns) add(c *idleConn) bool {
	i.mu.Lock()
	defer i.mu.Unlock()
	i.last++
	c.id = i.last
	i.all[c.id] = c
	event := unix.EpollEvent{Events: unix.EPOLLIN | unix.EPOLLRDHUP | unix.EPOLLONESHOT, Fd: int32(c.id), Pad: int32(c.id >> 32)}
	if err := i.control(unix.EPOLL_CTL_ADD, c, &event); err != nil {
		delete(i.all, c.id)
		return false
	}
	if t := c.from.drain.patience(c.fresh); t > 0 {
		c.timer = time.AfterFunc(time.Until(c.since.Add(t)), func() {
			if c := i.take(c.id); c != nil {
				c.awake()
			}
		})
	}
	c.from.drain.travelling.Add(-1)
	return true
}

func (i *idleConns) control(op int, c *idleConn, event *unix.EpollEvent) (err error) {
	cerr := i.epoll.Control(func(epoll uintptr) {
		err = c.d.control(func(fd int) error { return os.NewSyscallError("epoll_ctl", unix.EpollCtl(int(epoll), op, fd, event)) })
	})
	return errors.Join(cerr, err)
}

// take ends the rest of a connection: it is travelling then, and its descriptor in no
// poller. That must be undone by hand: another process may hold the socket too, and
// closing this copy alone would leave it there. nil means that somebody else has
// taken it.
func (i *idleConns) take(id uint64) *idleConn {
	i.mu.Lock()
	defer i.mu.Unlock()
	c := i.all[id]
	if c == nil {
		return nil
	}
	i.drain.travelling.Add(1)
	delete(i.all, id)
	if c.timer != nil {
		c.timer.Stop()
	}
	_ = i.control(unix.EPOLL_CTL_DEL, c, &unix.EpollEvent{})
	return c
}

// ids are the connections that rest now.
func (i *idleConns) ids() (ids []uint64) {
	if i == nil {
		return nil
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	for id := range i.all {
		ids = append(ids, id)
	}
	return ids
}

func (i *idleConns) len() int {
	if i == nil {
		return 0
	}
	i.mu.Lock()
	defer i.mu.Unlock()
	return len(i.all)
}

// takeAll takes what rests now.
func (i *idleConns) takeAll() (all []*idleConn) {
	for _, id := range i.ids() {
		if c := i.take(id); c != nil {
			all = append(all, c)
		}
	}
	return all
}

// holdStill keeps connections from being taken out of their rest, and from going back
// to it, until the function that it returns is called.
func (i *idleConns) holdStill() (goOn func()) {
	if i == nil {
		return func() {}
	}
	i.mu.Lock()
	return i.mu.Unlock
}

// countLocked adds what rests, by kind.
func (i *idleConns) countLocked(open map[string]int) {
	if i == nil {
		return
	}
	for _, c := range i.all {
		open[c.kind()]++
	}
}

// sweep gives what rests to the carrier, as far as there is room.
func (i *idleConns) sweep(k *carrier) {
	for _, id := range i.ids() {
		if k.isFull() {
			return
		}
		i.leave(id, k)
	}
}

// leave gives a connection to the carrier, with whatever its client has just said
// unread.
func (i *idleConns) leave(id uint64, k *carrier) {
	i.mu.Lock()
	c := i.all[id]
	i.mu.Unlock()
	if c == nil || !k.reserve(c.from) {
		return
	}
	if c = i.take(id); c == nil {
		k.decline()
		return
	}
	if !k.put(&c.movedConn) {
		k.decline()
		i.rest(c) // the taker has gone meanwhile
	}
}

// watch takes those whose clients say something, or have gone, until the epoll instance
// is closed.
func (i *idleConns) watch() {
	events := make([]unix.EpollEvent, 128)
	for {
		n, err := 0, error(nil)
		if i.epoll.Read(func(fd uintptr) bool {
			n, err = unix.EpollWait(int(fd), events, 0)
			return n > 0 || err != nil && err != unix.EINTR
		}) != nil || err != nil && err != unix.EINTR {
			return
		}
		for _, e := range events[:max(n, 0)] {
			if c := i.take(uint64(uint32(e.Fd)) | uint64(uint32(e.Pad))<<32); c != nil {
				go c.awake()
			}
		}
	}
}

// awake serves a connection that was taken, if its client has said something, and
// closes it otherwise: the client has gone, or the server's patience.
func (c *idleConn) awake() {
	waits := false
	if c.d.control(func(fd int) error { waits = hasBytes(fd); return nil }) == nil && waits {
		c.serve()
		return
	}
	c.close()
}

// close closes this process's copy of a connection that was taken.
func (c *idleConn) close() {
	_ = c.d.control(func(fd int) error { return unix.Shutdown(fd, unix.SHUT_WR) }) // see trackedConn.came
	c.d.Close()
	c.from.drain.arrived()
}

// serve gives a connection that was taken to net/http.
func (c *idleConn) serve() {
	defer c.from.drain.arrived()
	f := c.d.disown("connection")
	defer f.Close()
	nc, err := streamConn(f)
	for errors.Is(err, unix.EMFILE) || errors.Is(err, unix.ENFILE) {
		// The request waits, as one does that is not accepted.
		select {
		case <-time.After(mendEvery):
			nc, err = streamConn(f)
		case <-c.from.drain.done:
			return
		}
	}
	if err != nil {
		return
	}
	served := c.from.drain.track(nc, c.from)
	if tracked := c.from.drain.find(served); tracked != nil {
		tracked.mu.Lock()
		tracked.came = true
		tracked.mu.Unlock()
	}
	if !c.from.returned().deliver(served) {
		served.Close()
	}
}

// kind is the word by which the connection is counted.
func (c *idleConn) kind() string {
	if c.fresh {
		return "new"
	}
	return "idle"
}

// returnListener gives net/http the connections of a listener that do not come out of
// its queue. It is a listener of its own, since that one may be closed by then.
type returnListener struct {
	of    *trackedListener
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

// returned is the returnListener of l, which the server begins to serve with the
// first call.
func (l *trackedListener) returned() *returnListener {
	d := l.drain
	d.mu.Lock()
	defer d.mu.Unlock()
	if l.back == nil {
		l.back = &returnListener{of: l, conns: make(chan net.Conn), done: make(chan struct{})}
		if d.ended {
			l.back.Close()
			return l.back
		}
		d.returns = append(d.returns, l.back)
		go func() {
			d.srv.Serve(l.back)
			l.back.Close()
			// The drain has ended, or the program has shut the server down: that closes
			// what is idle.
			for _, c := range d.rests().takeAll() {
				c.close()
			}
		}()
	}
	return l.back
}

// deliver blocks for as long as the server's accept loop is busy.
func (l *returnListener) deliver(nc net.Conn) bool {
	select {
	case l.conns <- nc:
		return true
	case <-l.done:
		return false
	}
}

func (l *returnListener) Accept() (net.Conn, error) {
	select {
	case nc := <-l.conns:
		return nc, nil
	case <-l.done:
		return nil, &net.OpError{Op: "accept", Net: l.Addr().Network(), Addr: l.Addr(), Err: net.ErrClosed}
	}
}

func (l *returnListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (l *returnListener) Addr() net.Addr { return l.of.Addr() }
