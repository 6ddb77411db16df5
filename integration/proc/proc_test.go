package proc

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"path/filepath"
	"slices"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"github.com/fdhandoff/handoff/internal/leak"
)

// within bounds a test's waits.
func within(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	t.Cleanup(cancel)
	return ctx
}

// shell starts a script.
func shell(t *testing.T, script string) *Process {
	t.Helper()
	p, err := Start(Spec{Path: "/bin/sh", Args: []string{"-c", script}, Log: filepath.Join(t.TempDir(), "log")})
	require.NoError(t, err)
	t.Cleanup(p.End)
	return p
}

func TestLogLinesAndExitCode(t *testing.T) {
	leak.Check(t)
	p := shell(t, `echo '{"msg":"serving","generation":2}'; echo text >&2; read x </dev/null; exit 6`)
	line, err := p.WaitLog(within(t), func(l Line) bool { return l.Field("msg") == "serving" })
	require.NoError(t, err)
	require.Equal(t, "2", line.Field("generation"))
	line, err = p.WaitLog(within(t), func(l Line) bool { return l.Text == "text" })
	require.NoError(t, err)
	require.Nil(t, line.Fields)
	code, err := p.Wait(within(t))
	require.NoError(t, err)
	require.Equal(t, 6, code)
	_, err = p.WaitLog(within(t), func(Line) bool { return false })
	require.ErrorContains(t, err, "its output ended")
	require.Len(t, p.Lines(), 2)
}

func TestWaitsAreBounded(t *testing.T) {
	leak.Check(t)
	p := shell(t, "exec sleep 60")
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err := p.WaitLog(ctx, func(Line) bool { return true })
	require.ErrorIs(t, err, context.DeadlineExceeded)
	_, err = p.Wait(ctx)
	require.ErrorIs(t, err, context.DeadlineExceeded)
	n, err := Descriptors(p.PID())
	require.NoError(t, err)
	require.NotZero(t, n)
	require.NoError(t, p.Signal(syscall.SIGKILL))
	code, err := p.Wait(within(t))
	require.NoError(t, err)
	require.Equal(t, -1, code)
}

// What a process leaves behind is waited for, and killed, like a child.
func TestAdopt(t *testing.T) {
	leak.Check(t)
	require.NoError(t, BecomeSubreaper())
	orphan := func(script string) *Adopted {
		p := shell(t, script+" >/dev/null 2>&1 & echo $!")
		line, err := p.WaitLog(within(t), func(Line) bool { return true })
		require.NoError(t, err)
		_, err = p.Wait(within(t))
		require.NoError(t, err)
		pid, err := strconv.Atoi(line.Text)
		require.NoError(t, err)
		a, err := Adopt(pid)
		require.NoError(t, err)
		t.Cleanup(a.End)
		return a
	}
	mark := filepath.Join(t.TempDir(), "mark")
	a := orphan("sh -c 'sleep 60; : " + mark + "'")
	// Just when it executes sh it has no command line.
	require.Eventually(t, func() bool {
		pids, err := Mentioning(mark)
		return err == nil && slices.Contains(pids, a.PID)
	}, 20*time.Second, time.Millisecond)
	require.NoError(t, a.Signal(syscall.SIGTERM))
	code, err := a.Wait(within(t))
	require.NoError(t, err)
	require.Equal(t, -1, code)

	// It ends after the shell that started it, which would reap it otherwise.
	code, err = orphan("sh -c 'while kill -0 $0 2>/dev/null; do :; done; exit 7' $$").Wait(within(t))
	require.NoError(t, err)
	require.Equal(t, 7, code)
}

// The status is asked for again only when the one before is out of date, over one connection, and a server that is
// not there yet is waited for.
func TestWaitStatus(t *testing.T) {
	leak.Check(t)
	path := filepath.Join(t.TempDir(), "ctl")
	got := make(chan error, 1)
	go func() {
		st, err := WaitStatus(within(t), path, func(s Status) bool { return s.Serving().Generation == 3 })
		if err == nil && st.Revision != 3 {
			err = fmt.Errorf("revision %d", st.Revision)
		}
		got <- err
	}()
	ln, err := net.ListenUnix("unixpacket", &net.UnixAddr{Name: path, Net: "unixpacket"})
	require.NoError(t, err)
	defer ln.Close()
	c, err := ln.AcceptUnix()
	require.NoError(t, err)
	defer c.Close()
	buf := make([]byte, 4096)
	for revision := uint64(1); revision <= 3; revision++ {
		n, err := c.Read(buf)
		require.NoError(t, err)
		var ask struct {
			Type  string
			After struct{ Revision uint64 }
		}
		require.NoError(t, json.Unmarshal(buf[:n], &ask))
		require.Equal(t, "status", ask.Type)
		require.Equal(t, revision-1, ask.After.Revision)
		_, err = fmt.Fprintf(c, `{"type":"status","status":{"schema":1,"instance":"x","revision":%d,"generations":[`+
			`{"generation":1,"state":"draining"},{"generation":%d,"state":"serving"}]}}`, revision, revision)
		require.NoError(t, err)
	}
	require.NoError(t, <-got)
}
