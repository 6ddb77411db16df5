package handoff

import (
	"fmt"
	"net"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// askAtOnce has n operators ask at the same time, each with a request id of his
// own, and returns what each was answered.
func (c *chain) askAtOnce(n int) []Answer {
	c.t.Helper()
	answers, errs := make([]Answer, n), make([]error, n)
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() { answers[i], errs[i] = c.client().Handover(c.ctx, fmt.Sprint("op-", i)) })
	}
	wg.Wait()
	for _, err := range errs {
		require.NoError(c.t, err)
	}
	return answers
}

// TestHandoverAskedAtOnce: of several operators that ask for the same handover, one
// brings it about and the others are told that it is under way; the status shows
// how it goes under the id of each.
func TestHandoverAskedAtOnce(t *testing.T) {
	const operators = 8
	for _, tt := range []struct {
		name  string
		ready bool // the successor, before they ask
		back  bool // it is rolled back in the end
		want  string
	}{
		{"a standby", true, false, OutcomeReleased},
		{"a successor that is starting", false, false, OutcomeReleased},
		{"rolled back", true, true, OutcomeRolledBack},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newChain(t)
			a, _ := c.serve("A", probation)
			ended := c.ended(a)
			b := c.start("B", mode(Standby))
			greet(b, c.listen(b, "tcp", "127.0.0.1:0"))
			ready := func() {
				go b.Ready(c.ctx)
				c.until("it is on its way", func() bool { return b.State() >= StateStandby })
			}
			if tt.ready {
				ready()
			}
			first := 0
			for i, answer := range c.askAtOnce(operators) {
				if !answer.Already {
					first++
				}
				require.EqualValues(t, 2, answer.Generation)
				require.Equal(t, fmt.Sprint("op-", i), answer.Request)
				require.Equal(t, "handing over", answer.Text)
			}
			require.Equal(t, 1, first, "one of them began it")
			if !tt.ready {
				ready()
			}
			c.until("committed", func() bool {
				g := c.statusOf(1)
				return g != nil && g.State == "parked" && c.statusOf(2).State == "serving"
			})
			// In probation it is still the same handover.
			again, err := c.client().Handover(c.ctx, "late")
			require.NoError(t, err)
			require.True(t, again.Already)
			require.EqualValues(t, 2, again.Generation)
			if tt.back {
				_, err = c.client().Rollback(c.ctx)
			} else {
				a.Stop() // ends the probation
				<-ended
			}
			require.NoError(t, err)
			st, err := c.client().Status(c.ctx)
			require.NoError(t, err)
			outcomes := map[string]string{}
			for _, r := range st.Requests {
				require.EqualValues(t, 2, r.Generation, "%+v", r)
				outcomes[r.ID] = r.Outcome
			}
			want := map[string]string{"late": tt.want}
			for i := range operators {
				want[fmt.Sprint("op-", i)] = tt.want
			}
			require.Equal(t, want, outcomes)
			again, err = c.client().Handover(c.ctx, "op-3")
			if tt.back {
				require.ErrorContains(t, err, "generation 1 serves and no successor is there")
				return
			}
			require.NoError(t, err)
			require.True(t, again.Already, "an id of an earlier outcome begins nothing")
			require.EqualValues(t, 2, again.Generation)
			require.Equal(t, "this request is released", again.Text)
		})
	}
}

// TestVerbsAreCarriedOutWithoutTheirOperator: who asks and goes at once, before an
// answer, has asked all the same.
func TestVerbsAreCarriedOutWithoutTheirOperator(t *testing.T) {
	c := newChain(t)
	askAndGo := func(frame string) {
		t.Helper()
		x, err := net.Dial("unixpacket", c.socket)
		require.NoError(t, err)
		_, err = x.Write([]byte(frame))
		require.NoError(t, err)
		require.NoError(t, x.Close())
	}
	for round := range 20 {
		a, _ := c.serve("A", probation)
		aEnded := c.ended(a)
		b, _ := c.standby("B", Standby)
		askAndGo(`{"type":"handover","request":"gone-1"}`)
		c.reach(b, StateServing)
		c.until("committed", func() bool { g := c.statusOf(b.Generation()); return g != nil && g.State == "serving" })
		askAndGo(`{"type":"rollback"}`)
		c.reach(a, StateServing)
		<-b.Done()
		b.Close()
		d, _ := c.standby("D", Standby)
		askAndGo(fmt.Sprintf(`{"type":"stop","generation":%d}`, d.Generation()))
		<-d.Done()
		require.ErrorContains(t, d.Err(), "stopped")
		askAndGo(map[bool]string{true: `{"type":"drain"}`, false: `{"type":"stop"}`}[round%2 == 0])
		<-aEnded
	}
}

// TestWhoIsRefused: of two verbs that do not go together the first is done, and the
// other is refused with what is in its way.
func TestWhoIsRefused(t *testing.T) {
	handover := func(c *chain) error { _, err := c.client().Handover(c.ctx, ""); return err }
	stop := func(c *chain) error { _, err := c.client().StopGeneration(c.ctx, 2); return err }
	withdraw := func(c *chain) error { _, err := c.client().Withdraw(c.ctx, "deploy-2"); return err }
	drain := func(c *chain) error { _, err := c.client().Drain(c.ctx); return err }
	rollback := func(c *chain) error { _, err := c.client().Rollback(c.ctx); return err }
	for _, tt := range []struct {
		name          string
		first, second func(*chain) error
		code, text    string
		serves        bool // the successor, in the end
	}{
		{"handover, stop of the successor", handover, stop, CodeNotNow, "generation 2 serves in probation", true},
		{"stop of the successor, handover", stop, handover, CodeNoStandby, "generation 1 serves and no successor is there", false},
		{"handover, withdraw", handover, withdraw, CodeNotNow, "request deploy-2 is committed already", true},
		{"withdraw, handover", withdraw, handover, CodeNoStandby, "generation 1 serves and no successor is there", false},
		{"handover, drain", handover, drain, CodeNotNow, "the last handoff is in probation, and can still be taken back", true},
		{"drain, handover", drain, handover, CodeNotNow, "this process is about to stop", false},
		{"drain, rollback", drain, rollback, CodeNotNow, "nothing to roll back: no handoff is in probation", false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newChain(t)
			c.serve("A", func(cfg *Config) { cfg.Probation, cfg.StopDelay = time.Hour, time.Hour })
			b := c.start("B", mode(Standby), func(cfg *Config) { cfg.Request = "deploy-2" })
			greet(b, c.listen(b, "tcp", "127.0.0.1:0"))
			go b.Ready(c.ctx)
			c.until("a standby", func() bool { return c.statusOf(2).State == "standby" })
			require.NoError(t, tt.first(c))
			err := tt.second(c)
			var no *RemoteError
			require.ErrorAs(t, err, &no)
			require.Equal(t, tt.code, no.Code)
			require.ErrorContains(t, err, tt.text)
			if tt.serves {
				c.reach(b, StateServing)
			} else {
				c.reach(b, StateGone)
				require.Equal(t, "serving", c.statusOf(1).State)
			}
		})
	}
}
