package handoff

import "time"

// StatusSchema is the number of the form that Status has as JSON. Fields may be
// added under the same number; one that changes its meaning changes the number.
const StatusSchema = 1

// Status is what a service's processes know about themselves and each other at
// one moment, as the one that answers the control socket tells it. It is a copy:
// nothing in it changes later. As JSON its names are snake_case, its times
// RFC 3339 and its durations seconds.
type Status struct {
	// Schema is StatusSchema of the process that answers.
	Schema int `json:"schema"`
	// Socket is the path of the control socket, as the answering process knows it.
	Socket string `json:"socket"`
	// Instance names the process that answers: random, never reused. Revision
	// counts the changes of its status, from 1. The two together name one moment
	// and are compared for equality only: another process counts from its own 1.
	Instance string `json:"instance"`
	Revision uint64 `json:"revision"`
	// Time is when the answer was made, by the answering process's clock. Ages
	// and times left are relative to it.
	Time time.Time `json:"time"`
	// Generation and PID are those of the process that answers. That is the
	// incumbent until it has released, also while its successor serves. The pid
	// is what that process calls itself, which in another pid namespace may be
	// another process's: never signal it.
	Generation uint64 `json:"generation"`
	PID        int    `json:"pid"`
	// Generations are all living ones, oldest first.
	Generations []GenerationStatus `json:"generations"`
	// Waiting are the successors that this process told busy and that ask again
	// and again, in the order in which they came; 16 at most. They have no number
	// yet. One that was admitted, or has not asked for a second, is left out.
	Waiting []WaitingStatus `json:"waiting,omitempty"`
	// Requests are the last outcomes by request id, the latest last, at most 32.
	Requests []RequestStatus `json:"requests,omitempty"`
	// Last is the last attempt at a handoff that came to an end; nil if there was none.
	Last *HandoffStatus `json:"last,omitempty"`
}

// GenerationStatus is one living process of the chain.
type GenerationStatus struct {
	// Generation is the process's number, from 1, never reused in its chain.
	Generation uint64 `json:"generation"`
	// State is a State's name: starting, standby, serving, parked, releasing,
	// draining, revoked. During probation two generations are listed as holding
	// the service: the older is parked, the younger serves.
	State string `json:"state"`
	// Takeover is a Takeover's name: auto, standby, spare, never.
	Takeover string `json:"takeover,omitempty"`
	// PID is what the process calls itself; see Status.PID. 0 if unknown.
	PID   int    `json:"pid"`
	Label string `json:"label,omitempty"`
	// Request is the request id that the process was started with, or "".
	Request string    `json:"request,omitempty"`
	Started time.Time `json:"started"`
	// AgeSeconds is Status.Time minus Started.
	AgeSeconds float64 `json:"age_seconds"`
	// Sockets counts the named sockets and files that the process holds, the
	// control socket aside; of a successor, those that it took, 0 until it is
	// ready.
	Sockets int `json:"sockets"`
	// Foreign counts those of them that live in another network namespace than the
	// process, and NetworkGone names those that clients do not reach any more, because
	// the network there is gone: 8 at most, then how many more. It is not ready for
	// new traffic then. See Config.AllowForeignNetns.
	Foreign     int      `json:"foreign,omitempty"`
	NetworkGone []string `json:"network_gone,omitempty"`
	// Unclaimed names what the process holds and its present successor does not
	// take: 20 at most, then how many more.
	Unclaimed []string `json:"unclaimed,omitempty"`
	// Open counts its open connections by kind: active, idle, new, h2 and hijacked
	// are an HTTPServer's, conn is a TrackedListener's. A kind that has none may be
	// absent.
	Open map[string]int `json:"open,omitempty"`
	// Holds counts by name what keeps the process while it drains: see Hold. Of
	// many names the last is "others" and stands for the rest.
	Holds map[string]int `json:"holds,omitempty"`
	// Answered counts the HTTP requests that its HTTPServers have answered.
	Answered uint64 `json:"answered,omitempty"`
	// Moved counts its idle HTTP connections that moved to another process, and
	// Adopted those that moved to it. MoveOff says why it does not move them: by
	// configuration, or since its self-check failed; "" if it does.
	Moved   uint64 `json:"moved,omitempty"`
	Adopted uint64 `json:"adopted,omitempty"`
	MoveOff string `json:"move_off,omitempty"`
	// Stopping says that the process, which still serves, is being stopped with
	// nobody to succeed it: it is not ready for new traffic any more.
	Stopping bool `json:"stopping,omitempty"`
	// StopOwed says that the process was told to stop and handed over, but that its
	// successor failed: it serves on, and hands over to the next one that is ready,
	// whatever its mode.
	StopOwed bool `json:"stop_owed,omitempty"`
	// LeftSeconds is the time until the process's present state is ended by
	// force: of the probation (parked), of the drain (draining, revoked) or of
	// the stop's delay (stopping). 0 if nothing is running out.
	LeftSeconds float64 `json:"left_seconds,omitempty"`
	// Unhealthy is what the process said by ReportUnhealthy, or "".
	Unhealthy string `json:"unhealthy,omitempty"`
	// ProbationSeconds is how long the process, having handed over, can take
	// back; 0 is not at all, or unknown.
	ProbationSeconds float64 `json:"probation_seconds,omitempty"`
	// SilentSeconds is for how long nothing was heard from the process, where it
	// is alive but does not answer heartbeats; 0 if it does.
	SilentSeconds float64 `json:"silent_seconds,omitempty"`
	// Handoff is the id that both sides of the handoff under way, or of the last
	// one that this process took part in, write into their logs; or "".
	Handoff string `json:"handoff,omitempty"`
}

