package handoff

import (
	"slices"
	"testing"

	"github.com/stretchr/testify/require"
)

// mutation is the machine without one of the rules that the design marks †. A
// walk that does not notice would prove nothing.
type mutation struct {
	rule string
	step func(*machine, event) []action
}

func has(acts []action, kind actionKind, msg msgType) bool {
	return slices.ContainsFunc(acts, func(a action) bool { return a.kind == kind && a.msg == msg })
}

func mutations() []mutation {
	step := (*machine).step
	return []mutation{
		{"the point of no return is `released`, not `release`", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if has(acts, actSend, msgRelease) {
				acts = append(acts, step(m, event{kind: evFrame, side: sideYounger, msg: msgReleased})...)
			}
			return acts
		}},
		{"a late `released` is ignored", func(m *machine, ev event) []action {
			if ev.kind == evFrame && ev.side == sideRetired && ev.msg == msgReleased {
				m.state = StateDraining
				return []action{{kind: actRelease}, {kind: actStopAnswering}, {kind: actDrain}}
			}
			return step(m, ev)
		}},
		{"the successor obeys revoke until it has read draining", func(m *machine, ev event) []action {
			if ev.kind == evFrame && ev.side == sideElder && ev.msg == msgRevoke && m.elder == phaseReleased {
				return nil
			}
			return step(m, ev)
		}},
		{"the successor leaves the control listener alone until it has read draining or EOF", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if has(acts, actSend, msgReleased) {
				acts = append(acts, action{kind: actAnswer})
			}
			return acts
		}},
		{"a reset is not the end", func(m *machine, ev event) []action {
			if ev.kind == evReset {
				ev.kind = evEOF
			}
			return step(m, ev)
		}},
		{"a timer acts only after the link was read empty", func(m *machine, ev event) []action {
			acts := step(m, ev)
			for i, a := range acts {
				if a.kind == actPoll {
					acts = append(acts[:i], step(m, event{kind: evEmpty, side: a.side})...)
				}
			}
			return acts
		}},
		{"a timer that fired while this process was stopped is discarded", func(m *machine, ev event) []action {
			ev.late = false
			return step(m, ev)
		}},
		{"a silent incumbent is not dead", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if slices.ContainsFunc(acts, func(a action) bool { return a.kind == actReportSilent }) {
				acts = append(acts, step(m, event{kind: evEOF, side: sideElder})...)
			}
			return acts
		}},
		{"an exclusive socket resumes only after `revoked` or death", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if slices.ContainsFunc(acts, func(a action) bool { return a.kind == actResume }) {
				acts = append(acts, action{kind: actResumeExclusive})
			}
			return acts
		}},
		{"a revoked successor never serves again", func(m *machine, ev event) []action {
			if m.state == StateRevoked && ev.kind == evDrained {
				m.state = StateServing
				return []action{{kind: actAccept}}
			}
			return step(m, ev)
		}},
		{"whoever looks for the incumbent again serves only when there is none", func(m *machine, ev event) []action {
			if ev.kind == evAppReady {
				m.seeking = false
			}
			return step(m, ev)
		}},
		{"where as many drain as may, nobody else succeeds", func(m *machine, ev event) []action {
			ev.full = false
			return step(m, ev)
		}},
		{"who was told busy while as many drained as may is admitted after it", func(m *machine, ev event) []action {
			acts := step(m, ev)
			m.stopping = m.stopping || ev.kind == evHello && ev.full && m.sole() && m.younger == phaseNone
			return acts
		}},
		{"at most one unrevoked successor holds descriptors", func(m *machine, ev event) []action {
			if ev.kind == evHello && m.state == StateServing {
				m.younger = phaseNone
			}
			return step(m, ev)
		}},
	}
}

// TestMutations drops one rule at a time; a walk must find what breaks.
func TestMutations(t *testing.T) {
	for _, mut := range mutations() {
		t.Run(mut.rule, func(t *testing.T) {
			for _, s := range walkSetups(30_000) {
				k := &walker{n: len(s.modes), step: mut.step, slow: s.slow}
				if n := k.walk(s.start(), s.limit); k.broken != "" {
					t.Logf("caught after %d states (%s): %s\n\t%s", n, s.name, k.broken, k.account)
					return
				}
			}
			require.Fail(t, "no walk noticed", "the rule %q was dropped", mut.rule)
		})
	}
}
