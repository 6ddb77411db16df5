package handoff

import (
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"
	"unicode"
	"unicode/utf8"
)

// What two processes, or a process and an operator, say to each other: one JSON
// object a frame, one frame a SOCK_SEQPACKET message. This file is pure: bytes
// in, values out. docs/protocol.md is the text that it mirrors.

// The protocol versions that this code speaks. The form of hello, busy and
// refuse is frozen: every later version begins with them.
const (
	minVersion = 1
	maxVersion = 1
)

// Bounds of everything a peer may make us hold.
const (
	maxNameLen    = 128     // bytes in the name of a socket or file
	maxTextLen    = 512     // bytes in a label, a request id, an explanation
	maxSockets    = 10_000  // in one handoff
	maxRejects    = 200     // in one frame
	maxRequests   = 32      // request ids that are remembered
	maxOlder      = 64      // draining generations that one frame reports
	maxFileNames  = 256     // names of other descriptors that a hello may ask for
	socketsPage   = 64      // sockets in one answer to an operator
	maxPollMillis = 60_000  // an operator's long poll
	maxExclusive  = 2000    // exclusive sockets in one handoff
	maxListed     = 64      // names or kinds that one generation reports
	maxWaiting    = 16      // successors that were told busy, in the status
	maxGeneration = 1 << 53 // any number in JSON is exact up to here

	// Bytes of JSON in one frame, so that both lists and the rest of a status
	// fit it whatever was in them.
	maxOlderSize    = 24 << 10
	maxRequestsSize = 12 << 10
	maxHoldsSize    = 4 << 10
	maxWaitingSize  = 8 << 10
)

type msgType uint8

const (
	msgNone msgType = iota
	// successor to incumbent
	msgHello
	msgGot
	msgRejected
	msgReady
	msgServing
	msgReleased
	msgRevoked
	msgAbort
	// incumbent to successor
	msgWelcome
	msgBusy
	msgRefuse
	msgSockets
	msgServe
	msgRelease
	msgRevoke
	msgDraining
	msgBye
	// a draining generation to whoever serves, and back
	msgRegister
	msgHurry
	msgMove
	msgConnections
	msgKeep
	// operator
	msgStatus
	msgListSockets
	msgHandover
	msgRollback
	msgDrain
	msgStop
	msgWithdraw
	// to the operator
	msgOK
	msgSocketList
	// either
	msgProve
	msgProof
	msgPing
	msgPong
	msgError
	msgCount
)

var msgNames = [msgCount]string{
	"", "hello", "got", "rejected", "ready", "serving", "released", "revoked", "abort",
	"welcome", "busy", "refuse", "sockets", "serve", "release", "revoke", "draining", "bye",
	"register", "hurry", "move", "connections", "keep", "status", "list_sockets", "handover", "rollback", "drain", "stop", "withdraw",
	"ok", "socket_list", "prove", "proof", "ping", "pong", "error",
}

func (t msgType) String() string {
	if t < msgCount {
		return msgNames[t]
	}
	return fmt.Sprintf("msgType(%d)", uint8(t))
}

func (t msgType) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText leaves an unknown type at msgNone; check reports it.
func (t *msgType) UnmarshalText(b []byte) error {
	*t = msgNone
	if i := slices.Index(msgNames[1:], string(b)); i >= 0 {
		*t = msgType(i + 1)
	}
	return nil
}

