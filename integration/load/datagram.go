package load

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"time"
)

// datagrams sends datagrams to an echo, one outstanding at a time, and expects each back. UDP may lose a datagram
// where a socket's buffer is full; over loopback, with one outstanding, it does not.
type datagrams struct {
	*worker
	conn net.Conn
	dir  string // holds the socket that a unixgram echo answers to
}

// connect opens the client's socket. A unixgram socket has to be bound to a path, or it cannot be answered.
func (c *datagrams) connect() {
	if err := c.open(); err != nil {
		c.rec.sent(c.stream.Kind)
		c.lose(time.Now(), &failure{CauseDial, err})
	}
}

func (c *datagrams) open() (err error) {
	c.rec.dialed(c.stream.Kind)
	if c.stream.network() != "unixgram" {
		c.conn, err = net.Dial(c.stream.network(), c.stream.Address)
		return err
	}
	if c.dir, err = os.MkdirTemp("", "load"); err != nil {
		return err
	}
	local := &net.UnixAddr{Name: filepath.Join(c.dir, "s"), Net: "unixgram"}
	conn, err := net.DialUnix("unixgram", local, &net.UnixAddr{Name: c.stream.Address, Net: "unixgram"})
	if err != nil {
		return err // not conn: a nil pointer in an interface is not nil
	}
	c.conn = conn
	return nil
}

func (c *datagrams) lose(due time.Time, err error) {
	c.rec.loss(Loss{Kind: c.stream.Kind, Due: due, Cause: causeOf(err), Error: textOf(err)})
}

func (c *datagrams) run(ctx context.Context, s schedule) {
	defer c.close()
	for k := 0; c.conn != nil; k++ {
		due := s.due(k)
		if !sleepUntil(ctx, due) {
			return
		}
		c.rec.sent(c.stream.Kind)
		if err := c.exchange(); err != nil {
			c.lose(due, err)
			continue
		}
		c.rec.answered(c.stream.Kind, due, 0)
	}
}

func (c *datagrams) exchange() error {
	body := c.body()
	if err := c.conn.SetDeadline(time.Now().Add(c.cfg.timeout())); err != nil {
		return err
	}
	if _, err := c.conn.Write(body); err != nil {
		return &failure{CauseWrite, err}
	}
	// The answer to a datagram given up earlier may still come: it is skipped, for it was counted as lost.
	buf := make([]byte, len(body)+1)
	for {
		n, err := c.conn.Read(buf)
		if err != nil {
			return err
		}
		if string(buf[:n]) == string(body) {
			return nil
		}
		if c.old(buf[:n]) {
			continue
		}
		return &failure{CauseEcho, fmt.Errorf("sent %q, got %q", body[:min(len(body), 40)], buf[:min(n, 40)])}
	}
}

// old reports whether b is the beginning of an earlier datagram of this worker.
func (c *datagrams) old(b []byte) bool {
	var kind string
	var id int
	var serial uint64
	n, err := fmt.Sscanf(string(b), "%s %d %d ", &kind, &id, &serial)
	return err == nil && n == 3 && id == c.id && serial < c.serial
}

func (c *datagrams) close() {
	if c.conn != nil {
		c.conn.Close()
	}
	if c.dir != "" {
		os.RemoveAll(c.dir)
	}
}
