package main

import "fmt"

// control is a cell that must fail, because both servers do without a rule: a matrix that finds nothing wrong with
// them would find nothing wrong with anything.
type control struct {
	without string // for FAULTS_WITHOUT, see handoff/machine_mutation.go
	rule    string // what it means, for people
	step    string
	victim  party
	fault   fault
	losses  bool // requests must be lost

	result  *result
	verdict string // why it did not fail as it must; "" where it did
}

// controls are all of them.
var controls = []control{
	{without: "take-back", rule: "the incumbent takes back", step: "read serve", victim: successor, fault: faultKill, losses: true},
	{without: "take-back", rule: "the incumbent takes back", step: "sent serving", victim: successor, fault: faultKill, losses: true},
	{without: "take-back", rule: "the incumbent takes back", step: "probation", victim: successor, fault: faultKill, losses: true},
	{without: "take-back", rule: "the incumbent takes back", step: "before released", victim: successor, fault: faultKill, losses: true},
	{without: "point-of-no-return", rule: "† the point of no return is `released`, not `release`", step: "read release", victim: successor, fault: faultKill, losses: true},
	{without: "empty-after-released", rule: "† `released` counts only when nothing is behind it", step: "read released", victim: successor, fault: faultKill, losses: true},
	{without: "obey-revoke", rule: "† the successor obeys `revoke` until it has read `draining`", step: "before released", victim: successor, fault: faultStop},
	{without: "late-released", rule: "† a late `released` is ignored", step: "before released", victim: successor, fault: faultStop, losses: true},
	{without: "silent-is-not-dead", rule: "† a silent incumbent is not dead", step: "standby", victim: incumbent, fault: faultStop},
}

// cell is what to run for it.
func (k control) cell() (cell, error) {
	s, err := stepNamed(k.step)
	return cell{step: s, victims: []party{k.victim}, fault: k.fault, without: k.without}, err
}

// judge says whether the control failed as it must.
func (k *control) judge(r *result) {
	k.result = r
	switch {
	case len(r.failures) == 0:
		k.verdict = fmt.Sprintf("without %s the cell %s passed: the matrix does not see what it is for", k.without, r.id())
	case k.losses && r.toll.lost() == 0:
		k.verdict = fmt.Sprintf("without %s the cell %s lost nothing, though it failed: %s", k.without, r.id(), r.failures[0])
	}
}

// theControls are those whose cells match, and their cells.
func theControls(match func(cell) bool) (all []control, todo []cell, err error) {
	for _, k := range controls {
		c, err := k.cell()
		if err != nil {
			return nil, nil, err
		}
		if match(c) {
			all, todo = append(all, k), append(todo, c)
		}
	}
	return all, todo, nil
}
