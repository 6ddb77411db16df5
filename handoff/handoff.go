package handoff

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"slices"
	"time"
)

// Environment variables that a deploy tool sets for the successor it starts.
const (
	EnvSocket  = "HANDOFF_SOCKET"  // the control socket's path; default of Config.Socket
	EnvRequest = "HANDOFF_REQUEST" // the request that this start answers; default of Config.Request

	// EnvSelfSocket is the path of this process's own socket; default of
	// Config.SelfSocket. It is set where each process has its own environment, as in a
	// container, whose health check reads it, too.
	EnvSelfSocket = "HANDOFF_SELF_SOCKET"

	// EnvTakeover says how to take over where Config.Takeover is Auto, the zero
	// value: auto, standby, spare or never.
	EnvTakeover = "HANDOFF_TAKEOVER"
)

// Config says how a process takes part. The zero value works once Socket, or
// HANDOFF_SOCKET, names the control socket. A Config is read by Start only.
type Config struct {
	// Socket is the control socket's path, one per service, at most 107 bytes,
	// in a directory that no other user may write, or a sticky one. "" is
	// $HANDOFF_SOCKET.
	Socket string

	// SelfSocket is the path of a socket that this process answers and no other,
	// for as long as it lives: from the beginning of Start, while it is a standby,
	// serves, is parked or drains, to the end of its part. A Client or handoffctl
	// with this path gets its status and its sockets; everything else is refused
	// there with CodeSelfSocket. It is never handed over, so each process needs a
	// path of its own; otherwise the rules are those of Socket. "" is
	// $HANDOFF_SELF_SOCKET, and none if that is empty.
	SelfSocket string

	// Label names this version in logs and status; at most 128 bytes.
	Label string

	// Takeover says when to take over from an incumbent. The zero value, Auto, is
	// $HANDOFF_TAKEOVER if that is set and not empty.
	Takeover Takeover

	// Request is the id under which a deploy tool follows this start, at most
	// 128 bytes. "" is $HANDOFF_REQUEST, which may be empty too.
	Request string

	// ReadyTimeout is how long a successor of this process may take from having
	// its sockets to Ready. 0 is 30 s; negative is 24 h.
	ReadyTimeout time.Duration

	// Probation is how long this process, having handed over, can take back by
	// itself. 0 is 5 s; negative is none: release follows commit at once.
	Probation time.Duration

	// DrainTimeout bounds the drain: what is open after it is cut and counted.
	// Time in which this process was stopped (SIGSTOP) does not count. 0 is 30 s;
	// negative cuts at once.
	DrainTimeout time.Duration

	// DrainSpread is the time over which connections are told of the drain, each
	// at a random moment in it, so that the clients of a thousand streams do not
	// all come back at once: see Draining and TrackedConn. 0 is a tenth of
	// DrainTimeout; negative tells all at once, as a plain stop does. It is never
	// later than DrainTimeout.
	DrainSpread time.Duration

	// StopDelay is how long a process that is stopped, with nobody to succeed
	// it, goes on accepting while Ending is true already, so that load balancers
	// and Kubernetes endpoints turn away first. Who comes meanwhile is handed over
	// to. 0 or negative is none. A handover is never delayed.
	StopDelay time.Duration

	// BeforeStop, if set, is called when a stop that nobody succeeds begins,
	// before StopDelay: to leave a service registry, for instance, which a
	// handover never does, unless to one who comes within StopDelay. AfterDrain is
	// called after the drain of a stop that nobody succeeded, before Wait returns. Each runs in a goroutine of its own; its ctx ends
	// after 10 s, or by Hammer, and then it is waited for no more. An error is
	// logged and changes nothing.
	BeforeStop func(ctx context.Context) error
	AfterDrain func(ctx context.Context, r Report) error

	// OnHammer, if set, is called when hammer time begins, before anything is
	// cut: to write a goroutine dump, for instance. It must return soon and must
	// not wait for methods of the Process.
	OnHammer func()

	// StepTimeout bounds each answer of the peer during a handoff, other than
	// Ready, and how long a connection to the control socket may ask nothing
	// (at most 60 s then). 0 is 5 s; negative is 24 h.
	StepTimeout time.Duration

	// Heartbeat is how often each side of a link asks the other whether it is
	// there, from Ready to release. A peer of which nothing was heard for three
	// of them is silent: a successor in probation is taken back from, and a
	// standby says of its incumbent that it hangs. 0 is 1 s; negative is never.
	Heartbeat time.Duration

	// KillSilent ends an incumbent that has been silent for this long, and for 2 s
	// and three Heartbeats at least, by SIGKILL through its pidfd, so that this
	// process, its standby or its successor in probation, serves alone. 0 or
	// negative is never: it says that the incumbent hangs, and waits.
	KillSilent time.Duration

	// MaxDraining is how many older generations may drain at the same time: at
	// so many, a successor is told busy, with this reason, until one has ended. A
	// spare is admitted all the same: it succeeds at this process's death or stop
	// only. 0 or negative is no limit; 64 is the most that can be counted.
	MaxDraining int

	// MoveIdle says whether idle keep-alive connections of HTTPServers move: while
	// this process drains, to whoever serves then, and to this process while it
	// serves. The zero value is MoveIdleOn. What can't move (TLS, HTTP/2, hijacked,
	// a listener that the program has wrapped) drains as a lame duck either way.
	MoveIdle MoveIdle

	// AllowUIDs and AllowGIDs say who may be the peer, successor, incumbent or
	// operator, besides this process's own user and root, by effective ids. Both
	// empty: nobody else. In a user namespace that does not map every id, 65534
	// (/proc/sys/kernel/overflowuid) stands for everybody without a number in it: it
	// can't be on the lists, and is not this process's own user.
	AllowUIDs, AllowGIDs []uint32

	// AllowForeignNetns accepts sockets that live in another network namespace
	// than this process. They are served, shown as such by Status and Sockets, and
	// watched: see Process.NetworkGone. What else the program listens on is opened
	// in that namespace then, which takes CAP_NET_ADMIN and CAP_SYS_ADMIN over it.
	// false refuses them with ErrForeignNetns. Where the kernel can't tell (before
	// Linux 5.14) every socket counts as this namespace's.
	AllowForeignNetns bool

	// AllowNoClaim lets this program succeed an incumbent of whose sockets and files it
	// claims none, as where a service's only address changes: they are closed at
	// release, and their clients refused. false is ErrNoClaim from Ready instead, because
	// it is usually another service, started with this one's control socket.
	AllowNoClaim bool

	// Key is a secret that both sides have. A peer whose ids say that it may is
	// trusted without; any other must prove it, and so must this process where it
	// asks. It is for processes in different user namespaces, in which the ids can't
	// be compared. 16 to 4096 bytes, and not a password: whoever may connect can try
	// words against what he is answered. ReadKey reads one from a file. With a key the
	// control socket and the self socket have mode 0666, so that their directory alone
	// decides who may connect. nil is none, with which a peer must be trusted by its
	// ids, and the mode is 0600. Start copies it.
	Key []byte

	// Files are the names of descriptors other than sockets that this program
	// will ask for with File; at most 256, each like a Socket's name. A spare
	// can't have any, because a file that the program already uses can't be
	// exchanged under it.
	Files []string

	// Checks are run together by Ready, and all must pass before this process
	// counts as ready, also as the first generation.
	Checks []Check

	// Logger gets every line of this process's part; each has the generation
	// and, during a handoff, its id. nil is slog.Default().
	Logger *slog.Logger

	// OnState, if set, is called at each change, in order, before the change
	// takes effect: a process that is told it is parked is told so before its
	// successor serves. It must return soon and must not wait for methods of
	// the Process; State, Generation and Stop may be called.
	OnState func(from, to State)

	// Signals says what signals mean. nil: the Process handles none.
	Signals *Signals
}

