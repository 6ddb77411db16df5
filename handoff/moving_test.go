package handoff

import (
	"bytes"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// mover is a Process with an HTTP server on one listener, as most programs are.
type mover struct {
	*Process
	addr string
	ln   net.Listener
}

// mover starts a Process that serves handler and waits until it serves. The
// listener's name is web.
func (c *chain) mover(network, label string, handler http.Handler, change ...func(*Config)) *mover {
	c.t.Helper()
	p := c.start(label, change...)
	address := "127.0.0.1:0"
	if network == "unix" {
		address = c.socket + ".web"
	}
	ln, err := p.ListenSocket(c.ctx, Socket{Name: "web", Network: network, Address: address})
	require.NoError(c.t, err)
	c.serveOn(p, ln, &http.Server{Handler: handler})
	c.ready(p)
	return &mover{Process: p, addr: ln.Addr().String(), ln: ln}
}

// serveOn serves on ln until p's end.
func (c *chain) serveOn(p *Process, ln net.Listener, srv *http.Server) {
	h := NewHTTPServer(p, srv)
	served := make(chan error, 1)
	go func() { served <- h.Serve(ln) }()
	c.t.Cleanup(func() {
		p.Close()
		require.NoError(c.t, <-served)
	})
}

// movedFrom waits until n connections have moved away from p.
func (c *chain) movedFrom(p *mover, n uint64) {
	c.t.Helper()
	c.until(fmt.Sprintf("%d connections moved", n), func() bool { return p.moved.Load() == n })
}

// named answers every request with a name.
func named(name string) http.Handler { return tell(name) }

const nextRequest = "GET /next HTTP/1.1\r\nHost: test\r\n\r\n"

// TestOnlyWhatIsIdleMoves brings a connection into each state that matters, and hands
// over. Wherever net/http holds a part of the next request, the old process must
// answer it, with the rest that comes later; after that the connection moves.
func TestOnlyWhatIsIdleMoves(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		for _, tc := range boundaryCases {
			t.Run(network+" "+tc.name, func(t *testing.T) {
				c := newChain(t)
				g := newGate(tell("first"))
				mux := http.NewServeMux()
				mux.Handle("/{$}", g)
				mux.Handle("/next", named("one"))
				mux.Handle("/idle", named("one"))
				one := c.mover(network, "one", mux)

				nc, err := net.Dial(network, one.addr)
				require.NoError(t, err)
				defer nc.Close()
				require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
				client := rawOver(t, nc)
				client.send(tc.before)
				part := tc.before + tc.during + tc.after
				if rest, asked := strings.CutPrefix(part, checkRequest); asked {
					part = rest
					g.waitEntered(t)
					client.send(tc.during)
					if tc.during != "" {
						c.until("a byte is read in the background", func() bool { return unreadBy(one) == len(tc.during)-1 })
					}
					close(g.open)
					require.Equal(t, "first", client.ok(false))
				}
				client.send(tc.after)
				c.until("all is read", func() bool { return unreadBy(one) == 0 && waits(one) })

				// Another one, which is idle, tells when the old process has looked.
				other, err := net.Dial(network, one.addr)
				require.NoError(t, err)
				defer other.Close()
				idle := rawOver(t, other)
				require.Equal(t, "one", idle.get("/idle", false))

				two := c.mover(network, "two", named("two"))
				want, moved := "one", uint64(1)
				if tc.movable {
					want, moved = "two", 2
				}
				c.movedFrom(one, moved)
				client.send(strings.TrimPrefix(nextRequest, part))
				require.Equal(t, want, client.ok(false), "who has the connection")
				c.movedFrom(one, 2)
				require.Equal(t, "two", client.get("/next", false))
				require.Equal(t, "two", idle.get("/next", false))
				r := c.wait(one.Process)
				require.EqualValues(t, 2, r.Moved)
				require.Empty(t, r.Cut)
				c.until("both are counted", func() bool { return two.adopted.Load() == 2 }) // an answer may come before
			})
		}
	}
}

// Where the next version takes no connections, its predecessor tells them to close.
func TestNobodyTakesConnections(t *testing.T) {
	c := newChain(t)
	one := c.mover("tcp", "one", named("one"))
	client := dialRaw(t, one.addr)
	require.Equal(t, "one", client.get("/", false))
	two := c.mover("tcp", "two", named("two"), func(cfg *Config) { cfg.MoveIdle = MoveIdleOff })
	c.reach(one.Process, StateDraining)
	for closes := false; !closes; { // until it has read the no, it hopes
		client.send(get("/"))
		resp, _ := client.answer()
		closes = resp.Close
	}
	client.eof()
	require.Zero(t, c.wait(one.Process).Moved)
	require.Zero(t, two.adopted.Load())
}

// unreadBy is how many bytes wait in the kernel for the only connection of p.
func unreadBy(p *mover) (n int) {
	for _, c := range p.tracked() {
		n += unreadBytes(c)
	}
	return n
}

// waits says whether p waits for more of its only connection.
func waits(p *mover) bool {
	all := p.tracked()
	if len(all) != 1 {
		return false
	}
	c := all[0]
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.reading && c.state != http.StateActive
}

// tracked are the connections that net/http has.
func (p *mover) tracked() (all []*trackedConn) {
	d := p.drainers.all[0].(*httpDrain)
	d.mu.Lock()
	defer d.mu.Unlock()
	for c := range d.conns {
		all = append(all, c)
	}
	return all
}

// acceptedAll waits until p has accepted n connections: one that is still queued goes with
// the listener, which counts as no move.
func (c *chain) acceptedAll(p *mover, n int) {
	c.t.Helper()
	c.until("all are accepted", func() bool { return len(p.tracked()) == n })
}

