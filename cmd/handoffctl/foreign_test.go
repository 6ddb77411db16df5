package main

import (
	"testing"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
)

func TestForeignLines(t *testing.T) {
	for _, tt := range []struct {
		name string
		all  []handoff.GenerationStatus
		want []string
	}{
		{name: "none", all: []handoff.GenerationStatus{{Sockets: 2}}},
		{name: "one", all: []handoff.GenerationStatus{{Generation: 1}, {Generation: 2, Foreign: 1}}, want: []string{"generation 2 has 1 socket in another network namespace"}},
		{
			name: "gone", all: []handoff.GenerationStatus{{Generation: 2, Foreign: 3, NetworkGone: []string{"tcp web", "udp dns"}}},
			want: []string{
				"generation 2 has 3 sockets in another network namespace",
				"generation 2: the network is gone of tcp web, udp dns",
				"stop the service, and start it where its clients are: a successor would take the same sockets",
			},
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			require.Equal(t, tt.want, foreignLines(&handoff.Status{Generations: tt.all}))
		})
	}
}

// TestNetworkNotes: a watch says when the network goes, and when it is back.
func TestNetworkNotes(t *testing.T) {
	at := func(gone ...string) *handoff.Status {
		return &handoff.Status{Instance: "i", Generations: []handoff.GenerationStatus{{Generation: 1, State: "serving", Foreign: 1, NetworkGone: gone}}}
	}
	require.Empty(t, changes(at(), at()))
	require.Equal(t, []string{"the network of 1 is gone: tcp web"}, changes(at(), at("tcp web")))
	require.Empty(t, changes(at("tcp web"), at("tcp web")))
	require.Equal(t, []string{"the network of 1 is back"}, changes(at("tcp web"), at()))
}

func TestSocketState(t *testing.T) {
	for _, tt := range []struct {
		name string
		s    handoff.SocketInfo
		want string
	}{
		{name: "own", s: handoff.SocketInfo{State: "fresh", Netns: 7}, want: "fresh"},
		{name: "exclusive", s: handoff.SocketInfo{State: "inherited", Exclusive: true}, want: "inherited, exclusive"},
		{name: "foreign", s: handoff.SocketInfo{State: "inherited", Exclusive: true, Foreign: true}, want: "inherited, exclusive, foreign"},
		{
			name: "gone", s: handoff.SocketInfo{State: "fresh", Foreign: true, NetworkGone: "10.0.0.3 is on no interface there"},
			want: "fresh, foreign, network gone: 10.0.0.3 is on no interface there",
		},
	} {
		t.Run(tt.name, func(t *testing.T) { require.Equal(t, tt.want, socketState(tt.s)) })
	}
}
