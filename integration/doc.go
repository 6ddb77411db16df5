// Package integration holds the tests that run the real programs, built from cmd/, against each other: handed over
// under load, killed, stopped, started badly. Package load puts the load on, package proc runs the processes, and
// demo shows a handoff to a reader.
package integration
