package leader

import (
	"math/rand/v2"
	"testing"
	"time"
)

// What was written in the last period is never compacted, and what is older than a period and the time between two
// compactions is, whatever the revisions do; over a day of a member that leads at times.
func TestPeriodicCompaction(t *testing.T) {
	for _, period := range []time.Duration{time.Second, 7 * time.Minute, time.Hour, 5 * time.Hour} {
		for seed := range uint64(20) {
			random := rand.New(rand.NewPCG(seed, uint64(period)))
			c := NewCompaction(Retention{Period: period})
			every, step := min(period, time.Hour), c.Interval()
			if step != every/10 {
				t.Fatalf("period %v: looks every %v", period, step)
			}
			var history []note // all that ever was: the model keeps everything
			at := func(when time.Duration) (revision int64) {
				for _, n := range history {
					if n.at <= when {
						revision = n.revision
					}
				}
				return revision
			}
			revision, leading, compacted := int64(1), true, int64(0)
			leadingSince, last := time.Duration(0), -every
			for i := range 300 {
				now := time.Duration(i) * step
				revision += random.Int64N(3)
				history = append(history, note{now, revision})
				if random.IntN(40) == 0 {
					leading = !leading
					leadingSince = now
				}
				to := c.Look(now, revision)
				if to > at(now-period) {
					t.Fatalf("period %v, seed %d: at %v compacts to %d, which was current in the last period", period, seed, now, to)
				}
				if to > 0 && to <= compacted {
					t.Fatalf("period %v, seed %d: compacts to %d again", period, seed, to)
				}
				if !leading || random.IntN(5) == 0 { // not ours to do, or it failed
					if leading && to > 0 {
						leadingSince = now // the next look is to try again
					}
					continue
				}
				if to == 0 {
					if old := at(now - period - 2*step); old > compacted && now-max(leadingSince, last+every) > 2*step {
						t.Fatalf("period %v, seed %d: at %v keeps %d though %d is older than the period", period, seed, now, compacted, old)
					}
					continue
				}
				if now-last < every {
					t.Fatalf("period %v, seed %d: compacts %v after the last time", period, seed, now-last)
				}
				c.Done(now, to)
				compacted, last = to, now
			}
			if len(c.notes) > int(period/step)+2 {
				t.Errorf("period %v: %d notes are kept", period, len(c.notes))
			}
		}
	}
}

func TestFirstCompactionWaitsForThePeriod(t *testing.T) {
	c := NewCompaction(Retention{Period: 5 * time.Hour})
	var when []time.Duration
	for now := time.Duration(0); now <= 8*time.Hour; now += c.Interval() {
		if to := c.Look(now, 10+int64(now/time.Minute)); to > 0 {
			when = append(when, now)
			c.Done(now, to)
		}
	}
	want := []time.Duration{5 * time.Hour, 6 * time.Hour, 7 * time.Hour, 8 * time.Hour}
	if len(when) != len(want) {
		t.Fatalf("compactions at %v, want %v", when, want)
	}
	for i := range want {
		if when[i] != want[i] {
			t.Fatalf("compactions at %v, want %v", when, want)
		}
	}
}

func TestCompactionByRevision(t *testing.T) {
	c := NewCompaction(Retention{Revisions: 100})
	if c.Interval() != 5*time.Minute {
		t.Errorf("looks every %v", c.Interval())
	}
	for _, s := range []struct{ revision, want int64 }{{1, 0}, {100, 0}, {101, 1}, {101, 0}, {150, 50}, {150, 0}, {120, 0}, {1150, 1050}} {
		to := c.Look(0, s.revision)
		if to != s.want {
			t.Errorf("at revision %d: compacts to %d, want %d", s.revision, to, s.want)
		}
		if to > 0 {
			if again := c.Look(0, s.revision); again != to {
				t.Errorf("after a failure: compacts to %d, want %d", again, to)
			}
			c.Done(0, to)
		}
	}
	if (Retention{}).Enabled() || !(Retention{Revisions: 1}).Enabled() || !(Retention{Period: 1}).Enabled() {
		t.Error("Enabled is wrong")
	}
}
