package integration

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/integration/proc"
)

const migratingPage = "docs/migrating.md"

// Each program "after" of docs/migrating.md hands over to its next version, which is started by nobody in particular,
// and then stops on SIGTERM.
func TestProgramsOfMigrating(t *testing.T) {
	for _, from := range []string{"endless", "shutdown", "tableflip"} {
		t.Run(from, func(t *testing.T) {
			s := newService(t)
			app := s.program("after", blockOf(t, migratingPage, "<!-- after "+from+" -->", "go"))
			old := s.app(app)
			addr := s.address(web)
			require.Equal(t, fmt.Sprintf("hello from %d\n", old.PID()), get(s.ctx(), "tcp", addr, "/").body)
			next := s.app(app)
			require.Equal(t, fmt.Sprintf("hello from %d\n", next.PID()), get(s.ctx(), "tcp", addr, "/").body)
			s.exits(old, 0, "handed over")
			s.kill(next, syscall.SIGTERM)
			s.exits(next, 0, "stopped")
			require.NoFileExists(t, s.socket)
		})
	}
}

// app starts a program that takes the control socket from its environment, and waits until it serves.
func (s *service) app(path string) *proc.Process {
	s.t.Helper()
	p, err := proc.Start(proc.Spec{Path: path, Env: []string{"HANDOFF_SOCKET=" + s.socket}, Log: s.newLog("app")})
	require.NoError(s.t, err)
	s.t.Cleanup(p.End)
	s.waitStatus("serves", func(st proc.Status) bool { return st.Serving().PID == p.PID() })
	return p
}

// What endless's signals did is done by the program after: hooks are called, and SIGHUP restarts nothing.
func TestSignalsOfMigrating(t *testing.T) {
	s := newService(t)
	p := s.app(s.program("after", blockOf(t, migratingPage, "<!-- after endless -->", "go")))
	s.said(p, "serving "+web)
	s.kill(p, syscall.SIGUSR1)
	s.said(p, "before SIGUSR1")
	s.kill(p, syscall.SIGHUP)
	s.said(p, "SIGHUP")
	require.Len(t, s.status().Generations, 1)
	s.kill(p, syscall.SIGINT)
	s.exits(p, 0, "stopped")
}

// said waits for a line that contains text.
func (s *service) said(p *proc.Process, text string) {
	s.t.Helper()
	_, err := p.WaitLog(s.ctx(), func(l proc.Line) bool { return strings.Contains(l.Text, text) })
	require.NoError(s.t, err, text)
}

// The program with net/http's Shutdown is what it is said to be: it serves and stops.
func TestProgramBeforeMigrating(t *testing.T) {
	s := newService(t)
	// It does not tell its port.
	source := blockOf(t, migratingPage, "<!-- before shutdown -->", "go")
	source = strings.Replace(source, `srv.ListenAndServe()`, `serve(srv)`, 1)
	source = strings.Replace(source, "\t\"net/http\"\n", "\t\"net\"\n\t\"net/http\"\n", 1) + `
func serve(srv *http.Server) error {
	ln, err := net.Listen("tcp", srv.Addr)
	if err != nil {
		return err
	}
	fmt.Println("at", ln.Addr())
	return srv.Serve(ln)
}
`
	p := s.run("before", s.program("before", source))
	l, err := p.WaitLog(s.ctx(), func(l proc.Line) bool { return strings.HasPrefix(l.Text, "at ") })
	require.NoError(t, err)
	require.Contains(t, get(s.ctx(), "tcp", strings.TrimPrefix(l.Text, "at "), "/").body, "hello from")
	s.kill(p, syscall.SIGTERM)
	s.exits(p, 0, "Shutdown")
}

