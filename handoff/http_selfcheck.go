package handoff

// placeholder
var selfCheck = func() error { return nil }

// checkMoving sees to it, once, that idle connections can be told from others here.
func (p *Process) checkMoving() {
	if p.moveOff() != "" || lacks(ruleSelfCheck) {
		return
	}
	err := selfCheck()
	if err == nil {
		return
	}
	p.mu.Lock()
	p.noMoves = err.Error()
	p.mu.Unlock()
	p.Logger().Warn("idle connections will not move, and are told to close at a handoff instead", "reason", err)
}
