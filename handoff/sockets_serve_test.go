package handoff

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// An http.Server that is not ours logs each error of Accept and pauses after
// it. It must not notice that its listener waits, parks and resumes.
func TestAcceptSaysNothingWhileParked(t *testing.T) {
	c := newChain(t)
	var lines book
	errs := make(chan error, 3)
	serve := func(p *Process, ln net.Listener) *http.Server {
		srv := &http.Server{
			ErrorLog: log.New(&lines, "", 0),
			Handler:  http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, p.Generation()) }),
		}
		go func() { errs <- srv.Serve(ln) }()
		return srv
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 10 * time.Second}
	get := func(ln net.Listener) string {
		t.Helper()
		resp, err := client.Get("http://" + ln.Addr().String())
		require.NoError(t, err)
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		return string(b)
	}
	one := c.start("one", probation)
	ln := c.listen(one, "tcp", "127.0.0.1:0")
	serve(one, ln) // before it is ready
	c.ready(one)
	require.Equal(t, "1", get(ln))
	for i := range 3 {
		p := c.start("taken back")
		serve(p, c.listen(p, "tcp", "127.0.0.1:0"))
		c.ready(p)
		require.Equal(t, fmt.Sprint(i+2), get(ln))
		_, err := c.client().Rollback(c.ctx)
		require.NoError(t, err)
		require.ErrorIs(t, <-errs, net.ErrClosed)
		require.NoError(t, p.Close())
		require.Equal(t, "1", get(ln))
	}
	select {
	case err := <-errs:
		t.Fatal("the first server ended", err)
	default:
	}
	two := c.start("two")
	srv := serve(two, c.listen(two, "tcp", "127.0.0.1:0"))
	c.ready(two)
	one.Stop()
	require.ErrorIs(t, <-errs, net.ErrClosed)
	c.wait(one)
	require.Equal(t, "5", get(ln))
	require.Empty(t, lines.String())
	require.NoError(t, srv.Close())
	require.ErrorIs(t, <-errs, http.ErrServerClosed)
}

func TestListenerClosedByItsProgram(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	ln, rest := c.listen(one, "tcp", "127.0.0.1:0"), c.listen(one, "unix", filepath.Join(filepath.Dir(c.socket), "u"))
	c.ready(one)
	accepted := make(chan error, 1)
	go func() { _, err := ln.Accept(); accepted <- err }()
	require.NoError(t, ln.Close())
	require.ErrorIs(t, <-accepted, net.ErrClosed)
	require.ErrorIs(t, ln.Close(), net.ErrClosed)
	require.Empty(t, tcpListeners(t, ln.Addr()))
	two := c.start("two")
	sockets, err := c.client().Sockets(c.ctx)
	require.NoError(t, err)
	require.Len(t, sockets, 1, "it is not handed over")
	require.Equal(t, rest.Addr().String(), sockets[0].Name)
	require.NoError(t, two.Close())
}

func TestListenAndServeErrors(t *testing.T) {
	c := newChain(t)
	one := c.start("one")
	ln := c.listen(one, "tcp", "127.0.0.1:0")
	greet(one, ln)
	taken, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer taken.Close()
	c.ready(one)
	t.Setenv(EnvSocket, "")
	srv := func(addr string) *http.Server { return &http.Server{Addr: addr} }
	with := func(change func(*Config)) Config {
		cfg := c.config("two")
		change(&cfg)
		return cfg
	}

	for _, tc := range []struct {
		name string
		cfg  Config
		addr string
		want error  // or
		text string // in it
	}{
		{"no socket", Config{}, "127.0.0.1:0", nil, EnvSocket},
		{"never", with(mode(Never)), "127.0.0.1:0", ErrIncumbent, c.socket},
		{"bad directory", with(func(cfg *Config) { cfg.Socket = "/nonexistent/s" }), "127.0.0.1:0", ErrDirectory, "/nonexistent"},
		{"bad address", c.config("two"), "127.0.0.1", nil, "missing port"},
		{"port taken", c.config("two"), taken.Addr().String(), nil, "address already in use"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			err := ListenAndServe(c.ctx, tc.cfg, srv(tc.addr))
			require.ErrorContains(t, err, tc.text)
			if tc.want != nil {
				require.ErrorIs(t, err, tc.want)
			}
			require.Equal(t, "1", asked(t, ln.Addr()))
		})
	}

	t.Run("context ended", func(t *testing.T) {
		ctx, cancel := context.WithCancel(c.ctx)
		cancel()
		require.ErrorIs(t, ListenAndServe(ctx, c.config("two"), srv("127.0.0.1:0")), context.Canceled)
	})
	t.Run("context ends in standby", func(t *testing.T) {
		ctx, cancel := context.WithCancelCause(c.ctx)
		cfg := with(mode(Standby))
		cfg.OnState = func(_, to State) {
			if to == StateStandby {
				cancel(errors.New("enough"))
			}
		}
		require.ErrorContains(t, ListenAndServe(ctx, cfg, srv("127.0.0.1:0")), "enough")
		require.Equal(t, StateServing, one.State())
	})
	t.Run("revoked", func(t *testing.T) {
		one.ask(func() { one.cfg.Probation, one.m.probation = time.Hour, true })
		serves := make(chan struct{})
		cfg := with(func(cfg *Config) {
			cfg.OnState = func(_, to State) {
				if to == StateServing {
					close(serves)
				}
			}
		})
		end := make(chan error, 1)
		go func() { end <- ListenAndServe(c.ctx, cfg, srv("127.0.0.1:0")) }()
		<-serves
		c.until("committed", func() bool {
			_, err := c.client().Rollback(c.ctx)
			return err == nil
		})
		require.ErrorIs(t, <-end, ErrRevoked)
		require.Equal(t, "1", asked(t, ln.Addr()))
	})
	// After all of that the next one takes over.
	two, _ := c.serve("three")
	one.Stop()
	c.wait(one)
	require.Equal(t, fmt.Sprint(two.Generation()), asked(t, ln.Addr()))
}
