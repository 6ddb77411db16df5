// Package load puts requests on a server and hides nothing of what becomes of them.
//
// Common load testers hide the losses of a restart: their HTTP client retries, their connections are closed loops that
// wait politely while the server is away, or their exit code forgets the errors. Here every request is written once
// to a connection, at a time fixed before the run (an open loop), its latency counts from that time, and it ends in
// exactly one of three ways:
//
//   - answered: status 200 and, for POSTs to /echo, the request's own body, byte for byte;
//   - refused: the server said that it did not look at the request: by GOAWAY or REFUSED_STREAM, or by "Connection:
//     close" on the answer to an earlier one of the same connection, where requests are pipelined;
//   - lost: everything else, a refused dial included. Each loss is kept with its time, cause and error.
//
// A connection that the server closes while nothing is outstanding on it is no loss but is counted as broken, unless
// the last answer announced it with "Connection: close". Clients watch for that close up to the instant they send; Go's
// own client does not tell of it, and shows it by another dial.
package load

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"time"
)

// Kind says how a stream of load uses its connections.
type Kind string

// The kinds of load.
const (
	// KeepAlive posts over HTTP/1.1 connections that stay open, one request outstanding on each at most.
	KeepAlive Kind = "keep-alive"
	// Pipelined writes trains of one to four POSTs to HTTP/1.1 connections that stay open, in fragments, and sometimes
	// leaves the last one incomplete for a moment. What it sends in which pieces follows from Config.Seed.
	Pipelined Kind = "pipelined"
	// GoClient posts by one http.Client of Go, whose HTTP/1.1 connections stay open. It can't send a request twice.
	GoClient Kind = "go-client"
	// NewConn opens a connection for each request.
	NewConn Kind = "new-conn"
	// H2C posts over HTTP/2 connections without TLS; requests share a connection.
	H2C Kind = "h2c"
	// Events reads /events for as long as the server sends; a stream must end with "event: drain".
	Events Kind = "events"
	// Datagram sends datagrams to a UDP or unixgram echo and expects each back.
	Datagram Kind = "datagram"
)

// Stream is one kind of load on one address.
type Stream struct {
	Kind Kind
	// Network is "tcp", "unix", "udp" or "unixgram"; empty means "tcp", or "udp" for Datagram.
	Network string
	// Address is host:port, or the path of a Unix socket.
	Address string
	// Conns is the number of connections; 0 means 1. NewConn ignores it.
	Conns int
	// Rate is in requests a second over all connections of the stream, of Pipelined in trains. Events ignores it.
	Rate float64
	// Body is the length of a request's body in bytes; 0 means Config's. Pipelined sends no longer ones, but shorter.
	Body int
	// TLS, for NewConn only, makes every connection begin with a handshake; one that fails is a loss.
	TLS *tls.Config
}

// Config says what a run does. The zero value of a field means its default.
type Config struct {
	Streams []Stream
	// Body is the length of a request's body in bytes; 0 means 128, and at least 32 are sent.
	Body int
	// Seed is where all that a Pipelined stream leaves to chance begins; 0 means any. The report has it.
	Seed uint64
	// Timeout bounds a dial and, separately, the wait for an answer; what takes longer is lost. 0 means 10 s.
	Timeout time.Duration
	// Max ends the run by itself. 0 means 5 minutes.
	Max time.Duration
}

func (c Config) timeout() time.Duration { return cmp.Or(c.Timeout, 10*time.Second) }
func (c Config) max() time.Duration     { return cmp.Or(c.Max, 5*time.Minute) }

// minBody has room for what names a request.
const minBody = 32

// body is the length of the stream's bodies.
func (c Config) body(s Stream) int { return max(cmp.Or(s.Body, c.Body, 128), minBody) }

func (s Stream) network() string {
	if s.Kind == Datagram {
		return cmp.Or(s.Network, "udp")
	}
	return cmp.Or(s.Network, "tcp")
}

func (s Stream) check() error {
	switch s.Kind {
	case KeepAlive, Pipelined, GoClient, NewConn, H2C, Datagram:
		if s.Rate <= 0 {
			return fmt.Errorf("load: %s: rate must be above 0", s.Kind)
		}
	case Events:
	default:
		return fmt.Errorf("load: unknown kind %q", s.Kind)
	}
	if s.TLS != nil && s.Kind != NewConn {
		return fmt.Errorf("load: %s: not over TLS", s.Kind)
	}
	if s.Address == "" {
		return fmt.Errorf("load: %s: no address", s.Kind)
	}
	return nil
}

// Run is load in progress. Its methods may be called from any goroutine.
type Run struct {
	rec    *recorder
	cancel context.CancelFunc
	done   chan struct{}
}

