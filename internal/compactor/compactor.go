// Package compactor deletes the history that compactions have given up, on every member, beside the writers.
//
// A compaction in the log only moves the compact revision. The rows behind it go step by step, each step a small batch,
// with a rest after each that is as long as the step was, so that at most half of one processor's time goes into it.
// What is left after a restart is found by the first step and goes on from there. The package owns when steps are made
// and who waits for them; what a step deletes, and how far they have come, is the store's.
//
// Invariants, attacked by compactor_test.go:
//
//   - a channel that Done returned is closed only after a step has found nothing left to delete for its revision;
//   - after Reset has returned, the store before is not touched any more.
package compactor

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Store is what has history to delete.
type Store interface {
	// CompactRevision is the revision of the last compaction. It never goes back.
	CompactRevision() int64
	// CompactStep deletes some of the rows that compactions up to CompactRevision have given up, looking at up to limit
	// changes, and tells how many versions went. It reports done when nothing was left to delete for the compact
	// revision as it was when the step began.
	CompactStep(ctx context.Context, limit int) (deleted int, done bool, err error)
}

// Options configure a Driver. Zero values take the defaults.
type Options struct {
	Store  Store
	Logger *slog.Logger
	// Limit bounds the changes that one step looks at. Writers wait for the batch of a step. Default 300.
	Limit int
	// Rest is the shortest time between two steps. Default 1 ms.
	Rest time.Duration
	// Retry is when a step that failed is tried again. Default 10 s.
	Retry time.Duration
	// OnStep is told how many versions each step deleted and how long it took, OnDone how long a compaction took from
	// its first step to its last and at which revision it ended. Both may be nil; both are called from the driver's goroutine and must not block.
	OnStep func(deleted int, took time.Duration)
	OnDone func(revision int64, took time.Duration)
}

// Driver makes the steps. All methods may be called from any goroutine.
type Driver struct {
	o     Options
	nudge chan struct{} // capacity 1
	ctx   context.Context
	stop  context.CancelFunc
	ended chan struct{}

	mu      sync.Mutex
	store   Store
	gone    int64              // all history up to this revision's compaction is gone from store
	waiters []waiter           // in no order; as many as compactions that somebody waits for
	step    context.CancelFunc // ends the step under way; nil if there is none
	free    *sync.Cond         // step has become nil
}

type waiter struct {
	revision int64
	done     chan struct{}
}

// Start starts a driver, which at once goes on with what an earlier run has left.
func Start(o Options) *Driver {
	if o.Limit <= 0 {
		o.Limit = 300
	}
	if o.Rest <= 0 {
		o.Rest = time.Millisecond
	}
	if o.Retry <= 0 {
		o.Retry = 10 * time.Second
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	d := &Driver{o: o, nudge: make(chan struct{}, 1), ended: make(chan struct{}), store: o.Store}
	d.ctx, d.stop = context.WithCancel(context.Background())
	d.free = sync.NewCond(&d.mu)
	d.wake()
	go d.run()
	return d
}

// Stop ends the driver and waits for the step under way. The channels of Done that are not closed stay open.
func (d *Driver) Stop() {
	d.stop()
	<-d.ended
}

// Done tells the driver that the store was compacted at a revision and returns a channel that is closed when the rows
// are gone. The apply loop calls it after the compaction is published; it does not wait.
func (d *Driver) Done(revision int64) <-chan struct{} {
	done := make(chan struct{})
	d.mu.Lock()
	defer d.mu.Unlock()
	if revision <= d.gone {
		close(done)
		return done
	}
	d.waiters = append(d.waiters, waiter{revision, done})
	d.wake()
	return done
}

// Reset puts another store in the place of the one before, as when a snapshot was installed. It waits until the one
// before is not touched any more.
func (d *Driver) Reset(store Store) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for d.step != nil {
		d.step()
		d.free.Wait()
	}
	d.store, d.gone = store, 0
	d.wake()
}

func (d *Driver) wake() {
	select {
	case d.nudge <- struct{}{}:
	default:
	}
}

// run is the driver's goroutine.
func (d *Driver) run() {
	defer close(d.ended)
	var began time.Time // when the first step of the compaction under way was made
	worked := false     // it is one: at the start, and after Reset, there may be nothing to do
	for {
		select {
		case <-d.nudge:
		case <-d.ctx.Done():
			return
		}
		for more := true; more; {
			var rest time.Duration
			if began.IsZero() {
				began = time.Now()
			}
			start := time.Now()
			step, err := d.makeStep()
			took := time.Since(start)
			worked = worked || step.deleted > 0 || step.awaited
			switch {
			case d.ctx.Err() != nil:
				return
			case err != nil:
				d.o.Logger.Warn("a step of deleting compacted history failed; it will be tried again",
					"revision", step.revision, "after", d.o.Retry, "error", err)
				rest = d.o.Retry
			default:
				if worked && d.o.OnStep != nil {
					d.o.OnStep(step.deleted, took)
				}
				rest = max(d.o.Rest, took)
			}
			if more = err != nil || !step.done; !more {
				if worked && d.o.OnDone != nil {
					d.o.OnDone(step.revision, time.Since(began))
				}
				began, worked = time.Time{}, false
			}
			select {
			case <-time.After(rest):
			case <-d.ctx.Done():
				return
			}
		}
	}
}

// step is what came of one step.
type step struct {
	revision int64
	deleted  int
	done     bool // nothing is left for revision
	awaited  bool // somebody was told so
}

// makeStep makes one step, and closes the channels of those whose rows are gone.
func (d *Driver) makeStep() (s step, err error) {
	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	d.mu.Lock()
	store := d.store
	s.revision = store.CompactRevision()
	d.step = cancel
	d.mu.Unlock()

	s.deleted, s.done, err = store.CompactStep(ctx, d.o.Limit)

	d.mu.Lock()
	defer d.mu.Unlock()
	if err != nil && ctx.Err() != nil {
		err = nil // Reset has ended it; the next step is of the new store
		s.done = false
	}
	d.step = nil
	d.free.Broadcast()
	if s.done && d.store == store {
		d.gone = max(d.gone, s.revision)
		before := len(d.waiters)
		d.waiters = closeUpTo(d.waiters, d.gone)
		s.awaited = len(d.waiters) < before
	}
	return s, err
}

// closeUpTo closes the channels of waiters up to a revision and returns the others.
func closeUpTo(waiters []waiter, revision int64) []waiter {
	kept := waiters[:0]
	for _, w := range waiters {
		if w.revision <= revision {
			close(w.done)
		} else {
			kept = append(kept, w)
		}
	}
	clear(waiters[len(kept):])
	return kept
}
