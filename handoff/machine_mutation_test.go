//go:build faults

package handoff

import (
	"testing"

	"github.com/stretchr/testify/require"
)

// TestMutations drops one rule at a time; a walk must find what breaks.
func TestMutations(t *testing.T) {
	for _, mut := range mutations() {
		t.Run(mut.name, func(t *testing.T) {
			for _, s := range walkSetups(30_000) {
				k := &walker{n: len(s.modes), step: mut.step, slow: s.slow}
				if n := k.walk(s.start(), s.limit); k.broken != "" {
					t.Logf("without %q: caught after %d states (%s): %s\n\t%s", mut.rule, n, s.name, k.broken, k.account)
					return
				}
			}
			require.Fail(t, "no walk noticed", "the rule %q was dropped", mut.rule)
		})
	}
}