// The program with two addresses serves both, hands over both, and reads its certificate again on SIGHUP.
func TestTLSProgramOfMigrating(t *testing.T) {
	s := newService(t)
	source := s.tlsSource(blockOf(t, migratingPage, "<!-- after tls -->", "go"))
	s.writeCertificate(1)
	app := s.program("after", source)
	old := s.app(app)
	require.EqualValues(t, 1, s.serialAt(secureWeb))
	s.writeCertificate(2)
	s.kill(old, syscall.SIGHUP)
	s.said(old, "done what the signal asked for")
	require.EqualValues(t, 2, s.serialAt(secureWeb))

	next := s.app(app)
	s.exits(old, 0, "handed over")
	require.Equal(t, fmt.Sprintf("hello from %d by HTTP/1.1\n", next.PID()), get(s.ctx(), "tcp", s.address(web), "/").body)
	require.Equal(t, fmt.Sprintf("hello from %d by HTTP/2.0\n", next.PID()), s.getTLS(s.address(secureWeb)))
	s.kill(next, syscall.SIGTERM)
	s.exits(next, 0, "stopped")
}

// secureWeb is the second listener of the program with two: by the same address they would be one socket.
const secureWeb = "localhost:0"

// tlsSource is the program with two addresses, for this test's directory.
func (s *service) tlsSource(source string) string {
	source = strings.Replace(source, "127.0.0.1:8443", secureWeb, 1)
	return regexp.MustCompile(`"(\w+\.(pem|key))"`).ReplaceAllString(source, `"`+s.dir+`/$1"`)
}

// writeCertificate makes cert.pem and key.pem with that serial number.
func (s *service) writeCertificate(serial int64) {
	s.t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(s.t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour), DNSNames: []string{"localhost"}}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(s.t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(s.t, err)
	for name, b := range map[string]*pem.Block{"cert.pem": {Type: "CERTIFICATE", Bytes: der}, "key.pem": {Type: "PRIVATE KEY", Bytes: keyDER}} {
		require.NoError(s.t, os.WriteFile(s.path(name), pem.EncodeToMemory(b), 0o600))
	}
}

// insecure trusts any certificate: these are not signed by anybody.
func insecure() *tls.Config { return &tls.Config{InsecureSkipVerify: true} }

// serialAt is the serial number of the certificate that a new connection is shown.
func (s *service) serialAt(name string) int64 {
	s.t.Helper()
	c, err := (&tls.Dialer{Config: insecure()}).DialContext(s.ctx(), "tcp", s.address(name))
	require.NoError(s.t, err)
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0].SerialNumber.Int64()
}

func (s *service) getTLS(addr string) string {
	s.t.Helper()
	transport := &http.Transport{TLSClientConfig: insecure(), ForceAttemptHTTP2: true}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(s.ctx(), http.MethodGet, "https://"+addr+"/", nil)
	require.NoError(s.t, err)
	resp, err := transport.RoundTrip(req)
	require.NoError(s.t, err)
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(s.t, err)
	return string(body)
}

// The steps of docs/migrating.md, as they stand: the directory, the first start, the next version, a look.
func TestStepsOfMigrating(t *testing.T) {
	s := newService(t)
	app := s.program("steps", blockOf(t, migratingPage, "<!-- after endless -->", "go"))
	require.NoError(t, os.Remove(app)) // the steps build it
	s.socket = filepath.Join(filepath.Dir(app), "run", "control")
	var script strings.Builder
	script.WriteString("set -e\n")
	for _, step := range []string{"socket", "first", "next"} {
		script.WriteString(blockOf(t, migratingPage, "<!-- steps: "+step+" -->", "sh"))
	}
	r := s.sh(filepath.Dir(app), script.String())
	require.Zero(t, r.Code, "%s%s", r.Stdout, r.Stderr)
	require.EqualValues(t, 2, s.status().Serving().Generation, "%s", r.Stdout)

	require.Equal(t, "curl -s http://127.0.0.1:8080/\n", blockOf(t, migratingPage, "<!-- steps: look -->", "sh"))
	require.Equal(t, fmt.Sprintf("hello from %d\n", s.status().Serving().PID), get(s.ctx(), "tcp", s.address(web), "/").body)
}

// The lines for go.mod are those that service.program uses.
func TestModuleLinesOfMigrating(t *testing.T) {
	require.Equal(t,
		"go mod edit -require=github.com/fdhandoff/handoff@v0.0.0 -replace=github.com/fdhandoff/handoff=/path/to/clone\ngo mod tidy\n",
		blockOf(t, migratingPage, "<!-- go.mod lines -->", "sh"))
}
