package handoff

import (
	"bufio"
	"bytes"
	"fmt"
	"hash/crc32"
	"io"
	"log"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// stressHandler answers with the request's id and what its body was, and counts how
// often each id came.
type stressHandler struct {
	seen [1 << 20]atomic.Uint32
}

func (h *stressHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	id, err := strconv.Atoi(r.Header.Get("X-Id"))
	if err != nil || id >= len(h.seen) {
		http.Error(w, "no id: "+r.Method+" "+r.RequestURI, 400)
		return
	}
	h.seen[id].Add(1)
	rc := http.NewResponseController(w)
	switch r.URL.Path {
	case "/deadline":
		rc.SetReadDeadline(time.Now().Add(time.Duration(id%3) * time.Millisecond))
	case "/duplex":
		rc.EnableFullDuplex()
	case "/notify":
		w.(interface{ CloseNotify() <-chan bool }).CloseNotify()
	case "/slow":
		time.Sleep(time.Duration(id%1000) * time.Microsecond)
	}
	sum, n := uint32(0), int64(-1)
	if r.URL.Path != "/unread" {
		hash := crc32.NewIEEE()
		n, err = io.Copy(hash, r.Body)
		if err != nil {
			fmt.Fprintf(w, "body: %v", err)
			return
		}
		sum = hash.Sum32()
	}
	if r.URL.Path == "/flush" {
		w.WriteHeader(200)
		rc.Flush()
	}
	fmt.Fprintf(w, "%s %s %d %d %08x %s", r.Method, r.URL.Path, id, n, sum, r.Trailer.Get("X-T"))
}

type stressRequest struct {
	method string
	wire   []byte
	want   string
	id     int
}

var stressID atomic.Int64

func newStressRequest(rnd *rand.Rand, size int) stressRequest {
	id := int(stressID.Add(1))
	paths := []string{"/", "/", "/slow", "/unread", "/flush", "/notify", "/small"}
	path := paths[rnd.IntN(len(paths))]
	var b bytes.Buffer
	q := stressRequest{id: id}
	body := make([]byte, rnd.IntN(200))
	if rnd.IntN(10) == 0 {
		body = make([]byte, rnd.IntN(20000))
	}
	for i := range body {
		body[i] = "abcdefgh\r\n"[rnd.IntN(10)]
	}
	trailer := ""
	sum := crc32.ChecksumIEEE(body)
	n := len(body)
	pad := ""
	switch k := rnd.IntN(6); {
	case size > 0 || k == 0: // GET
		q.method = "GET"
		head := fmt.Sprintf("GET %s HTTP/1.1\r\nHost: x\r\nX-Id: %d\r\n", path, id)
		if size > 0 {
			pad = "X-Pad: " + strings.Repeat("p", size-len(head)-len("X-Pad: \r\n\r\n")) + "\r\n"
		}
		b.WriteString(head + pad + "\r\n")
		n, sum = 0, 0
	case k == 1:
		q.method = "HEAD"
		fmt.Fprintf(&b, "HEAD %s HTTP/1.1\r\nHost: x\r\nX-Id: %d\r\n\r\n", path, id)
		n, sum = 0, 0
	case k == 2: // chunked, with a trailer
		q.method = "POST"
		fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: x\r\nX-Id: %d\r\nTransfer-Encoding: chunked\r\nTrailer: X-T\r\n\r\n", path, id)
		for rest := body; len(rest) > 0; {
			m := min(len(rest), 1+rnd.IntN(5000))
			fmt.Fprintf(&b, "%x\r\n%s\r\n", m, rest[:m])
			rest = rest[m:]
		}
		trailer = "t" + strconv.Itoa(id)
		b.WriteString("0\r\nX-T: " + trailer + "\r\n\r\n")
	case k == 3:
		q.method = "POST"
		fmt.Fprintf(&b, "POST %s HTTP/1.0\r\nConnection: keep-alive\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n%s", path, id, n, body)
		if path == "/flush" { // an answer of unknown length would end the connection
			b.Reset()
			path = "/"
			fmt.Fprintf(&b, "POST %s HTTP/1.0\r\nConnection: keep-alive\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n%s", path, id, n, body)
		}
	default:
		q.method = "POST"
		fmt.Fprintf(&b, "POST %s HTTP/1.1\r\nHost: x\r\nX-Id: %d\r\nContent-Length: %d\r\n\r\n%s", path, id, n, body)
	}
	if path == "/unread" {
		n, sum, trailer = -1, 0, ""
	}
	q.want = fmt.Sprintf("%s %s %d %d %08x %s", q.method, path, id, n, sum, trailer)
	q.wire = b.Bytes()
	return q
}

func spin(d time.Duration) {
	for t := time.Now(); time.Since(t) < d; {
	}
}

// TestStressOfMoving has connections leave and come back all the time, while clients
// send at every moment. STRESS=1m makes it longer.
func TestStressOfMoving(t *testing.T) {
	d := 2 * time.Second
	if s := os.Getenv("STRESS"); s != "" {
		var err error
		d, err = time.ParseDuration(s)
		require.NoError(t, err)
	}
	for _, network := range []string{"tcp", "unix"} {
		for _, h2c := range []bool{false, true} {
			t.Run(fmt.Sprint(network, " h2c ", h2c), func(t *testing.T) { stress(t, network, h2c, d) })
		}
	}
}

func stress(t *testing.T, network string, h2c bool, d time.Duration) {
	c := newChain(t)
	p := c.start("one")
	address := "127.0.0.1:0"
	if network == "unix" {
		address = c.socket + ".web"
	}
	ln, err := p.ListenSocket(c.ctx, Socket{Name: "web", Network: network, Address: address})
	require.NoError(t, err)
	handler := &stressHandler{}
	var logged bytes.Buffer
	srv := &http.Server{Handler: handler, Protocols: new(http.Protocols), ErrorLog: log.New(&logged, "", 0), IdleTimeout: time.Minute, ReadHeaderTimeout: time.Minute}
	srv.Protocols.SetHTTP1(true)
	srv.Protocols.SetUnencryptedHTTP2(h2c)
	h := NewHTTPServer(p, srv)
	served := make(chan error, 1)
	go func() { served <- h.Serve(ln) }()
	c.ready(p)
	stressID.Store(0)

	stop := make(chan struct{})
	var work, mover sync.WaitGroup
	var requests, moves atomic.Int64
	k := newCarrier(time.Now().Add(time.Hour))
	h.drain.moveBy(k)
	mover.Go(func() {
		rnd := rand.New(rand.NewPCG(1, 2))
		back := func(all []*movedConn) {
			for _, m := range all {
				moves.Add(1)
				m.adopt()
				m.from.drain.arrived()
			}
		}
		for !isClosed(stop) {
			n := 1 + rnd.IntN(64)
			k.open(n)
			h.drain.sweep(k)
			for range rnd.IntN(3) {
				time.Sleep(time.Duration(rnd.IntN(200)) * time.Microsecond)
				b := k.take()
				back(b)
				if k.arrived(len(b)) {
					h.drain.sweep(k)
				}
			}
			spin(time.Duration(rnd.IntN(50)) * time.Microsecond)
			back(k.close(n))
			if rnd.IntN(4) == 0 {
				time.Sleep(time.Duration(rnd.IntN(1000)) * time.Microsecond)
			}
		}
		back(k.end())
	})
	for i := range 24 {
		work.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(i), 7))
			nc, err := net.Dial(network, ln.Addr().String())
			if err != nil {
				t.Error(err)
				return
			}
			defer nc.Close()
			r := bufio.NewReader(nc)
			for !isClosed(stop) {
				var wire []byte
				var all []stressRequest
				n := 1
				if rnd.IntN(3) == 0 {
					n += rnd.IntN(4)
				}
				for range n {
					size := 0
					if rnd.IntN(4) == 0 {
						size = []int{4093, 4094, 4095, 4096, 4097, 4100, 8192, 1365 + 100, 2048}[rnd.IntN(9)]
					}
					q := newStressRequest(rnd, size)
					all = append(all, q)
					wire = append(wire, q.wire...)
				}
				mode := rnd.IntN(4)
				nc.SetDeadline(time.Now().Add(20 * time.Second))
				sent := make(chan error, 1)
				go func(mode int, rnd *rand.Rand) {
					var err error
					for len(wire) > 0 && err == nil {
						m := len(wire)
						switch mode {
						case 0:
						case 1:
							m = 1 + rnd.IntN(len(wire))
						case 2:
							m = min(len(wire), 1+rnd.IntN(8))
							if rnd.IntN(20) == 0 {
								m = len(wire)
							}
						case 3:
							m = min(len(wire), 1+rnd.IntN(4096))
						}
						_, err = nc.Write(wire[:m])
						wire = wire[m:]
						if rnd.IntN(2) == 0 {
							spin(time.Duration(rnd.IntN(60)) * time.Microsecond)
						} else if rnd.IntN(8) == 0 {
							time.Sleep(time.Duration(rnd.IntN(500)) * time.Microsecond)
						}
					}
					sent <- err
				}(mode, rand.New(rand.NewPCG(rnd.Uint64(), 3)))
				for _, q := range all {
					resp, err := http.ReadResponse(r, &http.Request{Method: q.method})
					if err != nil {
						t.Errorf("client %d, request %d %q: %v", i, q.id, q.want, err)
						return
					}
					b, err := io.ReadAll(resp.Body)
					want := q.want
					if q.method == "HEAD" {
						want = ""
					}
					if err != nil || resp.StatusCode != 200 || string(b) != want || resp.Close {
						t.Errorf("client %d, request %d: %v %d %q, want %q, close %v", i, q.id, err, resp.StatusCode, b, want, resp.Close)
						return
					}
					requests.Add(1)
				}
				if err := <-sent; err != nil {
					t.Errorf("client %d: %v", i, err)
					return
				}
				if rnd.IntN(3) > 0 {
					spin(time.Duration(rnd.IntN(100)) * time.Microsecond)
				}
			}
		})
	}
	select {
	case <-time.After(d):
	case <-c.ctx.Done():
	}
	close(stop)
	work.Wait()
	mover.Wait()
	for id := range handler.seen {
		if n := handler.seen[id].Load(); n > 1 {
			t.Errorf("request %d was answered %d times", id, n)
		}
	}
	t.Logf("%d requests, %d moves, log: %.2000s", requests.Load(), moves.Load(), logged.String())
	c.until("nothing is open", func() bool { return len(h.drain.open()) == 0 })
	p.Close()
	require.NoError(t, <-served)
}
