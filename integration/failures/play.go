package main

import (
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// play runs one cell from beginning to end.
func (m *matrix) play(ctx context.Context, c cell) *result {
	begin := time.Now()
	r := &result{cell: c}
	t, err := newTrial(c, m.bin)
	if err != nil {
		r.fail("%v", err)
		return r
	}
	defer func() {
		t.end()
		if len(r.failures) > 0 {
			r.logs = tails(t.logs)
		}
		if m.keep {
			r.dir = t.dir
		} else {
			t.forget()
		}
		r.took = time.Since(begin)
	}()
	ctx, cancel := context.WithTimeout(ctx, 8*patience)
	defer cancel()
	if err := t.play(ctx, r, m.quiet); err != nil {
		r.fail("%v", err)
	}
	return r
}

func within(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, d)
}

func (t *trial) play(ctx context.Context, r *result, quiet baseline) error {
	release, err := t.reserve()
	if err != nil {
		return err
	}
	defer release()
	if err := t.toStep(ctx); err != nil {
		return err
	}
	blow, err := t.strike(ctx)
	if err != nil {
		return err
	}
	r.held = blow.at.Sub(blow.halted)
	end := t.settle(ctx, r, blow)
	rep := t.run.Stop()
	t.judge(r, rep, blow, end)
	t.descriptors(ctx, r, quiet, end)
	t.next(ctx, r, end)
	return nil
}

// toStep brings the handoff to the cell's step, under load.
func (t *trial) toStep(ctx context.Context) error {
	load := ctx
	ctx, cancel := within(ctx, patience)
	defer cancel()
	if err := t.startFirst(ctx); err != nil {
		return err
	}
	if err := t.startLoad(load); err != nil {
		return err
	}
	if err := t.begin(ctx); err != nil {
		return err
	}
	return t.reach(ctx)
}

// blow is a fault that was applied.
type blow struct {
	halted time.Time // the step was seen to be reached
	at     time.Time // the fault
	deaths []death
	woke   time.Time // SIGCONT, of a victim that was stopped
}

// generations are the numbers that the servers have before the fault.
var generations = map[party]uint64{incumbent: 1, successor: 2}

// strike applies the fault. Every victim is stopped before, so that what it has accepted is known; meanwhile clients
// come, and wait in the queues.
func (t *trial) strike(ctx context.Context) (blow, error) {
	b := blow{halted: time.Now()}
	ctx, cancel := within(ctx, patience)
	defer cancel()
	// Whoever runs does first what it still can.
	if err := t.moreSent(ctx); err != nil {
		return b, err
	}
	if t.step.toolEnds && !t.hits(tool) {
		if _, err := t.ctl.Wait(ctx); err != nil {
			return b, err
		}
	}
	for _, v := range t.victims {
		if v != t.step.halt {
			if err := t.kill(v, syscall.SIGSTOP); err != nil {
				return b, err
			}
		}
		if err := t.seeStopped(ctx, v); err != nil {
			return b, err
		}
	}
	stopped := time.Now()
	if err := t.moreSent(ctx); err != nil {
		return b, err
	}
	b.at = time.Now()
	if t.fault == faultKill {
		for _, v := range t.victims {
			if v != tool {
				b.deaths = append(b.deaths, death{generation: generations[v], stopped: stopped, killed: b.at})
			}
			if err := t.kill(v, syscall.SIGKILL); err != nil {
				return b, err
			}
		}
	}
	if t.fault == faultKill {
		// SIGKILL takes a moment; what is behind the last word of a dead process is its end.
		for _, v := range t.victims {
			if p := t.of(v); p != nil {
				if err := until(ctx, fmt.Sprintf("the %s dies", v), p.ended); err != nil {
					return b, err
				}
			}
		}
	}
	if h := t.step.halt; h != "" && !t.hits(h) {
		if err := t.kill(h, syscall.SIGCONT); err != nil {
			return b, err
		}
	}
	if t.fault == faultStop {
		timer := time.NewTimer(time.Until(b.at.Add(stopFor)))
		defer timer.Stop()
		<-timer.C
		b.woke = time.Now()
		for _, v := range t.victims {
			if err := t.kill(v, syscall.SIGCONT); err != nil {
				return b, err
			}
		}
	}
	return b, nil
}

