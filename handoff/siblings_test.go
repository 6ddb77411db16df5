package handoff

import (
	"bufio"
	"errors"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// Two processes as in two containers: each in a user namespace and a pid namespace of
// its own, so that for each the other has pid 0 and uid 65534. They share a directory.

const (
	keyVariable   = "HANDOFF_TEST_KEY"
	mountVariable = "HANDOFF_TEST_MOUNT"
	offVariable   = "HANDOFF_TEST_OFF"
)

// quickExit: the race detector would wait for a second at the end of each process.
const quickExit = "GORACE=atexit_sleep_ms=0"

func keyOfSibling() []byte {
	if key := os.Getenv(keyVariable); key != "" {
		return []byte(key)
	}
	return nil
}

// sibling is the life of one of them. role is its label and how it takes over.
func sibling(t *testing.T, role string) {
	if inner, ok := strings.CutPrefix(role, "leaker "); ok {
		leaker(t, inner)
		return
	}
	dir := os.Getenv(pathVariable)
	if os.Getenv(mountVariable) != "" { // as an engine does it: the same files at another path
		elsewhere := filepath.Join(dir, "elsewhere")
		require.NoError(t, unix.Mount(dir, elsewhere, "", unix.MS_BIND, ""))
		dir = elsewhere
	}
	if os.Getenv(offVariable) != "" {
		without(t, pidfds, peerPidfds)
	}
	c := newChain(t).moveTo(dir)
	c.key = keyOfSibling()
	label, takeover, _ := strings.Cut(role, " ")
	cfg := c.config(label)
	cfg.Probation, cfg.Heartbeat = time.Hour, -1
	if label == "late" {
		cfg.StepTimeout = time.Second // for which it waits for one that is stopped
	}
	require.NoError(t, cfg.Takeover.UnmarshalText([]byte(takeover)))
	p, err := Start(c.ctx, cfg)
	if err != nil {
		fmt.Println("refused", err)
		waitForEnd()
		return
	}
	defer p.Close()
	ln, err := p.Listen(c.ctx, "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	c.serveOn(p, ln, &http.Server{Handler: named(label)})
	ready := make(chan error, 1)
	go func() {
		err := p.Ready(c.ctx)
		if err == nil {
			fmt.Println("serving", ln.Addr())
		}
		ready <- err
	}()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		switch in.Text() {
		case "status":
			s, err := c.client().Status(c.ctx)
			require.NoError(t, err)
			var all []string
			for _, g := range s.Generations {
				all = append(all, fmt.Sprintf("%d %s", g.Generation, g.State))
			}
			fmt.Println("status", strings.Join(all, ", "))
		case "peer":
			var l *link
			c.until("a link", func() bool {
				p.ask(func() {
					if l = p.younger; l == nil {
						l = p.elder
					}
				})
				return l != nil
			})
			who, err := l.c.peer()
			require.NoError(t, err)
			fmt.Println("peer", who.PID, who.UID, l.where())
		case "kill":
			p.ask(func() { err = p.elder.kill() })
			fmt.Println("kill", err)
		case "standby":
			c.reach(p, StateStandby)
			fmt.Println("standby it is")
		case "serves again":
			c.reach(p, StateServing)
			fmt.Println("again", c.status().Last.Reason)
		case "stop":
			p.Stop()
			r, err := p.Wait(c.ctx)
			require.NoError(t, err)
			fmt.Println("gone", r.Reason, r.Moved)
		}
	}
	p.Close()
	<-ready
}

func (c *child) tell(what string) {
	c.t.Helper()
	_, err := fmt.Fprintln(c.in, what)
	require.NoError(c.t, err)
}

// saysStatus waits until an operator beside c is told so: each of two processes learns
// a moment later what the other one has done.
func (c *child) saysStatus(want string) {
	c.t.Helper()
	got := ""
	for deadline := time.Now().Add(patience); got != want; {
		require.True(c.t, time.Now().Before(deadline), "%q instead of %q", got, want)
		c.tell("status")
		got = c.expect("status")
	}
}

// siblings starts them.
type siblings struct {
	t      *testing.T
	dir    string
	exe    string
	mapped bool // each has numbers of its own, as root may give them; otherwise none
}

func newSiblings(t *testing.T, mapped bool) *siblings {
	t.Helper()
	dir := socketDir(t)
	s := &siblings{t: t, dir: filepath.Join(dir, "run"), exe: filepath.Join(dir, "test"), mapped: mapped}
	require.NoError(t, os.Chmod(dir, 0o755))
	copyExecutable(t, s.exe)
	// Its owner has no number in either. Each may make files, and remove its own.
	require.NoError(t, os.Mkdir(s.dir, 0o700))
	require.NoError(t, os.Chmod(s.dir, 0o777|os.ModeSticky))
	require.NoError(t, os.Mkdir(filepath.Join(s.dir, "elsewhere"), 0o755))
	return s
}

// start starts one in its first or second namespace. The test ends if the system
// does not let this user.
func (s *siblings) start(namespace int, role string, env ...string) *child {
	s.t.Helper()
	cmd := childCommand(s.t, role, append(env, pathVariable+"="+s.dir, quickExit)...)
	cmd.Path, cmd.Dir = s.exe, "/"
	a := &syscall.SysProcAttr{Cloneflags: syscall.CLONE_NEWUSER | syscall.CLONE_NEWPID}
	if s.mapped {
		ids := []syscall.SysProcIDMap{{ContainerID: 0, HostID: 100_000 * namespace, Size: 65_536}}
		a.UidMappings, a.GidMappings, a.GidMappingsEnableSetgroups = ids, ids, true
		a.Credential = &syscall.Credential{Uid: 1000, Gid: 1000}
		if namespace == 2 {
			a.Credential = &syscall.Credential{} // it may mount
			a.Cloneflags |= syscall.CLONE_NEWNS
			cmd.Env = append(cmd.Env, mountVariable+"=1")
		}
	}
	cmd.SysProcAttr = a
	needUserNamespace(s.t, probeNamespaces(a.Cloneflags))
	return startChild(s.t, cmd)
}

// probeNamespaces says whether this user may make such namespaces.
func probeNamespaces(flags uintptr) error {
	cmd := exec.Command("/proc/self/exe", "-test.run=^$")
	cmd.Env = append(os.Environ(), quickExit)
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: flags}
	err := cmd.Run()
	if e := (*exec.ExitError)(nil); errors.As(err, &e) {
		return nil // it was made
	}
	return err
}

