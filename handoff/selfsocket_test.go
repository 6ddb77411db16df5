package handoff

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// selfPath is a path for a self socket beside the control socket.
func (c *chain) selfPath(name string) string { return filepath.Join(filepath.Dir(c.socket), name) }

// withSelf gives a Process a self socket, named like it.
func (c *chain) withSelf(name string) func(*Config) {
	return func(cfg *Config) { cfg.SelfSocket = c.selfPath(name) }
}

// itself is what the process at a self socket says about itself.
func (c *chain) itself(name string) (*Status, GenerationStatus) {
	c.t.Helper()
	s, err := (&Client{Socket: c.selfPath(name), Key: c.key}).Status(c.ctx)
	require.NoError(c.t, err)
	require.Equal(c.t, c.socket, s.Socket)
	require.Equal(c.t, os.Getpid(), s.PID)
	for _, g := range s.Generations {
		if g.Generation == s.Generation && g.PID == s.PID {
			return s, g
		}
	}
	require.FailNow(c.t, "the process does not list itself", "%+v", s)
	return nil, GenerationStatus{}
}

func (c *chain) untilState(name, want string) {
	c.t.Helper()
	c.until(name+" is "+want, func() bool {
		_, g := c.itself(name)
		return g.State == want
	})
}

// Each process answers for itself, whoever answers the control socket.
func TestSelfSocketInEveryState(t *testing.T) {
	c := newChain(t)
	one := c.start("one", probation, longDrain, c.withSelf("one"))
	s := c.serveSlowly(one)
	came := s.request(t)
	_, g := c.itself("one")
	require.EqualValues(t, 1, g.Generation)
	require.Equal(t, []string{"one", "serving"}, []string{g.Label, g.State})

	two := c.start("two", mode(Standby), c.withSelf("two"))
	_, g = c.itself("two")
	require.EqualValues(t, 2, g.Generation)
	require.Equal(t, []string{"two", "starting"}, []string{g.Label, g.State})
	greet(two, c.listen(two, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- two.Ready(c.ctx) }()
	c.untilState("two", "standby")
	all, g := c.itself("two")
	require.Len(t, all.Generations, 2)
	require.Equal(t, 1, g.Sockets)
	sockets, err := (&Client{Socket: c.selfPath("two")}).Sockets(c.ctx)
	require.NoError(t, err)
	require.Len(t, sockets, 1, "the self socket is none of them")
	require.Equal(t, s.addr, sockets[0].Address)

	_, err = c.client().Handover(c.ctx, "")
	require.NoError(t, err)
	require.NoError(t, <-ready)
	c.untilState("one", "parked")
	c.untilState("two", "serving")
	one.Stop() // in probation: release now
	c.untilState("one", "draining")
	control, err := c.client().Status(c.ctx)
	require.NoError(t, err)
	require.EqualValues(t, 2, control.Generation)
	close(s.release)
	require.Equal(t, "answered", await(t, came))
	c.wait(one)
	_, err = (&Client{Socket: c.selfPath("one")}).Status(c.ctx)
	require.ErrorIs(t, err, ErrNobody)
	require.NoFileExists(t, c.selfPath("one"), "removed by the process that it was of")
	c.itself("two")
}

// Before there is a number, while Start waits at the path of the control socket.
func TestSelfSocketWithoutAGeneration(t *testing.T) {
	c := newChain(t)
	lock, err := lockSocketFile(c.ctx, c.socket)
	require.NoError(t, err)
	defer lock.Close()
	cfg := c.config("one")
	c.withSelf("one")(&cfg)
	started := make(chan *Process, 1)
	go func() {
		p, err := Start(c.ctx, cfg)
		if err != nil {
			t.Error(err)
		}
		started <- p
	}()
	c.until("the self socket is there", func() bool {
		_, err := (&Client{Socket: cfg.SelfSocket}).Status(c.ctx)
		return err == nil
	})
	s, g := c.itself("one")
	require.Zero(t, s.Generation)
	require.Positive(t, s.Revision)
	require.Equal(t, []string{"one", "starting"}, []string{g.Label, g.State})

	changed := make(chan *Status, 1)
	go func() {
		s, err := (&Client{Socket: cfg.SelfSocket}).Watch(c.ctx, s)
		if err != nil {
			t.Error(err)
		}
		changed <- s
	}()
	require.NoError(t, lock.Close())
	p := await(t, started)
	defer p.Close()
	require.NotNil(t, await(t, changed))
	c.ready(p)
	_, g = c.itself("one")
	require.EqualValues(t, 1, g.Generation)
	require.Equal(t, "serving", g.State)
}

func TestSelfSocketAnswersNothingElse(t *testing.T) {
	c := newChain(t)
	one, ln := c.serve("one", c.withSelf("one"))
	self := &Client{Socket: c.selfPath("one")}
	for name, ask := range map[string]func() error{
		"handover": func() error { _, err := self.Handover(c.ctx, "r"); return err },
		"rollback": func() error { _, err := self.Rollback(c.ctx); return err },
		"withdraw": func() error { _, err := self.Withdraw(c.ctx, "r"); return err },
		"stop":     func() error { _, err := self.StopAndWait(c.ctx); return err },
	} {
		var no *RemoteError
		require.ErrorAs(t, ask(), &no, name)
		require.Equal(t, CodeSelfSocket, no.Code, name)
		require.Contains(t, no.Hint, c.socket, name)
	}
	cfg := c.config("lost")
	cfg.Socket = self.Socket
	_, err := Start(c.ctx, cfg)
	require.ErrorIs(t, err, ErrRefused)
	require.ErrorContains(t, err, "self socket")

	o, err := dialOperator(c.ctx, self.Socket, allow{})
	require.NoError(t, err)
	defer o.Close()
	for _, ask := range []string{`{"type":"drain"}`, `{"type":"register","self":{"generation":9}}`, `{"type":"hurry","generation":1}`, `{"type":"nonsense"}`} {
		b, err := o.exchange(c.ctx, []byte(ask))
		require.NoError(t, err, ask)
		f, err := decode(b)
		require.NoError(t, err)
		require.Equal(t, CodeSelfSocket, f.Code, ask)
	}
	s, _ := c.itself("one")
	require.Len(t, s.Generations, 1)
	require.Empty(t, s.Requests)
	require.Equal(t, StateServing, one.State())
	require.Equal(t, "1", asked(t, ln.Addr()))
}

func TestSelfSocketPath(t *testing.T) {
	for _, tc := range []struct {
		name string
		path func(c *chain) string
		is   error
		want string
	}{
		{"the control socket's", func(c *chain) string { return c.socket }, nil, "handoff: Config.SelfSocket is the path of the control socket"},
		{"the control socket's, written in another way", func(c *chain) string {
			link := c.selfPath("link")
			require.NoError(c.t, os.Symlink(filepath.Dir(c.socket), link))
			return link + "/./s"
		}, nil, "handoff: Config.SelfSocket is the path of the control socket"},
		{"another generation's", func(c *chain) string {
			c.serve("one", c.withSelf("own"))
			return c.selfPath("own")
		}, unix.EADDRINUSE, "each needs a self socket at a path of its own"},
		{"another program's", func(c *chain) string {
			ln, err := net.Listen("unix", c.selfPath("taken"))
			require.NoError(c.t, err)
			c.t.Cleanup(func() { ln.Close() })
			return c.selfPath("taken")
		}, unix.EADDRINUSE, "each needs a self socket at a path of its own"},
		{"a file", func(c *chain) string {
			require.NoError(c.t, os.WriteFile(c.selfPath("file"), nil, 0o600))
			return c.selfPath("file")
		}, ErrNotSocket, "regular file"},
		{"others may write there", func(c *chain) string {
			dir := c.selfPath("open")
			require.NoError(c.t, os.Mkdir(dir, 0o777))
			require.NoError(c.t, os.Chmod(dir, 0o777))
			return filepath.Join(dir, "own")
		}, ErrDirectory, "others may write"},
		{"no directory", func(c *chain) string { return c.selfPath("missing/own") }, ErrDirectory, "does not exist"},
		{"too long", func(c *chain) string { return c.selfPath(string(make([]byte, 108))) }, ErrPathTooLong, ""},
		{"abstract", func(*chain) string { return "@own" }, nil, "abstract socket names are not supported"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := newChain(t)
			cfg := c.config("two")
			cfg.SelfSocket = tc.path(c)
			_, err := Start(c.ctx, cfg)
			require.ErrorContains(t, err, tc.want)
			if tc.is != nil {
				require.ErrorIs(t, err, tc.is)
			}
		})
	}
}

