package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"strconv"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

const (
	maxSlow       = time.Hour
	maxEcho       = 1 << 30 // bytes
	echoInMemory  = 1 << 20 // bytes; what is larger goes to a file
	eventInterval = time.Second
)

// app is the built-in application: something to look at while versions change.
type app struct {
	id       identity
	draining func(context.Context) <-chan struct{}
	interval time.Duration // between two events
	ping     time.Duration // between two pings of a WebSocket
	pong     time.Duration // for the answer
	mux      *http.ServeMux
}

// newApp returns the built-in application. Every answer carries the generation
// of this process. The server should set DisableGeneralOptionsHandler, so that
// the answer to OPTIONS * carries it too.
func newApp(id identity) *app {
	a := &app{
		id: id, draining: handoff.Draining,
		interval: eventInterval, ping: webSocketPing, pong: webSocketPing, mux: http.NewServeMux(),
	}
	a.mux.HandleFunc("GET /{$}", a.page)
	a.mux.HandleFunc("GET /whoami", a.whoami)
	a.mux.HandleFunc("/echo", a.echo)
	a.mux.HandleFunc("GET /events", a.events)
	a.mux.HandleFunc("/slow", a.slow)
	a.mux.HandleFunc("GET /ws", a.webSocket)
	return a
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	a.id.state(w.Header())
	w.Header().Set("Cache-Control", "no-store")
	if isServerOptions(r) {
		return
	}
	a.mux.ServeHTTP(w, r)
}

// echo answers with the request's body, when it has all of it: a client that
// reads nothing before it has sent everything must not wait for ever, and one
// whose body broke off must not be told that all is well.
func (a *app) echo(w http.ResponseWriter, r *http.Request) {
	body, size, err := receive(http.MaxBytesReader(w, r.Body, maxEcho))
	if err != nil {
		status := http.StatusBadRequest
		if tooLarge := (*http.MaxBytesError)(nil); errors.As(err, &tooLarge) {
			status = http.StatusRequestEntityTooLarge
		}
		http.Error(w, "echo: "+err.Error(), status)
		return
	}
	defer body.Close()
	// What a stranger sent must not be taken for a page of this server.
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Content-Length", strconv.FormatInt(size, 10))
	io.Copy(w, body)
}

// receive reads r to its end and returns what it read, from memory or from a
// file that is gone when the caller closes it.
func receive(r io.Reader) (body io.ReadCloser, size int64, err error) {
	var b bytes.Buffer
	size, err = io.CopyN(&b, r, echoInMemory)
	if err == io.EOF {
		return io.NopCloser(&b), size, nil
	}
	if err != nil {
		return nil, 0, err
	}
	f, err := os.CreateTemp("", "handoff-echo-")
	if err != nil {
		return nil, 0, err
	}
	defer func() {
		if err != nil {
			f.Close()
		}
	}()
	if err = os.Remove(f.Name()); err != nil {
		return nil, 0, err
	}
	if size, err = io.Copy(f, io.MultiReader(&b, r)); err != nil {
		return nil, 0, err
	}
	_, err = f.Seek(0, io.SeekStart)
	return f, size, err
}

// events sends an event at once and then one a second, until the client goes
// or this process drains, which it says in a last event. A browser's
// EventSource comes back by itself, and finds the next generation.
func (a *app) events(w http.ResponseWriter, r *http.Request) {
	generation, label := a.id()
	w.Header().Set("Content-Type", "text/event-stream")
	if r.Method == http.MethodHead {
		return
	}
	data := fmt.Sprintf("data: generation %d\n", generation)
	if label != "" {
		data = fmt.Sprintf("data: generation %d, %q\n", generation, label)
	}
	control := http.NewResponseController(w)
	ticker := time.NewTicker(a.interval)
	defer ticker.Stop()
	for id := 1; ; id++ {
		fmt.Fprintf(w, "id: %d\n%s\n", id, data)
		if err := control.Flush(); err != nil {
			return
		}
		select {
		case <-ticker.C:
		case <-r.Context().Done():
			return
		case <-a.draining(r.Context()):
			fmt.Fprintf(w, "event: drain\n%s\n", data)
			return
		}
	}
}

// slow answers after the time that is asked for, whatever happens to this
// process meanwhile, unless the client goes.
func (a *app) slow(w http.ResponseWriter, r *http.Request) {
	text := r.FormValue("for")
	wait, err := time.ParseDuration(text)
	if err != nil || wait < 0 || wait > maxSlow {
		http.Error(w, fmt.Sprintf("slow: for=%q is not a duration from 0s to 1h; try /slow?for=2s", text), http.StatusBadRequest)
		return
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-timer.C:
		fmt.Fprintf(w, "waited %s\n", wait)
	case <-r.Context().Done(): // the client has gone, or the drain's deadline has come
	}
}
