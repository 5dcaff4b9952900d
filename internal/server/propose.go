package server

import (
	"context"
	"errors"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/leader"
)

// Propose puts the command through the log and waits until this member has applied it; see rpc.Backend.
func (m *Member) Propose(ctx context.Context, c *command.Command) (command.Result, error) {
	if c.LeaseGrant != nil {
		c.LeaseGrant.TTL = max(c.LeaseGrant.TTL, leader.MinTTL(m.options.electionTimeout()))
	}
	if c.Txn != nil && c.Txn.Depth() > command.MaxTxnDepth {
		return command.Result{}, kv.ErrRequestTooLarge
	}
	stuck := m.replica.Stuck()
	select {
	case <-stuck:
		return command.Result{}, kv.ErrDiskHangs
	default:
	}
	if err := m.fits(c); err != nil {
		return command.Result{}, err
	}
	start := time.Now()
	c.Time = start.UnixNano()
	var result <-chan command.Result
	c.ID, result = m.waiters.add()
	encoded := c.Append(nil)
	if len(encoded) > m.options.MaxRequestBytes {
		m.waiters.drop(c.ID)
		return command.Result{}, kv.ErrRequestTooLarge
	}
	late := m.deadlines.next(start)
	if err := m.replica.Propose(ctx, late, encoded); err != nil {
		m.waiters.drop(c.ID)
		return command.Result{}, err
	}
	select {
	case r := <-result:
		return r, nil
	case <-ctx.Done():
		m.waiters.drop(c.ID)
		return command.Result{}, ctx.Err()
	case <-late:
		m.waiters.drop(c.ID)
		return command.Result{}, m.tooLate(start, context.DeadlineExceeded)
	case <-stuck: // it may well be done, elsewhere
		m.waiters.drop(c.ID)
		return command.Result{}, kv.ErrTimeoutApply
	case <-m.replica.Left():
		m.waiters.drop(c.ID)
		if r, ok := came(result); ok {
			return r, nil
		}
		return command.Result{}, kv.ErrStopped
	}
}

// ReadBarrier returns once this member has applied everything that was committed when it was called.
func (m *Member) ReadBarrier(ctx context.Context) error {
	err := m.replica.ReadBarrier(ctx, m.deadlines.next(time.Now()))
	if errors.Is(err, kv.ErrTimeout) { // whatever the reason: so does etcd
		if f := m.options.Observer.ReadFailed; f != nil {
			f()
		}
	}
	return err
}

// why says what a request that ended with err ran into. The client's own deadline and cancellation stay what they are;
// our own bound becomes the timeout that tells the reason: the leader was lost meanwhile, there was none all the time, for
// which each call has an error of its own in etcd, or none of these.
func (m *Member) why(ctx context.Context, start time.Time, err, leaderless error) error {
	if !errors.Is(err, context.DeadlineExceeded) || !errors.Is(context.Cause(ctx), kv.ErrTimeout) {
		return err
	}
	return m.tooLate(start, leaderless)
}

// tooLate is the error of a request that began at start and ran into our own bound.
func (m *Member) tooLate(start time.Time, leaderless error) error {
	switch {
	case m.leadership.lostSince(start):
		return kv.ErrTimeoutLeaderFail
	case m.replica.Status().Leader == 0:
		return leaderless
	}
	return kv.ErrTimeout
}

// leadership remembers when this member last was without a leader.
type leadership struct {
	mu   sync.Mutex
	lost time.Time
}

func (l *leadership) noteLost(t time.Time) {
	l.mu.Lock()
	l.lost = t
	l.mu.Unlock()
}

func (l *leadership) lostSince(t time.Time) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.lost.After(t)
}