// frame is any frame; which fields count depends on Type.
type frame struct {
	Type msgType `json:"type"`

	// hello, welcome
	Versions *versionRange `json:"versions,omitempty"` // hello
	Version  int           `json:"version,omitempty"`  // welcome
	Mode     Takeover      `json:"mode,omitempty"`     // hello
	Program  *program      `json:"program,omitempty"`  // who speaks
	Files    []string      `json:"files,omitempty"`    // hello: names of other descriptors that are asked for
	// welcome: the successor's number, the id that both sides log, how many sockets follow
	Generation uint64          `json:"generation,omitempty"` // stop, hurry: whom it is about
	Handoff    string          `json:"handoff,omitempty"`
	Total      int             `json:"total,omitempty"`
	Deadlines  *deadlines      `json:"deadlines,omitempty"` // welcome
	Pidfd      bool            `json:"pidfd,omitempty"`     // welcome: the one descriptor that comes with it is the incumbent's pidfd
	Requests   []RequestStatus `json:"requests,omitempty"`  // welcome, release: outcomes to remember

	// busy, refuse, revoke, abort, error
	Reason  reason `json:"reason,omitempty"`
	Text    string `json:"text,omitempty"`
	RetryMS int    `json:"retry_ms,omitempty"`
	Code    string `json:"code,omitempty"`
	Hint    string `json:"hint,omitempty"`

	// sockets, got, rejected, ready
	First      int            `json:"first,omitempty"`
	Sockets    []manifestItem `json:"sockets,omitempty"`
	Last       bool           `json:"last,omitempty"`
	N          int            `json:"n,omitempty"`         // got: descriptors received; ready: sockets claimed
	Exclusive  []int          `json:"exclusive,omitempty"` // ready: indexes of those that must not have two owners
	Rejected   []rejection    `json:"rejected,omitempty"`
	Open       int            `json:"open,omitempty"`       // welcome: connections that may move
	Singletons bool           `json:"singletons,omitempty"` // ready: has jobs of which only the process that serves may run one

	// connections: of Sockets, the listeners that they came through
	Moved []movedItem `json:"moved,omitempty"`

	// bye
	Cut map[string]int `json:"cut,omitempty"` // connections cut at the drain deadline, by kind

	// draining, register
	Self  *GenerationStatus  `json:"self,omitempty"`
	Older []GenerationStatus `json:"older,omitempty"`

	// prove, proof
	Nonce []byte `json:"nonce,omitempty"`
	MAC   []byte `json:"mac,omitempty"`

	// operators
	Request string       `json:"request,omitempty"`
	After   *revision    `json:"after,omitempty"`
	WaitMS  int          `json:"wait_ms,omitempty"`
	Offset  int          `json:"offset,omitempty"`
	Status  *Status      `json:"status,omitempty"`
	List    []SocketInfo `json:"list,omitempty"`
	Already bool         `json:"already,omitempty"`
}

// deadlines are the incumbent's: how long it waits for an answer, for ready, and
// how long it can take back after commit, and how often it asks for a heartbeat.
type deadlines struct {
	StepSeconds      float64 `json:"step_seconds"`
	ReadySeconds     float64 `json:"ready_seconds"`
	ProbationSeconds float64 `json:"probation_seconds"`
	HeartbeatSeconds float64 `json:"heartbeat_seconds,omitempty"` // 0: it asks for none
}

type versionRange struct {
	Min int `json:"min"`
	Max int `json:"max"`
}

// program says who is at the other end, for logs and status. Never an identity:
// a pid is 0 or another's across pid namespaces.
type program struct {
	PID        int       `json:"pid"`
	Generation uint64    `json:"generation,omitempty"`
	Label      string    `json:"label,omitempty"`
	Request    string    `json:"request,omitempty"`
	Started    time.Time `json:"started"`
}

// manifestItem is one socket or file that the incumbent offers; the descriptor
// with the same index in the frame is it.
type manifestItem struct {
	Name      string `json:"name"`
	Kind      kind   `json:"kind"`
	Network   string `json:"network,omitempty"`   // tcp, unix, udp, unixgram
	Asked     string `json:"asked,omitempty"`     // the address as the program wrote it
	Local     string `json:"local,omitempty"`     // the address it is bound to
	Domain    int    `json:"domain,omitempty"`    // SO_DOMAIN
	Type      int    `json:"socktype,omitempty"`  // SO_TYPE
	Protocol  int    `json:"protocol,omitempty"`  // SO_PROTOCOL
	Exclusive bool   `json:"exclusive,omitempty"` // must never have two owners
	File      fileID `json:"file,omitzero"`       // of a Unix socket's file, recorded at bind
	Outside   bool   `json:"outside,omitempty"`   // an interface of the network namespace that it lives in led outside, as one saw who lives in another
}

// kind is what a descriptor of the manifest is.
type kind string

const (
	kindControl kind = "control" // the control listener
	kindStream  kind = "stream"  // a listener
	kindPacket  kind = "packet"  // a packet socket
	kindFile    kind = "file"    // anything else, asked for by name
)

