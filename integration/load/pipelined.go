package load

import (
	"bufio"
	"context"
	"errors"
	"math/rand/v2"
	"net"
	"strings"
	"sync"
	"syscall"
	"time"
)

const (
	trainMax     = 4 // requests
	fragmentsMax = 6 // pieces in which a train is written
	paddingMax   = 300
	// gapMax is the longest pause between two pieces, holdMax that of a request of which a part was sent. Both are
	// longer than a handoff's steps, so that some fall into each.
	gapMax  = 2 * time.Millisecond
	holdMax = 20 * time.Millisecond
)

// errGaveUp is of requests behind one that went wrong: the client closed the connection then.
var errGaveUp = &failure{CauseClosed, errors.New("given up after a wrong answer to an earlier request of the connection")}

// post is one request of a train.
type post struct {
	wire, body []byte
	first      time.Time // when its first byte was written
	due        time.Time // when its last byte was to be written; zero before
}

// train is what is written at a due time, and how. It follows from the worker's seed and from nothing else.
type train struct {
	posts []*post
	wire  []byte // all of them
	// held is how many bytes of the last request are written, and then none for the time of hold, in which the answers
	// to all others have come. They are written before these answers come, or, when late, after.
	held  int
	late  bool
	hold  time.Duration
	parts []int // where the rest is cut: ends of pieces, ascending
	gaps  []time.Duration
}

// pipelined is one HTTP/1.1 client that pipelines, with one connection at a time. A goroutine for each connection reads
// the answers, so that whatever the server sends is noticed when it comes.
type pipelined struct {
	*worker
	rnd  *rand.Rand
	pipe *pipe // nil: to be dialled
}

func newPipelined(w *worker) *pipelined {
	return &pipelined{worker: w, rnd: rand.New(rand.NewPCG(w.cfg.Seed, uint64(w.id)))}
}

// plan makes the next train.
func (c *pipelined) plan() train {
	var t train
	longest := c.cfg.body(c.stream)
	for range 1 + c.rnd.IntN(trainMax) {
		padding := strings.Repeat("p", c.rnd.IntN(paddingMax))
		wire, body := c.request(nil, minBody+c.rnd.IntN(longest-minBody+1), "X-Padding: "+padding+"\r\n")
		t.posts = append(t.posts, &post{wire: wire, body: body})
		t.wire = append(t.wire, wire...)
	}
	last := t.posts[len(t.posts)-1]
	switch c.rnd.IntN(4) {
	case 0: // nothing is held back
	case 1: // what net/http may have read although it calls the connection idle
		t.held = 1 + c.rnd.IntN(3)
	case 2:
		t.held = 1 + c.rnd.IntN(len(last.wire)-len(last.body)-1)
	case 3:
		t.held = 1 + c.rnd.IntN(len(last.wire)-1)
	}
	t.late = c.rnd.IntN(2) == 0
	t.hold = time.Duration(c.rnd.Int64N(int64(holdMax)))
	pieces := 1 + c.rnd.IntN(fragmentsMax)
	cuts := make(map[int]bool)
	for range pieces - 1 {
		cuts[1+c.rnd.IntN(len(t.wire)-1)] = true
	}
	for at := range t.wire {
		if cuts[at] {
			t.parts = append(t.parts, at)
		}
	}
	pause := c.rnd.IntN(2) == 0
	for range t.parts {
		var gap time.Duration
		if pause {
			gap = time.Duration(c.rnd.Int64N(int64(gapMax)))
		}
		t.gaps = append(t.gaps, gap)
	}
	return t
}

// connect dials before the run begins. A failure is a lost request.
func (c *pipelined) connect() {
	if err := c.open(); err != nil {
		c.lose(time.Now(), time.Now(), err)
	}
}

func (c *pipelined) lose(due, dialed time.Time, err error) {
	c.rec.sent(c.stream.Kind)
	c.rec.loss(Loss{Kind: c.stream.Kind, Due: due, Dialed: dialed, Cause: causeOf(err), Error: textOf(err), Fresh: true})
}

func (c *pipelined) open() error {
	dialed := time.Now()
	conn, err := c.dial()
	if err != nil {
		return &failure{CauseDial, err}
	}
	raw, err := conn.SyscallConn()
	if err != nil {
		return errors.Join(err, conn.Close())
	}
	c.pipe = &pipe{
		worker: c.worker, conn: conn, raw: raw, dialed: dialed, fresh: true,
		answered: make(chan struct{}, 1), ended: make(chan struct{}),
	}
	go c.pipe.read()
	return nil
}

// run writes trains at the scheduled times until ctx ends. A train that was begun is finished.
func (c *pipelined) run(ctx context.Context, s schedule) {
	for k := 0; ; k++ {
		due := s.due(k)
		if !sleepUntil(ctx, due) {
			break
		}
		if c.pipe != nil && !c.pipe.usable() {
			c.pipe = nil
		}
		if c.pipe == nil {
			if dialed, err := time.Now(), c.open(); err != nil {
				c.lose(due, dialed, err)
				continue
			}
		}
		c.pipe.send(c.plan(), due)
	}
	if c.pipe != nil {
		c.pipe.close()
	}
}

// pipe is one connection of a client that pipelines.
type pipe struct {
	*worker
	conn   rawConn
	raw    syscall.RawConn
	dialed time.Time

	answered chan struct{} // has room for one: something was answered
	ended    chan struct{} // closed by the reader: nothing more will be answered, and all is recorded

	mu         sync.Mutex
	queue      []*post // begun, not answered, oldest first
	closing    bool    // by this side
	fresh      bool    // until the first answer
	generation uint64  // seen last on this connection
}