// A connection goes from generation to generation with each handoff.
func TestConnectionMovesThroughTwentyGenerations(t *testing.T) {
	c := newChain(t)
	p := c.mover("tcp", "g1", named("g1"))
	client, silent := dialRaw(t, p.addr), dialRaw(t, p.addr)
	require.Equal(t, "g1", client.get("/", false))
	c.acceptedAll(p, 2)
	for g := 2; g <= 20; g++ {
		label := fmt.Sprintf("g%d", g)
		next := c.mover("tcp", label, named(label))
		r := c.wait(p.Process)
		require.EqualValues(t, 2, r.Moved, label)
		require.Empty(t, r.Cut)
		if g%3 > 0 { // sometimes it moves on without a request in between
			require.NoError(t, client.SetDeadline(time.Now().Add(patience)))
			require.Equal(t, label, client.get("/", false))
		}
		p = next
	}
	require.NoError(t, silent.SetDeadline(time.Now().Add(patience)))
	require.Equal(t, "g20", silent.get("/", false), "which had not asked anything before")
}

// TestMovesUnderFragments sends requests in fragments and trains, cut at random places,
// while handoffs go on, and compares every byte of the answers.
func TestMovesUnderFragments(t *testing.T) {
	const generations, clients = 12, 8
	seed := uint64(time.Now().UnixNano())
	t.Logf("seed %d", seed)
	c := newChain(t)
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprintf(w, "%s %s %s", r.Method, r.URL.Path, body)
	})
	p := c.mover("tcp", "g1", echo)
	stop := make(chan struct{})
	var running sync.WaitGroup
	var mu sync.Mutex
	answered := 0
	for i := range clients {
		nc, err := net.Dial("tcp", p.addr)
		require.NoError(t, err)
		defer nc.Close()
		running.Go(func() {
			f := fragments{rnd: rand.New(rand.NewPCG(seed, uint64(i))), client: rawOver(t, nc), id: i}
			n, err := f.run(stop)
			mu.Lock()
			defer mu.Unlock()
			answered += n
			if err != nil {
				t.Errorf("client %d, after %d answers: %v", i, n, err)
			}
		})
	}
	c.acceptedAll(p, clients)
	total := uint64(0)
	for g := 2; g <= generations; g++ {
		next := c.mover("tcp", fmt.Sprintf("g%d", g), echo)
		r := c.wait(p.Process)
		require.Empty(t, r.Cut)
		total += r.Moved
		p = next
	}
	close(stop)
	running.Wait()
	t.Logf("%d requests, %d moves", answered, total)
	require.Positive(t, answered)
	require.EqualValues(t, clients*(generations-1), total, "each moves in each handoff")
}

// fragments is a client that sends trains of requests in pieces.
type fragments struct {
	rnd    *rand.Rand
	client *rawClient
	id     int
	serial int
}

// run returns how many requests were answered as they should.
func (f *fragments) run(stop <-chan struct{}) (answered int, err error) {
	for {
		var train []byte
		var want []string
		for range 1 + f.rnd.IntN(3) {
			f.serial++
			body := bytes.Repeat([]byte{byte('a' + f.rnd.IntN(26))}, f.rnd.IntN(40))
			path := fmt.Sprintf("/%d/%d", f.id, f.serial)
			train = fmt.Appendf(train, "POST %s HTTP/1.1\r\nHost: test\r\nContent-Length: %d\r\n\r\n%s", path, len(body), body)
			want = append(want, fmt.Sprintf("POST %s %s", path, body))
		}
		for rest := train; len(rest) > 0; {
			n := 1 + f.rnd.IntN(len(rest))
			if f.rnd.IntN(3) == 0 {
				n = min(n, 4)
			}
			if err := f.client.SetDeadline(time.Now().Add(patience)); err != nil {
				return answered, err
			}
			if _, err := f.client.Write(rest[:n]); err != nil {
				return answered, err
			}
			rest = rest[n:]
		}
		for _, text := range want {
			resp, err := http.ReadResponse(f.client.r, nil)
			if err != nil {
				return answered, err
			}
			body, err := io.ReadAll(resp.Body)
			switch {
			case err != nil:
				return answered, err
			case resp.StatusCode != http.StatusOK || string(body) != text || resp.Close:
				return answered, fmt.Errorf("%s %q (close: %t) instead of %q", resp.Status, body, resp.Close, text)
			}
			answered++
		}
		select {
		case <-stop:
			return answered, nil
		default:
		}
	}
}

// A process that has just handed over rejects nothing, which would have its giver tell
// clients to close: whoever serves now is asked instead.
func TestTakerThatHasHandedOverSaysBusy(t *testing.T) {
	c := newChain(t)
	one := c.mover("tcp", "one", named("one"))
	giver, to := connPair(t)
	ours, theirs, err := connectedPair()
	require.NoError(t, err)
	defer ours.Close()
	defer theirs.Close()
	d, err := dupConn(ours)
	require.NoError(t, err)
	item := one.ln.(*listener).item()
	two := c.mover("tcp", "two", named("two"))
	c.wait(one.Process)

	take := taker{p: one.Process, c: to}
	take.batch(&frame{Type: msgConnections, Sockets: []manifestItem{item}, Moved: []movedItem{{}}}, []*descriptor{d})
	require.Equal(t, takingNone, take.phase)
	f, err := two.question(giver)
	require.NoError(t, err)
	require.Equal(t, msgError, f.Type)
	require.Equal(t, CodeBusy, f.Code)
}
