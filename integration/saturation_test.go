package integration

import (
	"context"
	"crypto/sha256"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/handoff"
	"github.com/fdhandoff/handoff/integration/load"
	"github.com/fdhandoff/handoff/integration/proc"
)

// saturatedEnv makes the test binary a web server of which requests can keep every core busy. Its value is the
// listener's address; how it takes over is its argument.
const saturatedEnv = "HANDOFF_TEST_SATURATED"

// saturatedProbation has room for a silence of three heartbeats, which would be taken for a hang.
const saturatedProbation = 5 * time.Second

// runSaturated serves until it has handed over or is told to stop. But for the probation and the drain, which must be
// long enough for the test, every deadline is the default.
func runSaturated(addr string) int {
	takeover, err := handoff.ParseTakeover(os.Args[1])
	if err == nil {
		err = serveSaturated(addr, takeover)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	return 0
}

func serveSaturated(addr string, takeover handoff.Takeover) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	p, err := handoff.Start(ctx, handoff.Config{
		Takeover: takeover, Probation: saturatedProbation, DrainTimeout: 5 * time.Minute,
		Logger: slog.New(slog.NewJSONHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	defer p.Close()
	defer context.AfterFunc(ctx, p.Stop)()
	ln, err := p.Listen(ctx, "tcp", addr)
	if err != nil {
		return err
	}
	mux := http.NewServeMux()
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Handoff-Generation", strconv.FormatUint(p.Generation(), 10))
		io.Copy(w, r.Body)
	})
	mux.HandleFunc("GET /burn", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Handoff-Generation", strconv.FormatUint(p.Generation(), 10))
		work := make([]byte, 4096)
		for draining := handoff.Draining(r.Context()); ; {
			select {
			case <-draining:
				return
			default:
			}
			sum := sha256.Sum256(work)
			copy(work, sum[:])
		}
	})
	go handoff.NewHTTPServer(p, &http.Server{Handler: mux}).Serve(ln)
	if err := p.Ready(context.WithoutCancel(ctx)); err != nil {
		return err
	}
	_, err = p.Wait(context.WithoutCancel(ctx))
	return err
}

// saturated starts such a server.
func (s *service) saturated(name, takeover string) *proc.Process {
	s.t.Helper()
	self, err := os.Executable()
	require.NoError(s.t, err)
	return s.run(name, self, takeover)
}

// cpuTimes are how long each thread of a process has run, and how long it has run or waited for a core. What the kernel
// gives depends on who else wants the cores; what it was asked for does not. (/proc/PID/task/TID/schedstat, in ns)
func cpuTimes(t *testing.T, pid int) (ran, wanted map[string]time.Duration) {
	t.Helper()
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	require.NoError(t, err)
	require.NotEmpty(t, files)
	ran, wanted = map[string]time.Duration{}, map[string]time.Duration{}
	for _, file := range files {
		b, err := os.ReadFile(file)
		if err != nil {
			continue // the thread has ended
		}
		var on, waited time.Duration
		_, err = fmt.Sscan(string(b), &on, &waited)
		require.NoError(t, err, "%s", b)
		ran[file], wanted[file] = on, on+waited
	}
	return ran, wanted
}

// cores is how many a process had, or wanted, from one time to another.
func cores(before, after map[string]time.Duration, during time.Duration) float64 {
	var sum time.Duration
	for thread, d := range after {
		sum += d - before[thread]
	}
	return float64(sum) / float64(during)
}

// times is what an operator has to wait for.
type times struct{ status, slowest, handover time.Duration }

// timeOperator asks for the status again and again, and then for a handover to the standby, whose end is not waited for.
func (s *service) timeOperator(next *proc.Process) (all times) {
	s.t.Helper()
	var took []time.Duration
	for range 11 {
		took = append(took, s.must("status", "--timeout", "30s").Took)
	}
	slices.Sort(took)
	all.status, all.slowest = took[len(took)/2], took[len(took)-1]
	all.handover = s.must("handover", "--wait=committed", "--timeout", "60s").Took
	require.Equal(s.t, next.PID(), s.status().Serving().PID)
	return all
}