// withDefaults resolves zero values and refuses what can't work.
func (c Config) withDefaults() (Config, error) {
	c.Socket = cmp.Or(c.Socket, os.Getenv(EnvSocket))
	c.Request = cmp.Or(c.Request, os.Getenv(EnvRequest))
	c.SelfSocket = cmp.Or(c.SelfSocket, os.Getenv(EnvSelfSocket))
	if c.Logger == nil {
		c.Logger = slog.Default()
	}
	var err error
	if c.Takeover, err = takeoverFromEnv(c.Takeover); err != nil {
		return c, err
	}
	if c.Signals, err = c.Signals.clone(); err != nil {
		return c, err
	}
	for _, d := range []struct {
		v              *time.Duration
		zero, negative time.Duration
	}{
		{&c.ReadyTimeout, 30 * time.Second, 24 * time.Hour},
		{&c.Probation, 5 * time.Second, 0},
		{&c.DrainTimeout, 30 * time.Second, 0},
		{&c.StepTimeout, 5 * time.Second, 24 * time.Hour},
		{&c.StopDelay, 0, 0},
		{&c.Heartbeat, time.Second, 0},
		{&c.KillSilent, 0, 0},
	} {
		switch {
		case *d.v == 0:
			*d.v = d.zero
		case *d.v < 0:
			*d.v = d.negative
		}
	}
	if c.DrainSpread == 0 {
		c.DrainSpread = c.DrainTimeout / 10
	}
	c.DrainSpread = min(max(c.DrainSpread, 0), c.DrainTimeout)
	if c.KillSilent > 0 {
		c.KillSilent = max(c.KillSilent, leastKillSilent)
	}
	switch {
	case len(c.Socket) > maxSocketPath:
		return c, opError("start", c.Socket, ErrPathTooLong)
	case c.Socket == "":
		return c, fmt.Errorf("handoff: no control socket: set Config.Socket or %s", EnvSocket)
	case c.SelfSocket != "" && sameFile(c.SelfSocket, c.Socket):
		return c, errors.New("handoff: Config.SelfSocket is the path of the control socket: each process needs a self socket of its own")
	case c.Takeover > Never:
		return c, fmt.Errorf("handoff: %v is no way to take over", c.Takeover)
	case c.MoveIdle > MoveIdleOff:
		return c, fmt.Errorf("handoff: %v is no way to treat idle connections", c.MoveIdle)
	case c.MaxDraining > maxOlder:
		return c, fmt.Errorf("handoff: Config.MaxDraining is %d, at most %d can be counted (0: any number)", c.MaxDraining, maxOlder)
	case len(c.Files) > 0 && c.Takeover == Spare:
		return c, errors.New("handoff: a spare can't ask for files")
	case len(c.Files) > maxFileNames:
		return c, fmt.Errorf("handoff: %d files are asked for, at most %d can be", len(c.Files), maxFileNames)
	}
	if err := (allow{UIDs: c.AllowUIDs, GIDs: c.AllowGIDs}).checkLists(); err != nil {
		return c, fmt.Errorf("handoff: Config.%w", err)
	}
	for _, s := range []string{c.Label, c.Request} {
		if err := checkName(s); s != "" && err != nil {
			return c, fmt.Errorf("handoff: label or request id: %w", err)
		}
	}
	for _, name := range c.Files {
		if err := checkName(name); err != nil {
			return c, fmt.Errorf("handoff: Config.Files: %w", err)
		}
	}
	if err := checkKey(c.Key); err != nil {
		return c, fmt.Errorf("handoff: Config.Key: %w", err)
	}
	c.Key = slices.Clone(c.Key)
	c.Checks = slices.Clone(c.Checks)
	return c, checkChecks(c.Checks)
}

