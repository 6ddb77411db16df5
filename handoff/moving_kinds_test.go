package handoff

import (
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// web is one version of a service that answers each HTTP request with its label.
type web struct {
	c     *chain
	label string
	p     *Process
	h     *HTTPServer
	ln    net.Listener
}

// web makes a version that serves on 127.0.0.1:0.
func (c *chain) web(label string, change ...func(*Config)) *web {
	c.t.Helper()
	w := c.webOn(label, Socket{Network: "tcp", Address: "127.0.0.1:0"}, &http.Server{}, change...)
	c.ready(w.p)
	return w
}

// webOn makes a version that is not ready yet. A nil Handler tells the label.
func (c *chain) webOn(label string, s Socket, srv *http.Server, change ...func(*Config)) *web {
	c.t.Helper()
	w := c.webUnserved(label, s, srv, change...)
	w.serve(w.ln)
	return w
}

// webUnserved makes a version that has its listener, and does not serve it.
func (c *chain) webUnserved(label string, s Socket, srv *http.Server, change ...func(*Config)) *web {
	c.t.Helper()
	if srv.Handler == nil {
		srv.Handler = tell(label)
	}
	srv.ErrorLog = log.New(io.Discard, "", 0)
	w := &web{c: c, label: label, p: c.start(label, change...)}
	var err error
	w.ln, err = w.p.ListenSocket(c.ctx, s)
	require.NoError(c.t, err)
	w.h = NewHTTPServer(w.p, srv)
	return w
}

// serve has ln served until the Process closes it.
func (w *web) serve(ln net.Listener) {
	go func() {
		if err := w.h.Serve(ln); err != nil {
			w.c.t.Errorf("%s: Serve: %v", w.label, err)
		}
	}()
}

// dial connects a client.
func (w *web) dial() *rawClient { w.c.t.Helper(); return dialAt(w.c.t, w.ln.Addr()) }

func dialAt(t testing.TB, a net.Addr) *rawClient {
	t.Helper()
	c, err := net.Dial(a.Network(), a.String())
	require.NoError(t, err)
	t.Cleanup(func() { c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return rawOver(t, c)
}

// idle connects a client that has had one answer.
func (w *web) idle() *rawClient {
	w.c.t.Helper()
	c := w.dial()
	require.Equal(w.c.t, w.label, c.get("/", false))
	return c
}

// answers expects the next answer to be this version's, and the connection to stay.
func (w *web) answers(c *rawClient) {
	w.c.t.Helper()
	require.Equal(w.c.t, w.label, c.get("/", false))
}

// open waits until exactly these connections are open.
func (w *web) open(want map[string]int) {
	w.c.t.Helper()
	var open map[string]int
	w.c.until("open are "+counts(want), func() bool {
		open = w.p.openConnections()
		return counts(open) == counts(want)
	})
}

func counts(m map[string]int) string { return fmt.Sprint(m) }

// self is what the version's status says of it.
func (w *web) self() *GenerationStatus {
	w.c.t.Helper()
	var g *GenerationStatus
	require.True(w.c.t, w.p.ask(func() { g = w.p.self() }))
	return g
}

// adopted waits until so many came; a client may have its answer before they are counted.
func (w *web) adopted(want uint64) {
	w.c.t.Helper()
	w.c.until(fmt.Sprintf("%d came", want), func() bool { return w.self().Adopted == want })
}

// moved waits for the end of a version and says how many of its connections moved.
func (w *web) moved(want uint64) Report {
	w.c.t.Helper()
	r := w.c.wait(w.p)
	require.Equal(w.c.t, want, r.Moved, "moved")
	require.Empty(w.c.t, r.Cut)
	return r
}

// local is a listener's address in the loopback network.
func local(name, network, address string) Socket {
	return Socket{Name: name, Network: network, Address: address}
}

// Connections of every kind of plain listener move, whether anything was asked on
// them yet or not, with both of their addresses.
func TestNetworksThatMove(t *testing.T) {
	addresses := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprint(w, r.RemoteAddr, " ", r.Context().Value(http.LocalAddrContextKey))
	})
	for _, tc := range []struct{ name, network, address, dial string }{
		{"tcp4", "tcp4", "127.0.0.1:0", ""},
		{"tcp6", "tcp6", "[::1]:0", ""},
		{"any, by IPv4", "tcp", ":0", "127.0.0.1"},
		{"any, by IPv6", "tcp", ":0", "::1"},
		{"any of IPv4", "tcp4", "0.0.0.0:0", "127.0.0.2"},
		{"any of IPv6", "tcp6", "[::]:0", "::1"},
		{"unix", "unix", "web", ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			s := local("web", tc.network, tc.address)
			if tc.network == "unix" {
				s.Address = filepath.Join(filepath.Dir(c.socket), tc.address)
			}
			version := func(label string) *web {
				w := c.webOn(label, s, &http.Server{Handler: addresses})
				c.ready(w.p)
				return w
			}
			one := version("one")
			at := one.ln.Addr()
			if tc.dial != "" {
				at = &net.TCPAddr{IP: net.ParseIP(tc.dial), Port: at.(*net.TCPAddr).Port}
			}
			idle, fresh := dialAt(t, at), dialAt(t, at)
			was := idle.get("/", false)
			one.open(map[string]int{"idle": 1, "new": 1})
			two := version("two")
			one.moved(2)
			two.open(map[string]int{"idle": 1, "new": 1})
			require.Equal(t, was, idle.get("/", false))
			if tc.network != "unix" {
				require.Equal(t, fresh.LocalAddr().String()+" "+at.String(), fresh.get("/", false))
			}
			version("three")
			two.moved(2)
			require.Equal(t, was, idle.get("/", false))
			fresh.get("/", false)
		})
	}
}

