package handoff

import "time"

const (
	maxFrame = 60 << 10
	maxBatch = 128
)

type fileID struct{ Dev, Ino uint64 }
type Status struct{}
type SocketInfo struct{}
type GenerationStatus struct{}
type RequestStatus struct {
	ID, Outcome string
	Generation  uint64
	Reason      string
	Time        time.Time
}