// moreSent waits until ten more requests were sent.
func (t *trial) moreSent(ctx context.Context) error {
	sent := t.run.Counts().Sent
	return t.run.Wait(ctx, func(c load.Counts) bool { return c.Sent >= sent+10 })
}

// ending is who is left when everything has come to rest.
type ending struct {
	label  string      // of who serves, "" for nobody
	status proc.Status // when it was seen
	since  time.Time   // nobody else has answered since
}

// standsBy says that the second server may be a standby in the end: it was asked to be one.
func (t *trial) standsBy(s proc.Status) bool {
	return (t.step.way == wayStandby || t.step.way == wayHandover) && !t.kills(successor) && s.In("standby").Label == "v2"
}

// settle waits until one generation is left, and the tool has ended, and writes down how.
func (t *trial) settle(ctx context.Context, r *result, b blow) (e ending) {
	outcome := ""
	if t.nobody() {
		outcome = "nobody"
	} else {
		var err error
		e.status, err = t.rest(ctx, func(s proc.Status) bool {
			left := 1
			if t.standsBy(s) {
				left = 2
			}
			// A standby that stands in for a silent incumbent knows nothing new of it.
			return s.Serving().Generation == s.Generation && len(s.Generations) == left
		})
		if err != nil {
			r.fail("no single generation serves: %v", err)
		}
		e.label = e.status.Serving().Label
		switch e.label {
		case "v1":
			outcome = "1 serves"
		case "v2":
			outcome = "2 serves"
		default:
			outcome = "nobody serves"
		}
	}
	for _, end := range []string{t.endOf(ctx, r, incumbent, "1", "v1", e), t.endOf(ctx, r, successor, "2", "v2", e), t.toolsEnd(ctx, r)} {
		if end != "" {
			outcome += ", " + end
		}
	}
	r.outcome = outcome
	e.since = time.Now()
	if e.label != "" {
		if err := t.newAnswers(ctx, e.since, 10); err != nil {
			r.fail("it does not answer any more: %v", err)
		}
	}
	return e
}

// newAnswers waits until n connections begun after since were answered: by one generation alone, as judge sees.
func (t *trial) newAnswers(ctx context.Context, since time.Time, n int) error {
	ctx, cancel := within(ctx, t.patience)
	defer cancel()
	for len(t.run.Report().Answers(since, time.Time{}, load.NewConn)) < n {
		if err := t.run.Wait(ctx, t.run.More(5)); err != nil {
			return err
		}
	}
	return nil
}

// rest waits for a status.
func (t *trial) rest(ctx context.Context, match func(proc.Status) bool) (proc.Status, error) {
	ctx, cancel := within(ctx, t.patience)
	defer cancel()
	return proc.WaitStatus(ctx, t.socket, match)
}

// endOf says how a server ended that does not serve.
func (t *trial) endOf(ctx context.Context, r *result, p party, number, label string, e ending) string {
	switch {
	case e.label == label:
		return ""
	case t.kills(p):
		return number + " killed"
	case t.standsBy(e.status) && p == successor:
		return number + " stands by"
	}
	ctx, cancel := within(ctx, t.patience)
	defer cancel()
	v := t.of(p)
	if err := until(ctx, fmt.Sprintf("the %s ends", p), v.ended); err != nil {
		r.fail("%v", err)
		return number + " stays"
	}
	if p == incumbent {
		code, err := t.first.Wait(ctx)
		if err != nil {
			r.fail("%v", err)
		}
		return fmt.Sprintf("%s ended (%d)", number, code)
	}
	log := filepath.Join(t.dir, label+".log")
	code, ok := exitCode(log)
	switch {
	case served(log):
		return fmt.Sprintf("%s ended (%d)", number, code)
	case ok && code != 0 && code != 1 && code != 7:
		r.fail("the successor, which never served, ended with %d", code)
	}
	// Of its incumbent's word, the end of the link and handoffctl's SIGTERM it obeys whichever it reads first.
	return number + " never served"
}

