package handoff

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// h2cServer returns a server that also speaks HTTP/2 without TLS.
func h2cServer(handler http.Handler) *http.Server {
	srv := &http.Server{Handler: handler, Protocols: new(http.Protocols)}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(true)
	return srv
}

// rawH2 is an HTTP/2 client that does nothing by itself.
type rawH2 struct {
	*http2.Framer
	nc   net.Conn
	t    *testing.T
	next uint32
}

func dialH2(t *testing.T, addr string) *rawH2 {
	t.Helper()
	return prefaceH2(t, dialRaw(t, addr))
}

// prefaceH2 begins to speak HTTP/2 on a connection.
func prefaceH2(t *testing.T, c *rawClient) *rawH2 {
	t.Helper()
	c.send(http2.ClientPreface)
	h := &rawH2{Framer: http2.NewFramer(c, c.r), nc: c, t: t, next: 1}
	h.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	require.NoError(t, h.WriteSettings())
	for {
		frame := h.frame()
		if settings, ok := frame.(*http2.SettingsFrame); ok && settings.IsAck() {
			return h
		}
	}
}

func (h *rawH2) frame() http2.Frame {
	h.t.Helper()
	frame, err := h.ReadFrame()
	require.NoError(h.t, err)
	return frame
}

// get sends a request and reads until its answer has ended, and, if it is
// announced, the GOAWAY of which it returns the last stream.
func (h *rawH2) get(path string, wantGoAway bool) (stream uint32) {
	h.t.Helper()
	stream = h.begin(path)
	ended, goAway := false, false
	for !ended || wantGoAway && !goAway {
		switch frame := h.frame().(type) {
		case *http2.MetaHeadersFrame:
			require.Equal(h.t, "200", frame.PseudoValue("status"))
			for _, field := range frame.RegularFields() {
				require.NotEqual(h.t, "connection", strings.ToLower(field.Name), "not allowed in HTTP/2")
			}
			ended = ended || frame.StreamEnded()
		case *http2.DataFrame:
			ended = ended || frame.StreamEnded()
		case *http2.GoAwayFrame:
			require.True(h.t, wantGoAway, "GOAWAY")
			require.Equal(h.t, http2.ErrCodeNo, frame.ErrCode)
			require.Equal(h.t, stream, frame.LastStreamID)
			goAway = true
		}
	}
	return stream
}

func (h *rawH2) begin(path string) (stream uint32) {
	h.t.Helper()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	for _, field := range [][2]string{{":method", "GET"}, {":scheme", "http"}, {":authority", "test"}, {":path", path}} {
		require.NoError(h.t, enc.WriteField(hpack.HeaderField{Name: field[0], Value: field[1]}))
	}
	stream, h.next = h.next, h.next+2
	require.NoError(h.t, h.WriteHeaders(http2.HeadersFrameParam{
		StreamID: stream, BlockFragment: block.Bytes(), EndStream: true, EndHeaders: true,
	}))
	return stream
}

func TestHTTP2RequestContextsEndAtTheDeadline(t *testing.T) {
	leak.CheckExact(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	entered, causes := make(chan struct{}), make(chan error, 1)
	s := serveHTTPOn(t, ln, h2cServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		<-r.Context().Done()
		causes <- context.Cause(r.Context())
	})), nil)
	h := dialH2(t, s.addr)
	stream := h.begin("/")
	<-entered
	s.beginDrain(false)
	require.Equal(t, map[string]int{"h2": 1}, s.drain.cut(), "it gave no answer")
	require.ErrorIs(t, <-causes, ErrDrainDeadline)
	for {
		if reset, ok := h.frame().(*http2.RSTStreamFrame); ok {
			require.Equal(t, stream, reset.StreamID)
			return
		}
	}
}

