package main

import (
	"cmp"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/fdhandoff/handoff/handoff"
)

// fake answers operators as an incumbent does, and admits successors that say
// test_hello. Its frames are written down here by hand, so that a change of the
// client's is noticed.
type fake struct {
	ln      *net.UnixListener
	wg      sync.WaitGroup
	stopped chan struct{} // closed when it accepts no more

	mu      sync.Mutex
	changed chan struct{} // closed at the next change
	conns   map[*net.UnixConn]bool
	closed  bool                     // it has ended, and so has what it accepts yet
	links   map[string]*net.UnixConn // successors by request
	verbs   []string
	st      handoff.Status
	script  script
	silent  bool
	polling int // long polls that are held back

	asksToGo int // until it commits: see script.committing
}

// script is how a fake treats a successor.
type script struct {
	upTo       string // how far it gets, if nobody helps: starting, standby, committed, released, drained
	then       string // failed or rolled_back: what becomes of it then
	atEnd      string // its outcome when its link ends; "" removes it as a death does
	lateCommit bool   // a withdraw comes too late
	committing bool   // a withdraw comes while it is being committed: that is in the status with the third question from then on
	cut        map[string]int
	drains     []handoff.GenerationStatus // what it tells of itself while it ends
	hangs      bool                       // it never ends then
	probation  float64                    // seconds of it, when it tells of a commit; it is a test that ends it
	noRollback bool                       // it is released when a rollback comes
	standsIn   bool                       // it answers for a silent incumbent
}

type fakeFrame struct {
	Type    string `json:"type"`
	Request string `json:"request"`
	Mode    string `json:"mode"`
	PID     int    `json:"pid"`
	Of      uint64 `json:"generation"`
	WaitMS  int    `json:"wait_ms"`
	Offset  int    `json:"offset"`
	After   *struct {
		Instance string `json:"instance"`
		Revision uint64 `json:"revision"`
	} `json:"after"`
}

func startFake(path string, first handoff.GenerationStatus, sc script) (*fake, error) {
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	if err != nil {
		return nil, err
	}
	f := &fake{
		ln: ln, stopped: make(chan struct{}), changed: make(chan struct{}), conns: map[*net.UnixConn]bool{}, links: map[string]*net.UnixConn{}, script: sc,
		st: handoff.Status{
			Schema: 1, Socket: path, Instance: rand.Text(), Revision: 1,
			Generation: first.Generation, PID: first.PID, Generations: []handoff.GenerationStatus{first},
		},
	}
	f.wg.Go(f.accept)
	return f, nil
}

func (f *fake) accept() {
	defer close(f.stopped)
	for {
		c, err := f.ln.AcceptUnix()
		if err != nil {
			return
		}
		f.mu.Lock()
		f.conns[c] = true
		if f.closed {
			c.Close()
		}
		f.mu.Unlock()
		f.wg.Go(func() { f.serve(c) })
	}
}

// close ends the fake as a process ends, and joins all that it started.
func (f *fake) close() {
	f.ln.Close()
	f.mu.Lock()
	f.closed = true
	for c := range f.conns {
		c.Close()
	}
	close(f.changed)
	f.changed = make(chan struct{})
	f.mu.Unlock()
	f.wg.Wait()
}

// update changes the status and wakes whoever watches it.
func (f *fake) update(change func(st *handoff.Status)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.change(change)
}

func (f *fake) change(change func(st *handoff.Status)) {
	change(&f.st)
	f.st.Revision++
	f.polling = 0
	close(f.changed)
	f.changed = make(chan struct{})
}

func (f *fake) asked() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]string(nil), f.verbs...)
}

// polled says that somebody waits for a change of what is so now.
func (f *fake) polled() bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.polling > 0
}

