package leader

import (
	"context"
	"fmt"
	"time"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// clearing is the taking back of one lease's checkpoint; all renewals that need it wait for the same one.
type clearing struct {
	done chan struct{}
	err  error
}

// clearLocked asks for the checkpoint of a lease to be taken back.
func (t *term) clearLocked(id kv.LeaseID) *clearing {
	c := t.clears[id]
	if c == nil {
		c = &clearing{done: make(chan struct{})}
		t.clears[id] = c
		wake(t.checkpointWake)
	}
	return c
}

func (t *term) awaitClear(ctx context.Context, c *clearing) error {
	select {
	case <-c.done:
		if t.ctx.Err() != nil {
			return kv.ErrNotLeader
		}
		return c.err
	case <-t.ctx.Done():
		return kv.ErrNotLeader
	case <-ctx.Done():
		return ctx.Err()
	}
}

// checkpointLoop is the goroutine that writes down how much time leases have left and takes that back for those which
// are renewed. It is the only one that proposes either, one command after the other.
func (t *term) checkpointLoop() {
	for {
		if t.takeBack() {
			continue
		}
		next, more := t.writeDown()
		if more {
			continue
		}
		if !t.sleep(next, t.checkpointWake) {
			return
		}
	}
}

// takeBack takes back a batch of checkpoints and reports whether there were any.
func (t *term) takeBack() bool {
	t.mu.Lock()
	batch := make(map[kv.LeaseID]*clearing)
	c := &command.LeaseCheckpoint{Term: t.number}
	for id, clear := range t.clears {
		if len(batch) == t.o.Batch {
			break
		}
		batch[id] = clear
		l := kv.Lease{ID: id}
		if e := t.leases[id]; e != nil {
			l.Granted = e.granted
		}
		c.Leases = append(c.Leases, l)
	}
	t.mu.Unlock()
	if len(batch) == 0 || t.ctx.Err() != nil {
		return false
	}
	err := t.propose(c)
	t.mu.Lock()
	defer t.mu.Unlock()
	for id, clear := range batch {
		if e := t.leases[id]; e != nil && err == nil {
			e.unsure = false // what was proposed before is before this one in the log, or nowhere
		}
		delete(t.clears, id)
		clear.err = err
		close(clear.done)
	}
	return true
}

// writeDown proposes one batch of the checkpoints that are due. It returns when the next one is, or that there may be
// more now.
func (t *term) writeDown() (next time.Duration, more bool) {
	batch, c, next := t.dueCheckpoints()
	if len(batch) == 0 {
		return next, false
	}
	err := t.propose(c)
	if err != nil {
		if t.ctx.Err() == nil {
			t.o.Logger.Warn("the time that leases have left could not be written down", "leases", len(batch), "error", err)
		}
		return t.now() + t.o.Retry, false // those of this batch come again after the interval
	}
	t.checkpointsDone.Add(int64(len(batch)))
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, e := range batch {
		e.unsure = false // the state shows it now
	}
	return 0, true
}

// dueCheckpoints takes up to a batch of leases whose time left must be written down, and marks them.
func (t *term) dueCheckpoints() (batch []*entry, c *command.LeaseCheckpoint, next time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	now := t.now()
	c = &command.LeaseCheckpoint{Term: t.number}
	for len(batch) < t.o.Batch {
		e := t.checkpoints.due(now)
		if e == nil {
			break
		}
		if e.checkpointAt > now { // renewed since it was queued
			t.checkpoints.put(e, e.checkpointAt)
			continue
		}
		if e.expired || e.deadline <= now {
			continue
		}
		left := int64((e.deadline - now + time.Second - 1) / time.Second)
		e.checkpointAt = now + t.o.Checkpoint
		if e.deadline > e.checkpointAt {
			t.checkpoints.put(e, e.checkpointAt)
		}
		if left >= e.ttl {
			continue
		}
		// From here on a renewal takes the checkpoint back, whatever becomes of the proposal.
		e.unsure = true
		batch = append(batch, e)
		c.Leases = append(c.Leases, kv.Lease{ID: e.id, Remaining: left, Granted: e.granted})
	}
	return batch, c, t.checkpoints.next()
}

func (t *term) propose(c *command.LeaseCheckpoint) error {
	r, err := t.o.Propose(t.ctx, &command.Command{LeaseCheckpoint: c})
	if err == nil {
		err = r.Err
	}
	if err != nil {
		return fmt.Errorf("checkpoint of %d leases: %w", len(c.Leases), err)
	}
	return nil
}
