package load

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// eventReader reads /events and comes back when the stream ends.
type eventReader struct {
	*worker
	conn rawConn
	body io.ReadCloser // nil: not open
}

// reopenPause keeps a reader whose streams fail from spinning.
const reopenPause = 50 * time.Millisecond

var errNoDrain = &failure{CauseStream, errors.New(`the stream ended without "event: drain"`)}

// run reads streams, one after the other, until ctx ends. A stream that is open then counts as answered.
func (c *eventReader) run(ctx context.Context) {
	for ctx.Err() == nil {
		opened := time.Now()
		if c.body == nil {
			c.open(ctx)
		}
		if c.body == nil {
			sleepUntil(ctx, opened.Add(reopenPause))
			continue
		}
		err := c.read(ctx)
		c.conn.Close()
		c.body = nil
		if err != nil && ctx.Err() == nil {
			c.lose(opened, err, false)
			sleepUntil(ctx, opened.Add(reopenPause))
			continue
		}
		c.rec.update(c.stream.Kind, func(n *Counts) {
			n.Answered++
			n.Generations[c.generation]++
			if err == nil {
				n.Drained++
			}
		})
	}
	if c.body != nil { // the run ended before it began
		c.conn.Close()
		c.rec.update(c.stream.Kind, func(n *Counts) { n.Answered++ })
	}
}

// open asks for a stream and reads the header of the answer.
func (c *eventReader) open(ctx context.Context) {
	due := time.Now()
	c.rec.sent(c.stream.Kind)
	if err := c.ask(ctx); err != nil {
		c.lose(due, err, true)
	}
}

func (c *eventReader) lose(due time.Time, err error, fresh bool) {
	c.rec.loss(Loss{Kind: c.stream.Kind, Due: due, Cause: causeOf(err), Error: textOf(err), Generation: c.generation, Fresh: fresh})
}

func (c *eventReader) ask(ctx context.Context) (err error) {
	c.conn, err = c.dial()
	if err != nil {
		return &failure{CauseDial, err}
	}
	defer func() {
		if err != nil {
			c.conn.Close()
		}
	}()
	if err := c.conn.SetDeadline(time.Now().Add(c.cfg.timeout())); err != nil {
		return err
	}
	const get = "GET /events HTTP/1.1\r\nHost: load\r\nAccept: text/event-stream\r\n\r\n"
	if _, err := io.WriteString(c.conn, get); err != nil {
		return err
	}
	resp, err := http.ReadResponse(bufio.NewReader(c.conn), nil)
	if err != nil {
		return err
	}
	if resp.StatusCode != http.StatusOK {
		return &failure{CauseStatus, errors.New(resp.Status)}
	}
	c.generation = generationOf(resp.Header)
	c.body = resp.Body
	return nil
}

// read reads a stream to its end: nil after "event: drain" and the end of the answer. The server must send something
// within the time-out.
func (c *eventReader) read(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { c.conn.Close() })
	defer stop()
	last := ""
	lines := bufio.NewScanner(c.body)
	for lines.Scan() {
		if err := c.conn.SetReadDeadline(time.Now().Add(c.cfg.timeout())); err != nil {
			return err
		}
		if name, ok := strings.CutPrefix(lines.Text(), "event:"); ok {
			last = strings.TrimSpace(name)
		}
		if lines.Text() == "" { // a blank line ends an event
			c.rec.event(c.stream.Kind)
		}
	}
	switch err := lines.Err(); {
	case err != nil:
		return &failure{causeOf(err), fmt.Errorf("%w after event %q", err, last)}
	case last != "drain":
		return errNoDrain
	}
	return nil
}
