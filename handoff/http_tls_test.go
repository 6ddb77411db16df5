package handoff

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// tlsConfigs returns a server's and a client's configuration that fit.
func tlsConfigs(t *testing.T, protos ...string) (server, client *tls.Config) {
	t.Helper()
	ts := httptest.NewTLSServer(http.NotFoundHandler())
	defer ts.Close()
	client = ts.Client().Transport.(*http.Transport).TLSClientConfig.Clone()
	client.ServerName = "example.com"
	client.NextProtos = protos
	return &tls.Config{Certificates: ts.TLS.Certificates, NextProtos: protos}, client
}

// tlsServer serves TLS in one of the two ways in which a program can ask for it.
func tlsServer(t *testing.T, handler http.Handler, byListener bool, change func(*HTTPServer), protos ...string) (*testServer, func() *rawClient) {
	t.Helper()
	serverConfig, clientConfig := tlsConfigs(t, protos...)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	var s *testServer
	if byListener {
		s = serveHTTPOn(t, tls.NewListener(ln, serverConfig), &http.Server{Handler: handler, TLSConfig: serverConfig}, change)
	} else {
		other, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		s = serveHTTPOn(t, other, &http.Server{Handler: handler, TLSConfig: serverConfig}, change)
		served := make(chan error, 1)
		go func() { served <- s.ServeTLS(ln, "", "") }()
		t.Cleanup(func() { require.NoError(t, <-served) })
		t.Cleanup(func() { s.drain.beginDrain(0, false) })
	}
	return s, func() *rawClient {
		t.Helper()
		c := dialRaw(t, ln.Addr().String())
		return rawOver(t, tls.Client(c.Conn, clientConfig))
	}
}

func TestTLS(t *testing.T) {
	for _, byListener := range []bool{false, true} {
		name := map[bool]string{false: "ServeTLS", true: "tls.Listener"}[byListener]
		t.Run(name, func(t *testing.T) {
			leak.CheckExact(t)
			mux := http.NewServeMux()
			mux.HandleFunc("/", tell("hello"))
			taken := make(chan net.Conn, 1)
			mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
				nc, _, _ := w.(http.Hijacker).Hijack()
				taken <- nc
			})
			s, dial := tlsServer(t, mux, byListener, nil)
			idle, hijacked, fresh := dial(), dial(), dial()
			idle.get("/", false)
			hijacked.send(get("/hijack"))
			nc := <-taken
			require.NoError(t, fresh.Conn.(*tls.Conn).Handshake())
			s.waitOpen(map[string]int{"idle": 1, "hijacked": 1, "new": 1})

			s.beginDrain(false)
			require.Equal(t, "hello", idle.get("/", true))
			require.Equal(t, "hello", fresh.get("/", true))
			s.waitOpen(map[string]int{"hijacked": 1})
			s.notDrained()
			require.NoError(t, nc.Close())
			s.waitDrained()
			require.Empty(t, s.drain.cut())
		})
		t.Run(name+", h2", func(t *testing.T) {
			leak.CheckExact(t)
			s, dial := tlsServer(t, tell("hello"), byListener, nil, "h2")
			c := dial()
			h := prefaceH2(t, c)
			h.get("/", false)
			s.waitOpen(map[string]int{"h2": 1})
			s.beginDrain(false)
			h.get("/", true)
			require.NoError(t, c.Close())
			s.waitDrained()
		})
		t.Run(name+", cut", func(t *testing.T) {
			leak.CheckExact(t)
			s, dial := tlsServer(t, tell("hello"), byListener, nil)
			c := dial()
			c.get("/", false)
			s.waitOpen(map[string]int{"idle": 1})
			require.Equal(t, map[string]int{"idle": 1}, s.drain.cut())
		})
	}
}

func TestTLSPlainStop(t *testing.T) {
	leak.CheckExact(t)
	s, dial := tlsServer(t, tell("hello"), false, quickSilence)
	idle, half := dial(), dial()
	idle.get("/", false)
	half.get("/", false)
	s.waitOpen(map[string]int{"idle": 2})
	half.send("GET / HT")
	s.waitOpen(map[string]int{"idle": 1, "active": 1})
	s.beginDrain(true)
	rest, err := io.ReadAll(idle.r)
	require.NoError(t, err, "closed with a goodbye")
	require.Empty(t, rest)
	s.waitOpen(map[string]int{"active": 1})
	half.send("TP/1.1\r\nHost: test\r\n\r\n")
	require.Equal(t, "hello", half.ok(true))
	s.waitDrained()
}
