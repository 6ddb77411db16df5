package main

import (
	"bytes"
	"io"
	"mime"
	"net/http"
	"sync"
)

// isEventSource tells whether an answer is a stream of events for a client that
// comes back by itself when it ends (the EventSource of browsers, which asks by
// GET and says what it accepts). Other streams of events have an end of their
// own: a part of one would be taken for the whole.
func isEventSource(resp *http.Response) bool {
	r := resp.Request
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	return kind == "text/event-stream" && resp.StatusCode == http.StatusOK && r.Method == http.MethodGet && r.Header.Get("Accept") == kind
}

// eventStream is the body of such an answer. It ends between two events when
// its process drains, so that the client goes on at the next generation.
type eventStream struct {
	body io.ReadCloser
	gone chan struct{} // closed by Close
	once sync.Once

	mu      sync.Mutex
	drain   bool
	between bool   // what was read so far ends with an event
	tail    []byte // its last bytes, at most 3
}

func newEventStream(body io.ReadCloser, draining <-chan struct{}) *eventStream {
	s := &eventStream{body: body, gone: make(chan struct{}), between: true}
	go func() {
		select {
		case <-draining:
			s.beginDrain()
		case <-s.gone:
		}
	}()
	return s
}

func (s *eventStream) beginDrain() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.drain = true
	if s.between {
		s.body.Close() // ends a Read that waits for the next event
	}
}

func (s *eventStream) Read(p []byte) (int, error) {
	if s.ended() {
		return 0, io.EOF
	}
	n, err := s.body.Read(p)
	s.mu.Lock()
	defer s.mu.Unlock()
	if n == 0 {
		if err != nil && s.drain && s.between {
			err = io.EOF
		}
		return n, err
	}
	all := append(s.tail, p[:n]...)
	end := lastEventEnd(all)
	if s.drain && end > len(s.tail) {
		// The event that was under way is whole: the rest is left out.
		n, s.between = end-len(s.tail), true
		s.body.Close()
		return n, nil
	}
	s.between = end == len(all)
	s.tail = bytes.Clone(all[max(0, len(all)-3):])
	return n, err
}

func (s *eventStream) ended() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.drain && s.between
}

func (s *eventStream) Close() error {
	s.once.Do(func() { close(s.gone) })
	return s.body.Close()
}

// lastEventEnd returns the index behind the last empty line, 0 if there is none.
func lastEventEnd(b []byte) int {
	end := 0
	for _, blank := range []string{"\n\n", "\r\n\r\n", "\r\r"} {
		if i := bytes.LastIndex(b, []byte(blank)); i >= 0 {
			end = max(end, i+len(blank))
		}
	}
	return end
}
