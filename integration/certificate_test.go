package integration

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// pair is a certificate for localhost with its key, in PEM.
type pair struct{ cert, key []byte }

func newPair(t *testing.T, serial int64) pair {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(serial), Subject: pkix.Name{CommonName: "localhost"}, DNSNames: []string{"localhost"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	return pair{
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	}
}

// tlsFiles are the paths of --cert and --key.
type tlsFiles struct{ cert, key string }

func (s *service) tlsFiles() tlsFiles { return tlsFiles{s.path("tls.crt"), s.path("tls.key")} }

func (f tlsFiles) flags() []string {
	return []string{"--https", web, "--cert", f.cert, "--key", f.key}
}

// write writes both in place, one after the other, as a careless tool does.
func (f tlsFiles) write(t *testing.T, p pair) {
	t.Helper()
	require.NoError(t, os.WriteFile(f.cert, p.cert, 0o600))
	require.NoError(t, os.WriteFile(f.key, p.key, 0o600))
}

// rename puts both in place with rename(2).
func (f tlsFiles) rename(t *testing.T, p pair) {
	t.Helper()
	tlsFiles{f.cert + ".new", f.key + ".new"}.write(t, p)
	require.NoError(t, os.Rename(f.cert+".new", f.cert))
	require.NoError(t, os.Rename(f.key+".new", f.key))
}

// serials are those of the certificates that clients met.
type serials struct {
	mu   sync.Mutex
	seen map[int64]int
}

// client is a TLS configuration that takes every certificate and remembers it.
// The handshake itself proves that the server has the key to it.
func (s *serials) client() *tls.Config {
	s.seen = map[int64]int{}
	return &tls.Config{
		InsecureSkipVerify: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.seen[state.PeerCertificates[0].SerialNumber.Int64()]++
			return nil
		},
	}
}

func (s *serials) count(serial int64) int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.seen[serial]
}

// A certificate is replaced under load again and again, well and badly, by hand
// and across handoffs, and no handshake fails.
func TestCertificateIsReplacedUnderLoad(t *testing.T) {
	s := newService(t)
	files := s.tlsFiles()
	files.write(t, newPair(t, 1))
	server := s.serving("v1", files.flags()...)
	var met serials
	rate := 400.0
	if raceEnabled {
		rate = 60 // handshakes are dear then, and at a higher rate a busy machine does not keep up
	}
	run := s.load(load.Stream{Kind: load.NewConn, Address: s.address(web), Rate: rate, TLS: met.client()})
	sees := func(serial int64) {
		t.Helper()
		require.NoError(t, run.Wait(s.ctx(), func(load.Counts) bool { return met.count(serial) > 0 }), "certificate %d", serial)
	}
	// refused waits until the n-th bad pair was refused.
	refusals := 0
	refused := func(p *proc.Process) {
		t.Helper()
		refusals++
		n := 0
		_, err := p.WaitLog(s.ctx(), func(l proc.Line) bool {
			if l.Field("msg") == "the new certificate is refused, the one before it stays" {
				n++
			}
			return n >= refusals
		})
		require.NoError(t, err)
	}
	sees(1)
	const rounds = 12
	for serial := int64(2); serial <= rounds; serial++ {
		good, other := newPair(t, serial), newPair(t, 1000+serial)
		bad := map[int64]pair{
			0: {good.cert[:len(good.cert)/2], good.key},
			1: {good.cert, other.key},
			2: {nil, nil},
			3: {good.cert, good.key[:len(good.key)/2]},
		}[serial%4]
		files.write(t, bad)
		refused(server)
		if serial%2 == 0 {
			files.write(t, good)
		} else {
			files.rename(t, good)
		}
		sees(serial)
		if serial%4 == 0 {
			before := server
			server, refusals = s.serving(fmt.Sprintf("v%d", serial), files.flags()...), 0
			s.answers(run, uint64(1+serial/4), 10)
			s.exits(before, 0, "an older generation")
		}
	}
	rep := s.noLoss(run)
	t.Logf("%d handshakes, %d good and as many bad replacements\n%s", rep.Answered, rounds-1, rep)
	for serial := int64(1); serial <= rounds; serial++ {
		require.NotZero(t, met.count(serial))
		require.Zero(t, met.count(1000+serial))
	}
	require.Len(t, rep.Generations, 1+rounds/4, "%s", rep)
}