// Start begins to put load on; the caller must end the run with Stop. The run also ends with ctx and after
// Config.Max. It returns once every connection that stays open has been dialled, so that what follows hits a server
// under load; a dial that fails is a loss in the report, not an error here.
func Start(ctx context.Context, cfg Config) (*Run, error) {
	if len(cfg.Streams) == 0 {
		return nil, errors.New("load: no streams")
	}
	for _, s := range cfg.Streams {
		if err := s.check(); err != nil {
			return nil, err
		}
	}
	for cfg.Seed == 0 {
		cfg.Seed = rand.Uint64()
	}
	ctx, cancel := context.WithTimeout(ctx, cfg.max())
	r := &Run{rec: newRecorder(cfg.Seed), cancel: cancel, done: make(chan struct{})}
	begin := make(chan time.Time)
	var working, dialling sync.WaitGroup
	id := 0
	for _, s := range cfg.Streams {
		for i := range s.workers() {
			id++
			w := &worker{cfg: cfg, stream: s, id: id, index: i, workers: s.workers(), rec: r.rec}
			dialling.Add(1)
			working.Go(func() { w.run(ctx, dialling.Done, begin) })
		}
	}
	dialling.Wait()
	now := time.Now()
	r.rec.begin(now)
	for range allWorkers(cfg.Streams) {
		begin <- now
	}
	go func() {
		working.Wait()
		cancel()
		close(r.done)
	}()
	return r, nil
}

// allWorkers is the number of workers of all streams.
func allWorkers(streams []Stream) (n int) {
	for _, s := range streams {
		n += s.workers()
	}
	return n
}

// workers is the number of goroutines that keep a stream's schedule.
func (s Stream) workers() int {
	if s.Kind == NewConn || s.Kind == GoClient {
		return 1
	}
	return max(s.Conns, 1)
}

// Stop sends no more, waits until every request that was sent has ended, at most Config.Timeout, and reports. It may
// be called again and returns the same.
func (r *Run) Stop() Report {
	r.cancel()
	<-r.done
	return r.rec.report()
}

// Report says what was seen so far, while the run goes on.
func (r *Run) Report() Report { return r.rec.report() }

// Counts returns what happened so far.
func (r *Run) Counts() Counts { return r.rec.total() }

// Wait returns nil as soon as enough holds for what happened so far, and an error when ctx ends or the run does.
// enough must neither block nor keep or change what it is given.
func (r *Run) Wait(ctx context.Context, enough func(Counts) bool) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	go func() {
		select {
		case <-r.done:
			cancel()
		case <-ctx.Done():
		}
	}()
	return r.rec.wait(ctx, enough)
}

// Answers is a condition for Wait: the generation has answered at least n requests.
func Answers(generation, n uint64) func(Counts) bool {
	return func(c Counts) bool { return c.Generations[generation] >= n }
}

// More is a condition for Wait: n more requests were answered than at the time More was called.
func (r *Run) More(n uint64) func(Counts) bool {
	want := r.Counts().Answered + n
	return func(c Counts) bool { return c.Answered >= want }
}

// worker keeps the schedule of one connection, or of all requests of a NewConn or GoClient stream.
type worker struct {
	cfg            Config
	stream         Stream
	id             int // in the run
	index, workers int // in the stream
	rec            *recorder
	serial         uint64
	generation     uint64 // seen last
}

func (w *worker) run(ctx context.Context, dialled func(), begin <-chan time.Time) {
	switch w.stream.Kind {
	case KeepAlive:
		c := &keepAlive{worker: w}
		c.connect()
		dialled()
		c.run(ctx, w.schedule(<-begin))
	case Pipelined:
		c := newPipelined(w)
		c.connect()
		dialled()
		c.run(ctx, w.schedule(<-begin))
	case GoClient:
		c := newGoClient(w)
		c.connect(ctx)
		dialled()
		c.run(ctx, w.schedule(<-begin))
	case NewConn:
		dialled()
		w.runNewConn(ctx, w.schedule(<-begin))
	case H2C:
		c := newH2C(w)
		c.connect(ctx)
		dialled()
		c.run(ctx, w.schedule(<-begin))
	case Events:
		c := &eventReader{worker: w}
		c.open(ctx)
		dialled()
		<-begin
		c.run(ctx)
	case Datagram:
		c := &datagrams{worker: w}
		c.connect()
		dialled()
		c.run(ctx, w.schedule(<-begin))
	}
}

// schedule fixes when each of a worker's requests is due. Workers are out of phase with each other.
type schedule struct {
	first  time.Time
	period time.Duration
}

func (w *worker) schedule(begin time.Time) schedule {
	period := time.Duration(float64(w.workers) / w.stream.Rate * float64(time.Second))
	return schedule{first: begin.Add(period * time.Duration(w.index) / time.Duration(w.workers)), period: period}
}

func (s schedule) due(k int) time.Time { return s.first.Add(time.Duration(k) * s.period) }

// sleepUntil reports whether t came before ctx ended.
func sleepUntil(ctx context.Context, t time.Time) bool {
	if ctx.Err() != nil {
		return false
	}
	wait := time.Until(t)
	if wait <= 0 {
		return true
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		return true
	case <-ctx.Done():
		return false
	}
}
