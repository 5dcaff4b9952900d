package leader

import (
	"context"
	"math"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// never is a time that does not come. Times in this package are distances from the beginning of the term, by the
// monotonic clock, so that setting the clock of the machine moves no deadline. Time in which the process stood still is
// left out (clock).
const never = time.Duration(math.MaxInt64)

// term is the jobs of one term of leadership. Four goroutines belong to it: run (expiry), checkpointLoop, the
// clock's, and at times the confirmer's; and up to Options.Revokes that each carry one revocation.
type term struct {
	*Jobs
	number  uint64
	table   Leases
	clock   clock
	ctx     context.Context // ends with the term
	cancel  context.CancelFunc
	running sync.WaitGroup
	confirm confirmer
	ready   chan struct{} // closed when every lease has its deadline

	expiryWake     chan struct{} // capacity 1: the earliest deadline has changed
	checkpointWake chan struct{} // capacity 1: there is a checkpoint to take back, or a new earliest one
	places         chan struct{} // one for each revocation under way

	mu          sync.Mutex
	leases      map[kv.LeaseID]*entry
	deadlines   queue // leases that have not been marked as expired, or whose revocation must be tried again
	checkpoints queue // leases whose time left must be written down at some time
	clears      map[kv.LeaseID]*clearing
}

// entry is the clock of one lease. Term.mu guards it.
type entry struct {
	id       kv.LeaseID
	ttl      int64
	granted  uint64
	deadline time.Duration
	// checkpointAt is when the next checkpoint is due at the earliest.
	checkpointAt time.Duration
	// expired: the deadline has passed and a revocation is proposed or about to be. It is never taken back.
	expired bool
	// unsure: a checkpoint was proposed and may yet be applied. The state may show it or not.
	unsure bool
	gone   chan struct{} // closed when the lease is revoked; nil until somebody waits

	// at and place are the queues': the time by which the entry is queued, which may be before the deadline (renewing
	// does not move it), and the index plus one, 0 if it is not in.
	at    [orders]time.Duration
	place [orders]int
}

func (t *term) now() time.Duration { return t.clock.now() }

// after is so many seconds after now, or never.
func after(now time.Duration, seconds int64) time.Duration {
	if seconds >= int64((never-now)/time.Second) {
		return never
	}
	return now + time.Duration(seconds)*time.Second
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// sleep waits until the time at, or a wake, and reports whether the term goes on.
func (t *term) sleep(at time.Duration, wake <-chan struct{}) bool {
	timer := time.NewTimer(max(0, at-t.now()))
	defer timer.Stop()
	select {
	case <-timer.C:
	case <-wake:
	case <-t.ctx.Done():
		return false
	}
	return true
}

// run is the goroutine of expiry. It gives the leases of the state their deadlines first.
func (t *term) run() {
	for t.confirm.ask(t.ctx) != nil {
		if !t.sleep(t.now()+t.o.Gather, nil) {
			return
		}
	}
	// From here on the state holds everything that earlier terms committed. Leases that are granted meanwhile come by
	// Changed; whoever comes first makes the entry.
	extend := t.o.Extend
	t.table.Each(func(l kv.Lease) {
		t.mu.Lock()
		defer t.mu.Unlock()
		if e := t.leases[l.ID]; e == nil {
			t.addLocked(l, extend)
		}
	})
	close(t.ready)
	t.running.Go(t.checkpointLoop)
	t.expiryLoop()
}

// addLocked makes the entry of a lease: its deadline is the time left in the state, from now on.
func (t *term) addLocked(l kv.Lease, extend time.Duration) *entry {
	now, left := t.now(), l.TTL
	if l.Remaining > 0 {
		left = l.Remaining
	}
	e := &entry{id: l.ID, ttl: l.TTL, granted: l.Granted}
	e.deadline = after(now, left)
	if e.deadline < never-extend {
		e.deadline += extend
	}
	t.leases[l.ID] = e
	t.queueLocked(e, e.deadline)
	if t.checkpointed(l.TTL) {
		e.checkpointAt = now + t.o.Checkpoint
		if e.checkpointAt < t.checkpoints.next() {
			wake(t.checkpointWake)
		}
		t.checkpoints.put(e, e.checkpointAt)
	}
	return e
}

// removeLocked forgets an entry.
func (t *term) removeLocked(e *entry) {
	if t.leases[e.id] == e {
		delete(t.leases, e.id)
	}
	t.deadlines.remove(e)
	t.checkpoints.remove(e)
	e.expired = true // whoever still holds it must not renew it
	if e.gone != nil {
		close(e.gone)
		e.gone = nil
	}
}

func (t *term) changed(l kv.Lease) {
	t.mu.Lock()
	defer t.mu.Unlock()
	e := t.leases[l.ID]
	if e != nil && e.granted != l.Granted { // another lease of that id
		t.removeLocked(e)
		e = nil
	}
	if e == nil {
		t.addLocked(l, 0)
		return
	}
	if l.Remaining == 0 && !e.expired {
		// A renewal has taken a checkpoint back, perhaps one of the leader before.
		t.extendLocked(e, t.now())
	}
}

// extendLocked gives a lease its whole time from now. Only the entry changes: the queues find out when they come to it,
// so that renewing costs nothing, and each lease passes through a queue at most once in its TTL.
func (t *term) extendLocked(e *entry, now time.Duration) {
	e.deadline = max(e.deadline, after(now, e.ttl))
	e.checkpointAt = now + t.o.Checkpoint
	if e.place[byCheckpoint] == 0 && t.checkpointed(e.ttl) {
		t.checkpoints.put(e, e.checkpointAt)
	}
}

// checkpointed reports whether leases of a TTL live long enough for their time left to be written down.
func (t *term) checkpointed(ttl int64) bool { return ttl > int64(t.o.Checkpoint/time.Second) }

func (t *term) revoked(id kv.LeaseID) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if e := t.leases[id]; e != nil {
		t.removeLocked(e)
	}
}
