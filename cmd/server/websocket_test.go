package main

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// dialApp opens a WebSocket to the application, with TLS or without.
func dialApp(t *testing.T, s *httptest.Server, header http.Header) *websocket.Conn {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	conn, resp, err := websocket.Dial(ctx, s.URL+"/ws", &websocket.DialOptions{HTTPClient: s.Client(), HTTPHeader: header})
	require.NoError(t, err)
	require.Equal(t, "7", resp.Header.Get(generationHeader))
	t.Cleanup(func() { conn.CloseNow() })
	return conn
}

func appThatDrains() (*app, chan struct{}) {
	draining := make(chan struct{})
	a := newApp(info)
	a.draining = func(context.Context) <-chan struct{} { return draining }
	return a, draining
}

func TestWebSocket(t *testing.T) {
	for _, tls := range []bool{false, true} {
		t.Run(map[bool]string{false: "plain", true: "TLS"}[tls], func(t *testing.T) {
			leak.Check(t)
			a, draining := appThatDrains()
			s := httptest.NewUnstartedServer(a)
			if tls {
				s.StartTLS()
			} else {
				s.Start()
			}
			t.Cleanup(s.Close)
			conn := dialApp(t, s, nil)
			for _, message := range []struct {
				kind websocket.MessageType
				data []byte
			}{
				{websocket.MessageText, []byte("hello")},
				{websocket.MessageBinary, []byte{0, 1, 2}},
				{websocket.MessageText, nil},
				{websocket.MessageBinary, bytes.Repeat([]byte("x"), maxWebSocketMessage)},
			} {
				conn.SetReadLimit(-1)
				require.NoError(t, conn.Write(t.Context(), message.kind, message.data))
				kind, data, err := conn.Read(t.Context())
				require.NoError(t, err)
				require.Equal(t, message.kind, kind)
				require.True(t, bytes.Equal(message.data, data))
			}
			close(draining)
			_, _, err := conn.Read(t.Context())
			require.Equal(t, websocket.StatusServiceRestart, websocket.CloseStatus(err), "%v", err)
		})
	}
}

// TestWebSocketFinishesTheMessageUnderWay: half a message is here when the drain begins.
func TestWebSocketFinishesTheMessageUnderWay(t *testing.T) {
	leak.Check(t)
	a, draining := appThatDrains()
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	conn := dialApp(t, s, nil)
	w, err := conn.Writer(t.Context(), websocket.MessageText)
	require.NoError(t, err)
	// More than the writer keeps to itself, so that the server has a part of it. The ping comes behind that part, and
	// its answer says that the server is reading the message.
	half := strings.Repeat("x", 64<<10)
	_, err = io.WriteString(w, half)
	require.NoError(t, err)
	got := make(chan string, 1)
	said := make(chan error, 1)
	go func() {
		_, data, err := conn.Read(t.Context())
		got <- string(data)
		if err == nil {
			_, _, err = conn.Read(t.Context())
		}
		said <- err
	}()
	conn.SetReadLimit(-1)
	require.NoError(t, conn.Ping(t.Context()))
	close(draining)
	_, err = io.WriteString(w, half)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	require.Equal(t, half+half, <-got)
	require.Equal(t, websocket.StatusServiceRestart, websocket.CloseStatus(<-said))
}

func TestWebSocketOfTooMuch(t *testing.T) {
	leak.Check(t)
	s := httptest.NewServer(newApp(info))
	t.Cleanup(s.Close)
	conn := dialApp(t, s, nil)
	// The server may close while this is being sent.
	_ = conn.Write(t.Context(), websocket.MessageBinary, make([]byte, maxWebSocketMessage+1))
	_, _, err := conn.Read(t.Context())
	require.Equal(t, websocket.StatusMessageTooBig, websocket.CloseStatus(err), "%v", err)
}

// TestWebSocketOfAClientThatIsGone: it answers no pings, because nobody reads.
func TestWebSocketOfAClientThatIsGone(t *testing.T) {
	leak.Check(t)
	a := newApp(info)
	a.ping, a.pong = 10*time.Millisecond, 10*time.Millisecond
	ended := make(chan struct{})
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.ServeHTTP(w, r)
		close(ended)
	}))
	t.Cleanup(s.Close)
	dialApp(t, s, nil)
	select {
	case <-ended:
	case <-time.After(patience):
		t.Fatal("the connection is kept")
	}
}

func TestWebSocketOfALiveClientIsKept(t *testing.T) {
	leak.Check(t)
	a := newApp(info)
	a.ping = time.Millisecond
	s := httptest.NewServer(a)
	t.Cleanup(s.Close)
	var pings int
	enough := make(chan struct{})
	conn, _, err := websocket.Dial(t.Context(), s.URL+"/ws", &websocket.DialOptions{OnPingReceived: func(context.Context, []byte) bool {
		if pings++; pings == 20 {
			close(enough)
		}
		return true
	}})
	require.NoError(t, err)
	t.Cleanup(func() { conn.CloseNow() })
	read := make(chan error, 1)
	go func() {
		_, data, err := conn.Read(t.Context())
		if string(data) != "still here" {
			err = errors.Join(err, errors.New("another message"))
		}
		read <- err
	}()
	select {
	case <-enough:
	case <-time.After(patience):
		t.Fatal("no pings")
	}
	require.NoError(t, conn.Write(t.Context(), websocket.MessageText, []byte("still here")))
	require.NoError(t, <-read)
}

func TestWebSocketOfAnotherSite(t *testing.T) {
	leak.Check(t)
	s := httptest.NewServer(newApp(info))
	t.Cleanup(s.Close)
	_, resp, err := websocket.Dial(t.Context(), s.URL+"/ws", &websocket.DialOptions{HTTPHeader: http.Header{"Origin": {"https://elsewhere.example"}}})
	require.Error(t, err)
	require.Equal(t, http.StatusForbidden, resp.StatusCode)
}
