package replica

import (
	"container/heap"
	"context"
	"sync"
	"sync/atomic"
)

// appliedIndex is how far the state machine has come, and who waits for more.
type appliedIndex struct {
	index atomic.Uint64
	term  atomic.Uint64

	mu      sync.Mutex
	waiters appliedWaiters // at most one for each round of reads and each call of WaitApplied
}

type appliedWaiter struct {
	index uint64
	ch    chan struct{}
}

// notify closes ch when index is applied, perhaps at once.
func (a *appliedIndex) notify(index uint64, ch chan struct{}) {
	if a.index.Load() >= index {
		close(ch)
		return
	}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.index.Load() >= index { // advance takes the lock after it has stored
		close(ch)
		return
	}
	heap.Push(&a.waiters, appliedWaiter{index, ch})
}

// advance is called by the applier only.
func (a *appliedIndex) advance(p Position) {
	a.term.Store(p.Term)
	a.index.Store(p.Index)
	a.mu.Lock()
	defer a.mu.Unlock()
	for len(a.waiters) > 0 && a.waiters[0].index <= p.Index {
		close(heap.Pop(&a.waiters).(appliedWaiter).ch)
	}
}

// WaitApplied waits until the state machine has applied index.
func (r *Replica) WaitApplied(ctx context.Context, index uint64) error {
	if r.applied.index.Load() >= index {
		return nil
	}
	ch := make(chan struct{})
	r.applied.notify(index, ch)
	return r.await(ctx, nil, ch)
}

type appliedWaiters []appliedWaiter

func (w appliedWaiters) Len() int           { return len(w) }
func (w appliedWaiters) Less(i, j int) bool { return w[i].index < w[j].index }
func (w appliedWaiters) Swap(i, j int)      { w[i], w[j] = w[j], w[i] }
func (w *appliedWaiters) Push(x any)        { *w = append(*w, x.(appliedWaiter)) }
func (w *appliedWaiters) Pop() any {
	old := *w
	x := old[len(old)-1]
	old[len(old)-1] = appliedWaiter{}
	*w = old[:len(old)-1]
	return x
}
