package main

import (
	"net"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"

	"github.com/fdhandoff/handoff/handoff"
)

// TestCheck: what one process and what the whole service is in, by words.
func TestCheck(t *testing.T) {
	tests := []struct {
		name        string
		generations string
		answers     uint64 // the generation that does
		stopping    bool   // is that one
		gone        string // is the network of that socket of its
		args        []string
		service     string // what the control socket's answer is; "" is a no
		own         string // what the private socket's is
		not         string // where it is a no: what is said
		hint        string // and advised
	}{
		{name: "serves", generations: "serving", answers: 1, service: "ready: generation 1 is serving", own: "ready: generation 1 is serving"},
		{name: "serves, but is about to stop", generations: "serving", answers: 1, stopping: true, not: `not ready: generation 1 is serving \(stopping\)`},
		{
			name: "serves, but is about to stop: by its state", generations: "serving", answers: 1, stopping: true, args: []string{"--state=serving"},
			service: "serving: generation 1 is serving (stopping)", own: "serving: generation 1 is serving (stopping)",
		},
		{
			name: "out of its clients' reach", generations: "serving", answers: 1, gone: "tcp web",
			not: `not ready: generation 1 is serving \(network gone\): tcp web`, hint: "stop the service, and start it where its clients are: .*",
		},
		{
			name: "out of its clients' reach: by its state", generations: "serving", answers: 1, gone: "tcp web", args: []string{"--state=serving"},
			service: "serving: generation 1 is serving (network gone)", own: "serving: generation 1 is serving (network gone)",
		},
		{name: "starts", generations: "starting", answers: 1, not: "not ready: generation 1 is starting"},
		{name: "alive while it starts", generations: "starting", answers: 1, args: []string{"--state=alive"}, service: "alive: generation 1 is starting", own: "alive: generation 1 is starting"},
		{name: "parked", generations: "parked serving", answers: 1, service: "ready: generation 2 is serving", not: "not ready: generation 1 is parked"},
		{name: "in probation", generations: "parked serving", answers: 2, service: "ready: generation 2 is serving", own: "ready: generation 2 is serving"},
		{name: "drains", generations: "draining serving", answers: 1, service: "ready: generation 2 is serving", not: "not ready: generation 1 is draining"},
		{
			name: "one of several", generations: "serving standby/standby", answers: 2, args: []string{"--state=ready,standby"},
			service: "ready: generation 1 is serving", own: "standby: generation 2 is standby",
		},
		{
			name: "none of several", generations: "serving starting", answers: 2, args: []string{"--state", "standby,draining"},
			not: "not standby or draining: .*generation 2 is starting",
		},
		{
			name: "a spare stands by", generations: "serving standby/spare", answers: 2, args: []string{"--state=standby"},
			service: "standby: generation 2 is standby (spare)", own: "standby: generation 2 is standby (spare)",
		},
		{name: "revoked", generations: "serving revoked", answers: 2, args: []string{"--state=revoked"}, service: "revoked: generation 2 is revoked", own: "revoked: generation 2 is revoked"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			leak.Check(t)
			f, path := newFake(t, script{})
			f.update(func(st *handoff.Status) {
				st.Generations = gens(tt.generations).Generations
				st.Generation, st.PID = tt.answers, 0
				g := &st.Generations[tt.answers-1]
				g.Stopping = tt.stopping
				if tt.gone != "" {
					g.Foreign, g.NetworkGone = 1, []string{tt.gone}
				}
			})
			for socket, want := range map[string]string{"--socket": tt.service, "--self-socket": tt.own} {
				got := ctl(t.Context(), append([]string{"check", socket, path, "--timeout=1m"}, tt.args...)...)
				if want != "" {
					require.Equal(t, outcome{stdout: want + "\n"}, got, socket)
					continue
				}
				require.Equal(t, exitRefused, got.code, socket)
				require.Empty(t, got.stdout)
				lines := "^handoffctl: error: " + tt.not + "\n"
				if tt.hint != "" {
					lines += "handoffctl: hint: " + tt.hint + "\n"
				}
				require.Regexp(t, lines+"$", got.stderr)
			}
			require.Empty(t, f.asked(), "a probe only asks")
		})
	}
}

// TestCheckChooses: which of two sockets is asked.
func TestCheckChooses(t *testing.T) {
	leak.Check(t)
	control, path := newFake(t, script{})
	own, self := newFake(t, script{})
	control.update(func(st *handoff.Status) { st.Generations = gens("serving").Generations })
	own.update(func(st *handoff.Status) { st.Generations = gens("starting").Generations; st.Generation, st.PID = 1, 0 })
	tests := []struct {
		name            string
		socket, socket2 string // HANDOFF_SOCKET and HANDOFF_SELF_SOCKET
		args            []string
		code            int
		stderr          string
	}{
		{name: "the control socket", socket: path},
		{name: "its own by the environment", socket: path, socket2: self, code: exitRefused, stderr: "not ready: generation 1 is starting"},
		{name: "its own by a flag", socket: path, args: []string{"--self-socket", self}, code: exitRefused, stderr: "not ready: generation 1 is starting"},
		{name: "the control socket by a flag", socket2: self, args: []string{"--socket", path}},
		{name: "both by flags", args: []string{"--socket", path, "--self-socket", self}, code: exitUsage, stderr: "name two different sockets"},
		{name: "none", code: exitUsage, stderr: "no control socket is named"},
		{name: "an empty flag", socket: path, args: []string{"--self-socket="}, code: exitUsage, stderr: "--self-socket is empty"},
		{name: "no such state", socket: path, args: []string{"--state=ready,gone"}, code: exitUsage, stderr: `"gone" must be one of ready, alive, starting`},
		{name: "nobody at its own", args: []string{"--self-socket", self + "x"}, code: exitNobody, stderr: "(?s)hint: has the process ended, or was it started without a self socket"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Setenv("HANDOFF_SOCKET", tt.socket)
			t.Setenv("HANDOFF_SELF_SOCKET", tt.socket2)
			got := ctl(t.Context(), append([]string{"check", "--timeout=1m"}, tt.args...)...)
			require.Equal(t, tt.code, got.code, got.stderr)
			require.Regexp(t, tt.stderr, got.stderr)
		})
	}
}

// TestCheckIsPrompt: a process that hangs is not healthy, and says so in time.
func TestCheckIsPrompt(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "s")
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	require.NoError(t, err)
	t.Cleanup(func() { ln.Close() })
	began := time.Now()
	got := ctl(t.Context(), "check", "--self-socket", path, "--state=alive", "--timeout=100ms")
	require.Equal(t, exitUnknown, got.code)
	require.Less(t, time.Since(began), 30*time.Second) // without a bound it would never end
	require.Equal(t, "2s", newCheck(&app{}).Flags().Lookup("timeout").DefValue)
}

func TestCheckAsJSON(t *testing.T) {
	leak.Check(t)
	_, path := newFake(t, script{})
	got := ctl(t.Context(), "check", "--self-socket", path, "--json")
	require.Equal(t, exitDone, got.code)
	require.Contains(t, got.stdout, `"command": "check"`)
	require.Contains(t, got.stdout, `"outcome": "ready"`)
	got = ctl(t.Context(), "check", "--self-socket", path, "--state=draining", "--json")
	require.Equal(t, exitRefused, got.code)
	require.Contains(t, got.stdout, `"error": "not draining: generation 1 (pid 11, v1) is serving"`)
}
