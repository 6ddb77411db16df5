package integration

import (
	"io"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

// movingProgram shows what docs/operations.md says of connections that move, from the program's side: it prints what
// its ConnState hook is told, and answers with what its ConnContext has put into the context. With WRAP its listener is
// one that the program has wrapped.
const movingProgram = `package main

import (
	"context"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"sync"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

type wrapped struct{ net.Listener }

type key struct{}

func main() {
	ctx := context.Background()
	probation, err := time.ParseDuration(os.Getenv("PROBATION"))
	check(err)
	p, err := handoff.Start(ctx, handoff.Config{Probation: probation, Signals: &handoff.Signals{}})
	check(err)
	defer p.Close()
	ln, err := p.Listen(ctx, "tcp", "127.0.0.1:8080")
	check(err)
	if os.Getenv("WRAP") != "" {
		ln = wrapped{ln}
	}
	var open sync.WaitGroup
	srv := handoff.NewHTTPServer(p, &http.Server{
		IdleTimeout: 4 * time.Second,
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, r.Context().Value(key{}))
		}),
		ConnContext: func(ctx context.Context, _ net.Conn) context.Context {
			return context.WithValue(ctx, key{}, fmt.Sprint("generation ", p.Generation()))
		},
		ConnState: func(_ net.Conn, s http.ConnState) {
			fmt.Println("connection is", s)
			switch s {
			case http.StateNew:
				open.Add(1)
			case http.StateClosed:
				open.Done()
			}
		},
	})
	served := make(chan error, 1)
	go func() { served <- srv.Serve(ln) }()
	check(p.Ready(ctx))
	<-p.Done()
	check(<-served)
	_, err = p.Wait(ctx)
	check(err)
	open.Wait() // the hook is called when the connection is closed already
}

func check(err error) {
	if err != nil {
		log.Fatal(err)
	}
}
`

// states are what the program's ConnState hook was told until now.
func states(p *proc.Process) (all []string) {
	for _, l := range p.Lines() {
		if s, ok := strings.CutPrefix(l.Text, "connection is "); ok {
			all = append(all, s)
		}
	}
	return all
}

// Only the socket moves: for the old version's hooks the connection has ended, for the next one's it is new.
func TestHooksOfAMovedConnection(t *testing.T) {
	s := newService(t)
	t.Setenv("PROBATION", "-1s")
	app := s.program("moving", movingProgram)
	first := s.app(app)
	c := s.keep(s.address(web))
	_, body := c.say(t)
	require.Equal(t, "generation 1", body)
	second := s.app(app)
	s.exits(first, 0, "its only connection has moved")
	s.whole(first)
	require.Equal(t, []string{"new", "active", "idle", "closed"}, states(first))
	resp, body := c.say(t)
	require.Equal(t, "generation 2", body)
	require.False(t, resp.Close)
	s.said(second, "connection is idle")
	require.Equal(t, []string{"new", "active", "idle"}, states(second))
}

// IdleTimeout counts from the last answer, whoever gave it: it does not begin anew when the connection moves.
func TestIdleTimeoutOfAMovedConnection(t *testing.T) {
	s := newService(t)
	t.Setenv("PROBATION", "3s")
	app := s.program("moving", movingProgram)
	first := s.app(app)
	c := s.keep(s.address(web))
	answered := time.Now() // or a little later
	c.say(t)
	s.app(app)
	s.exits(first, 0, "its only connection has moved")
	s.whole(first)
	require.Equal(t, []string{"new", "active", "idle", "closed"}, states(first))
	moved := time.Since(answered)
	require.Greater(t, moved, 2*time.Second, "it was to be idle for a time before it moved")
	_, err := c.answers.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	closed := time.Since(answered)
	require.Greater(t, closed, 3900*time.Millisecond, "moved after %v", moved)
	// If it began anew, this would be 4 s after the move, which is 3 s after the answer at least.
	require.Less(t, closed, max(moved, 4*time.Second)+2900*time.Millisecond, "moved after %v", moved)
}

// What came through a listener that either version has wrapped stays with the old version, which says when it was the
// last answer.
func TestConnectionsOfAWrappedListenerStay(t *testing.T) {
	for _, tt := range []struct{ name, first, second string }{
		{name: "by the old version", first: "1"},
		{name: "by the next version", second: "1"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s := newService(t)
			t.Setenv("PROBATION", "-1s")
			app := s.program("moving", movingProgram)
			t.Setenv("WRAP", tt.first)
			first := s.app(app)
			c := s.keep(s.address(web))
			_, body := c.say(t)
			require.Equal(t, "generation 1", body)
			t.Setenv("WRAP", tt.second)
			s.app(app)
			s.waitStatus("it drains", func(st proc.Status) bool { return st.Of(1).State == "draining" })
			for last := false; !last; {
				resp, body := c.say(t)
				require.Equal(t, "generation 1", body)
				last = resp.Close
			}
			s.exits(first, 0, "the connection has ended")
		})
	}
}
