package main

import (
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// TestSite: what is configured is served, and every answer carries the generation.
func TestSite(t *testing.T) {
	leak.Check(t)
	back := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "backend") }))
	t.Cleanup(back.Close)
	backend, err := parseBackend(back.URL)
	require.NoError(t, err)
	for _, tc := range []struct {
		name, path string
		site       site
		want       string
	}{
		{"application", "/whoami", site{}, `{"generation":7,`},
		{"files", "/a.txt", site{root: tree(t)}, "0123456789"},
		{"proxy", "/", site{proxy: backend}, "backend"},
	} {
		for _, withLog := range []bool{false, true} {
			t.Run(tc.name, func(t *testing.T) {
				tc.site.accessLog = withLog
				log := &syncBuffer{}
				h, err := tc.site.handler(info, slog.New(slog.NewTextHandler(log, nil)))
				require.NoError(t, err)
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, httptest.NewRequest("GET", tc.path, nil))
				require.Contains(t, rec.Body.String(), tc.want)
				require.Equal(t, []string{"7"}, rec.Header().Values(generationHeader))
				if withLog {
					require.Contains(t, log.String(), "msg=request")
					require.Contains(t, log.String(), "request_id="+rec.Header().Get("X-Request-Id")+" ")
				} else {
					require.Empty(t, log.String())
					require.Empty(t, rec.Header().Values("X-Request-Id"))
				}
				if p, ok := h.(*proxy); ok {
					p.reverse.Transport.(*http.Transport).CloseIdleConnections()
				} else if a, ok := h.(*accessLog); ok {
					if p, ok := a.next.(*proxy); ok {
						p.reverse.Transport.(*http.Transport).CloseIdleConnections()
					}
				}
			})
		}
	}
}

// TestProxiedRequestCarriesItsId: the backend's lines and this server's can be joined, and what a client made up is not passed on.
func TestProxiedRequestCarriesItsId(t *testing.T) {
	var got http.Header
	p := serveProxy(t, func(w http.ResponseWriter, r *http.Request) {
		got = r.Header
		w.Header().Set("X-Request-Id", "the backend's own")
		w.WriteHeader(http.StatusEarlyHints) // the headers so far are not those of the answer
	})
	s, lines := logged(t, p.proxy)
	made := map[string]bool{}
	for sent, kept := range map[string]bool{"id-1": true, "a b": false} {
		req, err := http.NewRequest("GET", s.URL, nil)
		require.NoError(t, err)
		req.Header.Set("X-Request-Id", sent)
		req.Header.Set("Traceparent", "nonsense")
		resp, err := (&http.Transport{DisableKeepAlives: true}).RoundTrip(req)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		id := resp.Header.Values("X-Request-Id")
		require.Len(t, id, 1)
		require.Equal(t, kept, id[0] == sent)
		require.Equal(t, id[0], got.Get("X-Request-Id"))
		require.Regexp(t, madeTrace, got.Get("Traceparent"))
		made[got.Get("X-Request-Id")+" "+got.Get("Traceparent")] = true
	}
	all := lines()
	p.proxy.reverse.Transport.(*http.Transport).CloseIdleConnections()
	for _, line := range all {
		require.Contains(t, made, line["request_id"].(string)+" "+line["traceparent"].(string))
	}
	require.Len(t, made, 2)
}
