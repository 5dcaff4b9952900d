package server

import (
	"fmt"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/leader"
)

// A cluster compacts by itself what is older than its period, keeps what is younger, and goes on when the leader is gone:
// the new one need not wait for a period of its own.
func TestCompactsByItself(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
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
				lead = c.leading()
				c.stop(lead)
			}
		}
		if c.members[(lead+1)%3].Store().CompactRevision() == 0 {
			t.Error("nothing was compacted")
		}
		c.stopAllBut(lead)
	})
}

// By revision too, every five minutes: the newest so many revisions stay readable on every member, what is older goes, and the
// member that leads next goes on with it.
func TestCompactsByRevision(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const keep, step, look = 20, 10 * time.Second, 5 * time.Minute
		c := newCluster(t, 3)
		defer c.network.Close()
		c.change = func(o *Options) { o.Retention, o.Tick = leader.Retention{Revisions: keep}, time.Second }
		c.startAll()
		var history []int64 // the revision at each step
		lead := -1
		for i := range 120 {
			up := 0
			if up == lead {
				up = 1
			}
			m := c.members[up]
			revision := put(t, m, "k", fmt.Sprint(i)).Revision
			history = append(history, revision)
			got := m.Store().CompactRevision()
			if got > max(revision-keep, 0) { // -1: nothing is compacted
				t.Fatalf("after %d steps: compacted at %d, and %d revisions of %d are to be kept", i, got, keep, revision)
			}
			if ago := i - 2*int(look/step) - 1; ago >= 0 && got < history[ago]-keep { // two looks: a new leader's come at other times
				t.Fatalf("after %d steps: compacted at %d, but %d was the revision %v ago", i, got, history[ago], 2*look)
			}
			if r, _, err := m.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte("k")}, Revision: max(got, history[0])}); err != nil || len(r.KVs) != 1 {
				t.Fatalf("after %d steps: at the oldest revision that is kept k is %v, %v", i, r.KVs, err)
			}
			time.Sleep(step)
			if i == 70 {
				lead = c.leading()
				c.stop(lead)
			}
		}
		c.stopAllBut(lead)
	})
}
