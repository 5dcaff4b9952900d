package watch

import (
	"context"
	"math"
	"time"
)

// Next returns the next thing to send; it waits until there is one. The batch's events are valid until the next call. An
// error is ctx's, ErrClosed, kv.ErrStopped when the hub has ended, or a failure to read the store.
func (s *Stream) Next(ctx context.Context) (Batch, error) {
	for {
		b, what, err := s.look()
		switch {
		case err != nil:
			return Batch{}, err
		case what == give:
			return s.finish(b)
		case what == catchUp, what == catchUpFirst:
			if err := s.catchUp(ctx, what == catchUp); err != nil {
				return Batch{}, err
			}
		case what == wait:
			if err := s.wait(ctx); err != nil {
				return Batch{}, err
			}
		}
	}
}

// Ready is Next for somebody who sends what he has before he waits: it returns false where Next would wait, or read history for
// watchers that lag. The events of the batch before it are not valid any more, in any case.
func (s *Stream) Ready() (Batch, bool, error) {
	for {
		b, what, err := s.look()
		switch {
		case err != nil:
			return Batch{}, false, nil // Next returns it
		case what == give:
			b, err = s.finish(b)
			return b, err == nil, err
		case what == again:
			continue
		case what == catchUpFirst:
			s.turn = true // still
		}
		return Batch{}, false, nil
	}
}

type step uint8

const (
	give         step = iota
	catchUp           // as there is nothing else to do
	catchUpFirst      // as something else was done the last time
	wait
	again
)

// look decides what Next does now.
func (s *Stream) look() (Batch, step, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return Batch{}, wait, s.err
	}
	if len(s.control) > 0 {
		b := s.control[0]
		s.control = pop(s.control)
		<-s.room
		return b, give, nil
	}
	if len(s.revoked) > 0 {
		b := s.revoked[0]
		s.revoked = pop(s.revoked)
		return b, give, nil
	}
	for len(s.out) > 0 {
		o := s.out[0]
		s.out = pop(s.out)
		s.h.pending.Add(-int64(len(o.batch.Events)))
		if s.watchers[o.watcher.ID] == o.watcher { // not cancelled since
			return o.batch, give, nil
		}
	}
	if s.notify > 0 && !time.Now().Before(s.tick) {
		s.tickLocked()
		return Batch{}, again, nil
	}
	if b, ok := s.progressLocked(); ok {
		return b, give, nil
	}
	if s.lag.any() && s.turn {
		s.turn = false
		return Batch{}, catchUpFirst, nil
	}
	if b, ok := s.takeLocked(); ok {
		s.turn = true
		return b, give, nil
	}
	if s.lag.any() {
		return Batch{}, catchUp, nil
	}
	return Batch{}, wait, nil
}

// pop removes the first element and lets go of the array when it was the last.
func pop[T any](queue []T) []T {
	var none T
	queue[0] = none
	if len(queue) == 1 {
		return nil
	}
	return queue[1:]
}

// takeLocked makes a batch of what is pending for one synced watcher.
func (s *Stream) takeLocked() (Batch, bool) {
	limit := s.h.dispatched.Load()
	for len(s.ready) > 0 {
		w := s.ready[0]
		s.ready = pop(s.ready)
		w.ready = false
		if w.state != synced || len(w.pending) == 0 {
			continue
		}
		if w.pendingRevision > limit {
			// The dispatcher is in the middle of that revision; it will wake us.
			w.ready = true
			s.ready = append(s.ready, w)
			return Batch{}, false
		}
		events, n, next, ok := s.h.ring.take(s.events[:0], w.pending, limit, s.h.o.BatchBytes, s.h.o.BatchRevisions)
		if !ok {
			s.lag.lost = append(s.lag.lost, w)
			continue
		}
		s.events = events
		s.pending -= n
		s.h.pending.Add(-int64(n))
		w.pending = w.pending[:copy(w.pending, w.pending[n:])]
		w.pendingRevision = next
		if len(w.pending) > 0 {
			w.ready = true
			s.ready = append(s.ready, w)
		}
		w.quiet = false
		return w.batch(events, events[n-1].Revision.Main), true
	}
	return Batch{}, false
}

func (w *watcher) batch(events []*Event, rev int64) Batch {
	return Batch{Kind: Events, ID: w.ID, Revision: rev, Events: events, PrevKV: w.PrevKV, Fragment: w.Fragment}
}

// finish fills in the previous pairs of a batch that is about to be given out.
func (s *Stream) finish(b Batch) (Batch, error) {
	if b.Kind != Events {
		return b, nil
	}
	s.h.delivered.Add(int64(len(b.Events)))
	if !b.PrevKV {
		return b, nil
	}
	source := s.h.acquire()
	defer source.release()
	for i, e := range b.Events {
		var err error
		if b.Events[i], err = e.loadPrev(source); err != nil {
			return Batch{}, err
		}
	}
	return b, nil
}

// wait waits until something may have changed.
func (s *Stream) wait(ctx context.Context) error {
	s.mu.Lock()
	asked, from, notify := s.requests > 0, int64(math.MaxInt64), s.notify > 0
	if asked {
		from = s.progressFromLocked()
	}
	s.mu.Unlock()
	if asked && !s.waitForRevision(from) {
		return nil
	}
	var tick <-chan time.Time
	if notify {
		if s.timer == nil {
			s.timer = time.NewTimer(time.Until(s.tick))
		} else {
			s.timer.Reset(time.Until(s.tick))
		}
		defer s.timer.Stop()
		tick = s.timer.C
	}
	select {
	case <-s.signal:
	case <-tick:
	case <-s.ended:
	case <-ctx.Done():
		return ctx.Err()
	}
	return nil
}

// waitForRevision arranges to be woken when the dispatcher has reached rev. It returns false if it has already.
func (s *Stream) waitForRevision(rev int64) bool {
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	if _, live := h.streams[s]; live && h.dispatched.Load() < rev {
		h.waiting[s] = rev
		return true
	}
	return false
}
