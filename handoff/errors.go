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

	// ErrDirectory: the directory of the path is missing, or others than its
	// owner could replace the socket in it.
	ErrDirectory = errors.New("unfit directory for a socket")

	// ErrPermission: the kernel refused, or the peer runs under a user that
	// is not on the allow list.
	ErrPermission = errors.New("not permitted")

	// ErrTruncated: a message was cut because it was larger than a frame may
	// be, or because this process had no room for all of its descriptors.
	ErrTruncated = errors.New("message truncated (larger than a frame, or RLIMIT_NOFILE reached: raise it)")
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