func TestSelfSocketFile(t *testing.T) {
	c := newChain(t)
	path := c.selfPath("own")
	dead, _, err := listenUnix(c.ctx, "unixpacket", path, unixOptions{})
	require.NoError(t, err)
	require.NoError(t, dead.Close())
	p := c.start("one", func(cfg *Config) { cfg.SelfSocket = path })
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode(), "the stale file was replaced")
	require.NoError(t, p.Close())
	require.NoFileExists(t, path)

	// What somebody else has put there meanwhile stays.
	p = c.start("two", func(cfg *Config) { cfg.SelfSocket = path })
	require.NoError(t, os.Rename(path, path+".moved"))
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	require.NoError(t, p.Close())
	require.FileExists(t, path)
}

func TestSelfSocketGoesWithAStartThatFails(t *testing.T) {
	c := newChain(t)
	c.serve("one")
	cfg := c.config("two")
	c.withSelf("two")(&cfg)
	cfg.Takeover = Never
	_, err := Start(c.ctx, cfg)
	require.ErrorIs(t, err, ErrIncumbent)
	require.NoFileExists(t, cfg.SelfSocket)

	lock, err := lockSocketFile(c.ctx, cfg.SelfSocket)
	require.NoError(t, err)
	defer lock.Close()
	why := errors.New("no longer wanted")
	ctx, cancel := context.WithCancelCause(c.ctx)
	cancel(why)
	_, err = Start(ctx, cfg)
	require.ErrorIs(t, err, why)
	require.NoFileExists(t, cfg.SelfSocket)
}