func (f *fake) serve(c *net.UnixConn) {
	link := ""
	defer func() {
		c.Close()
		f.mu.Lock()
		defer f.mu.Unlock()
		delete(f.conns, c)
		if link != "" {
			f.linkEnded(link)
		}
	}()
	b := make([]byte, 64<<10)
	for {
		n, err := c.Read(b)
		if err != nil {
			return
		}
		var q fakeFrame
		if err := json.Unmarshal(b[:n], &q); err != nil {
			return
		}
		f.mu.Lock()
		if q.Type == "test_hello" {
			link = q.Request
			f.links[link] = c
		}
		silent := f.silent
		answer := f.answer(q)
		reply, err := json.Marshal(answer)
		f.mu.Unlock()
		if answer == nil || silent {
			continue
		}
		if err != nil {
			return
		}
		if _, err := c.Write(reply); err != nil {
			return
		}
		if ends(answer) {
			f.ln.Close()
			f.end(c) // the process ends, and its connections with it
			return
		}
	}
}

// ends says that answer is the one after which the process ends.
func ends(answer any) bool {
	ok, _ := answer.(map[string]any)
	return ok["type"] == "ok" && ok["ends"] != nil
}

// end tells c of each step of its end, one for each question, and then what was cut.
func (f *fake) end(c *net.UnixConn) {
	b := make([]byte, 64<<10)
	for _, g := range f.script.drains {
		if _, err := c.Read(b); err != nil {
			return
		}
		f.mu.Lock()
		f.st.Revision++
		f.st.Generations = []handoff.GenerationStatus{g}
		reply, err := json.Marshal(map[string]any{"type": "status", "status": f.st})
		f.mu.Unlock()
		if err != nil {
			return
		}
		if _, err := c.Write(reply); err != nil {
			return
		}
	}
	for f.script.hangs {
		if _, err := c.Read(b); err != nil {
			return
		}
	}
	bye, _ := json.Marshal(map[string]any{"type": "bye", "cut": f.script.cut})
	_, _ = c.Write(bye)
}

func no(code, text, hint string) map[string]any {
	return map[string]any{"type": "error", "code": code, "text": text, "hint": hint}
}

func (f *fake) answer(q fakeFrame) any {
	if q.Type != "status" && q.Type != "list_sockets" {
		verb := q.Type + " " + q.Request
		if q.Of != 0 {
			verb += fmt.Sprint(q.Of)
		}
		f.verbs = append(f.verbs, verb)
		if f.script.standsIn && q.Type != "test_hello" {
			return no("silent", "generation 1 (pid 11), which decides, is alive but silent", "look at that process")
		}
	}
	switch q.Type {
	case "status":
		f.await(q)
		f.asksToGo--
		if f.asksToGo == 0 {
			f.script.upTo = "committed"
			f.commit("deploy")
		}
		f.st.Time = time.Now()
		return map[string]any{"type": "status", "status": f.st}
	case "list_sockets":
		page := []handoff.SocketInfo{{Index: q.Offset, Name: fmt.Sprintf("s%d", q.Offset), Network: "tcp", Address: "127.0.0.1:80", State: "fresh"}}
		return map[string]any{"type": "socket_list", "total": 3, "offset": q.Offset, "list": page}
	case "handover":
		return f.handover(q.Request)
	case "withdraw":
		return f.withdraw(q.Request)
	case "rollback":
		if f.script.noRollback {
			f.endProbation()
		}
		for i, g := range f.st.Generations {
			if g.State == "parked" {
				f.change(func(st *handoff.Status) {
					if r := st.Generations[i+1].Request; r != "" {
						f.setOutcome(r, "rolled_back", "rollback")
					}
					st.Generations[i].State, st.Generations = "serving", st.Generations[:i+1]
				})
				return map[string]any{"type": "ok", "generation": g.Generation}
			}
		}
		return no("not_now", "nothing can be taken back", "")
	case "stop", "drain":
		return f.stop(q)
	case "test_hello":
		if refused := f.hello(q); refused != nil {
			return refused
		}
		return map[string]any{"type": "welcome"}
	}
	return no("unknown_type", "unknown type", "")
}