// usable looks whether the server has closed the connection, or spoken on it, while nothing was outstanding. Then the
// reader sees it too, and its word is waited for.
func (p *pipe) usable() bool {
	select {
	case <-p.ended:
		return false
	default:
	}
	if peek(p.raw) == nil {
		return true
	}
	<-p.ended
	return false
}

// send writes a train and waits for its answers, however it ends.
func (p *pipe) send(t train, due time.Time) {
	rest := len(t.wire)
	last := t.posts[len(t.posts)-1]
	if t.held > 0 {
		rest = len(t.wire) - len(last.wire)
		if !t.late {
			rest += t.held
		}
	}
	p.write(t, 0, rest, due)
	if t.held > 0 {
		p.await(1)
		if held := len(t.wire) - len(last.wire) + t.held; rest < held {
			p.write(t, rest, held, time.Now())
		}
		select {
		case <-time.After(t.hold):
		case <-p.ended:
		}
		p.write(t, len(t.wire)-len(last.wire)+t.held, len(t.wire), time.Now())
	}
	p.await(0)
}

// write writes the train's bytes from one place to another, cut where it says. A connection that has ended is
// recorded by its reader, and so is one that can't be written: what was begun is then outstanding.
func (p *pipe) write(t train, from, to int, due time.Time) {
	for from < to {
		piece, gap := to, time.Duration(0)
		for i, cut := range t.parts {
			if from < cut && cut < to {
				piece, gap = cut, t.gaps[i]
				break
			}
		}
		if !p.begin(t, from, piece, due) {
			return
		}
		if _, err := p.conn.Write(t.wire[from:piece]); err != nil {
			// The answers to what came before may be here already: the reader finds them, and then the end.
			return
		}
		from = piece
		if gap > 0 {
			select {
			case <-time.After(gap):
			case <-p.ended:
				return
			}
			due = time.Now()
		}
	}
}

// begin notes which requests are begun and which are completed by the bytes from one place to another, just before they
// are written. It reports false when the connection has ended.
func (p *pipe) begin(t train, from, to int, due time.Time) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	select {
	case <-p.ended:
		return false
	default:
	}
	at := 0
	for _, r := range t.posts {
		end := at + len(r.wire)
		if from <= at && at < to {
			r.first = time.Now()
			p.rec.sent(p.stream.Kind)
			p.queue = append(p.queue, r)
		}
		if from < end && end <= to {
			r.due = due
		}
		at = end
	}
	p.limit()
	return true
}

// limit sets the deadlines for what is outstanding.
func (p *pipe) limit() {
	var until time.Time
	if len(p.queue) > 0 {
		until = time.Now().Add(p.cfg.timeout())
	}
	p.conn.SetDeadline(until) // fails when the connection was closed, which the reader sees
}

// await waits until at most n requests are outstanding, or the connection has ended.
func (p *pipe) await(n int) {
	for {
		p.mu.Lock()
		left := len(p.queue)
		p.mu.Unlock()
		if left <= n {
			return
		}
		select {
		case <-p.answered:
		case <-p.ended:
			return
		}
	}
}

// close ends a connection on which nothing is outstanding.
func (p *pipe) close() {
	p.mu.Lock()
	p.closing = true
	p.mu.Unlock()
	p.conn.Close()
	<-p.ended
}

// read reads answers until the connection ends, and records how it did.
func (p *pipe) read() {
	br := bufio.NewReaderSize(p.conn, 1024)
	for {
		_, err := br.Peek(1)
		var r *post
		if err == nil {
			r = p.oldest()
		}
		if r == nil { // the end, or bytes that nobody asked for
			if err == nil {
				err = errSurplus
			}
			p.end(err)
			return
		}
		resp, err := readAnswer(br, r.body)
		if err == nil && !p.pop(generationOf(resp.Header)) {
			err = &failure{CauseProtocol, errors.New("answered before it was sent")}
		}
		if err == nil && resp.Close {
			p.rec.announced(p.stream.Kind)
			err = errAnnounced
		}
		if err != nil {
			p.end(err)
			return
		}
	}
}

// errAnnounced ends a connection as HTTP/1.1 has it: what was sent after the request whose answer says "Connection:
// close" is not processed. (RFC 9112, 9.6)
var errAnnounced = errors.New("the answer says Connection: close")

func (p *pipe) oldest() *post {
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.queue) == 0 {
		return nil
	}
	return p.queue[0]
}

// pop records the answer to the oldest request. It reports false when that was not sent to its end.
func (p *pipe) pop(generation uint64) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := p.queue[0]
	if r.due.IsZero() {
		return false
	}
	p.generation = generation
	p.rec.answered(p.stream.Kind, r.due, generation)
	p.queue = p.queue[1:]
	p.fresh = false
	p.limit()
	select {
	case p.answered <- struct{}{}:
	default:
	}
	return true
}

// end closes the connection and records what becomes of it, and of what is outstanding on it.
func (p *pipe) end(err error) {
	p.conn.Close()
	p.mu.Lock()
	defer p.mu.Unlock()
	defer close(p.ended)
	announced := errors.Is(err, errAnnounced)
	if len(p.queue) == 0 && !announced && !(p.closing && errors.Is(err, net.ErrClosed)) {
		p.rec.brokenConn(p.loss(time.Time{}, err))
	}
	for _, r := range p.queue {
		if announced {
			p.rec.refused(p.stream.Kind)
			continue
		}
		p.rec.loss(p.loss(r.first, err))
		if c := causeOf(err); c == CauseStatus || c == CauseEcho || c == CauseProtocol {
			err = errGaveUp
		}
	}
	p.queue = nil
}

func (p *pipe) loss(due time.Time, err error) Loss {
	return Loss{
		Kind: p.stream.Kind, Due: due, Dialed: p.dialed, Cause: causeOf(err), Error: textOf(err),
		Generation: p.generation, Fresh: p.fresh,
	}
}
