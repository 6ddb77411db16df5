package main

import "fmt"

// enoughLoad is the part of the load that must have been put on: a proof without load proves nothing.
const enoughLoad = 0.9

// mustLoseNothing judges a chain of handoffs as they are meant to be.
func mustLoseNothing(f figures) (wrong []string) {
	wrong = mustHaveRun(f)
	want := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	want(f.silent == 0, "%d requests were lost", f.silent)
	want(f.mistaken == 0, "%d requests were answered wrongly", f.mistaken)
	want(f.refused == 0, "%d requests were refused", f.refused)
	want(f.broken == 0, "%d connections were broken", f.broken)
	want(f.answered == f.sent, "%d requests were sent, but %d answered", f.sent, f.answered)
	want(f.dials == uint64(f.conns), "%d keep-alive clients dialled %d times", f.conns, f.dials)
	want(f.servers == f.sent, "%d requests were sent, but the servers answered %d", f.sent, f.servers)
	return wrong
}

// mustLose judges a control in which requests are lost and connections broken, if anything here can see that.
func mustLose(f figures) (wrong []string) {
	wrong = mustHaveRun(f)
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

// mustAnswerWrongly judges a control whose servers give away connections of which they have read a part.
func mustAnswerWrongly(f figures) (wrong []string) {
	wrong = mustHaveRun(f)
	if f.moved == 0 {
		wrong = append(wrong, "no connection moved, so that this proof says nothing about the rule")
	}
	if f.mistaken == 0 {
		wrong = append(wrong, "no request was answered wrongly, so that this proof does not see what the rule is for")
	}
	return wrong
}

// mustNoticeItself judges servers that do without the rule and see at their start that it is missing: then nothing
// moves, and nothing is lost. What a client has sent behind a request whose answer says "Connection: close" is refused.
func mustNoticeItself(f figures) (wrong []string) {
	wrong = mustHaveRun(f)
	want := func(ok bool, format string, args ...any) {
		if !ok {
			wrong = append(wrong, fmt.Sprintf(format, args...))
		}
	}
	want(f.moveOff != "", "the check at the start found nothing: the status has no move_off")
	want(f.moved == 0, "%d connections moved all the same", f.moved)
	want(f.lost() == 0, "%d requests were lost", f.lost())
	want(f.broken == 0, "%d connections were broken", f.broken)
	want(f.answered+f.refused == f.sent, "%d requests were sent, but %d answered and %d refused", f.sent, f.answered, f.refused)
	want(f.servers == f.answered, "%d requests were answered, but the servers say %d", f.answered, f.servers)
	return wrong
}

// mustHaveRun wants the load put on, the times measured, and every server to have ended well.
func mustHaveRun(f figures) (wrong []string) {
	wrong = append(wrong, f.bad...)
	if f.sent == 0 || float64(f.sent) < enoughLoad*f.wanted {
		wrong = append(wrong, fmt.Sprintf("%d requests were sent of the %.0f that were due: this machine is too busy", f.sent, f.wanted))
	}
	if f.quiet.N == 0 || f.during.N == 0 {
		wrong = append(wrong, "nothing was answered before the handoffs, or during them")
	}
	return wrong
}
