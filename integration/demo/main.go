// Demo replaces a server by its next version under load, twice, tries a version that fails to start, and prints what
// the clients saw. It exits 1 if anything was lost or a step went wrong.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"github.com/fdhandoff/handoff/integration/proc"
)

func main() {
	server := flag.String("server", "bin/server", "path of the server; built if it is missing")
	handoffctl := flag.String("handoffctl", "bin/handoffctl", "path of handoffctl; built if it is missing")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, proc.Binaries{Server: *server, Handoffctl: *handoffctl}); err != nil {
		fmt.Fprintf(os.Stderr, "\ndemo: error: %v\n", err)
		os.Exit(1)
	}
}

// limit bounds the whole demo; a good one takes less than half of it.
const limit = 2 * time.Minute

// run plays the demo in a directory of its own, which it removes when all went well and names when not.
func run(ctx context.Context, programs proc.Binaries) (err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := proc.BecomeSubreaper(); err != nil {
		return err
	}
	dir, err := os.MkdirTemp("", "handoff-demo")
	if err != nil {
		return err
	}
	if programs, err = find(ctx, programs, dir); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	d := &demo{programs: programs, dir: dir, socket: filepath.Join(dir, "control"), began: time.Now()}
	err = d.play(ctx)
	if endErr := d.end(); err == nil {
		err = endErr
	}
	if err != nil {
		return fmt.Errorf("%w\nlogs: %s", err, filepath.Join(dir, "*.log"))
	}
	return os.RemoveAll(dir)
}

// find returns the programs as given, or builds them into dir if one is missing.
func find(ctx context.Context, programs proc.Binaries, dir string) (proc.Binaries, error) {
	_, noServer := os.Stat(programs.Server)
	_, noCtl := os.Stat(programs.Handoffctl)
	if noServer == nil && noCtl == nil {
		return absolute(programs)
	}
	fmt.Println("building server and handoffctl")
	return proc.Build(ctx, dir, false)
}

// absolute makes the paths independent of the working directory and of PATH.
func absolute(programs proc.Binaries) (proc.Binaries, error) {
	server, err := filepath.Abs(programs.Server)
	if err != nil {
		return proc.Binaries{}, err
	}
	handoffctl, err := filepath.Abs(programs.Handoffctl)
	return proc.Binaries{Server: server, Handoffctl: handoffctl}, err
}
