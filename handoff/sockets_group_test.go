package handoff

import (
	"fmt"
	"net"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// members counts who accepts what in a SO_REUSEPORT group.
type members struct {
	mu       sync.Mutex
	accepted map[string]int // by "generation/member"
}

// serve accepts on each member of p's group and answers with p's generation.
func (m *members) serve(p *Process, group []net.Listener) {
	for i, ln := range group {
		go func() {
			for {
				c, err := ln.Accept()
				if err != nil {
					return
				}
				m.mu.Lock()
				m.accepted[fmt.Sprint(p.Generation(), "/", i)]++
				m.mu.Unlock()
				fmt.Fprint(c, p.Generation())
				c.Close()
			}
		}()
	}
}

// all connects until every one of want members has accepted; the kernel
// chooses the member by a hash of the client's port. Each connection must be
// answered meanwhile.
func (m *members) all(t testing.TB, a net.Addr, want ...string) {
	t.Helper()
	m.mu.Lock()
	clear(m.accepted)
	m.mu.Unlock()
	for range 2000 {
		_, err := ask(a)
		require.NoError(t, err)
		if seen := m.seen(); len(seen) >= len(want) {
			require.Equal(t, want, seen)
			return
		}
	}
	require.Equal(t, want, m.seen(), "members that accepted")
}

func (m *members) seen() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	var all []string
	for k := range m.accepted {
		all = append(all, k)
	}
	slices.Sort(all)
	return all
}

func numbered(generation, from, to int) (all []string) {
	for i := from; i < to; i++ {
		all = append(all, fmt.Sprint(generation, "/", i))
	}
	return all
}

func TestReusePortGroups(t *testing.T) {
	for _, tc := range []struct{ from, to int }{{4, 4}, {4, 2}, {2, 4}, {1, 3}, {3, 1}} {
		t.Run(fmt.Sprintf("%d to %d", tc.from, tc.to), func(t *testing.T) {
			c := newChain(t)
			m := &members{accepted: map[string]int{}}
			group := func(p *Process, n int) []net.Listener {
				lns, err := p.ListenGroup(c.ctx, Socket{Name: "g", Network: "tcp", Address: "127.0.0.1:0"}, n)
				require.NoError(t, err)
				require.Len(t, lns, n)
				for _, ln := range lns {
					require.Equal(t, lns[0].Addr(), ln.Addr())
				}
				return lns
			}
			one := c.start("one", probation)
			first := group(one, tc.from)
			at := first[0].Addr()
			m.serve(one, first)
			c.ready(one)
			old := tcpListeners(t, at)
			require.Len(t, old, tc.from)
			m.all(t, at, numbered(1, 0, tc.from)...)

			two := c.start("two")
			second := group(two, tc.to)
			m.serve(two, second)
			require.Len(t, tcpListeners(t, at), tc.from, "fresh members do not listen yet")
			c.ready(two)
			require.Len(t, two.Unclaimed(), max(0, tc.from-tc.to))

			// In probation the successor serves its members, the incumbent those
			// that the successor left.
			require.Len(t, tcpListeners(t, at), max(tc.from, tc.to))
			m.all(t, at, append(numbered(1, tc.to, tc.from), numbered(2, 0, tc.to)...)...)
			one.Stop()
			c.wait(one)
			now := tcpListeners(t, at)
			require.Len(t, now, tc.to, "no member is open that nobody accepts on")
			shared := slices.DeleteFunc(slices.Clone(now), func(i string) bool { return !slices.Contains(old, i) })
			require.Len(t, shared, min(tc.from, tc.to), "members are inherited as far as they go")
			m.all(t, at, numbered(2, 0, tc.to)...)

			two.Stop()
			c.wait(two)
			require.Empty(t, tcpListeners(t, at))
		})
	}
}

// A group whose successor fails keeps all its members, and no more.
func TestReusePortGroupAfterAFailure(t *testing.T) {
	c := newChain(t)
	m := &members{accepted: map[string]int{}}
	s := Socket{Name: "g", Network: "tcp", Address: "127.0.0.1:0"}
	one := c.start("one", probation)
	group, err := one.ListenGroup(c.ctx, s, 2)
	require.NoError(t, err)
	at := group[0].Addr()
	m.serve(one, group)
	c.ready(one)

	bad := c.start("bad")
	_, err = bad.ListenGroup(c.ctx, s, 4)
	require.NoError(t, err)
	require.NoError(t, bad.Close())
	require.Len(t, tcpListeners(t, at), 2)
	m.all(t, at, numbered(1, 0, 2)...)

	back := c.start("taken back")
	group, err = back.ListenGroup(c.ctx, s, 4)
	require.NoError(t, err)
	m.serve(back, group)
	c.ready(back)
	require.Len(t, tcpListeners(t, at), 4)
	_, err = c.client().Rollback(c.ctx)
	require.NoError(t, err)
	<-back.Done()
	require.NoError(t, back.Close())
	require.Len(t, tcpListeners(t, at), 2)
	m.all(t, at, numbered(1, 0, 2)...)
}

func TestPacketGroup(t *testing.T) {
	c := newChain(t)
	s := Socket{Name: "g", Network: "udp", Address: "127.0.0.1:0"}
	one := c.start("one")
	old, err := one.ListenPacketGroup(c.ctx, s, 3)
	require.NoError(t, err)
	c.ready(one)
	two := c.start("two")
	now, err := two.ListenPacketGroup(c.ctx, s, 3)
	require.NoError(t, err)
	for i := range old {
		require.Equal(t, old[0].LocalAddr(), old[i].LocalAddr())
		require.Equal(t, socketOf(t, one, old[i]).inode, socketOf(t, two, now[i]).inode)
	}
	c.ready(two)
	c.wait(one)
	require.Empty(t, two.Unclaimed())
}
