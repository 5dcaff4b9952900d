package mvcc

import (
	"errors"
	"fmt"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// loadBatchBytes is about how large a batch of a Loader becomes.
const loadBatchBytes = 1 << 20

// Loader writes the rows of a store whose history was made elsewhere into an engine that has none: change by change, in
// order of revision, then Finish. What it takes of memory does not grow with the history. Nobody else may use the engine
// meanwhile. After an error the engine holds a part and is of no use.
type Loader struct {
	e       *engine.Engine
	b       *engine.Batch
	lookup  *engine.Iter             // over what was committed before b
	heads   map[string]engine.Change // of the keys changed in b: the last change as the next one sees it, Superseded and Frees its own
	last    kv.Revision
	row     []byte
	value   []byte
	changes int64
}

// NewLoader returns a Loader for an empty engine. It must be closed.
func NewLoader(e *engine.Engine) *Loader { return &Loader{e: e} }

// Close gives up what is not finished.
func (l *Loader) Close() error {
	var errs []error
	if l.lookup != nil {
		errs = append(errs, l.lookup.Close())
	}
	if l.b != nil {
		errs = append(errs, l.b.Close())
	}
	l.lookup, l.b = nil, nil
	return errors.Join(errs...)
}

// Put adds a put: the pair as it was written by the change at rev.
func (l *Loader) Put(rev kv.Revision, p kv.KeyValue) error {
	if p.ModRevision != rev.Main || p.CreateRevision < 1 || p.CreateRevision > rev.Main || p.Version < 1 {
		return fmt.Errorf("the change at revision %s of key %q contradicts itself: created at %d, changed at %d, version %d",
			rev, p.Key, p.CreateRevision, p.ModRevision, p.Version)
	}
	l.value = engine.AppendLiveValue(l.value[:0], p)
	return l.change(kv.Put, rev, p.Key)
}

// Delete adds a delete.
func (l *Loader) Delete(rev kv.Revision, key []byte) error {
	l.value = engine.AppendTombstoneValue(l.value[:0])
	return l.change(kv.Delete, rev, key)
}

func (l *Loader) change(typ kv.EventType, rev kv.Revision, key []byte) error {
	if len(key) == 0 || rev.Main < 1 || rev.Sub < 0 || rev.Sub >= 1<<31 || rev.Main < l.last.Main || rev.Main == l.last.Main && rev.Sub <= l.last.Sub {
		return fmt.Errorf("the change at revision %s of key %q is out of place: the one before is at %s", rev, key, l.last)
	}
	before, frees, err := l.head(key)
	if err != nil {
		return err
	}
	l.row = engine.AppendVersion(l.row[:0], key, rev)
	if err := l.b.Set(l.row, l.value); err != nil {
		return err
	}
	l.heads[string(key)] = engine.Change{Type: typ, Superseded: rev, Frees: uint32(len(l.value))}
	l.row = engine.AppendRevision(l.row[:0], rev)
	l.value = engine.AppendChange(l.value[:0], engine.Change{Type: typ, Superseded: before, Frees: frees, Key: key})
	if err := l.b.Set(l.row, l.value); err != nil {
		return err
	}
	l.last = rev
	l.changes++
	if l.b.Len() < loadBatchBytes {
		return nil
	}
	return l.commit()
}

// head returns the version that a change of key replaces, zero if there is none, with the length of its row's value, and
// begins a batch if there is none.
func (l *Loader) head(key []byte) (rev kv.Revision, size uint32, err error) {
	if l.b == nil {
		it, err := l.e.NewLookup()
		if err != nil {
			return kv.Revision{}, 0, err
		}
		l.lookup, l.b, l.heads = it, l.e.NewBatch(), make(map[string]engine.Change)
	}
	if c, ok := l.heads[string(key)]; ok {
		if c.Type == kv.Delete {
			return kv.Revision{}, 0, nil
		}
		return c.Superseded, c.Frees, nil
	}
	l.row = engine.AppendVersionPrefix(l.row[:0], key)
	if !l.lookup.SeekPrefix(l.row) {
		return kv.Revision{}, 0, l.lookup.Err()
	}
	_, rev, err = engine.DecodeVersion(l.lookup.Key())
	if err != nil {
		return kv.Revision{}, 0, err
	}
	if _, deleted, err := engine.DecodeVersionValue(l.lookup.Value()); err != nil || deleted {
		return kv.Revision{}, 0, err
	}
	return rev, uint32(len(l.lookup.Value())), nil
}

func (l *Loader) commit() error {
	if l.b == nil {
		return nil
	}
	return errors.Join(l.b.Commit(), l.Close())
}

// Loaded is what a Loader's Finish needs to know of the store as a whole, and what it tells.
type Loaded struct {
	Revision int64 // newest main revision
	Compact  int64 // compact revision; -1: never compacted
	// Done is up to where compacted history was deleted before: garbage that a later compaction left is deleted in time.
	Done int64

	Keys, Changes int64 // told by Finish
}

// Finish writes what sums the history up. It shows live each live key with its lease, in order of keys; rows that live
// writes into the batch that it is given are in the store with it.
func (l *Loader) Finish(o Loaded, live func(b *engine.Batch, key []byte, lease kv.LeaseID) error) (Loaded, error) {
	if err := l.commit(); err != nil {
		return o, err
	}
	if o.Revision < max(l.last.Main, firstRevision) || o.Compact > o.Revision || o.Done > max(o.Compact, 0) || o.Done < 0 {
		return o, fmt.Errorf("the store contradicts itself: last change at %s, revision %d, compacted at %d, deleted up to %d",
			l.last, o.Revision, o.Compact, o.Done)
	}
	keys, err := l.fences(o.Revision, live)
	if err != nil {
		return o, err
	}
	o.Keys, o.Changes = keys, l.changes
	b := l.e.NewBatch()
	defer b.Close()
	set := func(key []byte, n int64) {
		if err == nil {
			err = b.Set(key, engine.AppendNumber(nil, n))
		}
	}
	set(engine.MetaFormat(), formatVersion)
	set(engine.MetaRevision(), o.Revision)
	if o.Compact >= 0 {
		set(engine.MetaCompact(), o.Compact)
		if err == nil {
			err = b.Set(engine.MetaCompacting(), engine.AppendProgress(nil, engine.Progress{Done: o.Done, Target: o.Done}))
		}
	}
	if err != nil {
		return o, err
	}
	return o, b.Commit()
}

// fences walks the live keys and writes the fences.
func (l *Loader) fences(revision int64, live func(*engine.Batch, []byte, kv.LeaseID) error) (keys int64, err error) {
	it, err := l.e.NewIter(engine.VersionBounds(kv.Range{Key: []byte{0}, End: []byte{0}}))
	if err != nil {
		return 0, err
	}
	defer it.Close()
	b := l.e.NewBatch()
	defer func() { err = errors.Join(err, b.Close()) }()
	at := fence{}
	write := func() error { return b.Set(engine.AppendFence(nil, []byte(at.key)), appendFenceCount(nil, at.count)) }
	c := newCursor(it, revision)
	for ok := c.first(); ok; ok = c.next() {
		if at.count == fenceKeys {
			if err := write(); err != nil {
				return 0, err
			}
			at = fence{key: string(c.key)}
		}
		at.count++
		keys++
		t, err := engine.DecodeTail(c.tail)
		if err != nil {
			return 0, err
		}
		if err := live(b, c.key, t.Lease); err != nil {
			return 0, err
		}
		if b.Len() < loadBatchBytes {
			continue
		}
		if err := errors.Join(b.Commit(), b.Close()); err != nil {
			return 0, err
		}
		b = l.e.NewBatch()
	}
	if c.err != nil {
		return 0, c.err
	}
	if err := write(); err != nil {
		return 0, err
	}
	return keys, b.Commit()
}
