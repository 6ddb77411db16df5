package main

import (
	"fmt"
	"time"
)

func report(results []*result, controls []control, took time.Duration, write, check string) (bool, error) {
	bad := 0
	for _, r := range results {
		if len(r.failures) > 0 {
			bad++
		}
	}
	fmt.Printf("%d cells, %d failed, %v\n", len(results), bad, took.Round(time.Second))
	return bad == 0, nil
}
