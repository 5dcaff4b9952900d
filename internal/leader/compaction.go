package leader

import "time"

// Retention is how much history automatic compaction keeps, by one of two measures. The zero value keeps all.
type Retention struct {
	Period    time.Duration // what was current at any moment of this long stays readable
	Revisions int64         // the newest so many revisions stay readable; looked at only if Period is zero
}

const (
	compactEvery    = time.Hour              // at the least, with a period
	compactSamples  = 10                     // notes of the revision between two compactions
	shortestSample  = 100 * time.Millisecond // so that a tiny period does not keep a processor busy
	revisionsLooked = 5 * time.Minute        // between two looks, without a period
)

// Enabled reports whether anything is compacted at all.
func (r Retention) Enabled() bool { return r.Period > 0 || r.Revisions > 0 }

// Compaction decides when to compact and up to where. All members note their revision as time passes, so that a new leader
// knows the history that it may drop; only the leader compacts. Times and measures are those of etcd: a period is first
// waited for as a whole, then a compaction comes every period, or every hour if that is shorter.
//
// History younger than the period is never dropped: the revision compacted to is one that this member noted a period ago
// or earlier, and a member that lags behind notes a lower one.
type Compaction struct {
	retention Retention
	every     time.Duration // between two compactions
	notes     []note        // oldest first; the first two enclose the moment one period ago, once there are such
	last      time.Duration // when the last compaction was done
	done      int64         // its revision
}

type note struct {
	at       time.Duration
	revision int64
}

// NewCompaction begins at a time of zero.
func NewCompaction(r Retention) *Compaction {
	c := &Compaction{retention: r, every: min(r.Period, compactEvery)}
	c.last = -c.every
	return c
}

// Interval is the time between two calls of Look.
func (c *Compaction) Interval() time.Duration {
	if c.retention.Period > 0 {
		return max(c.every/compactSamples, shortestSample)
	}
	return revisionsLooked
}

// Look notes the revision at a time, which never goes back, and returns the revision to compact to now, or 0.
func (c *Compaction) Look(now time.Duration, revision int64) int64 {
	if c.retention.Period <= 0 {
		if to := revision - c.retention.Revisions; to > c.done {
			return to
		}
		return 0
	}
	c.notes = append(c.notes, note{now, revision})
	ago := now - c.retention.Period
	for len(c.notes) > 1 && c.notes[1].at <= ago {
		c.notes = c.notes[1:]
	}
	first := c.notes[0]
	// Looks come a little early or late; half an interval keeps the pace without a drift.
	if first.at > ago || first.revision <= c.done || now-c.last < c.every-c.Interval()/2 {
		return 0
	}
	return first.revision
}

// Done says that what Look returned at a time was compacted, by this member or another. Without it the next Look asks again.
func (c *Compaction) Done(now time.Duration, revision int64) { c.last, c.done = now, revision }