// movedItem is one connection that moves; the descriptor with the same index in the
// frame is it.
type movedItem struct {
	Listener int   `json:"listener"`        // index in sockets
	Fresh    bool  `json:"fresh,omitempty"` // nothing was asked on it yet
	IdleMS   int64 `json:"idle_ms"`         // since it was accepted, or became idle
}

type rejection struct {
	Index  int    `json:"index"`
	Reason string `json:"reason"`
}

// revision names one moment of one process's status.
type revision struct {
	Instance string `json:"instance"`
	Revision uint64 `json:"revision"`
}

var (
	errFrameTooLong = fmt.Errorf("frame is longer than %d bytes", maxFrame)
	errUnknownType  = errors.New("frame of an unknown type")
)

// encode returns f as the bytes of one message.
func (f *frame) encode() ([]byte, error) {
	b, err := json.Marshal(f)
	if err != nil {
		return nil, err
	}
	if len(b) > maxFrame {
		return nil, errFrameTooLong
	}
	return b, nil
}

// decode reads one message. Unknown fields are ignored; an unknown type is
// errUnknownType, with the rest of the frame read.
func decode(b []byte) (*frame, error) {
	if len(b) > maxFrame {
		return nil, errFrameTooLong
	}
	f := new(frame)
	if err := json.Unmarshal(b, f); err != nil {
		return nil, fmt.Errorf("frame is not a JSON object as expected: %w", err)
	}
	return f, f.check()
}

// check bounds whatever a peer put into f.
func (f *frame) check() error {
	if f.Type == msgNone {
		return errUnknownType
	}
	if f.Request != "" {
		if err := checkName(f.Request); err != nil {
			return fmt.Errorf("%s: request id: %w", f.Type, err)
		}
	}
	for _, s := range []string{string(f.Reason), f.Text, f.Code, f.Hint, f.Handoff} {
		if len(s) > maxTextLen {
			return fmt.Errorf("%s: text of %d bytes, at most %d are allowed", f.Type, len(s), maxTextLen)
		}
	}
	for _, n := range []int{f.First, f.N, f.Offset, f.WaitMS, f.RetryMS, f.Total, f.Open} {
		if n < 0 {
			return fmt.Errorf("%s: negative number %d", f.Type, n)
		}
	}
	if f.Generation > maxGeneration || f.Program != nil && f.Program.Generation > maxGeneration {
		return fmt.Errorf("%s: a generation's number is too large", f.Type)
	}
	if f.First > maxSockets+1-len(f.Sockets) || f.Total > maxSockets+1 || len(f.Sockets) > maxBatch || len(f.Moved) > maxBatch || len(f.Rejected) > maxRejects ||
		len(f.Files) > maxFileNames || len(f.Older) > maxOlder || len(f.Requests) > maxRequests {
		return fmt.Errorf("%s: a list is longer than allowed", f.Type)
	}
	if f.Nonce != nil && len(f.Nonce) != nonceLen || f.MAC != nil && len(f.MAC) != macLen {
		return fmt.Errorf("%s: a nonce of %d bytes and a mac of %d, each has %d", f.Type, len(f.Nonce), len(f.MAC), nonceLen)
	}
	if err := f.checkReports(); err != nil {
		return fmt.Errorf("%s: %w", f.Type, err)
	}
	if p := f.Program; p != nil {
		for _, s := range []string{p.Label, p.Request} {
			if err := checkName(s); s != "" && err != nil {
				return fmt.Errorf("%s: label or request id: %w", f.Type, err)
			}
		}
	}
	for _, name := range f.Files {
		if err := checkName(name); err != nil {
			return fmt.Errorf("%s: %w", f.Type, err)
		}
	}
	for i := range f.Sockets {
		if err := f.Sockets[i].check(); err != nil {
			return fmt.Errorf("%s: item %d: %w", f.Type, f.First+i, err)
		}
	}
	return f.checkType()
}

