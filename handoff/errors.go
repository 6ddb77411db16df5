package handoff

import "errors"

// What can be wrong at a socket path. They come wrapped in an *OpError that
// names the path, mostly with a detail behind them; compare with errors.Is.
var (
	// ErrNobody: there is no socket at the path, or one that nobody holds
	// any more.
	ErrNobody = errors.New("nobody serves at this socket (start the service, or check the path)")

	// ErrPathTooLong: a Unix socket address has room for 107 bytes.
	ErrPathTooLong = errors.New("path is too long for a unix socket (use one of at most 107 bytes)")

	// ErrNotSocket: a file, a directory or a symbolic link is at the path.
	// It is never removed.
	ErrNotSocket = errors.New("what is at the path is not a socket (move it away, or choose another path)")

	// ErrNotHandoff: somebody serves at the path, but not this protocol.
	ErrNotHandoff = errors.New("a socket of another kind is served at this path (choose another path)")

	// ErrDirectory: the directory of the path is missing, or mounted read-only, or
	// only the file in it is mounted, or others than its
	// owner could replace the socket in it.
	ErrDirectory = errors.New("unfit directory for a socket")

	// ErrPermission: the kernel refused, or the peer runs under a user that
	// is not on the allow list.
	ErrPermission = errors.New("not permitted")

	// ErrTruncated: a message was cut because it was larger than a frame may
	// be, or because this process had no room for all of its descriptors.
	ErrTruncated = errors.New("message truncated (larger than a frame, or RLIMIT_NOFILE reached: raise it)")
)

// What the end of a Process, or of an attempt to start one, is due to.
var (
	// ErrIncumbent: Takeover is Never, and somebody serves.
	ErrIncumbent = errors.New("an incumbent serves already (stop it, or start with another takeover mode)")

	// ErrRefused: the incumbent said no, for the reason that follows.
	ErrRefused = errors.New("the incumbent refused this successor")

	// ErrRevoked: the incumbent took the sockets back, before or after this
	// process served.
	ErrRevoked = errors.New("revoked by the incumbent")

	// ErrUnhealthy: this process gave back, because it reported itself unhealthy;
	// what it said is behind it.
	ErrUnhealthy = errors.New("gave back to the incumbent: unhealthy")

	// ErrOpenFiles: the connections that would move to this process do not fit its
	// limit of open files; the numbers are behind it.
	ErrOpenFiles = errors.New("too few open files are allowed")

	// ErrNoClaim: this program has asked for none of the incumbent's sockets, which
	// are listed behind it, and Config.AllowNoClaim is false.
	ErrNoClaim = errors.New("this version takes none of the incumbent's sockets (another service needs a control socket of its own; if these may be closed, start with --allow-no-claim)")

	// ErrSilent: somebody holds the control socket and says nothing. It is
	// never taken for dead.
	ErrSilent = errors.New("the incumbent is connected but says nothing (it may be stopped or hung: look at that process, and end it if it stays so)")

	// ErrProtocol: the peer said or sent something that has no place there.
	ErrProtocol = errors.New("the peer broke the protocol (is it another program, or a version with a bug?)")

	// ErrStopped: this process was told to stop before it served.
	ErrStopped = errors.New("stopped before it served")

	// ErrCheck: some of Config.Checks did not pass. Which, and why, is behind it.
	ErrCheck = errors.New("a check did not pass (nothing has changed: see to the cause, then try again)")

	// ErrDrainDeadline is the cause of a context that ends at the drain
	// deadline: of a request, a TrackedConn or a Hold. The connection is closed
	// a second later.
	ErrDrainDeadline = errors.New("the drain deadline has passed (the connection is closed a second later)")

	// ErrNotServing: Listen or File of a Process that has ended its part, and the
	// cause of a Singleton's context when this process is no longer the one that
	// serves.
	ErrNotServing = errors.New("this process no longer serves")

	// ErrForeignNetns: a socket of another network namespace was offered, and
	// Config.AllowForeignNetns is false.
	ErrForeignNetns = errors.New("the socket belongs to another network namespace (let both versions have one network, by docker run --network host or container:NAME, network_mode: host or service:NAME; or accept it with --allow-foreign-netns, where that network outlives the version before)")
)

// OpError says during which operation, and at which path or address, Err
// happened.
type OpError struct {
	Op   string // what was tried: "dial", "listen", "remove", …
	Path string // of the socket, or the network address
	Err  error  // never nil
}

// Error is one line: the operation, the path and what happened.
func (e *OpError) Error() string { return "handoff: " + e.Op + " " + e.Path + ": " + e.Err.Error() }

// Unwrap returns Err.
func (e *OpError) Unwrap() error { return e.Err }
