package load

import (
	"bufio"
	"context"
	"crypto/tls"
	"net"
	"sync"
	"time"
)

// runNewConn opens a connection for each request at the scheduled times, however many are outstanding.
func (w *worker) runNewConn(ctx context.Context, s schedule) {
	var outstanding sync.WaitGroup
	defer outstanding.Wait()
	for k := 0; ; k++ {
		due := s.due(k)
		if !sleepUntil(ctx, due) {
			return
		}
		wire, body := w.request(nil, w.cfg.body(w.stream), "Connection: close\r\n")
		outstanding.Go(func() { w.postOnce(due, wire, body) })
	}
}

// postOnce sends one request over a connection of its own.
func (w *worker) postOnce(due time.Time, wire, body []byte) {
	w.rec.sent(w.stream.Kind)
	dialed := time.Now()
	generation, err := w.exchangeOnce(wire, body)
	if err != nil {
		w.rec.loss(Loss{Kind: w.stream.Kind, Due: due, Dialed: dialed, Cause: causeOf(err), Error: textOf(err), Generation: generation, Fresh: true})
		return
	}
	w.rec.answered(w.stream.Kind, due, generation)
}

func (w *worker) exchangeOnce(wire, body []byte) (generation uint64, err error) {
	tcp, err := w.dial()
	if err != nil {
		return 0, &failure{CauseDial, err}
	}
	defer tcp.Close()
	if err := tcp.SetDeadline(time.Now().Add(w.cfg.timeout())); err != nil {
		return 0, err
	}
	conn := net.Conn(tcp)
	if w.stream.TLS != nil {
		c := tls.Client(tcp, w.stream.TLS)
		if err := c.Handshake(); err != nil {
			return 0, &failure{CauseTLS, err}
		}
		conn = c
	}
	if _, err := conn.Write(wire); err != nil {
		return 0, err
	}
	resp, err := readAnswer(bufio.NewReaderSize(conn, 1024), body)
	if resp != nil {
		generation = generationOf(resp.Header)
	}
	return generation, err
}
