package server

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/leader"
)

// A cluster compacts by itself what is older than its period, keeps what is younger, and goes on when the leader is gone:
// the new one need not wait for a period of its own.
func TestCompactsByItself(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := newCluster(t, 3)
		defer c.network.Close()
		c.change = func(o *Options) { o.Retention = leader.Retention{Period: time.Hour} }
		c.startAll()
		const step = 10 * time.Minute
		var history []int64 // the revision at each step
		lead := -1
		check := func(of *Member) {
			t.Helper()
			got := of.Store().CompactRevision()
			if n := len(history); n > 7 && got > history[n-7] {
				t.Errorf("after %d steps: compacted at %d, which was current in the last hour (%v)", n, got, history)
			}
			if n := len(history); n > 15 && got < history[n-15] {
				t.Errorf("after %d steps: compacted at %d, but %d was current more than two hours ago", n, got, history[n-15])
			}
		}
		for i := range 40 {
			up := 0
			if up == lead {
				up = 1
			}
			history = append(history, put(t, c.members[up], "k", fmt.Sprint(i)).Revision)
			check(c.members[up])
			time.Sleep(step)
			if i == 20 {
				for n, m := range c.members {
					if m.Leader() == m.identity.MemberID {
						lead = n
					}
				}
				c.stop(lead)
			}
		}
		if c.members[(lead+1)%3].Store().CompactRevision() == 0 {
			t.Error("nothing was compacted")
		}
		for i := range 3 {
			if i != lead {
				c.stop(i)
			}
		}
	})
}