// What stands for more than its socket stays, and is a lame duck: TLS, HTTP/2, what was
// hijacked, and a listener that the program has wrapped. A plain connection beside it
// moves.
func TestKindsThatStay(t *testing.T) {
	serverTLS, clientTLS := tlsConfigs(t)
	serverH2, clientH2 := tlsConfigs(t, "h2")
	type conn struct {
		kind string
		end  func() // answers once more, and ends
	}
	lameDuck := func(c *rawClient) conn {
		require.Equal(c.t, "one", c.get("/", false))
		return conn{"idle", func() { require.Equal(c.t, "one", c.get("/", true)) }}
	}
	h2 := func(t *testing.T, c *rawClient) conn {
		h := prefaceH2(t, c)
		h.get("/", false)
		return conn{"h2", func() { h.get("/", true); c.Close() }}
	}
	plain := func(w *web) { w.serve(w.ln) }
	for _, tc := range []struct {
		name  string
		tls   *tls.Config
		serve func(*web)
		dial  func(*testing.T, *web) conn
	}{
		{"ServeTLS", serverTLS, (*web).serveTLS, func(t *testing.T, w *web) conn { return lameDuck(rawOver(t, tls.Client(w.dial().Conn, clientTLS))) }},
		{"ServeTLS, h2", serverH2, (*web).serveTLS, func(t *testing.T, w *web) conn { return h2(t, rawOver(t, tls.Client(w.dial().Conn, clientH2))) }},
		{"tls.Listener", serverTLS, func(w *web) { w.serve(tls.NewListener(w.ln, serverTLS)) }, func(t *testing.T, w *web) conn {
			return lameDuck(rawOver(t, tls.Client(w.dial().Conn, clientTLS)))
		}},
		{"tls.Listener, h2", serverH2, func(w *web) { w.serve(tls.NewListener(w.ln, serverH2)) }, func(t *testing.T, w *web) conn {
			return h2(t, rawOver(t, tls.Client(w.dial().Conn, clientH2)))
		}},
		{"h2c", nil, plain, func(t *testing.T, w *web) conn { return h2(t, w.dial()) }},
		{"a wrapped listener", nil, func(w *web) { w.serve(struct{ net.Listener }{w.ln}) }, func(_ *testing.T, w *web) conn { return lameDuck(w.dial()) }},
		{"hijacked", nil, plain, func(t *testing.T, w *web) conn {
			c := w.dial()
			c.send(get("/hijack"))
			line, err := c.r.ReadString('\n')
			require.NoError(t, err)
			require.Equal(t, "echo\n", line)
			return conn{"hijacked", func() {
				c.send("still here\n")
				line, err := c.r.ReadString('\n')
				require.NoError(t, err)
				require.Equal(t, "still here\n", line)
				c.Close()
			}}
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			mux := http.NewServeMux()
			mux.Handle("/", tell("one"))
			mux.HandleFunc("/hijack", func(w http.ResponseWriter, _ *http.Request) {
				nc, rw, err := w.(http.Hijacker).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				go func() {
					defer nc.Close()
					io.WriteString(nc, "echo\n")
					io.Copy(nc, rw)
				}()
			})
			srv := h2cServer(mux)
			srv.TLSConfig = tc.tls
			srv.Protocols.SetHTTP2(tc.tls == serverH2)
			one := c.webUnserved("one", local("odd", "tcp", "127.0.0.1:0"), srv)
			tc.serve(one)
			beside, err := one.p.ListenSocket(c.ctx, local("plain", "tcp", "127.0.0.1:0"))
			require.NoError(t, err)
			one.serve(beside)
			c.ready(one.p)
			odd := tc.dial(t, one)
			moves := dialAt(t, beside.Addr())
			require.Equal(t, "one", moves.get("/", false))
			one.open(map[string]int{odd.kind: 1, "idle": 1 + counted(odd.kind == "idle")})

			two := c.webOn("two", local("plain", "tcp", "127.0.0.1:0"), &http.Server{})
			other, err := two.p.ListenSocket(c.ctx, local("odd", "tcp", "127.0.0.1:0"))
			require.NoError(t, err)
			two.serve(other) // and would serve as plain HTTP what came
			c.ready(two.p)
			c.until("the plain one has moved", func() bool { return one.p.moved.Load() == 1 })
			one.open(map[string]int{odd.kind: 1})
			odd.end()
			one.moved(1)
			two.answers(moves)
			two.adopted(1)
		})
	}
}

