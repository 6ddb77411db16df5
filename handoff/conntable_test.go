package handoff

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A successor whose connection made room for others (conntable.go) at the moment at
// which its hello was read is gone: it asks again, and nobody waits for it. Generations
// that drain fill the table, since each keeps a connection by which it moves.
func TestHelloWhoseConnectionMadeRoom(t *testing.T) {
	c := newChain(t)
	p, _ := c.serve("one", func(cfg *Config) { cfg.StepTimeout = time.Hour })
	ours, theirs := connPair(t)
	p.control.track(ours, false)
	for range maxConns { // others come, before keep is called for it
		other, _ := connPair(t)
		p.control.track(other, false)
		defer p.control.untrack(other)
	}
	_, err := theirs.c.Write([]byte("x"))
	require.Error(t, err, "it was closed")
	p.admitOrNot(ours, &frame{Type: msgHello, Versions: &versionRange{1, 1}, Program: &program{PID: 1}})
	c.start("two")
}

// Generations that drain keep a connection each, and leave room for everybody else.
func TestManyDrainingGenerationsLeaveRoom(t *testing.T) {
	c := newChain(t)
	c.serve("one")
	connect := func() *rawPeer {
		k, err := dial(c.ctx, c.socket, allow{})
		require.NoError(t, err)
		return newRawPeer(t, k)
	}
	for range maxConns {
		r := connect()
		r.say(&frame{Type: msgMove, Generation: 7})
		f, err := r.next()
		require.NoError(t, err)
		require.Equal(t, msgOK, f.Type)
	}
	ask := func(r *rawPeer) {
		r.say(&frame{Type: msgStatus})
		f, err := r.next()
		require.NoError(t, err)
		require.Equal(t, msgStatus, f.Type)
	}
	one := connect()
	ask(one)
	two := connect()
	ask(two)
	ask(one)
}
