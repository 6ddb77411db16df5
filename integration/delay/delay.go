// Package delay is a network that takes its time: a TCP proxy that passes on what comes after a fixed delay, in each
// direction. Over loopback a server's close and a client's next request hardly ever pass each other; over such a network
// they do.
package delay

import (
	"errors"
	"io"
	"net"
	"sync"
	"time"
)

const (
	chunkSize = 32 << 10
	// lineChunks bounds what is on its way in one direction of a connection; who sends more has to wait. It is
	// far more than loopback carries in a few milliseconds.
	lineChunks = 256
)

// Proxy passes connections on to one target. Its methods may be called from any goroutine.
type Proxy struct {
	target string
	delay  time.Duration
	ln     net.Listener
	done   chan struct{} // closed by Close
	close  sync.Once
	all    sync.WaitGroup

	mu    sync.Mutex
	conns map[*net.TCPConn]struct{} // of both sides; nil once closed
}

// Start listens on a port of 127.0.0.1, and passes each connection on to target, host:port. Every byte, end of stream
// and reset is passed on d after it came. The caller must end it with Close.
func Start(target string, d time.Duration) (*Proxy, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	p := &Proxy{target: target, delay: d, ln: ln, done: make(chan struct{}), conns: make(map[*net.TCPConn]struct{})}
	p.all.Go(p.accept)
	return p, nil
}

// Addr is where clients connect to, host:port.
func (p *Proxy) Addr() string { return p.ln.Addr().String() }

// Close resets every connection, and returns when all has ended. It may be called again.
func (p *Proxy) Close() {
	p.close.Do(func() {
		close(p.done)
		p.ln.Close()
		p.mu.Lock()
		conns := p.conns
		p.conns = nil
		p.mu.Unlock()
		for c := range conns {
			reset(c)
		}
	})
	p.all.Wait()
}

func (p *Proxy) accept() {
	for {
		c, err := p.ln.Accept()
		switch {
		case err == nil:
			p.all.Go(func() { p.pass(c.(*net.TCPConn)) })
		case errors.Is(err, net.ErrClosed):
			return
		default: // no descriptor is free, say
			p.wait(time.Now().Add(10 * time.Millisecond))
		}
	}
}

// pass passes one connection on until both directions have ended.
func (p *Proxy) pass(client *net.TCPConn) {
	defer p.forget(client)
	if !p.keep(client) {
		return
	}
	c, err := net.Dial("tcp", p.target)
	if err != nil {
		reset(client) // what a client sees whose connection was refused behind the proxy
		return
	}
	server := c.(*net.TCPConn)
	defer p.forget(server)
	if !p.keep(server) {
		return
	}
	var both sync.WaitGroup
	both.Go(func() { p.carry(server, client) })
	both.Go(func() { p.carry(client, server) })
	both.Wait()
}

// keep lets Close reset a connection. It reports false when the proxy is closed.
func (p *Proxy) keep(c *net.TCPConn) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.conns == nil {
		return false
	}
	p.conns[c] = struct{}{}
	return true
}

func (p *Proxy) forget(c *net.TCPConn) {
	c.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.conns, c) // of nil too
}

// chunk is what was read at once, or with err how a direction ended.
type chunk struct {
	at   time.Time
	data []byte
	err  error
}

// buffers are what is read into; a chunk has a copy of its own size.
var buffers = sync.Pool{New: func() any { return new([chunkSize]byte) }}

// carry passes on what comes from one side until that ends or the other can't be written.
func (p *Proxy) carry(to, from *net.TCPConn) {
	line := make(chan chunk, lineChunks)
	var reader sync.WaitGroup
	reader.Go(func() { read(from, line) })
	defer reader.Wait()
	for c := range line {
		if !p.wait(c.at.Add(p.delay)) {
			reset(from)
			break
		}
		var err error
		switch {
		case c.err == io.EOF:
			err = to.CloseWrite()
		case c.err != nil:
			reset(to)
		default:
			_, err = to.Write(c.data)
		}
		if err != nil { // the other side has closed: so it is for this one
			reset(from)
			break
		}
	}
	for range line { // nobody waits for room in it
	}
}

// read puts what comes into the line, and closes that behind the end.
func read(from *net.TCPConn, line chan<- chunk) {
	defer close(line)
	buf := buffers.Get().(*[chunkSize]byte)
	defer buffers.Put(buf)
	for {
		n, err := from.Read(buf[:])
		at := time.Now()
		if n > 0 {
			line <- chunk{at: at, data: append([]byte(nil), buf[:n]...)}
		}
		if err != nil {
			line <- chunk{at: at, err: err}
			return
		}
	}
}

// wait waits until t. It reports false when the proxy was closed first.
func (p *Proxy) wait(t time.Time) bool {
	left := time.Until(t)
	if left <= 0 {
		select {
		case <-p.done:
			return false
		default:
			return true
		}
	}
	timer := time.NewTimer(left)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-p.done:
		return false
	}
}

// reset closes a connection so that the other end learns that it was not finished.
func reset(c *net.TCPConn) {
	c.SetLinger(0) // fails when it is closed already
	c.Close()
}