func counted(is bool) int {
	if is {
		return 1
	}
	return 0
}

// serveTLS has the version's listener served by TLS.
func (w *web) serveTLS() {
	go func() {
		if err := w.h.ServeTLS(w.ln, "", ""); err != nil {
			w.c.t.Errorf("%s: ServeTLS: %v", w.label, err)
		}
	}()
}

// handsOver has the next version take over.
func (w *web) handsOver(label string) *web {
	w.c.t.Helper()
	it := itemOf(w.ln)
	next := w.c.webOn(label, local(it.Name, it.Network, it.Local), &http.Server{})
	w.c.ready(next.p)
	return next
}

// handled makes a version with a handler.
func (c *chain) handled(label string, h http.Handler) *web {
	c.t.Helper()
	w := c.webOn(label, local("web", "tcp", "127.0.0.1:0"), &http.Server{Handler: h})
	c.ready(w.p)
	return w
}

// A request that is under way is answered where it began, and its connection moves
// then: no answer says close.
func TestBusyConnectionMovesAfterItsAnswer(t *testing.T) {
	for _, tc := range []struct {
		name, request string
	}{
		{"HTTP/1.1", get("/")},
		{"HTTP/1.0", "GET / HTTP/1.0\r\nConnection: keep-alive\r\n\r\n"},
		{"with a body", "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\n\r\nbody"},
		{"in chunks", "POST / HTTP/1.1\r\nHost: test\r\nTransfer-Encoding: chunked\r\n\r\n4\r\nbody\r\n0\r\n\r\n"},
		{"HEAD", "HEAD / HTTP/1.1\r\nHost: test\r\n\r\n"},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: test\r\n\r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			g := newGate(func(w http.ResponseWriter, r *http.Request) {
				io.Copy(io.Discard, r.Body)
				w.Header().Set("Content-Length", "0")
			})
			one := c.handled("one", g)
			client, other := one.dial(), one.dial()
			one.open(map[string]int{"new": 2})
			if tc.name != "OPTIONS *" { // which reaches no handler
				client.send(tc.request)
				g.waitEntered(t)
			}
			two := one.handsOver("two")
			c.until("the other one has moved", func() bool { return one.p.moved.Load() >= 1 })
			if tc.name == "OPTIONS *" {
				client.send(tc.request)
			}
			close(g.open)
			resp, err := http.ReadResponse(client.r, &http.Request{Method: strings.Fields(tc.request)[0]})
			require.NoError(t, err)
			require.Equal(t, http.StatusOK, resp.StatusCode)
			require.False(t, resp.Close)
			require.NoError(t, resp.Body.Close())
			one.moved(2)
			two.answers(client)
			two.answers(other)
		})
	}
}