// Validate says what Start would refuse in c without looking at anything outside
// it but the environment variables that it names, and what numbers the ids have in
// this user namespace; nil if nothing. It is safe for
// concurrent use.
func (c Config) Validate() error {
	_, err := c.withDefaults()
	return err
}

// Start joins the chain of generations at cfg.Socket. Where an incumbent serves
// it is asked for its sockets, and Start returns once they are here; where
// there is none, this process is generation 1. While the incumbent is busy with
// another handoff, Start asks again until ctx ends.
//
// The Process must be ended with Wait or Close. Until Ready nothing has changed
// for the incumbent: Close, or the end of this process, leaves it serving.
//
// Errors: ErrIncumbent (Takeover is Never and somebody serves), ErrRefused,
// ErrRevoked, ErrSilent, ErrPermission, ErrBadAnswer, ErrDirectory, ErrNotSocket,
// ErrNotHandoff, ErrPathTooLong, ErrForeignNetns, ErrTruncated, ErrProtocol,
// ErrStopped (a signal came first), or ctx's; docs/errors.md says what to do.
func Start(ctx context.Context, cfg Config) (*Process, error) {
	cfg, err := cfg.withDefaults()
	if err != nil {
		return nil, err
	}
	p := newProcess(cfg)
	p.handleSignals()
	go p.run()
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// A stop while it still waits at the path, or for the incumbent.
	defer context.AfterFunc(p.life, func() { cancel(ErrStopped) })()
	if err = p.openSelf(ctx); err == nil {
		err = p.join(ctx)
	}
	if err != nil {
		p.Close()
		if context.Cause(ctx) == ErrStopped && errors.Is(err, context.Canceled) {
			err = opError("start", cfg.Socket, ErrStopped) // a dial reports no cause
		}
		return nil, err
	}
	return p, nil
}

