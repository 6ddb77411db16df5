// Package handoff is one process's part in a handoff: a running server, the
// incumbent, is replaced by its next version, the successor, and no client
// notices.
//
// # The story
//
// The successor is started by anyone and calls Start. It connects to the
// incumbent at the control socket, a path that both can reach, and receives
// duplicates of its listening sockets by SCM_RIGHTS. The program asks for each
// with Listen, the same call whether the socket is inherited or fresh, and calls
// Ready.
//
//	hello      →             who I am, which versions I speak
//	           ← welcome     your generation, what will follow
//	           ← sockets     in batches, each acknowledged; the control listener first
//	ready      →             what I took and what not: a standby
//	           ← serve       the incumbent has parked: it accepts nothing, and closes nothing
//	serving    →             committed; probation begins, with a ping and a pong every second
//	           ← release     (or revoke: the incumbent takes back)
//	released   →             the point of no return
//	           ← draining    the incumbent finishes its connections
//	           ← connections idle HTTP connections, over a connection of their own
//	got        →             before a byte is read from them
//	           ← bye
//
// # The invariant
//
// Somebody who is alive always holds every socket and accepts on it, or is told
// to within one round trip. Until it has read released, the incumbent decides
// alone: it resumes when the link ends, when an answer stays away, when the
// successor says that it is unhealthy or when an operator says so, and the
// successor obeys. When the incumbent dies, whoever holds the sockets serves.
// machine.go holds the rules, and its tests walk them.
//
// # Who owns what
//
// A Process owns a duplicate of every socket, outside the runtime's poller, from
// Listen to its end or to the program's closing it, and what Listen and
// ListenPacket return, which stop delivering while the process is parked and go on
// when it resumes. Connections
// that were accepted are the program's; an HTTPServer drains its own, which move to
// whoever serves then where that can be, and a
// TrackedListener those of other protocols. Work that nobody else waits for keeps
// the process by a Hold, and what may run once only is a Singleton. The control
// listener is handed over like the others and its path is bound once: only the
// last owner removes it.
//
// # Where to read on
//
// To use the package, begin with ListenAndServe, Config and Signals; for more
// than one HTTP server go on with Start, Process.Listen, Process.Ready and
// Process.Wait.
//
// The files are for whoever reads the code: handoff.go is the public API from top
// to bottom; machine.go the states; process.go the loop that obeys them;
// successor.go and incumbent.go the two sides of a link; heartbeat.go and death.go
// whether the other side is there; answer.go, operator.go and waiting.go what else
// comes through the control socket; selfsocket.go the one that is this process's
// only; signals.go what signals mean; sockets.go and claim.go the named set,
// listener.go and packetconn.go what a program holds of it; scmrights.go and
// unixsock.go what the kernel does; stop.go how a process leaves; drain.go the
// drain, of which http.go, track.go and hold.go have their parts; moving.go how idle
// HTTP connections go to whoever serves, adopting.go how they come, with machine_move.go
// for the rules; http_move.go how they leave net/http, http_selfcheck.go how it is known
// that they can, and http_idle.go where they rest; netns_linux.go which network a socket
// lives in, netns_watch.go and netns_interfaces.go whether that network lives.
// docs/protocol.md is the same for other languages.
package handoff