// A stream that its handler ends at the drain leaves its connection as any answer does.
func TestStreamEndsAndItsConnectionMoves(t *testing.T) {
	c := newChain(t)
	one := c.handled("one", http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: first\n\n")
		w.(http.Flusher).Flush()
		select {
		case <-Draining(r.Context()):
		case <-time.After(patience):
		}
		io.WriteString(w, "data: last\n\n")
	}))
	client := one.dial()
	client.send(get("/"))
	header := client.header()
	require.NotContains(t, header, "close")
	two := one.handsOver("two")
	body, err := io.ReadAll(httputil.NewChunkedReader(client.r))
	require.NoError(t, err)
	require.Equal(t, "data: first\n\ndata: last\n\n", string(body))
	line, err := client.r.ReadString('\n') // the end of the trailer
	require.NoError(t, err)
	require.Equal(t, "\r\n", line)
	one.moved(1)
	two.answers(client)
}

// A client that waits to be asked for the body of its request is asked where the
// request began.
func TestExpectContinue(t *testing.T) {
	request := "POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 4\r\nExpect: 100-continue\r\n\r\n"
	t.Run("is asked", func(t *testing.T) {
		c := newChain(t)
		g := newGate(func(w http.ResponseWriter, r *http.Request) {
			io.Copy(w, r.Body)
		})
		one := c.handled("one", g)
		client := one.dial()
		client.send(request)
		g.waitEntered(t)
		two := one.handsOver("two")
		close(g.open)
		require.Contains(t, client.header(), "100 Continue")
		client.send("body")
		require.Equal(t, "body", client.ok(false))
		one.moved(1)
		two.answers(client)
	})
	t.Run("is not asked", func(t *testing.T) { // net/http ends the connection: the body may come or not
		c := newChain(t)
		g := newGate(tell("no"))
		one := c.handled("one", g)
		client := one.dial()
		client.send(request)
		g.waitEntered(t)
		one.handsOver("two")
		close(g.open)
		resp, body := client.answer()
		require.Equal(t, "no", body)
		require.True(t, resp.Close)
		require.NoError(t, client.Close()) // until then net/http waits for the body
		one.moved(0)
	})
}

// A body that nobody reads is not taken for the next request.
func TestBodyThatIsNotRead(t *testing.T) {
	c := newChain(t)
	g := newGate(tell("no"))
	one := c.handled("one", g)
	small, large := one.dial(), one.dial()
	small.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 8\r\n\r\nGET ")
	g.waitEntered(t)
	large.send("POST / HTTP/1.1\r\nHost: test\r\nContent-Length: 10000000\r\n\r\nGET ")
	g.waitEntered(t)
	two := one.handsOver("two")
	close(g.open)
	require.Equal(t, "no", large.ok(true))
	small.send("POST")
	require.Equal(t, "no", small.ok(false))
	one.moved(1)
	two.answers(small)
}

