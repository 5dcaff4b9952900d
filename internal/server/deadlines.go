package server

import (
	"sync/atomic"
	"time"
)

// deadlines bounds how long requests wait. Those that come within a step share an end: one channel and one timer for all of
// them, instead of a context with a timer of its own for each, which was a fifth of what a put allocates.
type deadlines struct {
	after, step time.Duration
	newest      atomic.Pointer[deadline]
}

type deadline struct {
	shared time.Time // until when requests get it
	over   chan struct{}
}

func newDeadlines(after time.Duration) *deadlines { return &deadlines{after: after, step: after / 64} }

// next gives a request that begins now the channel that is closed when it has taken too long: after at the least, and at most
// a step more.
func (d *deadlines) next(now time.Time) <-chan struct{} {
	for {
		last := d.newest.Load()
		if last != nil && !now.After(last.shared) {
			return last.over
		}
		fresh := &deadline{shared: now.Add(d.step), over: make(chan struct{})}
		if d.newest.CompareAndSwap(last, fresh) {
			time.AfterFunc(d.after+d.step, func() { close(fresh.over) })
			return fresh.over
		}
	}
}
