package main

import (
	"log/slog"
	"net/http"
	"net/url"

	"github.com/fdhandoff/handoff/handoff"
)

type site struct {
	root      string
	proxy     *url.URL
	accessLog bool
}

type identity func() (generation uint64, label string)

func (s site) handler(id identity, _ *slog.Logger) (http.Handler, error) {
	return newApp(id), nil
}

type echoes struct {
	stream, packet []handoff.Socket
}

func (e echoes) open(*handoff.Process, *slog.Logger) error { return nil }

func parseBackend(text string) (*url.URL, error) { return url.Parse(text) }

const generationHeader = "X-Handoff-Generation"
