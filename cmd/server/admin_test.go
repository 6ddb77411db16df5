package main

import (
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
)

type fakeProcess struct {
	state  handoff.State
	ending bool
	gone   []string
	err    error
}

func (f fakeProcess) State() handoff.State  { return f.state }
func (f fakeProcess) Ending() bool          { return f.ending }
func (f fakeProcess) NetworkGone() []string { return f.gone }
func (f fakeProcess) Status(context.Context) (*handoff.Status, error) {
	return &handoff.Status{Schema: handoff.StatusSchema, Generation: 7}, f.err
}

func TestReadiness(t *testing.T) {
	for _, tc := range []struct {
		state  handoff.State
		ending bool
		gone   []string
		want   string // "" is ready
	}{
		{handoff.StateStarting, false, nil, "it does not serve: it is starting"},
		{handoff.StateStandby, false, nil, "it does not serve: it is standby"},
		{handoff.StateServing, false, nil, ""},
		{handoff.StateServing, true, nil, "it is about to stop"},
		{handoff.StateServing, false, []string{"tcp web", "udp dns"}, "the network of tcp web, udp dns is gone"},
		{handoff.StateParked, false, nil, ""},
		{handoff.StateReleasing, false, nil, ""},
		{handoff.StateDraining, false, nil, ""},
		{handoff.StateDraining, true, nil, "it is about to stop"},
		{handoff.StateRevoked, false, nil, "it does not serve: it is revoked"},
		{handoff.StateGone, false, nil, "it does not serve: it is gone"},
	} {
		rec := httptest.NewRecorder()
		newAdmin(fakeProcess{state: tc.state, ending: tc.ending, gone: tc.gone}, info).ServeHTTP(rec, httptest.NewRequest("GET", "/readyz", nil))
		if tc.want == "" {
			require.Equal(t, http.StatusOK, rec.Code, tc.state)
			require.Equal(t, "ok\n", rec.Body.String())
		} else {
			require.Equal(t, http.StatusServiceUnavailable, rec.Code, tc.state)
			require.Equal(t, tc.want+"\n", rec.Body.String())
		}
	}
}

func TestAdmin(t *testing.T) {
	for _, tc := range []struct {
		method, path string
		err          error
		want         int
		text         string
	}{
		{"GET", "/healthz", nil, 200, "ok\n"},
		{"HEAD", "/healthz", nil, 200, ""},
		{"GET", "/readyz", nil, 503, "it does not serve: it is gone\n"},
		{"GET", "/status", nil, 200, `"generation": 7`},
		{"GET", "/status", handoff.ErrNotServing, 503, handoff.ErrNotServing.Error()},
		{"POST", "/healthz", nil, 405, ""},
		{"DELETE", "/status", nil, 405, ""},
		{"GET", "/", nil, 404, ""},
	} {
		t.Run(tc.method+tc.path, func(t *testing.T) {
			s := serveApp(t, newAdmin(fakeProcess{state: handoff.StateGone, err: tc.err}, info))
			resp, text := do(t, tc.method, s.URL+tc.path, nil)
			require.Equal(t, tc.want, resp.StatusCode)
			require.Contains(t, text, tc.text)
			require.Equal(t, "7", resp.Header.Get("X-Handoff-Generation"))
			require.True(t, resp.Close, "the connection is not kept")
			if strings.HasPrefix(resp.Header.Get("Content-Type"), "application/json") {
				var st handoff.Status
				require.NoError(t, json.Unmarshal([]byte(text), &st))
				require.Equal(t, handoff.StatusSchema, st.Schema)
			}
		})
	}
}
