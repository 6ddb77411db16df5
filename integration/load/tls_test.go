package load

import (
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// TestSeesHandshakesFail: where every tenth handshake fails, the others are
// answered and those are losses.
func TestSeesHandshakesFail(t *testing.T) {
	leak.Check(t)
	var n atomic.Int64
	srv := httptest.NewUnstartedServer(echoApp(5))
	srv.TLS = &tls.Config{GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		if n.Add(1)%10 == 0 {
			return nil, errors.New("no certificate just now")
		}
		return nil, nil
	}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	run := start(t, Config{Streams: []Stream{{
		Kind: NewConn, Address: srv.Listener.Addr().String(), Rate: 60, TLS: &tls.Config{InsecureSkipVerify: true},
	}}, Timeout: time.Minute}) // handshakes are dear, and a busy machine does not keep up with many
	await(t, run, func(c Counts) bool { return c.Answered >= 30 && c.Lost >= 3 })
	rep := run.Stop()
	for _, l := range rep.Losses {
		require.Equal(t, CauseTLS, l.Cause)
	}
}