// stop ends the fake, or has another generation end.
func (f *fake) stop(q fakeFrame) any {
	own := q.Of == 0 || q.Of == f.st.Generation
	for i, g := range f.st.Generations {
		switch {
		case g.State == "parked" && (own || g.Generation != q.Of):
			return no("not_now", fmt.Sprintf("generation %d serves in probation", g.Generation+1), "handoffctl rollback takes back")
		case !own && g.Generation == q.Of:
			if !f.script.hangs {
				f.change(func(st *handoff.Status) {
					st.Generations = append(st.Generations[:i:i], st.Generations[i+1:]...)
					st.Last = &handoff.HandoffStatus{From: q.Of, To: q.Of + 1, Outcome: "released", Cut: f.script.cut}
				})
			}
			return map[string]any{"type": "ok", "generation": q.Of}
		}
	}
	return map[string]any{"type": "ok", "generation": f.st.Generation, "ends": true}
}

// await holds a long poll back.
func (f *fake) await(q fakeFrame) {
	late := time.NewTimer(time.Duration(q.WaitMS) * time.Millisecond)
	defer late.Stop()
	for q.After != nil && !f.closed && q.After.Instance == f.st.Instance && q.After.Revision == f.st.Revision {
		changed := f.changed
		f.polling++
		f.mu.Unlock()
		select {
		case <-changed:
			f.mu.Lock()
			if f.st.Revision == q.After.Revision {
				return // the end
			}
		case <-late.C:
			f.mu.Lock()
			f.polling = max(0, f.polling-1)
			return
		}
	}
}

func (f *fake) find(request string) *handoff.GenerationStatus {
	for i, g := range f.st.Generations {
		if g.Request == request {
			return &f.st.Generations[i]
		}
	}
	return nil
}

func (f *fake) setOutcome(request, outcome, reason string) {
	r := handoff.RequestStatus{ID: request, Outcome: outcome, Reason: reason, Time: time.Now()}
	if g := f.find(request); g != nil {
		r.Generation = g.Generation
	}
	for i := range f.st.Requests {
		if f.st.Requests[i].ID == request {
			r.Generation = max(r.Generation, f.st.Requests[i].Generation)
			f.st.Requests[i] = r
			return
		}
	}
	f.st.Requests = append(f.st.Requests, r)
}

func (f *fake) hello(q fakeFrame) any {
	for _, r := range f.st.Requests {
		if r.ID == q.Request && r.Outcome == "withdrawn" {
			return map[string]any{"type": "refuse"}
		}
	}
	last := f.st.Generations[len(f.st.Generations)-1]
	f.change(func(st *handoff.Status) {
		st.Generations = append(st.Generations, handoff.GenerationStatus{
			Generation: last.Generation + 1, State: "starting", Takeover: q.Mode, PID: q.PID, Request: q.Request,
		})
	})
	f.setOutcome(q.Request, "starting", "")
	if f.script.upTo == "starting" {
		return f.finish(q.Request)
	}
	f.change(func(*handoff.Status) { f.find(q.Request).State = "standby"; f.setOutcome(q.Request, "standby", "") })
	if q.Mode != "auto" || f.script.upTo == "standby" {
		return f.finish(q.Request)
	}
	return f.commit(q.Request)
}

func (f *fake) commit(request string) any {
	g := f.find(request)
	step := func(elder, outcome string) {
		f.change(func(st *handoff.Status) {
			g.State = "serving"
			for i := range st.Generations {
				if o := &st.Generations[i]; o.Generation < g.Generation {
					o.State, o.LeftSeconds = elder, 0
					if elder == "parked" {
						o.LeftSeconds = f.script.probation
					}
				}
			}
			f.setOutcome(request, outcome, "")
		})
	}
	step("parked", "committed")
	if f.script.upTo == "committed" {
		return f.finish(request)
	}
	step("draining", "released")
	if f.script.upTo == "released" {
		return f.finish(request)
	}
	f.change(func(st *handoff.Status) {
		st.Last = &handoff.HandoffStatus{From: g.Generation - 1, To: g.Generation, Outcome: "released", Time: time.Now(), Cut: f.script.cut}
		st.Generations = []handoff.GenerationStatus{*g}
	})
	return f.finish(request)
}

// release ends a probation.
func (f *fake) release() {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.endProbation()
}

func (f *fake) endProbation() {
	f.change(func(st *handoff.Status) {
		for i, g := range st.Generations {
			if g.State == "parked" {
				st.Generations[i].State, st.Generations[i].LeftSeconds = "draining", 0
				f.setOutcome(st.Generations[i+1].Request, "released", "")
			}
		}
	})
}