// Listen returns the listener that was inherited under this address, or a fresh
// one: the same call in both cases. The address as written is the socket's
// name, so that "127.0.0.1:0" is inherited too. Networks are tcp, tcp4, tcp6
// and unix.
//
// Accept blocks until this process serves and while it is parked; it returns
// net.ErrClosed when it no longer serves for good. A fresh listener refuses
// connections until this process serves, so that nobody waits in the queue of a
// standby. Closing the listener gives the socket up; otherwise the Process
// closes it. ctx bounds the opening of a fresh one only. The error is
// ErrNotServing after this process's part, or says what is wrong with the
// address. Safe for concurrent use.
func (p *Process) Listen(ctx context.Context, network, address string) (net.Listener, error) {
	return p.ListenSocket(ctx, Socket{Network: network, Address: address})
}

// ListenPacket is Listen for packet sockets: udp, udp4, udp6 and unixgram.
// ReadFrom blocks while this process does not serve. WriteTo works also after a
// handoff, until the Process has ended or the program closes the connection, so
// that what was read here is answered; not after a plain stop, nor on an
// exclusive socket that was handed over.
func (p *Process) ListenPacket(ctx context.Context, network, address string) (net.PacketConn, error) {
	return p.ListenPacketSocket(ctx, Socket{Network: network, Address: address})
}

// Socket names a socket that a program wants.
type Socket struct {
	// Name is what the socket is called from version to version: at most 128
	// bytes of UTF-8 without control characters. "" is Address as written. A TCP and a UDP socket may share a name.
	Name string

	// Network is as for Listen or ListenPacket.
	Network string

	// Address is as for net.Listen. An inherited socket is taken if it has the
	// name and was asked for by the same address, or is bound to it, where port
	// 0 is any port. A socket bound to this address under another name is taken
	// too, so that sockets can be renamed. If the address under a name changes,
	// a fresh socket is opened and the old one is reported as unclaimed.
	Address string

	// Exclusive declares that two processes must never own the socket at the
	// same time, not even for an instant: after a take-back it resumes only
	// when the successor has confirmed or died. For sockets with state, such as
	// QUIC's.
	Exclusive bool
}