// Clients that go, or have no more to say, while their connection rests at the next
// version, or is on its way to it.
func TestClientsThatEnd(t *testing.T) {
	for _, tc := range []struct {
		name   string
		do     func(*rawClient)
		answer bool // it is still there to hear
		asked  bool
	}{
		{"says no more", func(c *rawClient) { require.NoError(c.t, c.Conn.(*net.TCPConn).CloseWrite()) }, true, false},
		{"asks, and says no more", func(c *rawClient) {
			c.send(get("/"))
			require.NoError(c.t, c.Conn.(*net.TCPConn).CloseWrite())
		}, true, true},
		{"leaves", func(c *rawClient) { require.NoError(c.t, c.Close()) }, false, false},
		{"resets", func(c *rawClient) {
			require.NoError(c.t, c.Conn.(*net.TCPConn).SetLinger(0))
			require.NoError(c.t, c.Close())
		}, false, false},
	} {
		ends := func(c *rawClient, label string) {
			if tc.asked {
				require.Equal(c.t, label, c.ok(false))
			}
			if tc.answer {
				c.eof()
			}
		}
		t.Run(tc.name+"/at rest", func(t *testing.T) {
			c := newChain(t)
			one := c.web("one")
			client := one.idle()
			two := one.handsOver("two")
			one.moved(1)
			two.open(map[string]int{"idle": 1})
			tc.do(client)
			ends(client, "two")
			two.open(map[string]int{})
		})
		t.Run(tc.name+"/on its way", func(t *testing.T) {
			g := newGiver(t)
			client := g.idle()
			g.release()
			r := g.accept()
			r.ok()
			_, fds := r.take()
			tc.do(client)
			closeAll(fds)
			require.NoError(t, r.c.Close())
			ends(client, "one")
			g.moved(0)
		})
		t.Run(tc.name+"/on its way, and taken", func(t *testing.T) {
			a := newAdopter(t, "tcp", 1)
			letRightsPass(t, a.p)
			client := a.conns[0].client
			tc.do(client)
			r := a.move()
			r.say(a.batch(1), a.conns[0].d)
			require.NoError(t, a.conns[0].d.Close())
			require.Empty(t, r.hear(msgGot).Rejected)
			ends(client, "one")
			a.open(map[string]int{})
		})
	}
}

// An answer that the client has not read yet is in the socket, and arrives whole though
// the connection has moved meanwhile.
func TestUnreadAnswerArrivesWhole(t *testing.T) {
	c := newChain(t)
	body := strings.Repeat("0123456789abcdef", 10<<10)
	conns := make(chan net.Conn, 1)
	one := c.webOn("one", local("web", "tcp", "127.0.0.1:0"), &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", strconv.Itoa(len(body)))
			io.WriteString(w, body)
		}),
		ConnState: func(nc net.Conn, s http.ConnState) {
			if s == http.StateNew {
				nc = nc.(interface{ NetConn() net.Conn }).NetConn()
				if err := nc.(*net.TCPConn).SetWriteBuffer(4 * len(body)); err != nil {
					t.Error(err)
				}
				conns <- nc
			}
		},
	})
	c.ready(one.p)
	d := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
		return raw.Control(func(fd uintptr) { unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF, 4096) })
	}}
	nc, err := d.DialContext(c.ctx, "tcp", one.ln.Addr().String())
	require.NoError(t, err)
	defer nc.Close()
	require.NoError(t, nc.SetDeadline(time.Now().Add(patience)))
	client := rawOver(t, nc)
	client.send(get("/"))
	one.open(map[string]int{"idle": 1})
	raw, err := (<-conns).(*net.TCPConn).SyscallConn()
	require.NoError(t, err)
	var unsent int
	require.NoError(t, raw.Control(func(fd uintptr) { unsent, err = unix.IoctlGetInt(int(fd), unix.TIOCOUTQ) }))
	require.NoError(t, err)
	require.Greater(t, unsent, len(body)/2, "most of it waits at the server")
	two := one.handsOver("two")
	one.moved(1)
	resp, got := client.answer()
	require.False(t, resp.Close)
	require.True(t, body == got, "%d bytes of %d", len(got), len(body))
	two.answers(client)
}