// HTTP/2 and HTTP/1.1 by ALPN, and nothing below TLS 1.2.
func TestHTTPS(t *testing.T) {
	s := newService(t)
	files := s.tlsFiles()
	files.write(t, newPair(t, 1))
	s.serving("v1", files.flags()...)
	addr := s.address(web)
	for _, tc := range []struct {
		offer []string
		want  string
		major int
	}{
		{[]string{"h2", "http/1.1"}, "h2", 2},
		{[]string{"http/1.1"}, "http/1.1", 1},
		{nil, "", 1},
	} {
		transport := &http.Transport{
			TLSClientConfig: &tls.Config{InsecureSkipVerify: true, NextProtos: tc.offer},
			Protocols:       new(http.Protocols),
		}
		transport.Protocols.SetHTTP1(true)
		transport.Protocols.SetHTTP2(tc.major == 2)
		resp, err := transport.RoundTrip(httpGet(s.ctx(), t, "https://"+addr+"/slow?for=0s"))
		require.NoError(t, err)
		resp.Body.Close()
		transport.CloseIdleConnections()
		require.Equal(t, tc.major, resp.ProtoMajor)
		require.Equal(t, tc.want, resp.TLS.NegotiatedProtocol)
		require.Equal(t, "1", resp.Header.Get("X-Handoff-Generation"))
	}
	conn, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	defer conn.Close()
	old := tls.Client(conn, &tls.Config{InsecureSkipVerify: true, MinVersion: tls.VersionTLS10, MaxVersion: tls.VersionTLS11})
	require.Error(t, old.HandshakeContext(s.ctx()))
}

func httpGet(ctx context.Context, t *testing.T, url string) *http.Request {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	return req
}

// SIGHUP reads configuration and certificates again; what is wrong changes
// nothing, and what needs another version is named.
func TestReload(t *testing.T) {
	s := newService(t)
	files := s.tlsFiles()
	files.write(t, newPair(t, 1))
	second := tlsFiles{s.path("second.crt"), s.path("second.key")}
	second.write(t, newPair(t, 2))
	for name, text := range map[string]string{"a": "from a", "b": "from b"} {
		require.NoError(t, os.Mkdir(s.path(name), 0o700))
		require.NoError(t, os.WriteFile(s.path(name)+"/f", []byte(text), 0o600))
	}
	config := s.path("server.yaml")
	write := func(text string) {
		t.Helper()
		require.NoError(t, os.WriteFile(config, []byte(text), 0o600))
	}
	content := func(root string, f tlsFiles, more string) string {
		return fmt.Sprintf("https: [%q]\nroot: %s\ncert: %s\nkey: %s\n%s", web, s.path(root), f.cert, f.key, more)
	}
	write(content("a", files, ""))
	server := s.serving("v1", "--config", config)
	addr := s.address(web)
	reload := func(want string) proc.Line {
		t.Helper()
		seen := len(server.Lines())
		s.kill(server, syscall.SIGHUP)
		line, err := server.WaitLog(s.ctx(), func(l proc.Line) bool {
			if seen > 0 {
				seen--
				return false
			}
			return l.Field("msg") == want
		})
		require.NoError(t, err)
		return line
	}
	const done = "configuration read again"
	const nextVersion = "some of the configuration takes effect with the next version"
	const refused = "what the signal asked for ended with an error; the process goes on"
	get := func() (serial int64, text string) {
		t.Helper()
		conn, err := tls.Dial("tcp", addr, &tls.Config{InsecureSkipVerify: true})
		require.NoError(t, err)
		defer conn.Close()
		require.NoError(t, ask(conn, "/f"))
		a := readAnswer(s.ctx(), conn)
		require.NoError(t, a.err)
		return conn.ConnectionState().PeerCertificates[0].SerialNumber.Int64(), a.body
	}
	wants := func(serial int64, text string) {
		t.Helper()
		gotSerial, gotText := get()
		require.Equal(t, serial, gotSerial)
		require.Equal(t, text, gotText)
	}
	wants(1, "from a")

	write(content("b", second, ""))
	require.Equal(t, "[cert key root]", reload(done).Field("changed"))
	wants(2, "from b")

	write(content("a", files, "labl: x\n"))
	require.Contains(t, reload(refused).Field("error"), `unknown key "labl" (did you mean "label"?)`)
	wants(2, "from b")

	write(content("a", tlsFiles{files.cert, second.key}, ""))
	require.Contains(t, reload(refused).Field("error"), "does not match")
	wants(2, "from b")

	write(content("a", files, "drain-timeout: 1s\nudp-echo: [\"127.0.0.1:0\"]\n"))
	require.Equal(t, "[cert key root]", reload(done).Field("changed"))
	later, err := server.WaitLog(s.ctx(), func(l proc.Line) bool {
		return l.Field("msg") == nextVersion
	})
	require.NoError(t, err)
	require.Equal(t, "WARN", later.Field("level"))
	require.Equal(t, "[udp-echo drain-timeout]", later.Field("names"))
	wants(1, "from a")

	write(content("a", files, "drain-timeout: 1s\nlog-level: warn\n"))
	require.Equal(t, "[drain-timeout]", reload(nextVersion).Field("names"))
	before := len(server.Lines())
	reload(nextVersion)
	for _, l := range server.Lines()[before:] {
		require.Equal(t, "WARN", l.Field("level"), l.Text)
	}
	require.EqualValues(t, 1, s.status().Serving().Generation, "nothing was restarted")
}