func key(k []byte) string { return keyVariable + "=" + string(k) }

const outside = "outside of this process's pid namespace"

// asSiblings runs a test as an ordinary user could, and, as root, with numbers.
func asSiblings(t *testing.T, mapped bool, play func(*siblings)) {
	t.Helper()
	if inChild(t, func(role string) { sibling(t, role) }) {
		return
	}
	if mapped {
		needRoot(t)
	}
	play(newSiblings(t, mapped))
}

// handOverBetween: with one key there is no difference to processes that know each
// other.
func handOverBetween(s *siblings) {
	one := s.start(1, "one auto", key(testKey))
	addr := one.expect("serving")
	client := dialRaw(s.t, addr)
	require.Equal(s.t, "one", client.get("/", false))

	two := s.start(2, "two auto", key(testKey))
	require.Equal(s.t, addr, two.expect("serving"))
	require.Equal(s.t, "two", dialRaw(s.t, addr).get("/", false))
	for _, p := range []*child{one, two} {
		p.tell("peer")
		require.Equal(s.t, "0 65534 "+outside, p.expect("peer"))
		p.saysStatus("1 parked, 2 serving") // an operator in either namespace
	}
	two.tell("kill")
	require.Equal(s.t, "it runs in another pid namespace, in which this process may not signal", two.expect("kill"))

	one.tell("stop") // in probation: it releases
	require.Equal(s.t, "handed_over 1", one.expect("gone"))
	require.NoError(s.t, client.SetDeadline(time.Now().Add(patience)))
	require.Equal(s.t, "two", client.get("/", false), "the same connection")
	two.saysStatus("2 serving")
	two.tell("stop")
	require.Equal(s.t, "stopped 0", two.expect("gone"))
	one.end()
	two.end()

	// The next chain begins where this one ended.
	three := s.start(1, "three auto", key(testKey))
	addr = three.expect("serving")
	require.Equal(s.t, "three", dialRaw(s.t, addr).get("/", false))
	never := s.start(2, "four never", key(testKey))
	require.Contains(s.t, never.expect("refused"), "an incumbent serves already (stop it, or start with another takeover mode) ("+outside+")")
	require.NoError(s.t, three.cmd.Process.Signal(syscall.SIGSTOP))
	late := s.start(2, "late auto", key(testKey))
	require.Contains(s.t, late.expect("refused"), "("+outside+")")
	require.NoError(s.t, three.cmd.Process.Signal(syscall.SIGCONT))
	for _, p := range []*child{never, late, three} {
		p.end()
	}
}

