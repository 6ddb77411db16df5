package main

import "fmt"

// enoughLoad is the part of the load that must have been put on: a proof without load proves nothing.
const enoughLoad = 0.9

// mustLoseNothing judges a chain of handoffs as they are meant to be.
func mustLoseNothing(f figures) (wrong []string) {
	wrong = mustBeUnderLoad(f)
	want := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	want(f.silent == 0, "%d requests were lost", f.silent)
	want(f.mistaken == 0, "%d requests were answered wrongly", f.mistaken)
	want(f.broken == 0, "%d connections were broken", f.broken)
	want(f.answered == f.sent, "%d requests were sent, but %d answered", f.sent, f.answered)
	want(f.dials == uint64(f.conns), "%d keep-alive clients dialled %d times", f.conns, f.dials)
	want(f.servers == f.sent, "%d requests were sent, but the servers answered %d", f.sent, f.servers)
	want(len(f.bad) == 0, "%s", f.bad)
	return wrong
}

// mustLose judges a control in which requests are lost and connections broken, if anything here can see that.
func mustLose(f figures) (wrong []string) {
	wrong = mustBeUnderLoad(f)
	if f.lost() == 0 {
		wrong = append(wrong, "it lost no request, so that this proof does not see what it is for")
	}
	if f.broken == 0 {
		wrong = append(wrong, "it broke no connection, so that this proof does not see what it is for")
	}
	if f.dials <= uint64(f.conns) {
		wrong = append(wrong, fmt.Sprintf("%d keep-alive clients dialled only %d times", f.conns, f.dials))
	}
	return wrong
}

// mustBeUnderLoad wants the load put on and the times measured.
func mustBeUnderLoad(f figures) (wrong []string) {
	if f.sent == 0 || float64(f.sent) < enoughLoad*f.wanted {
		wrong = append(wrong, fmt.Sprintf("%d requests were sent of the %.0f that were due: this machine is too busy", f.sent, f.wanted))
	}
	if f.quiet.N == 0 || f.during.N == 0 {
		wrong = append(wrong, "nothing was answered before the handoffs, or during them")
	}
	return wrong
}
