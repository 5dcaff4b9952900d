package mvcc

import (
	"context"
	"fmt"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// CompactStep deletes some of the history that compactions have made unreadable, looking at no more than limit changes,
// and reports how many versions it deleted and whether none is left to delete. It may be called from any goroutine, beside
// writers and readers; calls wait for one another. How far it has come is in the batch that deletes, so it goes on after a restart.
//
// It walks the changes since the last compaction, and so costs what was written since then, not what is stored. A change
// that replaced a version makes that version garbage, and a tombstone below the compact revision is garbage itself; with
// each version row goes the revision row that names it. A tombstone at the compact revision itself stays until the next
// compaction: a watch from that revision must see the delete.
func (s *Store) CompactStep(ctx context.Context, limit int) (deleted int, done bool, err error) {
	s.compactMu.Lock()
	defer s.compactMu.Unlock()
	if err := ctx.Err(); err != nil {
		return 0, false, err
	}
	p := s.progress
	if p.Target == p.Done {
		compact := s.CompactRevision()
		if compact <= p.Done {
			return 0, true, nil
		}
		// The changes at Done are looked at again: their tombstones stayed.
		p.Target, p.Next = compact, kv.Revision{Main: p.Done}
	}
	b := s.e.NewBatch()
	defer b.Close()
	deleted, finished, err := s.sweep(b, &p, limit)
	if err != nil {
		return 0, false, fmt.Errorf("mvcc: delete history up to %d: %w", p.Target, err)
	}
	if finished {
		p.Done, p.Next = p.Target, kv.Revision{}
	}
	if err := b.Set(engine.MetaCompacting(), engine.AppendProgress(nil, p)); err != nil {
		return 0, false, err
	}
	if err := b.Commit(); err != nil {
		return 0, false, err
	}
	s.progress = p
	return deleted, finished && s.CompactRevision() <= p.Done, nil
}

// sweep puts the deletions that up to limit changes ask for into b, moves p on, and reports whether the target is reached.
func (s *Store) sweep(b *engine.Batch, p *engine.Progress, limit int) (deleted int, finished bool, err error) {
	it, err := s.e.NewIter(engine.AppendRevision(nil, p.Next), engine.AppendRevision(nil, kv.Revision{Main: p.Target + 1}))
	if err != nil {
		return 0, false, err
	}
	defer it.Close()
	var row []byte
	// drop deletes a version whose row's value is size bytes long (0: nobody knows), and the row that names it.
	drop := func(key []byte, rev kv.Revision, size, change uint32) error {
		deleted++
		row = engine.AppendVersion(row[:0], key, rev)
		var err error
		if size > 0 {
			err = b.DeleteSized(row, size)
		} else {
			err = b.Delete(row)
		}
		if err != nil {
			return err
		}
		row = engine.AppendRevision(row[:0], rev)
		return b.DeleteSized(row, change)
	}
	seen := 0
	for ok := it.First(); ok; ok = it.Next() {
		rev, c, err := decodeChange(it)
		if err != nil {
			return 0, false, err
		}
		if seen++; seen > limit {
			p.Next = rev
			return deleted, false, it.Err()
		}
		if rev.Main > p.Done && !c.Superseded.IsZero() {
			if err := drop(c.Key, c.Superseded, c.Frees, uint32(len(it.Value()))); err != nil {
				return 0, false, err
			}
		}
		if c.Type == kv.Delete && rev.Main < p.Target {
			if err := drop(c.Key, rev, 1, uint32(len(it.Value()))); err != nil {
				return 0, false, err
			}
		}
	}
	return deleted, true, it.Err()
}
