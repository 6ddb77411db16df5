package main

import (
	"log/slog"
	"net/http"
	"net/url"
	"strconv"
)

// site is what this server answers with on its HTTP listeners: a directory, a
// backend, or, where it names neither, the built-in application.
type site struct {
	root      string   // directory of static files
	proxy     *url.URL // backend of the reverse proxy
	accessLog bool
}

// identity tells, at each request, the generation of this process and its label.
type identity func() (generation uint64, label string)

// handler returns what serves the site. The server should set
// DisableGeneralOptionsHandler, so that the answer to OPTIONS * carries the
// generation like every other.
func (s site) handler(id identity, log *slog.Logger) (http.Handler, error) {
	var h http.Handler
	switch {
	case s.root != "":
		files, err := newFiles(s.root, id)
		if err != nil {
			return nil, err
		}
		h = files
	case s.proxy != nil:
		h = newProxy(s.proxy, id, log)
	default:
		h = newApp(id)
	}
	if s.accessLog {
		h = newAccessLog(h, id, log)
	}
	return h, nil
}

// generationHeader is on every answer, so that a client can tell which version gave it.
const generationHeader = "X-Handoff-Generation"

func (id identity) state(h http.Header) {
	generation, _ := id()
	h.Set(generationHeader, strconv.FormatUint(generation, 10))
}

// isServerOptions tells whether the request asks for the server as a whole:
// yes, it is here, and no more is to be said.
func isServerOptions(r *http.Request) bool {
	return r.Method == http.MethodOptions && r.RequestURI == "*"
}
