package main

import (
	"bytes"
	"fmt"
	"os"
	"time"
)

// report says how everything went, writes the page and compares it, as asked.
func report(results []*result, held []control, took time.Duration, write, check string) (ok bool, err error) {
	ok = true
	for _, r := range results {
		if len(r.failures) > 0 {
			ok = false
			fmt.Printf("FAIL %s\n     %s: %s\n", r.id(), r.outcome, r.failures[0])
		}
	}
	for _, k := range held {
		if k.verdict != "" {
			ok = false
			fmt.Printf("FAIL negative control: %s\n", k.verdict)
		}
	}
	var page bytes.Buffer
	if err := writePage(&page, results, held); err != nil {
		return false, err
	}
	if check != "" {
		committed, err := os.ReadFile(check)
		if err != nil {
			return false, err
		}
		diff := differences(string(committed), page.String())
		for _, d := range diff {
			fmt.Printf("DIFFERS %s\n", d)
		}
		if len(diff) > 0 {
			ok = false
			fmt.Printf("%d outcomes differ from those in %s; if that is meant: make failures\n", len(diff), check)
		}
	}
	if write != "" {
		if err := os.WriteFile(write, page.Bytes(), 0o644); err != nil {
			return false, err
		}
	}
	word := "all passed"
	if !ok {
		word = "NOT all passed"
	}
	fmt.Printf("%d cells and %d negative controls in %v: %s\n", len(results), len(held), took.Round(time.Second), word)
	return ok, nil
}