// ListenSocket is Listen for a Socket.
func (p *Process) ListenSocket(ctx context.Context, s Socket) (net.Listener, error) {
	all, err := p.ListenGroup(ctx, s, 0)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ListenGroup returns n listeners on one address, an SO_REUSEPORT group whose
// every member is handed over. If the successor asks for fewer, the rest is
// served by the incumbent until release and then closed. n = 0, or less, is one
// listener without SO_REUSEPORT.
func (p *Process) ListenGroup(ctx context.Context, s Socket, n int) ([]net.Listener, error) {
	all, err := p.open(ctx, s, n, kindStream)
	if err != nil {
		return nil, err
	}
	lns := make([]net.Listener, len(all))
	for i, s := range all {
		lns[i] = s.listener
	}
	return lns, nil
}

// ListenPacketSocket is ListenPacket for a Socket.
func (p *Process) ListenPacketSocket(ctx context.Context, s Socket) (net.PacketConn, error) {
	all, err := p.ListenPacketGroup(ctx, s, 0)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// ListenPacketGroup is ListenGroup for packet sockets.
func (p *Process) ListenPacketGroup(ctx context.Context, s Socket, n int) ([]net.PacketConn, error) {
	all, err := p.open(ctx, s, n, kindPacket)
	if err != nil {
		return nil, err
	}
	conns := make([]net.PacketConn, len(all))
	for i, s := range all {
		conns[i] = s.packet
	}
	return conns, nil
}

// File returns the descriptor that was inherited under this name, which
// Config.Files must list, or what open returns. The caller owns the file that
// is returned; the Process keeps a duplicate to hand over. open must not use the
// Process. The error is ErrNotServing after this process's part, or open's.
func (p *Process) File(name string, open func() (*os.File, error)) (*os.File, error) {
	return p.openFile(name, open)
}

// Ready tells that this program can serve, and returns when it does: at once as
// generation 1, after the incumbent's commit or death as its successor. A
// standby waits here; OnState tells it is one. The error says why this process will not
// serve: ErrRefused, ErrRevoked, ErrStopped, ErrProtocol, or what went wrong
// when the sockets were to be served. If ctx has ended already, Ready returns its
// error and has told nothing. If it ends later, that ends this waiting only: the
// process serves when it is its turn. Call Ready again, or Close.
//
// Config.Checks are run before anything is told. The error is ErrCheck, with
// the name and error of each one that did not pass, and nothing has changed
// then either; nor with ErrOpenFiles, which says that the incumbent's connections
// would not fit this process's limit of open files, nor with ErrNoClaim, which says
// that this program asked for none of the incumbent's sockets. Those that passed together are not run again by another call. As a
// successor their time is a part of the incumbent's ReadyTimeout.
func (p *Process) Ready(ctx context.Context) error {
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	err := p.runChecks(ctx)
	if err == nil {
		err = cmp.Or(p.checkClaim(), p.checkRoom())
	}
	p.mu.Lock()
	p.unready = ""
	if err != nil {
		p.unready = err.Error() // for the incumbent, where the program gives up
	}
	p.mu.Unlock()
	if err != nil {
		return err
	}
	p.post(func() { p.feed(event{kind: evAppReady}) })
	select {
	case <-p.serving:
		return nil
	case <-p.done:
		select {
		case <-p.serving: // it served, and has handed over already
			return nil
		default:
		}
		if err := p.Err(); err != nil {
			return err
		}
		return ErrStopped
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// Done is closed when this process does not serve any more and never will: it
// was released, revoked, stopped or refused. Then finish what is open and call
// Close, or let Wait do both.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err says why Done is closed: nil before, and after a handoff or a stop;
// otherwise ErrRevoked, ErrRefused or what else happened.
func (p *Process) Err() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.err
}

// State is what this process is doing now. Safe for concurrent use.
func (p *Process) State() State {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.state
}

// Generation is this process's number in the chain, 0 until the incumbent has
// assigned it. Safe for concurrent use.
func (p *Process) Generation() uint64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.generation
}

// Logger is Config.Logger with the generation and the id of the handoff under
// way, or of the last one: with it, one search for the id shows a handoff whole,
// in the lines of both processes. Ask for it anew for each line. Safe for
// concurrent use.
func (p *Process) Logger() *slog.Logger {
	p.mu.Lock()
	defer p.mu.Unlock()
	l := p.cfg.Logger.With("generation", p.generation)
	if p.handoff != "" {
		l = l.With("handoff", p.handoff)
	}
	return l
}

// Unclaimed lists the inherited sockets that this program did not ask for, or
// closed again before Ready; they were closed here at Ready, and the incumbent
// closes them at release. nil before Ready.
func (p *Process) Unclaimed() []string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return append([]string(nil), p.unclaimed...)
}

// Stop is what SIGTERM means in the present state. A process that serves hands
// over to its standby if there is one, waits for a successor that is starting,
// and otherwise stops accepting and drains. If the successor that it handed over
// to fails before it is released, it serves on, warns, and hands over to the next one
// that is ready, whatever its mode; a second Stop ends the service. In
// probation the incumbent releases at once, and the successor gives back. A process that does not serve yet
// leaves. Stop does not block; Done and Wait tell the rest.
func (p *Process) Stop() {
	select {
	case p.stopped <- struct{}{}:
	default: // one is waiting to be seen
	}
}

// ReportUnhealthy says that this process can't do its work, and why; err must not
// be nil. Before it serves it gives up; in probation, as the successor, it stops
// accepting, its incumbent takes back at once, and it drains: Err is ErrUnhealthy
// then. Once it is on its own nobody can take back: it goes on, with a line in the
// log and the complaint in the status; so it does beside an incumbent that hangs,
// until that one is heard again. It does not block.
func (p *Process) ReportUnhealthy(err error) {
	text := err.Error()
	p.post(func() {
		p.mu.Lock()
		p.complaint = text
		p.mu.Unlock()
		p.feed(event{kind: evUnhealthy})
	})
}

func (p *Process) unhealthy() error {
	p.mu.Lock()
	defer p.mu.Unlock()
	return fmt.Errorf("%w: %s", ErrUnhealthy, p.complaint)
}

// Hammer cuts a stop or a drain short: what is open is cut now, as at the drain
// deadline, and what a stop still waits for is waited for no more. A successor
// that has every socket serves when it is ready; one that has not is sent away.
// After a handover that can still be taken back, Hammer applies once it can't.
// Where this process is not on its way out, nothing happens but a line in the
// log. Hammer does not block.
func (p *Process) Hammer() {
	p.post(func() {
		select {
		case <-p.stopped: // by a Stop that came before
			p.feed(event{kind: evStop})
		default:
		}
		p.hammer()
	})
}

// Ending says that this process is being stopped with nobody to succeed it:
// readiness probes should fail from here on. It is true before the process stops
// accepting, by Config.StopDelay. A handover never makes it true. If somebody comes
// within StopDelay, succeeds and fails, it is false again. Safe for concurrent use.
func (p *Process) Ending() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.ending
}