func TestSelfSocketOfASpare(t *testing.T) {
	c := newChain(t)
	one, _ := c.serve("one", probation)
	spare := c.start("spare", mode(Spare), c.withSelf("spare"))
	greet(spare, c.listen(spare, "tcp", "127.0.0.1:0"))
	ready := make(chan error, 1)
	go func() { ready <- spare.Ready(c.ctx) }()
	c.untilState("spare", "standby")
	before, _ := c.itself("spare")

	two, _ := c.serve("two") // displaces it, and is in probation: the spare is told busy
	c.untilState("spare", "starting")
	one.Stop()
	c.wait(one)
	c.untilState("spare", "standby")
	after, g := c.itself("spare")
	require.Equal(t, before.Instance, after.Instance)
	require.Greater(t, g.Generation, two.Generation())
	require.NoError(t, two.Close())
	require.NoError(t, <-ready)
	c.untilState("spare", "serving")
}

// Silent connections to one socket close none to the other, and delay neither
// answers nor the end.
func TestSelfSocketAndControlSocketDoNotStarveEachOther(t *testing.T) {
	c := newChain(t)
	one := c.start("one", c.withSelf("one"), func(cfg *Config) { cfg.StepTimeout = time.Hour })
	c.ready(one)
	connect := func(path string) *operatorConn {
		o, err := dialOperator(c.ctx, path, allow{})
		require.NoError(t, err)
		t.Cleanup(func() { o.Close() })
		return o
	}
	status := func(o *operatorConn) {
		t.Helper()
		_, err := o.question(c.ctx, &frame{Type: msgStatus}, msgStatus)
		require.NoError(t, err)
	}
	paths := []string{c.socket, c.selfPath("one")}
	for i, full := range paths {
		other := connect(paths[1-i])
		status(other)
		for range 2 * maxConns {
			connect(full)
		}
		last := connect(full)
		status(last) // what came before has been taken in
		status(other)
	}
	require.NoError(t, one.Close(), "silent clients do not hold it up")
}