// toolsEnd says how handoffctl ended.
func (t *trial) toolsEnd(ctx context.Context, r *result) string {
	switch {
	case t.step.way == wayStandby:
		return ""
	case t.kills(tool):
		return t.ctl.Name + " killed"
	}
	ctx, cancel := within(ctx, t.patience)
	defer cancel()
	code, err := t.ctl.Wait(ctx)
	if err != nil {
		r.fail("%v", err)
		return t.ctl.Name + " stays"
	}
	return fmt.Sprintf("%s %d", t.ctl.Name, code)
}

// judge compares what clients saw with what they may see.
func (t *trial) judge(r *result, rep load.Report, b blow, e ending) {
	r.toll = count(rep, b.deaths)
	if !t.mayLose() && r.toll.lost() > 0 {
		r.fail("lost %d on new connections and %d on those of who lives, the first: %s", r.toll.fresh, r.toll.kept, r.toll.first)
	}
	if t.nobody() {
		return // the next start is what counts
	}
	took, ok := recovery(rep, b.at)
	if !ok {
		r.fail("no connection begun after the fault was answered")
		return
	}
	if r.recovery = took; took > t.bound() {
		r.fail("recovery took %v, at most %v is allowed", took, t.bound())
	}
	for g, n := range rep.Generations {
		if g == e.status.Serving().Generation || n == 0 {
			continue
		}
		if n := answeredBy(rep, g, e.since); n > 0 && e.label != "" {
			r.fail("generation %d answered %d new connections after %s was left alone", g, n, e.label)
		}
	}
	if at := revokedAt(filepath.Join(t.dir, "v2.log")); !at.IsZero() {
		// What was in its hands when it read the word is answered yet.
		if n := answeredBy(rep, generations[successor], at.Add(50*time.Millisecond)); n > 0 {
			r.fail("the successor answered %d new connections begun after it knew that it was revoked", n)
		}
	}
}

// bound is how long clients may wait for an answer on a new connection after the fault.
func (t *trial) bound() time.Duration {
	const slack = time.Second
	switch {
	case t.fault == faultKill:
		return slack
	case t.hits(incumbent):
		return stopFor + slack // it may be the one that serves
	case t.hits(successor) && t.step.stage >= said:
		return stopFor + slack // it serves alone: clients wait for it
	case t.hits(successor) && t.step.probed:
		return 3*heartbeat + slack
	case t.hits(successor):
		return stepTimeout + slack
	}
	return slack
}

// baseline is how many descriptors a server has open that no client knows: one that began the chain, and one that took
// over.
type baseline struct{ began, tookOver int }

// descriptors wants no more of them than a server has that never met a fault, now that the clients have gone.
func (t *trial) descriptors(ctx context.Context, r *result, quiet baseline, e ending) {
	if e.label == "" || quiet == (baseline{}) {
		return
	}
	most := quiet.tookOver
	if e.status.Serving().Generation == 1 {
		most = quiet.began
	}
	if t.standsBy(e.status) {
		most += 2 // the link to the standby, and its pidfd
	}
	ctx, cancel := within(ctx, patience/3)
	defer cancel()
	if err := t.stir(ctx); err != nil {
		r.fail("%v", err)
	}
	pid, n := e.status.Serving().PID, 0
	if until(ctx, "", func() bool {
		var err error
		n, err = proc.Descriptors(pid)
		return err == nil && n <= most
	}) != nil {
		r.fail("%s has %d descriptors open, one that met no fault has %d: %s", e.label, n, most, openFiles(pid))
	}
}