// NetworkGone names the sockets that clients do not reach any more, because the
// network is gone that they live in: see Config.AllowForeignNetns. Readiness probes
// should fail while there are some. It is looked at every second; nil if there are
// none. Safe for concurrent use.
func (p *Process) NetworkGone() []string {
	_, gone := p.sockets.abroad()
	return gone
}

// Status is what an operator is told who asks this process: what it knows of
// itself and of the other living generations. The error is ErrNotServing after
// this process's end, or ctx's.
func (p *Process) Status(ctx context.Context) (*Status, error) {
	got := make(chan *Status, 1)
	if !p.post(func() { got <- p.status() }) {
		return nil, ErrNotServing
	}
	select {
	case s := <-got:
		return s, nil
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Report says how a process ended.
type Report struct {
	Reason   string         // handed_over, stopped, revoked, closed, …; docs/protocol.md has them all
	Open     map[string]int // connections that were open when the drain began, by kind; holds are kind "hold"
	Cut      map[string]int // connections that were cut at the deadline, by kind; holds are kind "hold"
	Holds    map[string]int // holds that were left at the deadline, by name
	Answered uint64         // HTTP requests that HTTPServers of this Process answered
	Moved    uint64         // idle connections that moved to another process
	Duration time.Duration  // of the drain
}

// Wait waits until this process no longer serves and its HTTP connections are
// finished, or cut at the drain deadline; then it says goodbye and closes
// everything. The error is that of Err, or of ctx, which only ends this waiting:
// once Wait was called the drain ends by itself.
func (p *Process) Wait(ctx context.Context) (Report, error) {
	p.post(func() { p.waited = true; p.drainedIfDone() })
	select {
	case <-p.joined:
		p.mu.Lock()
		defer p.mu.Unlock()
		return p.report, p.err
	case <-ctx.Done():
		return Report{}, context.Cause(ctx)
	}
}

// Close ends this process's part at once, without draining, and closes the
// connections of its HTTPServers and TrackedListeners: before Ready it
// leaves the incumbent serving; in probation and with a standby the other side
// goes on; otherwise the service ends. It returns when everything this Process
// opened is closed. Closing twice is no error.
func (p *Process) Close() error {
	p.post(func() { p.feed(event{kind: evClose}) })
	<-p.joined
	return nil
}
