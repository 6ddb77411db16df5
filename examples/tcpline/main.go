// Command tcpline serves a line protocol of its own over TCP, and its next
// version replaces it without a line being lost: each line is answered with the
// generation and the line itself, and "quit" ends the conversation.
//
// When a version leaves, it answers what it has read, says "bye" and closes. A
// client that reads "bye" closes too, connects again, and sends there what was
// not answered here: it was not looked at.
//
//	mkdir -p -m 700 run && export HANDOFF_SOCKET=$PWD/run/control
//	go run . &
//	nc 127.0.0.1 7000
//	go run .   # takes over
package main

import (
	"bufio"
	"cmp"
	"context"
	"fmt"
	"io"
	"log"
	"net"
	"os"
	"strings"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

func main() {
	if err := serve(context.Background()); err != nil {
		log.Fatal(err)
	}
}

func serve(ctx context.Context) error {
	p, err := handoff.Start(ctx, handoff.Config{Signals: &handoff.Signals{}})
	if err != nil {
		return err
	}
	defer p.Close()
	ln, err := p.Listen(ctx, "tcp", cmp.Or(os.Getenv("ADDR"), "127.0.0.1:7000"))
	if err != nil {
		return err
	}
	// Track counts the connections, tells them when to finish, and closes at
	// the deadline those that did not.
	go accept(p, p.Track(ln))
	if err := p.Ready(ctx); err != nil {
		return err
	}
	_, err = p.Wait(ctx)
	return err
}

// accept ends when this process no longer serves for good.
func accept(p *handoff.Process, ln net.Listener) {
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		go talk(p, c.(*handoff.TrackedConn))
	}
}

// talk is one conversation.
func talk(p *handoff.Process, c *handoff.TrackedConn) {
	defer c.Close()
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-c.Draining():
			c.SetReadDeadline(time.Now()) // wakes a Read that waits for a line
		case <-done:
		}
	}()
	in := bufio.NewReader(c)
	for {
		line, err := in.ReadString('\n')
		if err != nil { // the client went, or the deadline says that it is time to go
			select {
			case <-c.Draining():
				sayBye(c)
			default:
			}
			return
		}
		if strings.TrimSpace(line) == "quit" {
			return
		}
		if _, err := fmt.Fprintf(c, "%d %s", p.Generation(), line); err != nil {
			return
		}
	}
}

// sayBye waits a second for the client to close: closing a connection on which
// something unread has come would reset it, and "bye" might not arrive.
func sayBye(c net.Conn) {
	c.SetReadDeadline(time.Now().Add(time.Second))
	if _, err := fmt.Fprintln(c, "bye"); err == nil {
		io.Copy(io.Discard, c)
	}
}
