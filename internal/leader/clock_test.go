package leader

import (
	"testing"
	"time"
)

// TestStoodStill: a leader that stood still for longer than leases live revokes none before it could read what their holders went on
// sending; those that nobody renews end as late as it stood still.
func TestStoodStill(t *testing.T) {
	inWorld(t, 1, Options{}, func(t *testing.T, w *world) {
		must(t, w.grant(1, 3))
		must(t, w.grant(2, 3))
		for range 3 {
			time.Sleep(time.Second)
			w.still.Add(int64(6 * time.Second))
			if ttl, err := w.renew(background, 0, 1); err != nil || ttl != 3 {
				t.Fatalf("at %v: renewed to %d, %v", time.Since(w.began), ttl, err)
			}
			if time.Since(w.began) < 2*time.Second {
				if _, left, err := w.members[0].jobs.TimeToLive(background, 2); err != nil || left < 1 {
					t.Fatalf("at %v: %d s are left, %v", time.Since(w.began), left, err)
				}
			}
		}
		if _, ok := w.Lookup(2); ok {
			t.Fatal("a lease that nobody renewed lives for ever")
		}
		between(t, "the lease that was renewed", w.gone(1, time.Minute), 3*time.Second-10*time.Millisecond, 3500*time.Millisecond)
	})
}

// TestClock: all time counts as long as somebody looks often enough, and little of what goes by without that.
func TestClock(t *testing.T) {
	var now time.Duration
	c := clock{since: func(time.Time) time.Duration { return now }}
	for range 100 {
		if now += beatAtMost; c.now() != now {
			t.Fatalf("at %v it is %v", now, c.now())
		}
	}
	before := now
	for range 3 {
		now += time.Hour
		if got := c.now(); got != before+beatAtMost {
			t.Fatalf("after an hour it is %v, before it was %v", got, before)
		}
		before += beatAtMost
	}
	if now += beat; c.now() != before+beat {
		t.Fatalf("it goes on at %v, not at %v", c.now(), before+beat)
	}
}