// WaitingStatus is a successor that can't be admitted yet.
type WaitingStatus struct {
	// PID is what the process calls itself; see Status.PID. Label and Request are
	// as it was started with, Takeover is a Takeover's name.
	PID      int    `json:"pid"`
	Label    string `json:"label,omitempty"`
	Request  string `json:"request,omitempty"`
	Takeover string `json:"takeover"`
	// Reason and Text say why it was told busy the last time, as in its own log:
	// handoff, probation, max_draining and so on.
	Reason string `json:"reason"`
	Text   string `json:"text"`
	// Since is when the answering process told it so for the first time.
	Since time.Time `json:"since"`
}

// Outcomes of a request, in RequestStatus.Outcome, and of an attempt at a
// handoff, in HandoffStatus.Outcome. The first five are steps of one way, in
// this order; OutcomeServing stands for the whole way where there was nobody to
// take over from. The last three are ends.
const (
	OutcomeStarting   = "starting"    // a successor came and is not ready yet
	OutcomeStandby    = "standby"     // it is ready and waits
	OutcomeCommitted  = "committed"   // it serves; the incumbent can still take back
	OutcomeReleased   = "released"    // it serves, and nobody can take back any more
	OutcomeServing    = "serving"     // it serves as the first of its chain, or its incumbent died while it was starting
	OutcomeWithdrawn  = "withdrawn"   // taken back before commit: refused however late it comes, until 32 others are remembered
	OutcomeFailed     = "failed"      // ended before commit; the incumbent serves
	OutcomeRolledBack = "rolled_back" // ended after commit; the incumbent serves again
)

// RequestStatus is how far the handoff got that a request id stands for.
type RequestStatus struct {
	ID      string `json:"id"`
	Outcome string `json:"outcome"`
	// Generation is the successor's number; 0 if none came, or if the request was
	// withdrawn.
	Generation uint64 `json:"generation,omitempty"`
	// Reason says why, where the outcome is an end.
	Reason string `json:"reason,omitempty"`
	// Time is when the outcome was reached.
	Time time.Time `json:"time"`
}

// HandoffStatus is an attempt at a handoff that came to an end.
type HandoffStatus struct {
	// ID is what both sides wrote into their logs; "" for the first of a chain.
	ID string `json:"id"`
	// From and To are the generations; From is 0 where there was nobody to take
	// over from.
	From    uint64 `json:"from"`
	To      uint64 `json:"to"`
	Outcome string `json:"outcome"`
	Reason  string `json:"reason,omitempty"`
	// Cut counts by kind the connections that the older generation had to close
	// at its drain deadline. It is known once that generation is gone; nil means
	// that it drains still, that it died, or that nothing was cut.
	Cut  map[string]int `json:"cut,omitempty"`
	Time time.Time      `json:"time"`
}

// SocketInfo is one of the sockets or files that the answering process holds.
type SocketInfo struct {
	// Index is its place in the manifest.
	Index int `json:"index"`
	// Name is what a successor claims it by.
	Name string `json:"name"`
	// Network is tcp, udp, unix or unixgram; "" for a file.
	Network string `json:"network,omitempty"`
	// Address is the local address that the kernel reports, and Asked what the
	// program asked for ("127.0.0.1:0").
	Address string `json:"address,omitempty"`
	Asked   string `json:"asked,omitempty"`
	// Exclusive sockets never have two owners, not even for an instant.
	Exclusive bool `json:"exclusive,omitempty"`
	// State says how the process came to it and what it does with it:
	// inherited, fresh, parked, unclaimed, or file.
	State string `json:"state"`
	// Netns is the kernel's cookie of the network namespace that a TCP or UDP socket
	// lives in, never reused until the machine starts anew; 0 before Linux 5.14.
	// Foreign says that this is not the namespace of the process, and NetworkGone why
	// clients do not reach it there any more; "" if they may.
	Netns       uint64 `json:"netns,omitempty"`
	Foreign     bool   `json:"foreign,omitempty"`
	NetworkGone string `json:"network_gone,omitempty"`
	// Inode is the socket's number in its kernel, the same in every process that
	// holds it (`ss -e` prints it as ino). 0 if unknown.
	Inode uint64 `json:"inode,omitempty"`
}

// Answer is an accepted verb: what was asked will be done although its operator
// goes away, and its outcome stays in Status under the request's id.
type Answer struct {
	// Already says that it was done, or under way, before it was asked.
	Already bool `json:"already,omitempty"`
	// Generation is the process that the verb is about: the successor of a
	// handover; otherwise the generation that answered, which is stopped, or
	// serves on.
	Generation uint64 `json:"generation,omitempty"`
	// Request is the id under which Status shows the outcome, or "".
	Request string `json:"request,omitempty"`
	// Text is a sentence for people, or "".
	Text string `json:"text,omitempty"`

	// Cut counts by kind what was cut at the drain deadline; of StopAndWait and
	// DrainAndWait only.
	Cut map[string]int
}
