package main

import (
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"github.com/coder/websocket"
)

const (
	// webSocketPing is how often a WebSocket's client is asked whether it is
	// there, and how long it may take to say so.
	webSocketPing = 30 * time.Second

	maxWebSocketMessage = 1 << 20 // bytes
)

// webSocket sends back every message. When this process drains, the message
// under way is finished and the connection closed with 1012: what was not sent
// back was not taken, and the client finds the next generation when it connects
// again.
func (a *app) webSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return // it has answered
	}
	defer conn.CloseNow()
	conn.SetReadLimit(maxWebSocketMessage)
	ctx, cancel := context.WithCancel(r.Context())
	var turn sync.Mutex // held while a message is under way
	var others sync.WaitGroup
	others.Go(func() { closeOnDrain(ctx, conn, &turn, a.draining(ctx)) })
	others.Go(func() { pingIdle(ctx, conn, a.ping, a.pong) })
	for echoMessage(ctx, conn, &turn) == nil {
	}
	cancel()
	others.Wait()
}

// echoMessage waits for one message and sends it back.
func echoMessage(ctx context.Context, conn *websocket.Conn, turn *sync.Mutex) error {
	kind, r, err := conn.Reader(ctx)
	if err != nil {
		return err
	}
	turn.Lock()
	defer turn.Unlock()
	message, err := io.ReadAll(r)
	if err != nil {
		return err
	}
	return conn.Write(ctx, kind, message)
}

// closeOnDrain says goodbye between two messages. The library reads on for the
// client's own goodbye, and drops the messages before it.
func closeOnDrain(ctx context.Context, conn *websocket.Conn, turn *sync.Mutex, draining <-chan struct{}) {
	select {
	case <-draining:
		turn.Lock()
		defer turn.Unlock()
		conn.Close(websocket.StatusServiceRestart, "this version is being replaced; connect again")
	case <-ctx.Done():
	}
}

// pingIdle gives a client up that does not answer a ping within most.
func pingIdle(ctx context.Context, conn *websocket.Conn, every, most time.Duration) {
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
		answer, cancel := context.WithTimeout(ctx, most)
		err := conn.Ping(answer)
		cancel()
		if err != nil {
			conn.CloseNow()
			return
		}
	}
}
