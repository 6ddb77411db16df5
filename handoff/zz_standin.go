package handoff

import "errors"

const (
	maxFrame = 60 << 10
	maxBatch = 128
)

type fileID struct{ Dev, Ino uint64 }

var (
	ErrNobody      = errors.New("nobody is there: no process answers the control socket")
	ErrPathTooLong = errors.New("path is longer than 107 bytes: choose a shorter one")
	ErrNotSocket   = errors.New("there is a file at the path that is not a socket: choose another path, or remove the file")
	ErrNotHandoff  = errors.New("the socket at the path is another program's: it is not a control socket")
	ErrPermission  = errors.New("not permitted")
)

// OpError is an error with what was being done.
type OpError struct {
	Op, Path string
	Err      error
}

func (e *OpError) Error() string { return "handoff: " + e.Op + " " + e.Path + ": " + e.Err.Error() }
func (e *OpError) Unwrap() error { return e.Err }