// stir asks for a rollback, which must change nothing now. A question that waits for a change of the status is answered
// thereby, and the connection of one who has gone meanwhile (a killed handoffctl) found out: it is no leak.
func (t *trial) stir(ctx context.Context) error {
	conn, err := (&net.Dialer{}).DialContext(ctx, "unixpacket", t.socket)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience / 3)); err != nil {
		return err
	}
	if _, err := conn.Write([]byte(`{"type":"rollback"}`)); err != nil {
		return err
	}
	answer := make([]byte, 4096)
	n, err := conn.Read(answer)
	if err == nil && !strings.Contains(string(answer[:n]), `"not_now"`) && !strings.Contains(string(answer[:n]), `"already":true`) {
		err = fmt.Errorf("a rollback after the end is answered %s", answer[:n])
	}
	return err
}

// openFiles lists what a process has open.
func openFiles(pid int) string {
	links, err := filepath.Glob(fmt.Sprintf("/proc/%d/fd/*", pid))
	if err != nil {
		return err.Error()
	}
	var names []string
	for _, link := range links {
		if name, err := os.Readlink(link); err == nil {
			names = append(names, filepath.Base(link)+" "+name+socketLine(name))
		}
	}
	return strings.Join(names, ", ")
}

// socketLine is what the kernel's tables say of a socket.
func socketLine(link string) string {
	inode, ok := strings.CutPrefix(link, "socket:[")
	if !ok {
		return ""
	}
	inode = strings.TrimSuffix(inode, "]")
	for _, table := range []string{"tcp", "unix"} {
		b, err := os.ReadFile("/proc/net/" + table)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(b)) {
			if slices.Contains(strings.Fields(line), inode) {
				return " (" + table + " " + strings.Join(strings.Fields(line), " ") + ")"
			}
		}
	}
	return ""
}

// next wants that the next handoff works: what is left of this one is in nobody's way.
func (t *trial) next(ctx context.Context, r *result, e ending) {
	ctx, cancel := within(ctx, t.patience)
	defer cancel()
	want := "v3"
	var err error
	if e.label == "v1" && t.standsBy(e.status) {
		want = "v2"
		err = t.handoffctl("next", "handover", "--timeout", "10s", "--wait=committed")
	} else {
		args := append([]string{"upgrade", "--timeout", "10s", "--wait=committed", "--log", t.log("v3"), "--", t.bin.Server}, t.serverArgs("v3")...)
		err = t.after("next", args...)
	}
	if err != nil {
		r.fail("the next handoff: %v", err)
		return
	}
	code, err := t.ctl.Wait(ctx)
	if err != nil || code != 0 {
		r.fail("the next handoff: handoffctl ended with %d (%v)", code, err)
	}
	s, err := proc.WaitStatus(ctx, t.socket, func(s proc.Status) bool { return s.Serving().Label == want })
	if err != nil {
		r.fail("the next handoff: %s does not serve: %v", want, err)
		return
	}
	run, err := load.Start(ctx, load.Config{Timeout: patience / 3, Streams: []load.Stream{{Kind: load.NewConn, Address: t.address(), Rate: 200}}})
	if err != nil {
		r.fail("the next handoff: %v", err)
		return
	}
	err = run.Wait(ctx, load.Answers(s.Serving().Generation, 10))
	if rep := run.Stop(); err != nil || rep.Lost > 0 || len(rep.Generations) != 1 {
		r.fail("the next handoff: %s should answer alone (%v):\n%s", want, err, rep)
	}
}

// after starts the tool for what comes after the cell: nothing halts any more.
func (t *trial) after(name string, args ...string) (err error) {
	t.ctl.End()
	t.ctl, err = proc.Start(proc.Spec{
		Name: name, Path: t.bin.Handoffctl, Args: append([]string{"--socket", t.socket}, args...),
		Env: []string{"FAULTS_HALT=", "FAULTS_WITHOUT=" + t.without}, Log: t.log(name),
	})
	return err
}
