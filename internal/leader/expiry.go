package leader

import (
	"errors"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// expiryLoop proposes the revocation of leases whose deadline has passed.
func (t *term) expiryLoop() {
	for {
		next := t.expire()
		// Never again before a moment has passed, so that leases which expire in between go together.
		if !t.sleep(t.now()+t.o.Gather, nil) || !t.sleep(next, t.expiryWake) {
			return
		}
	}
}

// queueLocked queues an entry for expiry and wakes the loop if it is the first now.
func (t *term) queueLocked(e *entry, at time.Duration) {
	if at < t.deadlines.next() {
		wake(t.expiryWake)
	}
	t.deadlines.put(e, at)
}

// expire hands all leases that are due to goroutines that revoke them, and returns the next deadline.
func (t *term) expire() time.Duration {
	for {
		t.mu.Lock()
		now := t.now()
		e := t.deadlines.due(now)
		if e == nil {
			next := t.deadlines.next()
			t.mu.Unlock()
			return next
		}
		if !e.expired && e.deadline > now { // renewed since it was queued
			t.deadlines.put(e, e.deadline)
			t.mu.Unlock()
			continue
		}
		e.expired = true
		t.checkpoints.remove(e)
		t.mu.Unlock()
		select {
		case t.places <- struct{}{}:
		case <-t.ctx.Done():
			return never
		}
		t.running.Go(func() {
			defer func() { <-t.places }()
			t.revoke(e)
		})
	}
}

// revoke carries the revocation of an expired lease to its end, or queues it to be tried again.
func (t *term) revoke(e *entry) {
	r, err := t.o.Propose(t.ctx, &command.Command{
		LeaseRevoke: &command.LeaseRevoke{ID: e.id, Term: t.number, Granted: e.granted},
	})
	if err == nil {
		err = r.Err
	}
	if t.ctx.Err() != nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if err == nil || errors.Is(err, kv.ErrLeaseNotFound) {
		if err == nil {
			t.expiries.Add(1)
		}
		t.removeLocked(e)
		return
	}
	t.o.Logger.Warn("a lease that ran out could not be revoked; it will be tried again",
		"lease", e.id, "after", t.o.Retry, "error", err)
	if t.leases[e.id] == e {
		t.queueLocked(e, t.now()+t.o.Retry)
	}
}