// finish is the bad end of a script, if it has one.
func (f *fake) finish(request string) any {
	if f.script.then == "" {
		return nil
	}
	f.change(func(st *handoff.Status) {
		f.setOutcome(request, f.script.then, "checks")
		st.Generations = st.Generations[:1]
		st.Generations[0].State = "serving"
	})
	return nil
}

func (f *fake) linkEnded(request string) {
	if f.script.atEnd == "" || f.find(request) == nil {
		return
	}
	f.change(func(st *handoff.Status) {
		f.setOutcome(request, f.script.atEnd, "died")
		if f.script.atEnd == "rolled_back" {
			st.Generations = st.Generations[:1]
			st.Generations[0].State = "serving"
		}
	})
}

func (f *fake) handover(request string) any {
	for _, g := range f.st.Generations {
		if g.State == "standby" && g.Takeover == "standby" {
			if request == "" {
				request = g.Request
			}
			f.find(g.Request).Request = request
			f.setOutcome(request, "standby", "")
			f.commit(request)
			return map[string]any{"type": "ok", "generation": g.Generation, "request": request}
		}
	}
	return no("no_standby", "no standby waits", "")
}

func (f *fake) withdraw(request string) any {
	g := f.find(request)
	if g != nil && f.script.lateCommit {
		f.script.upTo = "committed"
		f.commit(request)
	}
	if g != nil && f.script.committing {
		f.asksToGo = 3
		return no("not_now", "it is committed already", "handoffctl rollback takes back")
	}
	if g != nil && g.State != "starting" && g.State != "standby" {
		return no("not_now", "it is committed already", "handoffctl rollback takes back")
	}
	f.change(func(st *handoff.Status) {
		f.setOutcome(request, "withdrawn", "withdrawn")
		if g != nil {
			st.Generations = st.Generations[:len(st.Generations)-1]
		}
	})
	return map[string]any{"type": "ok", "request": request}
}

// fakeServer is CMD in the tests: it takes over from the fake at HANDOFF_SOCKET
// or, where nobody is, becomes one. Arguments: the mode, of which HANDOFF_TAKEOVER
// overrides auto but not always-auto, and what to do after
// it was welcomed: "stay" or "die" (exit 3).
func fakeServer() {
	socket, request := os.Getenv("HANDOFF_SOCKET"), os.Getenv("HANDOFF_REQUEST")
	stdin, _ := os.Readlink("/proc/self/fd/0")
	_, inherited := syscall.Dup(9)
	sid, _, _ := syscall.Syscall(syscall.SYS_GETSID, 0, 0, 0)
	fmt.Printf("stdin=%s leader=%t nine=%v request=%s\n", stdin, int(sid) == os.Getpid(), inherited, request)
	mode := os.Args[1]
	if mode == "auto" {
		mode = cmp.Or(os.Getenv("HANDOFF_TAKEOVER"), mode)
	}
	c, err := net.DialUnix("unixpacket", nil, &net.UnixAddr{Name: socket, Net: "unixpacket"})
	if errors.Is(err, os.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED) {
		first := handoff.GenerationStatus{Generation: 1, State: "serving", PID: os.Getpid(), Request: request}
		f, err := startFake(socket, first, script{upTo: "drained"})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		f.update(func(*handoff.Status) { f.setOutcome(request, "serving", "") })
		<-f.stopped
		f.close() // which ends its successors too
		return
	}
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	hello, _ := json.Marshal(map[string]any{"type": "test_hello", "request": request, "mode": strings.TrimPrefix(mode, "always-"), "pid": os.Getpid()})
	if _, err := c.Write(hello); err != nil {
		os.Exit(1)
	}
	b := make([]byte, 1000)
	if n, err := c.Read(b); err != nil || !strings.Contains(string(b[:n]), "welcome") {
		fmt.Println("refused")
		os.Exit(1)
	}
	if os.Args[2] == "die" {
		fmt.Println("panic: no\x1b[31m configuration")
		os.Exit(3)
	}
	_, _ = c.Read(b) // until the fake ends
}
