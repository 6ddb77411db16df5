package main

import (
	"bytes"
	_ "embed"
	"encoding/json"
	"html/template"
	"net/http"
	"os"
	"time"
)

// pageHTML shows which generation answers, and goes on showing it while
// versions change. It is one file and needs nothing from elsewhere.
//
//go:embed page.html
var pageHTML string

var pageTemplate = template.Must(template.New("page").Parse(pageHTML))

// whoami is what the page asks for, twice a second.
type whoami struct {
	Generation uint64    `json:"generation"`
	Label      string    `json:"label"`
	PID        int       `json:"pid"`
	Started    time.Time `json:"started"`
}

// started is when this process began, also for a site that a reload made.
var started = time.Now()

func (a *app) self() whoami {
	self := whoami{PID: os.Getpid(), Started: started.UTC()}
	self.Generation, self.Label = a.id()
	return self
}

func (a *app) whoami(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(a.self()) // an error is the client's, who is gone
}

func (a *app) page(w http.ResponseWriter, _ *http.Request) {
	var b bytes.Buffer
	if err := pageTemplate.Execute(&b, a.self()); err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	w.Header().Set("Content-Security-Policy", "default-src 'none'; connect-src 'self'; script-src 'unsafe-inline'; style-src 'unsafe-inline'; base-uri 'none'; frame-ancestors 'none'")
	w.Write(b.Bytes())
}
