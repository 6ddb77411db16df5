//go:build faults

package handoff

import "slices"

// mutation is the machine without one of the rules that the design marks †, or
// without take-back. A walk that does not notice would prove nothing, nor would a
// matrix of failures (integration/failures).
type mutation struct {
	name string // for FAULTS_WITHOUT
	rule string
	step func(*machine, event) []action
}

func has(acts []action, kind actionKind, msg msgType) bool {
	return slices.ContainsFunc(acts, func(a action) bool { return a.kind == kind && a.msg == msg })
}

func mutations() []mutation {
	step := (*machine).step
	return []mutation{
		{"point-of-no-return", "the point of no return is `released`, not `release`", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if has(acts, actSend, msgRelease) {
				acts = append(acts, step(m, event{kind: evFrame, side: sideYounger, msg: msgReleased})...)
				acts = append(acts, step(m, event{kind: evEmpty, side: sideYounger})...)
			}
			return acts
		}},
		{"empty-after-released", "`released` counts only when nothing is behind it", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if ev.kind == evFrame && ev.side == sideYounger && ev.msg == msgReleased && m.younger == phaseReleased {
				acts = append(acts[:len(acts)-1], step(m, event{kind: evEmpty, side: sideYounger})...)
			}
			return acts
		}},
		{"late-released", "a late `released` is ignored", func(m *machine, ev event) []action {
			if ev.kind == evFrame && ev.side == sideRetired && ev.msg == msgReleased {
				m.state = StateDraining
				return []action{{kind: actRelease}, {kind: actStopAnswering}, {kind: actDrain}}
			}
			return step(m, ev)
		}},
		{"obey-revoke", "the successor obeys revoke until it has read draining", func(m *machine, ev event) []action {
			if ev.kind == evFrame && ev.side == sideElder && ev.msg == msgRevoke && m.elder == phaseReleased {
				return nil
			}
			return step(m, ev)
		}},
		{"leave-control-alone", "the successor leaves the control listener alone until it has read draining or EOF", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if has(acts, actSend, msgReleased) {
				acts = append(acts, action{kind: actAnswer})
			}
			return acts
		}},
		{"reset-is-not-the-end", "a reset is not the end", func(m *machine, ev event) []action {
			if ev.kind == evReset {
				ev.kind = evEOF
			}
			return step(m, ev)
		}},
		{"read-empty-first", "a timer acts only after the link was read empty", func(m *machine, ev event) []action {
			acts := step(m, ev)
			for i, a := range acts {
				if a.kind == actPoll {
					acts = append(acts[:i], step(m, event{kind: evEmpty, side: a.side})...)
				}
			}
			return acts
		}},
		{"discard-late-timers", "a timer that fired while this process was stopped is discarded", func(m *machine, ev event) []action {
			ev.late = false
			return step(m, ev)
		}},
		{"silent-is-not-dead", "a silent incumbent is not dead", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if slices.ContainsFunc(acts, func(a action) bool { return a.kind == actReportSilent && a.side == sideElder }) {
				acts = append(acts, step(m, event{kind: evEOF, side: sideElder})...)
			}
			return acts
		}},
		{"exclusive-waits", "an exclusive socket resumes only after `revoked` or death", func(m *machine, ev event) []action {
			acts := step(m, ev)
			if slices.ContainsFunc(acts, func(a action) bool { return a.kind == actResume }) {
				acts = append(acts, action{kind: actResumeExclusive})
			}
			return acts
		}},
		{"never-serve-again", "a revoked successor never serves again", func(m *machine, ev event) []action {
			if m.state == StateRevoked && ev.kind == evDrained {
				m.state = StateServing
				return []action{{kind: actAccept}}
			}
			return step(m, ev)
		}},
		{"serve-only-alone", "whoever looks for the incumbent again serves only when there is none", func(m *machine, ev event) []action {
			if ev.kind == evAppReady {
				m.seeking = false
			}
			return step(m, ev)
		}},
		{"max-draining", "where as many drain as may, nobody else succeeds", func(m *machine, ev event) []action {
			ev.full = false
			return step(m, ev)
		}},
		{"max-draining-ends", "who was told busy while as many drained as may is admitted after it", func(m *machine, ev event) []action {
			acts := step(m, ev)
			m.stopping = m.stopping || ev.kind == evHello && ev.full && m.sole() && m.younger == phaseNone
			return acts
		}},
		{"stand-in-admits-nobody", "who stands in for a silent incumbent admits nobody", func(m *machine, ev event) []action {
			if ev.kind == evHello && m.silent {
				m.silent, m.state, m.elder = false, StateServing, phaseNone
			}
			return step(m, ev)
		}},
		{"one-successor", "at most one unrevoked successor holds descriptors", func(m *machine, ev event) []action {
			if ev.kind == evHello && m.state == StateServing {
				m.younger = phaseNone
			}
			return step(m, ev)
		}},
		{"stop-is-owed", "who was told to stop, and took back, hands over to the next that is ready", func(m *machine, ev event) []action {
			owed := m.owed
			m.owed = false
			acts := step(m, ev)
			m.owed = m.owed || owed && m.state == StateServing
			return acts
		}},
		{"delayed-stop-hands-over", "who comes while a stop is delayed is handed over to", func(m *machine, ev event) []action {
			leaving := m.leaving
			m.leaving = leaving && ev.msg != msgReady
			acts := step(m, ev)
			m.leaving = m.leaving || leaving && m.state == StateServing
			return acts
		}},
		{"take-back", "the incumbent takes back", func(m *machine, ev event) []action {
			before := *m
			acts := step(m, ev)
			if (before.state == StateParked || before.state == StateReleasing) && m.state == StateServing {
				*m = before
				return nil
			}
			return acts
		}},
	}
}
