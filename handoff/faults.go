//go:build faults

package handoff

import (
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"

	"golang.org/x/sys/unix"
)

// What a process built with -tags faults has besides: it stops itself at named
// steps of the protocol, and can do without a rule. integration/failures asks
// for it by two variables, whose names do not begin with HANDOFF_ because the
// server warns of those that it does not know:
//
//	FAULTS_HALT="before serve,read got"   stop once at each of these steps
//	FAULTS_HALT="read connections 3"      stop at the third of this one
//	FAULTS_WITHOUT="boundary-rule,self-check"   do without these: names of mutations(), one at most, and of rules

// halts are the steps at which this process has still to stop, each once, by how often
// it has to come there for it.
var halts = struct {
	sync.Mutex
	at map[string]int
}{at: readHalts(os.Getenv("FAULTS_HALT"))}

// readHalts panics at a name that is none: a process that never stopped would
// look like one that survived.
func readHalts(list string) map[string]int {
	at := map[string]int{}
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		when, frame, _ := strings.Cut(name, " ")
		times := 1
		if of, number, ok := strings.Cut(frame, " "); ok {
			if n, err := strconv.Atoi(number); err == nil && n > 0 {
				frame, times = of, n
			}
		}
		if !slices.Contains([]string{"before", "sent", "read"}, when) || !slices.Contains(msgNames[1:], frame) {
			panic(fmt.Sprintf("FAULTS_HALT: %q is no step: before, sent or read, and the name of a frame", name))
		}
		at[when+" "+frame] = times
	}
	return at
}

// haltAt stops the whole process, if it was asked to, before the calling
// goroutine does anything more.
func haltAt(when string, t msgType) {
	name := when + " " + t.String()
	halts.Lock()
	left := halts.at[name]
	halts.at[name] = left - 1
	halts.Unlock()
	if left != 1 {
		return
	}
	// kill(2) may give the signal to any thread, and this one would go on until it
	// is told of the stop. A thread stops on its way back from signalling itself.
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP); err != nil {
		panic(os.NewSyscallError("tgkill", err))
	}
}

// dropped is the rule of the machine that this process does without, nil for none,
// and droppedRules are the others.
var dropped, droppedRules = readDropped(os.Getenv("FAULTS_WITHOUT"))

func readDropped(list string) (machine *mutation, others map[rule]bool) {
	all, others := mutations(), map[rule]bool{}
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		i := slices.IndexFunc(all, func(m mutation) bool { return m.name == name })
		switch {
		case rule(name) == ruleBoundary, rule(name) == ruleSelfCheck:
			others[rule(name)] = true
		case i < 0 || machine != nil:
			panic(fmt.Sprintf("FAULTS_WITHOUT: there is no rule %q, or a second one of the machine", name))
		default:
			machine = &all[i]
		}
	}
	return machine, others
}

// lacks says whether this process does without a rule.
func lacks(r rule) bool { return droppedRules[r] }

// step is the machine's, or that of a mutation.
func step(m *machine, ev event) []action {
	if dropped != nil {
		return dropped.step(m, ev)
	}
	return m.step(ev)
}
