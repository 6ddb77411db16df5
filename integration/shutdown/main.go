// Shutdown is a server that does what is usual: its next version is started beside it, and then it calls
// http.Server.Shutdown, which lets requests under way finish. It is there to lose requests: who measures losses, and
// finds none here, does not see them.
//
//	go run ./integration/shutdown --address 127.0.0.1:8080                      listens with SO_REUSEPORT; SIGTERM ends it
//	go run ./integration/shutdown --address 127.0.0.1:8080 --socket run/ctl     is handed over by package handoff
//
// With --socket everything but the drain is what cmd/server does, so that only the drain can lose anything.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/signal"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/fdhandoff/handoff/handoff"
)

func main() {
	address := flag.String("address", "127.0.0.1:8080", "`host:port` to serve")
	socket := flag.String("socket", "", "control socket `path`: the listener is handed over there, not shared by SO_REUSEPORT")
	flag.Parse()
	var err error
	if *socket == "" {
		err = serveShared(*address)
	} else {
		err = serveHanded(*address, *socket)
	}
	if err != nil {
		log.Fatal(err)
	}
}

// shutdownTime bounds http.Server.Shutdown.
const shutdownTime = 30 * time.Second

// serveShared serves beside other versions until SIGTERM.
func serveShared(address string) error {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, os.Interrupt)
	defer stop()
	config := net.ListenConfig{Control: reusePort}
	ln, err := config.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	fmt.Println("serving", ln.Addr())
	return serve(newServer(func() uint64 { return 0 }, new(atomic.Uint64)), ln, ctx.Done())
}

// serveHanded takes the listener over from the version before, and serves until the next one has it. What it writes to
// standard error at its end has the form of cmd/server's record.
func serveHanded(address, socket string) error {
	ctx := context.Background()
	logger := slog.New(slog.NewJSONHandler(os.Stderr, nil))
	p, err := handoff.Start(ctx, handoff.Config{Socket: socket, Probation: -1, Logger: logger, Signals: &handoff.Signals{}})
	if err != nil {
		return err
	}
	defer p.Close()
	ln, err := p.Listen(ctx, "tcp", address)
	if err != nil {
		return err
	}
	var answered atomic.Uint64
	served := make(chan error, 1)
	go func() { served <- serve(newServer(p.Generation, &answered), ln, p.Done()) }()
	if err := p.Ready(ctx); err != nil {
		return err
	}
	// Until Shutdown has returned this process is not gone: it says goodbye in Wait.
	if err := <-served; err != nil {
		return err
	}
	report, err := p.Wait(ctx)
	if err != nil {
		return err
	}
	p.Logger().Info("ended", "reason", report.Reason, "answered", answered.Load())
	return nil
}

// newServer answers as cmd/server does. It counts every request whose handler ran to its end; generation is 0 where
// there is none to tell.
func newServer(generation func() uint64, answered *atomic.Uint64) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello\n") })
	mux.HandleFunc("POST /echo", func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 1<<20))
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		if g := generation(); g > 0 {
			w.Header().Set("X-Handoff-Generation", fmt.Sprint(g))
		}
		w.Write(body)
		answered.Add(1)
	})
	return &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
}

// serve serves until done, and then shuts down.
func serve(srv *http.Server, ln net.Listener, done <-chan struct{}) error {
	shut := make(chan error, 1)
	go func() {
		<-done
		bounded, cancel := context.WithTimeout(context.Background(), shutdownTime)
		defer cancel()
		shut <- srv.Shutdown(bounded)
	}()
	// A listener that was handed over is closed by the handoff, perhaps before Shutdown does, which says so when it has
	// waited for everything else.
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) && !errors.Is(err, net.ErrClosed) {
		return err
	}
	if err := <-shut; !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// reusePort lets the next version listen on the same address while this one does.
func reusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if e := c.Control(func(fd uintptr) { err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1) }); e != nil {
		return e
	}
	return os.NewSyscallError("setsockopt", err)
}
