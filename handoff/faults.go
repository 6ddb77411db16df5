//go:build faults

package handoff

import (
	"fmt"
	"os"
	"slices"
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
//	FAULTS_WITHOUT=take-back              one of mutations()

// halts are the steps at which this process has still to stop, each once.
var halts = struct {
	sync.Mutex
	at map[string]bool
}{at: readHalts(os.Getenv("FAULTS_HALT"))}

// readHalts panics at a name that is none: a process that never stopped would
// look like one that survived.
func readHalts(list string) map[string]bool {
	at := map[string]bool{}
	for name := range strings.SplitSeq(list, ",") {
		if name = strings.TrimSpace(name); name == "" {
			continue
		}
		when, frame, _ := strings.Cut(name, " ")
		if !slices.Contains([]string{"before", "sent", "read"}, when) || !slices.Contains(msgNames[1:], frame) {
			panic(fmt.Sprintf("FAULTS_HALT: %q is no step: before, sent or read, and the name of a frame", name))
		}
		at[name] = true
	}
	return at
}

// haltAt stops the whole process, if it was asked to, before the calling
// goroutine does anything more.
func haltAt(when string, t msgType) {
	name := when + " " + t.String()
	halts.Lock()
	asked := halts.at[name]
	delete(halts.at, name)
	halts.Unlock()
	if !asked {
		return
	}
	// kill(2) may give the signal to any thread, and this one would go on until it
	// is told of the stop. A thread stops on its way back from signalling itself.
	if err := unix.Tgkill(os.Getpid(), unix.Gettid(), unix.SIGSTOP); err != nil {
		panic(os.NewSyscallError("tgkill", err))
	}
}

// dropped is the rule that this process does without, nil for none.
var dropped = readDropped(os.Getenv("FAULTS_WITHOUT"))

func readDropped(name string) *mutation {
	if name == "" {
		return nil
	}
	all := mutations()
	i := slices.IndexFunc(all, func(m mutation) bool { return m.name == name })
	if i < 0 {
		panic(fmt.Sprintf("FAULTS_WITHOUT: there is no rule %q", name))
	}
	return &all[i]
}

// step is the machine's, or that of a mutation.
func step(m *machine, ev event) []action {
	if dropped != nil {
		return dropped.step(m, ev)
	}
	return m.step(ev)
}
