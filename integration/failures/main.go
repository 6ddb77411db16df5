// Failures kills and stops the processes of a handoff at every step of the protocol, under load, and tells what clients
// met: docs/failures.md is what it writes.
//
//	go run ./integration/failures                     the whole matrix, as a table
//	go run ./integration/failures --write docs/failures.md
//	go run ./integration/failures --check docs/failures.md
//	go run ./integration/failures --only 'sent serving/successor/*' --keep
//
// Exit codes: 0 every cell passed (and agrees with the page), 1 one did not, 2 usage.
package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path"
	"sync"
	"syscall"
	"time"

	"github.com/fdhandoff/handoff/integration/proc"
)

// matrix is one run of cells.
type matrix struct {
	bin   proc.Binaries
	quiet baseline
	still stalls // of this machine, while cells are played
	keep  bool   // the directories of the cells stay
	at    int    // cells at a time
}

func main() {
	only := flag.String("only", "", "`pattern` of the cells to run: 'STEP/VICTIM/FAULT', with * and ?; controls are left out")
	justControls := flag.Bool("controls", false, "run the negative controls alone")
	parallel := flag.Int("parallel", 8, "cells at a time: most of a cell is waiting")
	keep := flag.Bool("keep", false, "leave the cells' directories, with their logs, in the temporary directory")
	write := flag.String("write", "", "write the page to `FILE`")
	check := flag.String("check", "", "compare the outcomes with those in `FILE`")
	flag.Parse()
	if _, err := path.Match(*only, ""); err != nil || flag.NArg() > 0 || *parallel < 1 || (*only != "" || *justControls) && (*write != "" || *check != "") {
		fmt.Fprintln(os.Stderr, "failures: error: --only is a pattern, --parallel at least 1, no other arguments; --write and --check are for the whole matrix")
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	ok, err := work(ctx, &matrix{keep: *keep, at: *parallel}, *only, *justControls, *write, *check)
	if err != nil {
		fmt.Fprintf(os.Stderr, "failures: error: %v\n", err)
	}
	if !ok || err != nil {
		os.Exit(1)
	}
}

func work(ctx context.Context, m *matrix, only string, justControls bool, write, check string) (ok bool, err error) {
	dir, err := os.MkdirTemp("", "hfbin")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	// A server whose handoffctl was killed becomes this process's child.
	if err := proc.BecomeSubreaper(); err != nil {
		return false, err
	}
	if m.bin, err = proc.BuildWith(ctx, dir, "-tags", "faults"); err != nil {
		return false, err
	}
	if m.quiet, err = m.measureQuiet(ctx); err != nil {
		return false, err
	}
	begin := time.Now()
	match := func(c cell) bool {
		ok, _ := path.Match(only, c.id()) // main has seen that it is a pattern
		return ok || only == ""
	}
	var held []control
	var todo []cell
	if only == "" || justControls {
		if held, todo, err = theControls(match); err != nil {
			return false, err
		}
	}
	for _, c := range cells() {
		if match(c) && !justControls {
			todo = append(todo, c)
		}
	}
	if len(todo) == 0 {
		return false, fmt.Errorf("no cell is called %q: docs/failures.md has the steps; victims are incumbent, successor, handoffctl, faults KILL and STOP", only)
	}
	results := m.runAll(ctx, todo) // the controls, which take longest, first
	if err := ctx.Err(); err != nil {
		return false, err // an interrupt: what was not run has not failed
	}
	for i := range held {
		held[i].judge(results[i])
	}
	results = results[len(held):]
	return report(results, held, time.Since(begin), write, check)
}

// runAll runs cells, some at a time, and says how each went.
func (m *matrix) runAll(ctx context.Context, todo []cell) []*result {
	watching, done := context.WithCancel(ctx)
	var watch sync.WaitGroup
	watch.Go(func() { m.still.watch(watching) })
	defer watch.Wait()
	defer done()
	results := make([]*result, len(todo))
	next := make(chan int)
	var saying sync.Mutex
	var workers sync.WaitGroup
	for range m.at {
		workers.Go(func() {
			for i := range next {
				r := m.playValid(ctx, todo[i])
				results[i] = r
				saying.Lock()
				say(r)
				saying.Unlock()
			}
		})
	}
	for i := range todo {
		next <- i
	}
	close(next)
	workers.Wait()
	return results
}

// maxHeld is how long a process may be held at its step before the fault: a longer one meets a deadline, and the cell
// would be about something else.
const maxHeld = stepTimeout / 2

// playValid plays a cell, again if this machine was too busy to apply the fault in time, or stood still meanwhile. A
// request that was lost counts all the same.
func (m *matrix) playValid(ctx context.Context, c cell) *result {
	for range 4 {
		begin := time.Now()
		r := m.play(ctx, c)
		still := m.still.since(begin)
		switch {
		case ctx.Err() != nil:
			return r
		case r.held > maxHeld:
			fmt.Printf("VOID %s: the fault came %v after the step, at most %v are allowed\n", c.id(), r.held, maxHeld)
		case still > 0 && (c.mayLose() || r.toll.lost() == 0):
			fmt.Printf("VOID %s: this machine stood still for %v, at most %v are allowed\n", c.id(), still, maxStall)
		default:
			return r
		}
	}
	r := &result{cell: c}
	r.fail("this machine is too busy: the fault came too late each time, or it stood still")
	return r
}

// say prints one line for a cell, and its logs if it failed.
func say(r *result) {
	word := "ok  "
	if len(r.failures) > 0 {
		word = "FAIL"
	}
	name := r.id()
	if r.without != "" {
		word, name = "CTRL", name+" without "+r.without
	}
	fmt.Printf("%s %-48s %s; %s (%s)\n", word, name, r.outcome, r.figures(), short(r.took))
	for _, f := range r.failures {
		fmt.Printf("     %s\n", f)
	}
	if r.dir != "" {
		fmt.Printf("     %s\n", r.dir)
	}
	if r.without == "" {
		fmt.Print(r.logs)
	}
}
