package handoff

import "fmt"

// MoveIdle says whether idle keep-alive connections move from one process to the
// next.
type MoveIdle uint8

const (
	// MoveIdleOn moves them.
	MoveIdleOn MoveIdle = iota
	// MoveIdleOff neither gives nor takes any.
	MoveIdleOff
)

func (m MoveIdle) String() string {
	switch m {
	case MoveIdleOn:
		return "on"
	case MoveIdleOff:
		return "off"
	}
	return fmt.Sprintf("MoveIdle(%d)", uint8(m))
}
