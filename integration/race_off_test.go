//go:build !race

package integration

// raceEnabled is whether the programs under test are built with the race detector: as these tests are.
const raceEnabled = false
