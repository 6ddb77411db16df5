package main

import (
	"context"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func TestStalls(t *testing.T) {
	begin := time.Now()
	at := func(ms int) time.Time { return begin.Add(time.Duration(ms) * time.Millisecond) }
	s := stalls{all: []stall{{at(100), 500 * time.Millisecond}, {at(200), 700 * time.Millisecond}, {at(300), 600 * time.Millisecond}}}
	for _, tc := range []struct{ since, want int }{{0, 700}, {150, 700}, {250, 600}, {300, 0}} {
		require.Equal(t, time.Duration(tc.want)*time.Millisecond, s.since(at(tc.since)), "since %d ms", tc.since)
	}
	ctx, end := context.WithCancel(t.Context())
	done := make(chan struct{})
	var quiet stalls
	go func() { defer close(done); quiet.watch(ctx) }()
	end()
	<-done
}
