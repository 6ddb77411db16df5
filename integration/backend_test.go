package integration

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"

	"github.com/coder/websocket"
)

// backend is a plain server behind a proxy: it knows nothing of handoffs.
type backend struct {
	url     string
	posts   atomic.Uint64 // to /echo
	readers atomic.Int64  // of /events
	say     chan string   // events for whoever reads /events
}

func newBackend(t *testing.T) *backend {
	t.Helper()
	b := &backend{say: make(chan string)}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", b.echo)
	mux.HandleFunc("GET /events", b.events)
	mux.HandleFunc("GET /ws", b.webSocket)
	mux.HandleFunc("POST /never", func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	srv := httptest.NewServer(mux)
	t.Cleanup(srv.Close)
	b.url = srv.URL
	return b
}

func (b *backend) echo(w http.ResponseWriter, r *http.Request) {
	b.posts.Add(1)
	body, err := io.ReadAll(r.Body)
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Write(body)
}

// events sends what the test says, until the client goes.
func (b *backend) events(w http.ResponseWriter, r *http.Request) {
	b.readers.Add(1)
	defer b.readers.Add(-1)
	w.Header().Set("Content-Type", "text/event-stream")
	control := http.NewResponseController(w)
	control.Flush()
	for {
		select {
		case text := <-b.say:
			fmt.Fprintf(w, "data: %s\n\n", text)
			control.Flush()
		case <-r.Context().Done():
			return
		}
	}
}

func (b *backend) webSocket(w http.ResponseWriter, r *http.Request) {
	conn, err := websocket.Accept(w, r, nil)
	if err != nil {
		return
	}
	defer conn.CloseNow()
	for {
		kind, message, err := conn.Read(r.Context())
		if err != nil || conn.Write(r.Context(), kind, message) != nil {
			return
		}
	}
}
