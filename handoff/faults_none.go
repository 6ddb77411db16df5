//go:build !faults

package handoff

// haltAt is for builds with -tags faults, see faults.go.
func haltAt(string, msgType) {}

// lacks is for such builds too: this one has every rule.
func lacks(rule) bool { return false }

// step feeds the machine.
func step(m *machine, ev event) []action { return m.step(ev) }
