package replica

import (
	"sync/atomic"
	"time"

	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/tracker"
)

// A slow disk under one member must not slow the cluster. The loop never waits for a disk, so a leader whose disk is slow, or
// hangs, goes on sending, committing through the others and confirming reads; but its own clients wait, for it applies only
// what its own log holds. So it hands leadership over to a member whose disk has been quicker, and while a member is slow it
// leaves elections to others for a while. With the threshold T of Config.SlowDisk, looked at each tick:
//
//	slow     the median of the last commits is above T, or the log has waited for its disk for more than 2T
//	stalled  entries have been with the state machine for more than 2T: its disk, say, takes no more
//	stuck    a member that follows a leader has been slow in the second way, or stalled, for more than 4T: whoever waits for
//	         it may as well ask another (Stuck)
//
// A disk whose commits take d > T is noticed with the second of them at the latest: after d + T, or 2T if that is less. Time in
// which the process stood still does not count (noteStill).
type disk struct {
	slow, stalled bool
	leaderless    int // ticks without a leader, in a row
	// The last hand-over: its tick, zero if there was none, and the term it was to end.
	handedAt, handedIn uint64
}

const (
	// handOverRests is how many election timeouts a member waits after a hand-over before it makes another: where all disks
	// are slow, leadership must not go round and round. One that did not come about is tried again sooner.
	handOverRests = 10
	handOverAgain = 3
	// standBackFor is how many election timeouts without a leader a member with a slow disk leaves elections to others, but no
	// longer than standBackMost: nobody may be quicker, and election timeouts may be long.
	standBackFor  = 5
	standBackMost = 5 * time.Second
)

// watchDisk is called each tick.
func (l *loop) watchDisk() {
	d, limit := &l.disk, l.c.SlowDisk
	if l.lead == 0 {
		d.leaderless++
	} else {
		d.leaderless = 0
	}
	if limit <= 0 {
		return
	}
	median, busy := l.c.Log.Pace()
	applying := l.apply.busy()
	l.stuck.set(l.lead != 0 && l.state != raft.StateLeader && max(busy, applying) > 4*limit)
	if slow := median > limit || busy > 2*limit; slow != d.slow {
		d.slow = slow
		l.c.Observer.DiskSlow(slow)
		if slow {
			l.c.Logger.Warn("the disk of the log is slow", "commit_median", median, "commit_under_way", busy, "threshold", limit)
		} else {
			l.c.Logger.Info("the disk of the log keeps up again", "commit_median", median, "threshold", limit)
		}
	}
	if stalled := applying > 2*limit; stalled != d.stalled {
		d.stalled = stalled
		if stalled {
			l.c.Logger.Warn("the state takes no more: its disk is slow or full", "waits", applying)
		} else {
			l.c.Logger.Info("the state takes entries again")
		}
	}
	if d.slow || d.stalled {
		l.handOver(median, max(busy, applying))
	}
}

// noteStill is called at each tick, before anybody looks at the disk's pace. If the tick comes late, the process stood still since
// some time after the last one, or the machine, as at a SIGSTOP, a pause of the virtual machine, a laptop's sleep: what it had to do with a
// disk stood still too, and that says nothing of the disk. Little of such a tick counts, and never so much that the disk is slow for it.
func (l *loop) noteStill(now time.Time) {
	counts := l.c.Tick
	if l.c.SlowDisk > 0 {
		counts = min(counts, l.c.SlowDisk/2)
	}
	if now.Sub(l.ticked) <= l.c.Tick+counts {
		return
	}
	from := l.ticked.Add(counts)
	l.c.Log.StoodStill(from, now)
	l.apply.stoodStill(from, now)
}

// handOver begins to hand leadership over to the member that is furthest. If it is the log's disk that is slow, only to one
// that has made durable what this member has not: else that one's disk is no quicker.
func (l *loop) handOver(median, waits time.Duration) {
	d := &l.disk
	if l.state != raft.StateLeader || l.view.transferee != 0 {
		return
	}
	rests := handOverRests
	if d.handedIn == l.term {
		rests = handOverAgain
	}
	if d.handedAt != 0 && l.ticks-d.handedAt < uint64(rests*l.c.ElectionTicks) {
		return
	}
	heir := l.heir()
	if heir == 0 {
		return
	}
	var own, its uint64
	l.rn.WithProgress(func(id uint64, _ raft.ProgressType, p tracker.Progress) {
		switch id {
		case l.c.ID:
			own = p.Match
		case heir:
			its = p.Match
		}
	})
	if !d.stalled && its <= own {
		return
	}
	d.handedAt, d.handedIn = l.ticks, l.term
	l.c.Logger.Warn("the disk is slow: handing leadership over", "to", hex(heir), "commit_median", median, "waits", waits,
		"threshold", l.c.SlowDisk)
	l.c.Observer.HandedOver(heir)
	l.rn.TransferLeader(heir)
}

// standsBack reports whether this member leaves elections to others, because its disk is slow. It goes on ticking, else it
// would believe in a leader that is gone and refuse others its vote; it only asks for none itself. If there is no leader for
// long, it is needed after all.
func (l *loop) standsBack() bool {
	return (l.disk.slow || l.disk.stalled) && l.disk.leaderless < min(standBackFor*l.c.ElectionTicks, int(standBackMost/l.c.Tick))
}

// Stuck gives a channel that is closed while this member's disk has not answered for long and another member leads: whoever
// waits for this one may as well ask another.
func (r *Replica) Stuck() <-chan struct{} { return *r.stuck.closed.Load() }

// stuck is set by the loop and looked at by anybody.
type stuck struct {
	closed atomic.Pointer[chan struct{}] // closed exactly while the member is stuck
	is     bool                          // the loop's
}

func (s *stuck) open() {
	c := make(chan struct{})
	s.closed.Store(&c)
}

func (s *stuck) set(is bool) {
	switch {
	case is && !s.is:
		close(*s.closed.Load())
	case !is && s.is:
		s.open()
	}
	s.is = is
}