func TestHTTP2GoAway(t *testing.T) {
	leak.CheckExact(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	g := newGate(tell("slow"))
	mux := http.NewServeMux()
	mux.HandleFunc("/", tell("hello"))
	mux.HandleFunc("/nothing", func(http.ResponseWriter, *http.Request) {})
	mux.Handle("/slow", g)
	s := serveHTTPOn(t, ln, h2cServer(mux), nil)

	silent, speaks, slow := dialH2(t, s.addr), dialH2(t, s.addr), dialH2(t, s.addr)
	speaks.get("/", false)
	slow.begin("/slow")
	g.waitEntered(t)
	s.waitOpen(map[string]int{"h2": 3})
	s.beginDrain(false)
	speaks.get("/nothing", true)
	close(g.open)
	for {
		if goAway, ok := slow.frame().(*http2.GoAwayFrame); ok {
			require.EqualValues(t, 1, goAway.LastStreamID)
			break
		}
	}
	speaks.nc.Close()
	slow.nc.Close()
	s.waitOpen(map[string]int{"h2": 1})
	s.notDrained()
	silent.get("/", true)
	silent.nc.Close()
	s.waitDrained()
}

func TestHTTP2PlainStop(t *testing.T) {
	leak.CheckExact(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	s := serveHTTPOn(t, ln, h2cServer(tell("hello")), quickSilence)
	silent, half := dialH2(t, s.addr), dialH2(t, s.addr)
	s.waitOpen(map[string]int{"h2": 2})
	_, err = half.nc.Write([]byte{0, 0}) // of a frame header
	require.NoError(t, err)
	require.Eventually(t, func() bool {
		s.drain.mu.Lock()
		defer s.drain.mu.Unlock()
		spoke := 0
		for c := range s.drain.conns {
			c.mu.Lock()
			if c.spoke && c.asked == 7 { // the rest of it is awaited
				spoke++
			}
			c.mu.Unlock()
		}
		return spoke == 1
	}, patience, time.Millisecond)
	s.beginDrain(true)
	for err = nil; err == nil; {
		_, err = silent.ReadFrame()
	}
	require.ErrorIs(t, err, io.EOF)
	s.waitOpen(map[string]int{"h2": 1})
	require.Equal(t, map[string]int{"h2": 1}, s.drain.cut())
}

// TestHTTP2LosesNothing has many requests at a time on one connection when
// the server is replaced.
func TestHTTP2LosesNothing(t *testing.T) {
	leak.CheckExact(t)
	echo := func(name string) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Server", name)
			io.Copy(w, r.Body)
		})
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	duplicate := duplicateListener(t, ln)
	s := serveHTTPOn(t, ln, h2cServer(echo("old")), nil)
	successor := serveHTTPOn(t, duplicate, h2cServer(echo("new")), nil)

	transport := &http.Transport{Protocols: new(http.Protocols)}
	transport.Protocols.SetUnencryptedHTTP2(true)
	var stopped atomic.Bool
	var warm, moved, done sync.WaitGroup
	errs := make(chan error, 20)
	for range cap(errs) {
		warm.Add(1)
		moved.Add(1)
		done.Go(func() {
			errs <- h2Client(transport, s.addr, &stopped, sync.OnceFunc(warm.Done), sync.OnceFunc(moved.Done))
		})
	}
	warm.Wait()
	s.beginDrain(false)
	moved.Wait()
	stopped.Store(true)
	done.Wait()
	close(errs)
	for err := range errs {
		require.NoError(t, err)
	}
	s.waitDrained()
	require.Empty(t, s.drain.cut())
	transport.CloseIdleConnections()
	successor.beginDrain(false)
}

func h2Client(transport *http.Transport, addr string, stopped *atomic.Bool, warm, moved func()) error {
	defer warm()
	defer moved()
	byNew := 0
	for n := 0; !stopped.Load(); n++ {
		body := fmt.Sprint("request ", n)
		req, err := http.NewRequest(http.MethodPost, "http://"+addr, strings.NewReader(body))
		if err != nil {
			return err
		}
		resp, err := transport.RoundTrip(req)
		if err != nil {
			return err
		}
		echoed, err := io.ReadAll(resp.Body)
		resp.Body.Close()
		if err != nil {
			return err
		}
		if string(echoed) != body {
			return fmt.Errorf("sent %q, received %q", body, echoed)
		}
		if resp.Header.Get("X-Server") == "new" {
			byNew++
		}
		if n+1 >= loadRequests {
			warm()
		}
		if byNew >= loadRequests {
			moved()
		}
	}
	return nil
}
