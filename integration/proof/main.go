// Proof hands a server over again and again under load and counts what its clients lost; then it does the same with
// servers that must lose something, because they do without what is to be proved. Where those lose nothing, the first
// count says nothing either, and the proof has failed.
//
//	go run ./integration/proof
//	go run ./integration/proof --handoffs 20 --only a,b
//
// Progress goes to standard error, the result to standard output. Exit codes: 0 all is as it must be, 1 something is
// not, 2 usage.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/fdhandoff/handoff/integration/proc"
)

// limit bounds a whole proof; a good one takes half of it.
const limit = 4 * time.Minute

// settings are what the flags say.
type settings struct {
	handoffs int
	every    time.Duration
	conns    int
	rate     float64
	fresh    float64
	quiet    time.Duration
	only     []string
	keep     bool
}

func main() {
	s := settings{conns: 100}
	flag.IntVar(&s.handoffs, "handoffs", 200, "how often the server is replaced")
	flag.DurationVar(&s.every, "every", 100*time.Millisecond, "from the start of one handoff to that of the next, at least")
	flag.Float64Var(&s.rate, "rate", 3000, "POSTs a second over 100 keep-alive connections together")
	flag.Float64Var(&s.fresh, "new", 400, "POSTs a second on connections of their own")
	flag.DurationVar(&s.quiet, "quiet", 5*time.Second, "load without handoffs, before the first, to compare times with")
	only := flag.String("only", "", "`PARTS` to run, of "+partsText()+" (default all)")
	flag.BoolVar(&s.keep, "keep", false, "leave the directory with the logs in the temporary directory")
	flag.Parse()
	if *only != "" {
		s.only = strings.Split(*only, ",")
	}
	if err := s.check(flag.Args()); err != nil {
		fmt.Fprintf(os.Stderr, "proof: error: %v\n", err)
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	ok, err := work(ctx, s)
	if err != nil {
		fmt.Fprintf(os.Stderr, "proof: error: %v\n", err)
	}
	if err != nil || !ok {
		os.Exit(1)
	}
}

func (s settings) check(args []string) error {
	switch {
	case len(args) > 0:
		return fmt.Errorf("unexpected argument %q", args[0])
	case s.handoffs < 1 || s.every <= 0 || s.rate <= 0 || s.fresh <= 0 || s.quiet <= 0:
		return errors.New("every number must be above 0")
	}
	for _, name := range s.only {
		if !slices.ContainsFunc(parts, func(p part) bool { return p.name == name }) {
			return fmt.Errorf("--only %s: the parts are %s", name, partsText())
		}
	}
	return nil
}

// has reports whether a part was asked for.
func (s settings) has(p part) bool { return len(s.only) == 0 || slices.Contains(s.only, p.name) }

// work builds the programs, runs the parts one after the other and prints the result.
func work(ctx context.Context, s settings) (ok bool, err error) {
	// The servers that handoffctl leaves behind become this process's children: it waits for each.
	if err := proc.BecomeSubreaper(); err != nil {
		return false, err
	}
	dir, err := os.MkdirTemp("", "handoff-proof")
	if err != nil {
		return false, err
	}
	defer func() {
		if ok && err == nil && !s.keep {
			err = os.RemoveAll(dir)
			return
		}
		fmt.Fprintf(os.Stderr, "proof: the logs are in %s\n", dir)
	}()
	bin, err := build(ctx, dir, s)
	if err != nil {
		return false, err
	}
	ok = true
	var all []figures
	for _, p := range parts {
		if !s.has(p) {
			continue
		}
		for _, sp := range p.runs(s, bin) {
			f, err := play(ctx, filepath.Join(dir, fmt.Sprint(len(all)+1)), sp)
			if err != nil {
				return false, fmt.Errorf("%s: %w", sp.title, err)
			}
			f.wrong = append(f.wrong, sp.judge(f)...)
			for _, w := range f.wrong {
				ok = false
				fmt.Fprintf(os.Stderr, "proof: %s: NOT as it must be: %s\n", sp.title, w)
			}
			all = append(all, f)
		}
	}
	fmt.Print(account(all))
	return ok, nil
}

// programs are what is run.
type programs struct {
	proc.Binaries
	shutdown string // integration/shutdown
	faulty   string // the server, built with -tags faults
}

// build compiles what the parts need, without the race detector: the rates are meant for programs as they are used.
func build(ctx context.Context, dir string, s settings) (programs, error) {
	progress("building")
	plain, err := proc.Build(ctx, dir, false)
	if err != nil {
		return programs{}, err
	}
	bin := programs{Binaries: plain, shutdown: filepath.Join(dir, "shutdown"), faulty: filepath.Join(dir, "faulty")}
	root, err := proc.ModuleRoot(ctx)
	if err != nil {
		return programs{}, err
	}
	for _, args := range [][]string{
		{"-o", bin.shutdown, "./integration/shutdown"},
		{"-o", bin.faulty, "-tags", "faults", "./cmd/server"},
	} {
		cmd := exec.CommandContext(ctx, "go", append([]string{"build"}, args...)...)
		cmd.Dir = root
		if out, err := cmd.CombinedOutput(); err != nil {
			return programs{}, fmt.Errorf("go build: %w\n%s", err, out)
		}
	}
	return bin, nil
}

// progress says how far it is.
func progress(format string, args ...any) {
	fmt.Fprintf(os.Stderr, "proof: "+format+"\n", args...)
}
