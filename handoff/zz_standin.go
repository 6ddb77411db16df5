package handoff

import "time"

type Status struct{}
type SocketInfo struct{}
type GenerationStatus struct{}
type RequestStatus struct {
	ID, Outcome string
	Generation  uint64
	Reason      string
	Time        time.Time
}
