package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// held is a request under way for as long as the test wants: half of its body is still to come.
type held struct {
	conn       net.Conn
	generation uint64
}

const halfBody = "half "

// hold begins a request, and waits until the generation that serves counts it.
func (s *service) hold(addr string, generation uint64) *held {
	s.t.Helper()
	h := s.holdUncounted(addr)
	h.generation = generation
	s.waitStatus(fmt.Sprintf("generation %d has the request", generation), func(st proc.Status) bool {
		return st.Of(generation).Open["active"] >= 1
	})
	return h
}

// finish sends the rest, and wants the answer of the generation that began with it.
func (h *held) finish(s *service) {
	s.t.Helper()
	_, err := io.WriteString(h.conn, halfBody)
	require.NoError(s.t, err)
	a := readAnswer(s.ctx(), h.conn)
	require.NoError(s.t, a.err, "the request that generation %d has", h.generation)
	require.Equal(s.t, http.StatusOK, a.status)
	require.Equal(s.t, halfBody+halfBody, a.body)
	require.Equal(s.t, h.generation, a.generation)
}

// cut wants the connection to have been closed without an answer.
func (h *held) cut(s *service) {
	s.t.Helper()
	require.Error(s.t, readAnswer(s.ctx(), h.conn).err, "the request that generation %d had", h.generation)
}

// census looks at every status of a service, and writes down what must not be: a generation that is missing before the
// test let it go, or a number that two processes had.
type census struct {
	mu    sync.Mutex
	pids  map[uint64]int // of every generation ever seen
	leave map[uint64]bool
	wrong []string
	seen  int
	stop  func()
}

func (s *service) census() *census {
	c := &census{pids: make(map[uint64]int), leave: make(map[uint64]bool)}
	ctx, cancel := context.WithCancel(s.t.Context()) // it goes on for longer than a wait
	done := make(chan struct{})
	c.stop = sync.OnceFunc(func() { cancel(); <-done })
	s.t.Cleanup(c.stop)
	go func() {
		defer close(done)
		for ctx.Err() == nil {
			// Every change is looked at. Who has handed over still answers on its connections, but knows no more.
			proc.WaitStatus(ctx, s.socket, func(st proc.Status) bool {
				c.look(st)
				return !slices.Contains([]string{"serving", "parked", "releasing"}, st.Of(st.Generation).State)
			})
		}
	}()
	return c
}

func (c *census) look(st proc.Status) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.seen++
	for _, g := range st.Generations {
		if g.Generation == 0 {
			continue
		}
		if pid, ok := c.pids[g.Generation]; ok && pid != g.PID {
			c.wrong = append(c.wrong, fmt.Sprintf("generation %d is pid %d and was %d", g.Generation, g.PID, pid))
		}
		c.pids[g.Generation] = g.PID
	}
	for n := range c.pids {
		if st.Of(n).Generation == 0 && !c.leave[n] {
			c.wrong = append(c.wrong, fmt.Sprintf("generation %d is missing in the status of generation %d: %+v", n, st.Generation, st.Generations))
			c.leave[n] = true // said once
		}
	}
}

// letGo says that a generation may end from now on.
func (c *census) letGo(n uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.leave[n] = true
}

func (c *census) end(t *testing.T, generations int) {
	t.Helper()
	c.stop()
	require.Empty(t, c.wrong)
	require.Len(t, c.pids, generations)
	require.Greater(t, c.seen, generations)
	t.Logf("%d statuses, none without a generation that lived", c.seen)
}

// A dozen generations drain at the same time, each because of one request, and one that was revoked does too. Each is
// in every status to its end, whoever answers; one is hurried, one is killed, and the others finish.
func TestADozenGenerationsDrain(t *testing.T) {
	const (
		last     = 14
		parked   = 6 // takes back from
		revoked  = 7
		hurried  = 3
		murdered = 5
	)
	s := newService(t)
	all := map[uint64]waiter{}
	signals := map[uint64]interface{ Signal(syscall.Signal) error }{}
	first := s.serving("v1", "--drain-timeout", "1h")
	all[1], signals[1] = first, first
	addr := s.address(web)
	census := s.census()
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 200},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 50},
	)
	holds := map[uint64]*held{}
	deploy := func(n uint64, wait string, extra ...string) {
		t.Helper()
		_, p := s.upgrade(fmt.Sprintf("v%d", n), []string{"--wait=" + wait}, append([]string{"--drain-timeout", "1h"}, extra...)...)
		require.EqualValues(t, p.PID, s.status().Of(n).PID)
		all[n], signals[n] = p, p
		s.answers(run, n, 5)
	}
	for n := uint64(2); n <= last; n++ {
		switch n {
		case parked:
			holds[n-1] = s.hold(addr, n-1)
			deploy(n, "released", "--probation", "1h")
		case revoked:
			holds[parked] = s.hold(addr, parked)
			deploy(n, "committed")
			holds[n] = s.holdUncounted(addr)
			holds[n].generation = n
			s.must("rollback")
			s.waitStatus("the revoked one drains", func(st proc.Status) bool {
				return st.Serving().Generation == parked && st.Of(revoked).State == "revoked" && st.Of(revoked).Open["active"] >= 1
			})
		case revoked + 1:
			deploy(n, "committed")
			s.kill(signals[parked], syscall.SIGTERM) // ends its probation
			s.waitStatus("released", func(st proc.Status) bool { return st.Of(parked).State == "draining" })
		default:
			holds[n-1] = s.hold(addr, n-1)
			deploy(n, "released")
		}
	}

	st := s.waitStatus("13 drain", func(st proc.Status) bool {
		for n := uint64(1); n < last; n++ {
			g, state := st.Of(n), "draining"
			if n == revoked {
				state = "revoked"
			}
			// Who has nothing else left has the one request.
			if g.State != state || g.Open["active"] != 1 || g.Open["idle"] != 0 {
				return false
			}
		}
		return st.Serving().Generation == last && st.Generation == last
	})
	require.Len(t, st.Generations, last)

	census.letGo(hurried)
	r := s.must("stop", "--generation", fmt.Sprint(hurried), "--timeout", "60s")
	require.Contains(t, r.Stdout, fmt.Sprintf("generation %d is gone", hurried))
	holds[hurried].cut(s)
	s.exits(all[hurried], 6, "a connection was cut")

	census.letGo(murdered)
	s.kill(signals[murdered], syscall.SIGKILL)
	s.exits(all[murdered], -1, "killed")
	s.waitStatus("the one that was killed has left", func(st proc.Status) bool { return st.Of(murdered).Generation == 0 })
	holds[murdered].cut(s)

	st = s.status()
	require.Len(t, st.Generations, last-2)
	// First those in the middle, over which the news of the older ones comes.
	for _, n := range []uint64{13, 12, 8, 7, 9, 1, 2, 4, 6, 10, 11} {
		require.NotZero(t, s.status().Of(n).Generation, "generation %d is in the status to its end", n)
		census.letGo(n)
		holds[n].finish(s)
		code := 0
		if n == revoked {
			code = 7
		}
		s.exits(all[n], code, fmt.Sprintf("generation %d", n))
		s.waitStatus(fmt.Sprintf("generation %d has left", n), func(st proc.Status) bool { return st.Of(n).Generation == 0 })
	}
	s.alone(last)
	s.answers(run, last, 50)
	s.noLoss(run)
	census.end(t, last)
}

