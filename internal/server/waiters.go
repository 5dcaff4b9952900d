package server

import (
	"sync"
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/command"
)

// waiters holds who waits on this member for which command. Ids count from 1 at each start of the member; the origin in
// the log entry tells this life of the member from all others.
type waiters struct {
	origin uint64
	next   atomic.Uint64
	shards [16]waiterShard
}

type waiterShard struct {
	mu      sync.Mutex
	waiting map[uint64]chan command.Result // each of capacity 1, sent to once, by done
}

func newWaiters(origin uint64) *waiters {
	w := &waiters{origin: origin}
	for i := range w.shards {
		w.shards[i].waiting = make(map[uint64]chan command.Result)
	}
	return w
}

// add registers a new waiter and returns its id and where its result will come.
func (w *waiters) add() (uint64, <-chan command.Result) {
	id := w.next.Add(1)
	c := make(chan command.Result, 1)
	s := w.shard(id)
	s.mu.Lock()
	s.waiting[id] = c
	s.mu.Unlock()
	return id, c
}

// any reports whether somebody waits.
func (w *waiters) any() bool {
	for i := range w.shards {
		s := &w.shards[i]
		s.mu.Lock()
		n := len(s.waiting)
		s.mu.Unlock()
		if n > 0 {
			return true
		}
	}
	return false
}

// came gives the result that came before its waiter was told to give up: of the two, a select takes either.
func came(result <-chan command.Result) (r command.Result, ok bool) {
	select {
	case r = <-result:
		return r, true
	default:
		return r, false
	}
}

// drop forgets a waiter that gave up.
func (w *waiters) drop(id uint64) {
	s := w.shard(id)
	s.mu.Lock()
	delete(s.waiting, id)
	s.mu.Unlock()
}

// Wants reports whether somebody here waits for the command.
func (w *waiters) Wants(origin, id uint64) bool {
	if origin != w.origin {
		return false
	}
	s := w.shard(id)
	s.mu.Lock()
	_, ok := s.waiting[id]
	s.mu.Unlock()
	return ok
}

// done hands the result over and forgets the waiter. It never blocks.
func (w *waiters) done(id uint64, r command.Result) {
	s := w.shard(id)
	s.mu.Lock()
	c, ok := s.waiting[id]
	delete(s.waiting, id)
	s.mu.Unlock()
	if ok {
		c <- r
	}
}

func (w *waiters) shard(id uint64) *waiterShard { return &w.shards[id%uint64(len(w.shards))] }