// checkReports bounds what is kept, and passed on, of other processes' reports.
func (f *frame) checkReports() error {
	var texts []string
	for _, r := range f.Requests {
		texts = append(texts, r.ID, r.Outcome, r.Reason)
	}
	all := f.Older
	if f.Self != nil {
		all = append(slices.Clone(all), *f.Self)
	}
	for _, g := range all {
		if g.Generation > maxGeneration {
			return errors.New("a generation's number is too large")
		}
		if len(g.NetworkGone) > maxListed || len(g.Unclaimed) > maxListed || len(g.Open) > maxListed || len(g.Holds) > maxListed {
			return errors.New("a list is longer than allowed")
		}
		texts = append(texts, g.State, g.Takeover, g.Label, g.Request, g.Handoff)
		texts = slices.Concat(texts, g.Unclaimed, g.NetworkGone)
		texts = slices.AppendSeq(texts, maps.Keys(g.Open))
		texts = slices.AppendSeq(texts, maps.Keys(g.Holds))
	}
	for _, s := range texts {
		if len(s) > maxTextLen {
			return fmt.Errorf("a text in a report is longer than %d bytes", maxTextLen)
		}
	}
	return nil
}

// newest returns the end of all that takes at most room bytes as JSON.
func newest[T any](all []T, room int) []T {
	n := len(all)
	for ; n > 0; n-- {
		b, err := json.Marshal(all[n-1])
		if room -= len(b) + 1; err != nil || room < 0 {
			break
		}
	}
	return all[n:]
}

// checkType demands what the frame's type can't do without.
func (f *frame) checkType() error {
	switch f.Type {
	case msgHello:
		if f.Versions == nil || f.Versions.Min > f.Versions.Max {
			return errors.New("hello: no usable range of versions")
		}
		if f.Program == nil {
			return errors.New("hello: no program")
		}
		if f.Mode == Never {
			return errors.New("hello: mode never asks for nothing")
		}
	case msgWelcome:
		if f.Version == 0 || f.Generation == 0 || f.Program == nil {
			return errors.New("welcome: version, generation or program is missing")
		}
	case msgSockets:
		if len(f.Sockets) == 0 && !f.Last {
			return errors.New("sockets: an empty batch that is not the last")
		}
	case msgConnections:
		if len(f.Sockets) == 0 || len(f.Sockets) > maxListeners || len(f.Moved) == 0 {
			return errors.New("connections: too few or too many listeners, or no connection")
		}
		for _, m := range f.Moved {
			if m.Listener < 0 || m.Listener >= len(f.Sockets) || m.IdleMS < 0 {
				return errors.New("connections: an item is out of range")
			}
		}
	case msgProve:
		if f.Nonce == nil {
			return errors.New("prove: the nonce is missing")
		}
	case msgProof:
		if f.MAC == nil {
			return errors.New("proof: the mac is missing")
		}
	case msgRegister:
		if f.Self == nil {
			return errors.New("register: self is missing")
		}
	}
	return nil
}

func (it *manifestItem) check() error {
	switch it.Kind {
	case kindControl, kindStream, kindPacket, kindFile:
	default:
		return fmt.Errorf("kind %q is unknown", it.Kind)
	}
	if len(it.Asked) > maxTextLen || len(it.Local) > maxTextLen || len(it.Network) > 16 {
		return errors.New("an address is too long")
	}
	return checkName(it.Name)
}

// checkName admits the names of sockets and files: 1 to 128 bytes of UTF-8
// without control characters, so that they can stand in a log line and a table.
func checkName(name string) error {
	switch {
	case name == "":
		return errors.New("a name is empty")
	case len(name) > maxNameLen:
		return fmt.Errorf("name %.20q… has %d bytes, at most %d are allowed", name, len(name), maxNameLen)
	case !utf8.ValidString(name):
		return fmt.Errorf("name %q is not UTF-8", name)
	}
	for _, r := range name {
		if unicode.IsControl(r) {
			return fmt.Errorf("name %q has a control character", name)
		}
	}
	return nil
}

// negotiate picks the highest version that both speak; ok is false if there is none.
func negotiate(theirs versionRange) (version int, ok bool) {
	v := min(theirs.Max, maxVersion)
	return v, v >= max(theirs.Min, minVersion)
}

// clip shortens s to what a frame may carry, at a rune's boundary.
func clip(s string) string {
	if len(s) <= maxTextLen {
		return s
	}
	s = s[:maxTextLen-len("…")]
	for s != "" && !utf8.ValidString(s) {
		s = s[:len(s)-1]
	}
	return s + "…"
}