// refusedBetween: without one key nothing is handed over, and both are told why.
func refusedBetween(s *siblings) {
	one := s.start(1, "one auto", key(testKey))
	addr := one.expect("serving")
	for _, test := range []struct {
		name, env string
		want      []string
	}{
		{"none", key(nil), []string{"shared key"}},
		{"another", key(otherKey), []string{"not permitted", "the shared keys differ"}},
	} {
		two := s.start(2, "two auto", test.env)
		text := two.expect("refused")
		for _, want := range test.want {
			require.Contains(s.t, text, want, test.name)
		}
		require.NotContains(s.t, text, "pid 0")
		two.end()
	}
	require.Equal(s.t, "one", dialRaw(s.t, addr).get("/", false))
	one.tell("stop")
	require.Equal(s.t, "stopped 0", one.expect("gone"))
	one.end()

	one = s.start(1, "one auto")
	if s.mapped {
		require.Contains(s.t, one.expect("refused"), "belongs to a user without a number in this user namespace, who could replace the socket (use one of your own, mode 0700, or give both sides the same shared key)")
		one.end()
		return
	}
	one.expect("serving")
	two := s.start(2, "two auto", key(testKey))
	text := two.expect("refused")
	require.Contains(s.t, text, "not permitted")
	require.Contains(s.t, text, "shared key")
	require.NotContains(s.t, text, "pid 0")
	two.end()
	one.end()
}

// deathBetween: the death of the other is noticed by its pidfd, while a child of it
// has its end of the link; or, without pidfds, when that ends too.
func deathBetween(s *siblings) {
	for _, test := range []struct {
		name string
		off  bool
	}{{"by pidfd", false}, {"by the link", true}} {
		s.t.Run(test.name, func(t *testing.T) {
			off := offVariable + "="
			if test.off {
				off += "1"
			}
			dies := func(c *child, noticed func()) {
				if !test.off {
					c.dies(true, noticed)
					return
				}
				c.expect("leaked")
				require.NoError(t, c.cmd.Process.Kill()) // and all of its namespace
				_ = c.cmd.Wait()
				noticed()
			}
			one := s.start(1, "one auto", key(testKey), off)
			addr := one.expect("serving")
			two := s.start(2, "leaker init successor", key(testKey))
			two.expect("serving")
			dies(two, func() {
				one.tell("serves again")
				require.Equal(t, "died", one.expect("again"))
				require.Equal(t, "one", dialRaw(t, addr).get("/", false))
			})
			one.tell("stop")
			one.expect("gone")
			one.end()

			one = s.start(1, "leaker init incumbent", key(testKey))
			one.expect("serving")
			two = s.start(2, "two standby", key(testKey), off)
			two.tell("standby")
			two.expect("standby")
			dies(one, func() {
				addr := two.expect("serving")
				require.Equal(t, "two", dialRaw(t, addr).get("/", false))
			})
			two.tell("stop")
			two.expect("gone")
			two.end()
			require.NoError(t, os.RemoveAll(filepath.Join(s.dir, "s")))
		})
	}
}

func TestSiblingsHandOver(t *testing.T)       { asSiblings(t, false, handOverBetween) }
func TestSiblingsAreRefused(t *testing.T)     { asSiblings(t, false, refusedBetween) }
func TestDeathOfASibling(t *testing.T)        { asSiblings(t, false, deathBetween) }
func TestRootSiblingsHandOver(t *testing.T)   { asSiblings(t, true, handOverBetween) }
func TestRootSiblingsAreRefused(t *testing.T) { asSiblings(t, true, refusedBetween) }
func TestRootDeathOfASibling(t *testing.T)    { asSiblings(t, true, deathBetween) }
