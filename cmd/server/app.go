package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"html/template"
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
	info     func() (generation uint64, label string)
	draining func(context.Context) <-chan struct{}
	interval time.Duration // between two events
	mux      *http.ServeMux
}

// newApp returns the built-in application. info tells, at each request, the
// generation of this process, which every answer carries, and its label. The
// server should set DisableGeneralOptionsHandler, so that the answer to
// OPTIONS * carries it too.
func newApp(info func() (generation uint64, label string)) http.Handler {
	return newAppWith(info, handoff.Draining, eventInterval)
}

func newAppWith(info func() (uint64, string), draining func(context.Context) <-chan struct{}, interval time.Duration) *app {
	a := &app{info: info, draining: draining, interval: interval, mux: http.NewServeMux()}
	a.mux.HandleFunc("GET /{$}", a.page)
	a.mux.HandleFunc("/echo", a.echo)
	a.mux.HandleFunc("GET /events", a.events)
	a.mux.HandleFunc("/slow", a.slow)
	return a
}

func (a *app) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	generation, _ := a.info()
	w.Header().Set("X-Handoff-Generation", strconv.FormatUint(generation, 10))
	w.Header().Set("Cache-Control", "no-store")
	if r.Method == http.MethodOptions && r.RequestURI == "*" {
		return // yes, a server is here
	}
	a.mux.ServeHTTP(w, r)
}

var pageTemplate = template.Must(template.New("page").Parse(`<!doctype html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width">
<title>Generation {{.Generation}}</title>
<style>
  body { font: 1.1rem/1.6 system-ui, sans-serif; max-width: 34rem; margin: 12vh auto; padding: 0 1rem; color: #223; background: #f7f7fa }
  b { display: block; font-size: 6rem; line-height: 1.1; color: #2457c5 }
  nav a { margin-right: 1rem; color: inherit }
  @media (prefers-color-scheme: dark) { body { color: #dde; background: #16171d } b { color: #8ab0ff } }
</style>
<p>This answer is by generation <b>{{.Generation}}</b></p>
{{with .Label}}<p>Label: <strong>{{.}}</strong></p>{{end}}
<nav><a href="/events">/events</a><a href="/slow?for=2s">/slow?for=2s</a>/echo</nav>
</html>
`))

func (a *app) page(w http.ResponseWriter, _ *http.Request) {
	var page struct {
		Generation uint64
		Label      string
	}
	page.Generation, page.Label = a.info()
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, page); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Write(b.Bytes())
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
	generation, label := a.info()
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
	case <-r.Context().Done():
	}
}
