//go:build containers

package containers

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// What can't work ends at once, with exit code 1 and the reason and the remedy in its log, and the incumbent serves on.
func TestRefused(t *testing.T) {
	for _, tc := range []struct {
		name, short string
		network     string // of both containers
		volume      func(r *recipe, volume string) string
		other       bool     // the second container is of another service
		want        []string // in its log
	}{
		{
			name: "refused: two bridge containers", short: "bridge", network: "bridge",
			want: []string{"the socket belongs to another network namespace", "network_mode: host"},
		},
		{
			name: "refused: socket mounted, not its directory", short: "file", network: "host",
			volume: func(r *recipe, _ string) string { return r.socket + ":/run/handoff/control.sock" },
			want:   []string{"/run/handoff/control.sock is itself a mount (mount the directory that it is in, not the file)"},
		},
		{
			name: "refused: read-only volume", short: "ro", network: "host",
			volume: func(_ *recipe, volume string) string { return volume + ":/run/handoff:ro" },
			want:   []string{"/run/handoff is on a read-only mount (mount a volume there that can be written"},
		},
		{
			name: "refused: another service in the volume", short: "other", network: "host", other: true,
			want: []string{"another service needs a control socket of its own", "--allow-no-claim", ": tcp :"},
		},
	} {
		t.Run(tc.short, func(t *testing.T) {
			r := newRecipe(t, tc.name, tc.short)
			volume, listen := r.newVolume(), fmt.Sprintf(":%d", freePort(t))
			old := r.run("v1", hardened("--network", tc.network, "--volume", volume+":/run/handoff"),
				"--http", listen, "--label", "v1")
			r.alone("v1")
			run := r.load(old.address() + listen)
			r.answers(run, 1, 100)

			mount := volume + ":/run/handoff"
			if tc.volume != nil {
				mount = tc.volume(r, volume)
			}
			if tc.other {
				listen = fmt.Sprintf(":%d", freePort(t))
			}
			next := r.run("v2", hardened("--network", tc.network, "--volume", mount),
				"--http", listen, "--label", "v2")
			next.exits(1)
			next.logged(tc.want[0]) // the engine may know of the end before it has the last of the log
			var reason string
			for line := range strings.Lines(next.logs()) {
				if strings.Contains(line, "level=ERROR") {
					reason = line
				}
			}
			for _, want := range tc.want {
				require.Contains(t, reason, want)
			}
			require.EqualValues(t, 1, r.alone("v1").Serving().Generation)
			r.answers(run, 1, run.Counts().Generations[1]+100)
			r.noLoss(run, 0)
			require.FileExists(t, r.socket)
		})
	}
}

// A container that shares no network with the service may serve its sockets all the same, where it says so. They live as
// long as the network that they were made in, which is a third container's here; when that goes, it is noticed.
func TestForeignNetwork(t *testing.T) {
	r := newRecipe(t, "bridge, --allow-foreign-netns", "foreign")
	volume, holder := r.newVolume(), r.hold()
	run := func(label, network string, more ...string) *container {
		return r.run(label, hardened("--network", network, "--volume", volume+":/run/handoff"),
			append([]string{"--http", ":8080", "--label", label, "--probation", "1s"}, more...)...)
	}
	old := run("v1", "container:"+holder.name)
	r.alone("v1")
	clients := r.load(holder.address() + ":8080")
	r.answers(clients, 1, 200)
	next := run("v2", "bridge", "--allow-foreign-netns")
	old.exits(0)
	old.remove()
	r.answers(clients, 2, 500)
	next.logged("sockets live in another network namespace")
	next.healthy()
	r.noLoss(clients, 1)

	holder.remove()
	next.logged("the network of sockets is gone: clients do not reach them any more")
	res := next.ctl("check")
	require.Equal(t, 1, res.Code, "%s%s", res.Stdout, res.Stderr)
	require.Contains(t, res.Stderr, "network")
	require.Contains(t, next.ctl("sockets").Stdout, "network gone: ")
	r.eventually("the engine sees it", func() bool { return next.health() == "unhealthy" })
}