// quietLog wants that a process has warned of nothing: no deadline passed, nobody was silent, nothing was taken back.
func quietLog(t *testing.T, p *proc.Process) {
	t.Helper()
	for _, l := range p.Lines() {
		require.NotContains(t, []string{"WARN", "ERROR"}, l.Field("level"), "%s: %s", p.Name, l.Text)
		require.NotContains(t, l.Text, "DATA RACE", "%s", p.Name)
	}
}

// An incumbent whose handlers keep every core busy, with 9,000 connections, answers its operators and hands over within
// its deadlines, and nothing is lost on any of them.
func TestHandoverOfASaturatedIncumbent(t *testing.T) {
	conns, rate := 9000, 600.0
	if raceEnabled {
		conns, rate = 1500, 100
		t.Logf("%d connections instead of 9,000: the race detector takes more memory and time for each", conns)
	}
	s := newService(t)
	t.Setenv(saturatedEnv, web)
	t.Setenv(handoff.EnvSocket, s.socket)
	standby := func(name string) *proc.Process {
		t.Helper()
		p := s.saturated(name, "standby")
		s.waitStatus("a standby", func(st proc.Status) bool { return st.In("standby").PID == p.PID() })
		return p
	}
	released := func(n uint64) {
		t.Helper()
		s.waitStatus("released", func(st proc.Status) bool {
			return st.Of(n).State == "serving" && st.Of(n-1).State != "parked" && st.Of(n-1).State != "releasing"
		})
	}
	first := s.saturated("idle", "auto")
	s.waitStatus("generation 1 serves", func(st proc.Status) bool { return st.Serving().PID == first.PID() })
	addr := s.address("127.0.0.1:0")
	second := standby("saturated")
	idle := s.timeOperator(second)
	released(2)
	s.exits(first, 0, "generation 1")

	run := s.load(load.Stream{Kind: load.KeepAlive, Address: addr, Conns: conns, Rate: rate})
	s.answers(run, 2, 200)
	burning := 2 * runtime.NumCPU()
	burns := s.requests(burning, "tcp", addr, "/burn")
	s.waitStatus("every handler and every connection is there", func(st proc.Status) bool {
		open, all := st.Of(2).Open, 0
		for _, n := range open {
			all += n
		}
		return open["active"] >= burning && all >= conns
	})
	third := standby("next")
	begin := time.Now()
	ran, wanted := cpuTimes(t, second.PID())
	busy := s.timeOperator(third)
	ranThen, wantedThen := cpuTimes(t, second.PID())
	took := time.Since(begin)
	used := cores(ran, ranThen, took)
	require.Greater(t, cores(wanted, wantedThen, took), 0.3, "cores that the incumbent wanted all along")
	released(3)
	s.answers(run, 3, 100)
	burns.all(t, 2)
	s.exits(second, 0, "each connection moved, and nothing was cut")
	s.alone(3)
	rep := s.noLoss(run)
	require.Zero(t, rep.Announced, "no client was told to come back")
	require.EqualValues(t, conns, rep.ByKind[load.KeepAlive].Dials, "each connection moved")
	for _, p := range []*proc.Process{first, second, third} {
		quietLog(t, p)
	}
	ratio := func(a, b time.Duration) float64 { return float64(a) / float64(b) }
	t.Logf("%d connections, %d handlers that burn, %.1f of %d cores used by the incumbent, which wanted %.1f", conns, burning, used, runtime.NumCPU(), cores(wanted, wantedThen, took))
	t.Logf("handoffctl status:   idle %s, saturated %s (%s at most): %.1f times", idle.status, busy.status, busy.slowest, ratio(busy.status, idle.status))
	t.Logf("handoffctl handover: idle %s, saturated %s: %.1f times", idle.handover, busy.handover, ratio(busy.handover, idle.handover))
	t.Logf("%s", rep)
}
