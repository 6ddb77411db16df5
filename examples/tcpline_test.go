package examples

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// Clients of the line protocol talk on while versions change: every line is answered, in order and once. A client that
// says nothing is told to go, too.
func TestTCPLine(t *testing.T) {
	s := newService(t)
	program := s.build("tcpline")
	old := s.start(program)
	s.serves(old)
	addr := s.address()
	var clients []*lineClient
	for i := range 10 {
		clients = append(clients, s.lineClient(addr, i))
	}
	for generation := 1; generation <= 3; generation++ {
		if generation > 1 {
			silent := s.silentClient(addr)
			next := s.start(program)
			s.serves(next)
			require.Equal(t, "bye\n", silent())
			s.exits(old)
			old = next
		}
		for _, c := range clients {
			c.waitFor(t, generation)
		}
	}
	for _, c := range clients {
		require.NoError(t, c.stop())
	}
	s.stop(old)
}

// silentClient says one line, so that it is known who talks to it, and then nothing. What it returns is the next line
// that the server says by itself.
func (s *service) silentClient(addr string) (next func() string) {
	s.t.Helper()
	conn, err := net.Dial("tcp", addr)
	require.NoError(s.t, err)
	s.t.Cleanup(func() { conn.Close() })
	_, err = io.WriteString(conn, "hello\n")
	require.NoError(s.t, err)
	in := bufio.NewReader(conn)
	read := func() string {
		s.t.Helper()
		require.NoError(s.t, conn.SetDeadline(time.Now().Add(patience)))
		said, err := in.ReadString('\n')
		require.NoError(s.t, err)
		return said
	}
	require.Contains(s.t, read(), "hello")
	return read
}

// lineClient sends lines one after the other, and again on a new connection those that a "bye" came before.
type lineClient struct {
	id      int
	addr    string
	end     chan struct{}
	seen    chan struct{} // has a value when generations has changed
	working sync.WaitGroup

	mu          sync.Mutex
	generations []int
	err         error
}

func (s *service) lineClient(addr string, id int) *lineClient {
	c := &lineClient{id: id, addr: addr, end: make(chan struct{}), seen: make(chan struct{}, 1)}
	c.working.Go(func() { c.finish(c.run()) })
	return c
}

// run talks until it is told to end.
func (c *lineClient) run() error {
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for next := 0; ; {
		conn, err := net.Dial("tcp", c.addr)
		if err != nil {
			return err
		}
		next, err = c.talk(conn, next, tick.C)
		conn.Close()
		if err != errBye {
			return err
		}
	}
}

// errBye is the server's word that it leaves.
var errBye = errors.New("bye")

// talk sends lines from the number next on, and returns the one that was not answered.
func (c *lineClient) talk(conn net.Conn, next int, tick <-chan time.Time) (int, error) {
	in := bufio.NewReader(conn)
	for ; ; next++ {
		select {
		case <-tick:
		case <-c.end:
			return next, nil
		}
		line := fmt.Sprintf("line %d of client %d\n", next, c.id)
		if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
			return next, err
		}
		if _, err := conn.Write([]byte(line)); err != nil {
			return next, err
		}
		said, err := in.ReadString('\n')
		switch {
		case err != nil:
			return next, fmt.Errorf("line %d: %w", next, err)
		case said == "bye\n":
			return next, errBye
		}
		var generation int
		if _, err := fmt.Sscan(said, &generation); err != nil || said != fmt.Sprintf("%d %s", generation, line) {
			return next, fmt.Errorf("sent %q, got %q", strings.TrimSpace(line), said)
		}
		c.note(generation)
	}
}

func (c *lineClient) note(generation int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !slices.Contains(c.generations, generation) {
		c.generations = append(c.generations, generation)
		c.wake()
	}
}

func (c *lineClient) finish(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.err = err
	c.wake()
}

func (c *lineClient) wake() {
	select {
	case c.seen <- struct{}{}:
	default:
	}
}

// waitFor waits until the generation has answered this client.
func (c *lineClient) waitFor(t *testing.T, generation int) {
	t.Helper()
	timeout := time.After(patience)
	for {
		c.mu.Lock()
		answered, err := slices.Contains(c.generations, generation), c.err
		c.mu.Unlock()
		require.NoError(t, err)
		if answered {
			return
		}
		select {
		case <-c.seen:
		case <-timeout:
			require.Failf(t, "no answer", "of generation %d", generation)
		}
	}
}

// stop ends the conversation and returns what went wrong in it.
func (c *lineClient) stop() error {
	close(c.end)
	c.working.Wait()
	return c.err
}
