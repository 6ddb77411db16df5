// Package handoff is one process's part in a handoff.
package handoff
