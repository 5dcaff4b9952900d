package leader

import (
	"context"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// settle waits until a round has confirmed that this member leads, and the deadlines are known.
func (t *term) settle(ctx context.Context) error {
	if err := t.confirm.ask(ctx); err != nil {
		return err
	}
	select {
	case <-t.ready:
		return nil
	case <-t.ctx.Done():
		return kv.ErrNotLeader
	case <-ctx.Done():
		return ctx.Err()
	}
}

// currentLocked returns a lease of the state with its entry.
func (t *term) currentLocked(id kv.LeaseID) (kv.Lease, *entry, bool) {
	l, ok := t.table.Lookup(id)
	if !ok {
		return l, nil, false
	}
	e := t.leases[id]
	if e != nil && e.granted != l.Granted {
		t.removeLocked(e)
		e = nil
	}
	if e == nil { // the state shows it, and Changed is about to be called
		e = t.addLocked(l, 0)
	}
	return l, e, true
}

func (t *term) renew(ctx context.Context, id kv.LeaseID) (int64, error) {
	if err := t.settle(ctx); err != nil {
		return 0, err
	}
	for {
		t.mu.Lock()
		l, e, ok := t.currentLocked(id)
		if !ok {
			t.mu.Unlock()
			return 0, kv.ErrLeaseNotFound
		}
		if t.ctx.Err() != nil {
			t.mu.Unlock()
			return 0, kv.ErrNotLeader
		}
		now := t.now()
		switch {
		case e.expired || e.deadline <= now:
			gone := t.expireLocked(e)
			t.mu.Unlock()
			return 0, t.awaitGone(ctx, gone)
		case l.Remaining > 0 || e.unsure:
			c := t.clearLocked(id)
			t.mu.Unlock()
			if err := t.awaitClear(ctx, c); err != nil {
				return 0, err
			}
		default:
			t.extendLocked(e, now)
			t.mu.Unlock()
			t.renewals.Add(1)
			return e.ttl, nil
		}
	}
}

// expireLocked makes sure that e is never renewed again, and returns what is closed when the lease is gone.
func (t *term) expireLocked(e *entry) <-chan struct{} {
	if !e.expired {
		e.expired = true
		t.queueLocked(e, 0)
	}
	if e.gone == nil {
		e.gone = make(chan struct{})
	}
	return e.gone
}

func (t *term) awaitGone(ctx context.Context, gone <-chan struct{}) error {
	select {
	case <-gone:
		return kv.ErrLeaseNotFound
	case <-t.ctx.Done():
		return kv.ErrNotLeader
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (t *term) timeToLive(ctx context.Context, id kv.LeaseID) (kv.Lease, int64, error) {
	if err := t.settle(ctx); err != nil {
		return kv.Lease{}, 0, err
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	l, e, ok := t.currentLocked(id)
	if !ok {
		return kv.Lease{}, 0, kv.ErrLeaseNotFound
	}
	if t.ctx.Err() != nil {
		return kv.Lease{}, 0, kv.ErrNotLeader
	}
	if e.expired {
		return l, 0, nil
	}
	left := int64((e.deadline - t.now()) / time.Second)
	return l, min(max(left, 0), l.TTL), nil
}
