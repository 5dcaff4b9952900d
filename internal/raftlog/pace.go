package raftlog

import (
	"slices"
	"sync"
	"time"
)

const (
	paceCommits = 3                // the commits that Pace looks at
	paceWithin  = 10 * time.Second // and only if they ended this recently
)

// pace is how quick the disk has been lately. The writer notes, anybody asks; the lock is never held over disk work.
type pace struct {
	mu   sync.Mutex
	busy time.Time // since when the writer has been waiting for the disk; zero: it is not
	last []commit  // the last ones that waited for a sync, oldest first
}

type commit struct {
	ended time.Time
	took  time.Duration
}

// begin notes that the writer turns to the disk.
func (p *pace) begin() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.busy = time.Now()
}

// end notes that the disk is done; synced, that it was a commit that waited for a sync.
func (p *pace) end(synced bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if synced {
		if len(p.last) == paceCommits {
			p.last = slices.Delete(p.last, 0, 1)
		}
		now := time.Now()
		p.last = append(p.last, commit{now, now.Sub(p.busy)})
	}
	p.busy = time.Time{}
}

// StoodStill says that the process, or the machine, did nothing between two moments. What was with the disk then was with it
// for as much less.
func (l *Log) StoodStill(from, to time.Time) {
	p := &l.pace
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, c := range p.last {
		p.last[i].took -= both(c.ended.Add(-c.took), c.ended, from, to)
	}
	if !p.busy.IsZero() {
		p.busy = p.busy.Add(both(p.busy, time.Now(), from, to))
	}
}

// both is for how long two spans of time overlap.
func both(from1, to1, from2, to2 time.Time) time.Duration {
	if from1.Before(from2) {
		from1 = from2
	}
	if to2.Before(to1) {
		to1 = to2
	}
	return max(0, to1.Sub(from1))
}

// Pace tells how the disk keeps up: the median time of the last commits, and for how long the writer has been waiting for the
// disk now. Of the last three commits those of the last ten seconds count, and the one under way as one that takes what it
// has taken, if that makes the median longer. With fewer than two there is no median, and it is zero.
func (l *Log) Pace() (median, busy time.Duration) {
	p := &l.pace
	p.mu.Lock()
	defer p.mu.Unlock()
	var times []time.Duration
	for _, c := range p.last {
		if time.Since(c.ended) <= paceWithin {
			times = append(times, c.took)
		}
	}
	median = middle(times)
	if !p.busy.IsZero() {
		busy = time.Since(p.busy)
		if len(times) == paceCommits {
			times = times[1:]
		}
		median = max(median, middle(append(times, busy)))
	}
	return median, busy
}

// middle is the median of up to three times, the shorter one of two, and zero of one.
func middle(times []time.Duration) time.Duration {
	if len(times) < 2 {
		return 0
	}
	return slices.Sorted(slices.Values(times))[(len(times)-1)/2]
}
