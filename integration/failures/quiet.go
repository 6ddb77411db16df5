package main

import (
	"context"
	"net"
	"time"

	"github.com/fdhandoff/handoff/integration/proc"
)

// measureQuiet counts the descriptors of servers that met no fault, and have no client.
func (m *matrix) measureQuiet(ctx context.Context) (b baseline, err error) {
	ctx, cancel := within(ctx, patience)
	defer cancel()
	t, err := newTrial(cell{step: step{way: wayUpgrade}}, m.bin)
	if err != nil {
		return b, err
	}
	defer t.forget()
	defer t.end()
	release, err := t.reserve()
	if err != nil {
		return b, err
	}
	defer release()
	if err := t.startFirst(ctx); err != nil {
		return b, err
	}
	// What a revoked successor had accepted may come back, and rests in an epoll instance then.
	b.began = fewest(t.one.pid) + 1
	// A connection that moves: whoever takes over has such an instance from then on.
	client, err := net.Dial("tcp", t.address())
	if err != nil {
		return b, err
	}
	defer client.Close()
	if err := t.begin(ctx); err != nil {
		return b, err
	}
	if err := t.must(ctx); err != nil {
		return b, err
	}
	if _, err := proc.WaitStatus(ctx, t.socket, func(s proc.Status) bool {
		return s.Serving().Label == "v2" && len(s.Generations) == 1
	}); err != nil {
		return b, err
	}
	if err := client.Close(); err != nil {
		return b, err
	}
	b.tookOver = fewest(t.two.pid)
	return b, nil
}

// fewest is the least number of descriptors that a process has within a moment: the question for its status is a
// connection, too, and ends in its own time.
func fewest(pid int) int {
	least := 0
	for end := time.Now().Add(300 * time.Millisecond); time.Now().Before(end); time.Sleep(lookEvery) {
		if n, err := proc.Descriptors(pid); err == nil && (least == 0 || n < least) {
			least = n
		}
	}
	return least
}
