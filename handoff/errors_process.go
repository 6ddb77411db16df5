package handoff

import "errors"

// What the end of a Process, or of an attempt to start one, is due to.
var (
	ErrIncumbent    = errors.New("an incumbent serves already; start with another takeover mode to succeed it")
	ErrRefused      = errors.New("the incumbent refused this successor")
	ErrRevoked      = errors.New("revoked by the incumbent")
	ErrSilent       = errors.New("the incumbent is connected but says nothing; it may be stopped or hung: look at that process, and end it if it stays so")
	ErrProtocol     = errors.New("the peer broke the protocol")
	ErrStopped      = errors.New("stopped before it served")
	ErrNotServing   = errors.New("handoff: this process no longer serves")
	ErrForeignNetns = errors.New("the socket belongs to another network namespace: successor and incumbent must share one (host network, or one container's network for both)")
)
