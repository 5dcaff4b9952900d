package replica

import (
	"context"
	"fmt"
	"sync"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/command"
)

// applier is the queue from the loop to the apply goroutine, the only one that changes the state machine. It is bounded
// by raft, which has at most MaxApplyBytes of entries under way.
type applier struct {
	wake chan struct{} // capacity 1: something is queued

	mu    sync.Mutex
	items []applyItem
	since time.Time // when the state machine was given what it is applying; zero: nothing
}

// applyItem is a MsgStorageApply with entries, or, if staged is set, a MsgStorageAppend whose snapshot is to be installed.
type applyItem struct {
	m      *raftpb.Message
	staged *stagedSnapshot
}

func (a *applier) push(i applyItem) {
	a.mu.Lock()
	a.items = append(a.items, i)
	a.mu.Unlock()
	select {
	case a.wake <- struct{}{}:
	default:
	}
}

func (a *applier) take(spare []applyItem) []applyItem {
	clear(spare)
	a.mu.Lock()
	defer a.mu.Unlock()
	items := a.items
	a.items = spare[:0]
	return items
}

// applying notes that the state machine is given entries, or, with the zero time, that it is done.
func (a *applier) applying(since time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.since = since
}

// busy is for how long the state machine has been applying what it was last given.
func (a *applier) busy() time.Duration {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.since.IsZero() {
		return 0
	}
	return time.Since(a.since)
}

// stoodStill leaves the time between two moments out of what busy tells: the process did nothing then.
func (a *applier) stoodStill(from, to time.Time) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if !a.since.IsZero() && a.since.Before(to) {
		if a.since.After(from) {
			from = a.since
		}
		a.since = a.since.Add(to.Sub(from))
	}
}

// runApply is the apply goroutine. What waits is applied as one batch. After an error nothing more is applied.
func (r *Replica) runApply() {
	var items []applyItem
	var batch []command.Entry
	for {
		select {
		case <-r.apply.wake:
		case <-r.ctx.Done():
		}
		items = r.apply.take(items)
		rest := items
		var err error
		for len(rest) > 0 && err == nil && r.ctx.Err() == nil {
			n := 1
			if rest[0].staged != nil {
				err = r.install(rest[0])
			} else {
				for n < len(rest) && rest[n].staged == nil {
					n++
				}
				batch, err = r.applyItems(rest[:n], batch)
			}
			rest = rest[n:]
		}
		if err != nil && r.ctx.Err() == nil {
			r.fail(err)
		}
		if r.ctx.Err() != nil {
			discardItems(rest)
			discardItems(r.apply.take(nil))
			return
		}
	}
}

// discardItems lets go of received snapshots that will not be installed.
func discardItems(items []applyItem) {
	for _, i := range items {
		if i.staged != nil {
			i.staged.discard()
		}
	}
}

// applyItems applies the entries of items and answers raft. It returns batch for its memory.
func (r *Replica) applyItems(items []applyItem, batch []command.Entry) ([]command.Entry, error) {
	batch = batch[:0]
	for _, i := range items {
		for _, e := range i.m.Entries {
			entry := command.Entry{Index: e.GetIndex(), Term: e.GetTerm()}
			if e.GetType() == raftpb.EntryNormal {
				entry.Data = e.Data
				batch = append(batch, entry)
				continue
			}
			if err := r.applyBatch(batch); err != nil {
				return nil, err
			}
			batch = batch[:0]
			if err := r.applyConf(entry, e); err != nil {
				return nil, err
			}
		}
	}
	if err := r.applyBatch(batch); err != nil {
		return nil, err
	}
	clear(batch)
	for _, i := range items {
		r.in.answer(i.m.Responses)
	}
	return batch, nil
}

func (r *Replica) applyBatch(batch []command.Entry) error {
	if len(batch) == 0 {
		return nil
	}
	last := batch[len(batch)-1]
	if first := batch[0].Index; first != r.applied.index.Load()+1 {
		panic(fmt.Sprintf("replica: entry %d is to be applied to a state at %d", first, r.applied.index.Load()))
	}
	r.apply.applying(time.Now())
	err := r.c.Machine.Apply(batch)
	r.apply.applying(time.Time{})
	if err != nil {
		return fmt.Errorf("apply entries %d to %d: %w", batch[0].Index, last.Index, err)
	}
	r.advance(Position{last.Index, last.Term})
	return nil
}

func (r *Replica) advance(p Position) {
	r.applied.advance(p)
	r.c.Observer.Applied(p.Index)
}

// applyConf applies a change of the members: in raft, on the loop, and then in the state machine.
func (r *Replica) applyConf(entry command.Entry, e *raftpb.Entry) error {
	cc, err := decodeConfChange(e)
	if err != nil {
		return fmt.Errorf("read the change of members in entry %d: %w", entry.Index, err)
	}
	entry.Data = cc.Context
	fits, err := r.c.Machine.CheckConf(entry)
	if err != nil {
		return fmt.Errorf("check the change of members in entry %d: %w", entry.Index, err)
	}
	var change appliedConf
	if fits {
		if err := r.onLoop(context.Background(), func(l *loop) { change = l.applyConfChange(entry.Index, cc) }); err != nil {
			return err // stopping: the entry and those behind it will be applied after the next start
		}
		if change.err != nil {
			return fmt.Errorf("apply the change of members in entry %d: %w", entry.Index, change.err)
		}
	}
	if err := r.c.Machine.ApplyConf(entry, change.confState); err != nil {
		return fmt.Errorf("apply the change of members in entry %d: %w", entry.Index, err)
	}
	r.advance(Position{entry.Index, entry.Term})
	return nil
}

// install makes a received snapshot the state.
func (r *Replica) install(i applyItem) error {
	defer i.staged.discard()
	p := positionOf(i.m)
	if p.Index <= r.applied.index.Load() {
		panic(fmt.Sprintf("replica: a snapshot at %d is to be installed over a state at %d", p.Index, r.applied.index.Load()))
	}
	confState, err := encodeConfState(i.m.GetSnapshot().GetMetadata().GetConfState())
	if err != nil {
		return err
	}
	start := time.Now()
	r.c.Observer.Installing()
	if err := r.c.Machine.Install(r.ctx, Snapshot{Dir: i.staged.dir, Applied: p, ConfState: confState}); err != nil {
		return fmt.Errorf("install the snapshot at entry %d: %w", p.Index, err)
	}
	took := time.Since(start)
	r.c.Logger.Info("installed a snapshot", "index", p.Index, "term", p.Term, "took", took)
	r.c.Observer.Installed(p.Index, took)
	r.advance(p)
	r.in.install(i.m)
	return nil
}
