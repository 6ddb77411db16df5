package handoff

// Who has a batch of connections that is on its way from one process to another: the
// rules of doubt of moving.go, pure like the machine, so that a test can walk them
// (machine_move_test.go). In each of the two processes one goroutine obeys.

type moveEvent uint8

const (
	moveSent      moveEvent = iota // giver: the batch was sent
	moveGot                        // giver: `got` was read
	moveNone                       // giver: an error was read, which says that the taker has nothing
	moveDue                        // giver: `got` did not come in time, or is waited for no more
	moveUnkept                     // giver: `keep` could not be said, since the taker reads nothing
	moveAbandoned                  // giver: it ends, and `keep` could not be said
	moveBatch                      // taker: a batch was read
	moveRefused                    // taker: it serves nothing any more, and says an error instead of `got`
	moveSaid                       // taker: `got` was sent
	moveUnsaid                     // taker: `got` could not be sent
	moveKept                       // taker: `keep` was read
	moveEnd                        // the connection was read to its end
)

type moveAction uint8

const (
	moveNothing moveAction = iota
	moveLetGo              // giver: close the copies, they are the taker's
	moveResume             // giver: serve them again
	moveKeep               // giver: say `keep`, then shut the reading side, then read on
	moveSay                // taker: say `got`
	moveOwn                // taker: serve them
	moveDrop               // taker: close the copies, they are the giver's
)

// giving is the giver's knowledge of the batch that is on its way.
type giving uint8

const (
	givingNone giving = iota
	givingSent        // it may be either's
	givingKept        // the giver's, unless `got` was sent before the reading side was shut
)

func (g *giving) on(ev moveEvent) moveAction {
	switch {
	case *g == givingNone:
		if ev == moveSent {
			*g = givingSent
		}
	case ev == moveGot, ev == moveAbandoned && *g == givingSent:
		*g = givingNone
		return moveLetGo
	case ev == moveNone, ev == moveEnd: // † not before all was read
		*g = givingNone
		return moveResume
	case ev == moveDue && *g == givingSent:
		*g = givingKept
		return moveKeep
	case ev == moveUnkept: // † then the reading side stays open
		*g = givingSent
	}
	return moveNothing
}

// taking is the taker's.
type taking uint8

const (
	takingNone taking = iota
	takingRead        // it was read, and `got` is to be said
	takingHeld        // `got` could not be said: the giver has shut its reading side, or is dead
)

func (t *taking) on(ev moveEvent) moveAction {
	switch {
	case *t == takingNone:
		if ev == moveBatch {
			*t = takingRead
			return moveSay
		}
	case ev == moveSaid: // † not before
		*t = takingNone
		return moveOwn
	case ev == moveUnsaid:
		*t = takingHeld
	case ev == moveKept, ev == moveRefused:
		*t = takingNone
		return moveDrop
	case ev == moveEnd: // † without `keep`: the giver is dead
		*t = takingNone
		return moveOwn
	}
	return moveNothing
}
