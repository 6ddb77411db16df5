// Command check reads manifests as the API server does, and holds what hands over in them to the rules without which an
// update loses requests or never ends:
//
//	cd deploy/kubernetes/check && go run . ../daemonset.yaml my-own.yaml
//
// It prints one line for each thing that is wrong. Exit code 0 is nothing, 1 something, 2 wrong usage.
package main

import (
	"fmt"
	"io"
	"os"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout, os.Stderr)) }

func run(files []string, stdout, stderr io.Writer) int {
	if len(files) == 0 {
		fmt.Fprintln(stderr, "usage: check FILE...")
		return 2
	}
	code := 0
	for _, file := range files {
		text, err := os.ReadFile(file)
		if err != nil {
			fmt.Fprintln(stderr, "check:", err)
			return 2
		}
		m, err := decode(text)
		if err != nil {
			fmt.Fprintf(stdout, "%s: %v\n", file, err)
			code = 1
			continue
		}
		for _, p := range m.problems() {
			fmt.Fprintf(stdout, "%s: %s\n", file, p)
			code = 1
		}
	}
	return code
}