// holdUncounted begins a request at a successor in probation, which reports to nobody yet: that it is accepted is known
// by the answer to its header, 100.
func (s *service) holdUncounted(addr string) *held {
	s.t.Helper()
	conn, err := (&net.Dialer{}).DialContext(s.ctx(), "tcp", addr)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { conn.Close() })
	_, err = fmt.Fprintf(conn, "POST /echo HTTP/1.1\r\nHost: test\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n", 2*len(halfBody))
	require.NoError(s.t, err)
	const proceed = "HTTP/1.1 100 Continue\r\n\r\n"
	b := make([]byte, len(proceed))
	require.NoError(s.t, conn.SetReadDeadline(time.Now().Add(patience)))
	_, err = io.ReadFull(conn, b)
	require.NoError(s.t, err)
	require.NoError(s.t, conn.SetReadDeadline(time.Time{}))
	require.Equal(s.t, proceed, string(b))
	_, err = io.WriteString(conn, halfBody)
	require.NoError(s.t, err)
	return &held{conn: conn}
}

// At --max-draining a successor waits, and says why; it is admitted as soon as a drain has ended.
func TestMaxDrainingUnderLoad(t *testing.T) {
	s := newService(t)
	extra := []string{"--drain-timeout", "1h", "--max-draining", "2"}
	first := s.serving("v1", extra...)
	addr := s.address(web)
	run := s.load(
		load.Stream{Kind: load.KeepAlive, Address: addr, Conns: 20, Rate: 200},
		load.Stream{Kind: load.NewConn, Address: addr, Rate: 50},
	)
	one := s.hold(addr, 1)
	_, second := s.upgrade("v2", []string{"--wait=released"}, extra...)
	two := s.hold(addr, 2)
	s.upgrade("v3", []string{"--wait=released"}, extra...)
	s.answers(run, 3, 20)

	fourth := s.server("v4", extra...)
	line, err := fourth.WaitLog(s.ctx(), func(l proc.Line) bool { return l.Field("reason") == "max_draining" })
	require.NoError(t, err)
	text := "2 older generations still drain, and at most 2 may: wait, or handoffctl stop --generation 1"
	require.Equal(t, text, line.Field("text"))
	st := s.waitStatus("it is seen to wait", func(st proc.Status) bool { return len(st.Waiting) == 1 })
	require.Equal(t, fourth.PID(), st.Waiting[0].PID)
	require.Equal(t, "v4", st.Waiting[0].Label)
	require.Equal(t, "max_draining", st.Waiting[0].Reason)
	require.Equal(t, text, st.Waiting[0].Text)
	require.Regexp(t, `(?m)^a successor labelled v4 \(pid \d+\) has waited for .*: max draining: `+text+`$`, s.must("status").Stdout)
	require.Zero(t, run.Counts().Generations[4])

	r := s.wantFailure(1, s.upgradeArgs("v5", []string{"--timeout", "6s"}, extra...)...)
	require.Contains(t, r.Stderr, "time ran out after 6s, not released yet: CMD waits to be let in (max draining); the request is withdrawn")

	two.finish(s)
	s.exits(second, 0, "generation 2 has drained")
	s.waitStatus("the fourth serves", func(st proc.Status) bool { return st.Serving().PID == fourth.PID() })
	s.answers(run, 4, 20)
	s.waitStatus("nobody waits", func(st proc.Status) bool { return len(st.Waiting) == 0 })
	one.finish(s)
	s.exits(first, 0, "generation 1")
	s.alone(4)
	s.noLoss(run)
}
