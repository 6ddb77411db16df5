package handoff

import "sync"

// Process stands in for the real one until both are merged.
type Process struct {
	mu       sync.Mutex
	drainers []drainer
}

func (p *Process) addDrainer(d drainer) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.drainers = append(p.drainers, d)
}
