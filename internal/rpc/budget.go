package rpc

import (
	"context"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Bounds of the memory that range answers may hold.
const (
	// freeBytes is what one answer may hold without asking.
	freeBytes = 1 << 20
	// budgetWait is how long an answer waits for room before kv.ErrTooManyRequests.
	budgetWait = 5 * time.Second
)

// budget bounds the bytes of all large range answers of the member that are not yet on the wire. An answer that finds it
// used up waits for the lane, of which there is one: its holder may go over the budget, so that an answer larger than
// the whole budget is possible, two answers that each hold half of it do not wait for one another for ever, and the
// memory is bounded by the budget and one answer. An answer that waits longer than budgetWait fails.
type budget struct {
	lane chan struct{} // holds a token when the lane is free

	mu   sync.Mutex
	free int64
	wake chan struct{} // closed and replaced when room is given back
}

func newBudget(bytes int64) *budget {
	b := &budget{lane: make(chan struct{}, 1), free: bytes, wake: make(chan struct{})}
	b.lane <- struct{}{}
	return b
}

// share is what one answer holds of the budget. One goroutine takes; when it is done, any may release.
type share struct {
	b      *budget
	held   int64
	inLane bool
}

// take asks for n bytes more.
func (s *share) take(ctx context.Context, n int64) error {
	var timeout <-chan time.Time
	for {
		s.b.mu.Lock()
		if s.inLane || s.b.free >= n {
			s.b.free -= n
			s.held += n
			s.b.mu.Unlock()
			return nil
		}
		wake := s.b.wake
		s.b.mu.Unlock()
		if timeout == nil {
			t := time.NewTimer(budgetWait)
			defer t.Stop()
			timeout = t.C
		}
		select {
		case <-wake:
		case <-s.b.lane:
			s.inLane = true
		case <-timeout:
			return kv.ErrTooManyRequests
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// release gives everything back, once.
func (s *share) release() {
	s.b.mu.Lock()
	defer s.b.mu.Unlock()
	s.b.free += s.held
	s.held = 0
	close(s.b.wake)
	s.b.wake = make(chan struct{})
	if s.inLane {
		s.inLane = false
		s.b.lane <- struct{}{} // never waits: there is one token
	}
}
