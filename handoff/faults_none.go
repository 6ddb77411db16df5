//go:build !faults

package handoff

// haltAt is for builds with -tags faults, see faults.go.
func haltAt(string, msgType) {}

// step feeds the machine.
func step(m *machine, ev event) []action { return m.step(ev) }
