package main

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

const (
	echoRetry        = 100 * time.Millisecond // after an Accept or ReadFrom that went wrong
	echoWriteTimeout = time.Second            // of a datagram, to a client that reads none
	maxDatagram      = 64 << 10               // bytes
)

// echoes are the sockets of --tcp-echo and --udp-echo, for trying out raw
// protocols: what comes is sent back. UDP lets anybody name somebody else as the
// sender, so this is not for a public network.
type echoes struct {
	stream, packet []handoff.Socket
}

// open opens the sockets, and answers on them until p closes them.
func (e echoes) open(p *handoff.Process, log *slog.Logger) error {
	for _, s := range e.stream {
		ln, err := p.ListenSocket(context.Background(), s)
		if err != nil {
			return err
		}
		log.Info("listening", "name", s.Name, "address", ln.Addr().String(), "protocol", "tcp-echo")
		go echoConns(p.Track(ln), log)
	}
	for _, s := range e.packet {
		pc, err := p.ListenPacketSocket(context.Background(), s)
		if err != nil {
			return err
		}
		log.Info("listening", "name", s.Name, "address", pc.LocalAddr().String(), "protocol", "udp-echo")
		go echoDatagrams(pc, log)
	}
	return nil
}

// trackedConn is what echoConn needs of a handoff.TrackedConn.
type trackedConn interface {
	net.Conn
	CloseWrite() error
	Draining() <-chan struct{}
}

// echoConns answers every connection of ln, which Track made, until ln is closed.
func echoConns(ln net.Listener, log *slog.Logger) {
	for {
		c, err := ln.Accept()
		switch {
		case err == nil:
			go echoConn(c.(trackedConn))
		case errors.Is(err, net.ErrClosed):
			return
		default:
			log.Warn("tcp-echo: accept", "error", err)
			time.Sleep(echoRetry)
		}
	}
}

// echoConn sends back what it reads, until the client has no more to say or the
// process drains. Then it has sent back all that it has read, and says so by
// closing its half of the connection: what a client did not get back was not
// taken, and can be sent again on a new connection.
func echoConn(c trackedConn) {
	defer c.Close()
	ended := make(chan struct{})
	told := make(chan struct{})
	go func() {
		defer close(told)
		select {
		case <-c.Draining():
			c.SetReadDeadline(time.Unix(1, 0)) // reads no more
		case <-ended:
		}
	}()
	_, err := io.Copy(writerOnly{c}, readerOnly{c})
	close(ended)
	<-told
	if !errors.Is(err, os.ErrDeadlineExceeded) || c.CloseWrite() != nil {
		return
	}
	// Closing with something unread would be a reset, which takes back what
	// was sent before. The drain's deadline bounds this.
	c.SetReadDeadline(time.Time{})
	io.Copy(io.Discard, c)
}

// readerOnly and writerOnly keep io.Copy from splicing, which may have read
// what it has not yet written when it is interrupted.
type (
	readerOnly struct{ io.Reader }
	writerOnly struct{ io.Writer }
)

// echoDatagrams sends every datagram back until pc is closed.
func echoDatagrams(pc net.PacketConn, log *slog.Logger) {
	b := make([]byte, maxDatagram)
	for {
		n, from, err := pc.ReadFrom(b)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil:
			log.Warn("udp-echo: read", "error", err)
			time.Sleep(echoRetry)
			continue
		case from == nil: // a unixgram client without an address of its own
			continue
		}
		pc.SetWriteDeadline(time.Now().Add(echoWriteTimeout))
		if _, err := pc.WriteTo(b[:n], from); err != nil {
			log.Debug("udp-echo: write", "to", from.String(), "error", err)
		}
	}
}
