package mvcc

import (
	"bytes"
	"cmp"
	"context"
	"slices"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// bounds of a window of changes. It is read together, and through one pair of iterators: what they pin of the engine is let
// go then.
type bounds struct {
	rows  int
	bytes int // of the values that are kept, and again of the keys; one more may be beyond
}

var windowBounds = bounds{rows: 1 << 16, bytes: 16 << 20}

// Dumped is what Dump says beside the rows.
type Dumped struct {
	Revision int64 // newest main revision
	Compact  int64 // compact revision; -1 if there was no compaction
	Rows     int64
}

// Dump shows visit the history that the store in r holds as etcd would keep it in the bucket of its keys: one row for
// each change, in order of revision, deleted history left out whether or not deleting has come that far here. What
// HashKV hashes is a part of it. The slices are valid until visit returns; an error of visit ends it and is returned as
// it is. r must stay the same throughout, so it is a snapshot. pause is called now and then, to let others go first; its error
// ends the dump as well.
//
// Changes come in the order of revisions and their values lie in the order of keys. Looked up one by one, each value costs the
// way down through the engine's files and a block that is read and decompressed for it alone, which was four fifths of the
// time. So a window of changes is read, and their values in the order of their keys: neighbours then come out of one block.
func Dump(ctx context.Context, r engine.Reader, pause func() error, visit func(key, value []byte) error) (Dumped, error) {
	return dumpIn(ctx, r, windowBounds, pause, visit)
}

func dumpIn(ctx context.Context, r engine.Reader, max bounds, pause func() error, visit func(key, value []byte) error) (Dumped, error) {
	d, err := ofDump(r)
	if err != nil {
		return d, err
	}
	w := dump{ctx: ctx, r: r, max: max, pause: pause, visit: visit, kept: kept{compact: d.Compact, visibleAt: d.Compact}}
	for more := true; more; {
		var err error
		if more, err = w.window(); err != nil {
			return d, err
		}
	}
	d.Rows = w.rows
	return d, nil
}

// ofDump returns what is known of a dump before it is made.
func ofDump(r engine.Reader) (Dumped, error) {
	d := Dumped{Revision: firstRevision, Compact: neverCompacted}
	n, found, err := readNumber(r, engine.MetaRevision())
	if err != nil {
		return d, err
	}
	if found {
		d.Revision = n
	}
	n, found, err = readNumber(r, engine.MetaCompact())
	if found {
		d.Compact = n
	}
	return d, err
}

// DumpSizes shows visit how long key and value are of each row that Dump over the same snapshot will show, in another order, and
// perhaps of some more: those that are deleted history. It reads rows in the order in which they lie and no older values, so that
// it costs a fraction of the dump. What it returns has no rows.
func DumpSizes(ctx context.Context, r engine.Reader, pause func() error, visit func(key, value int)) (Dumped, error) {
	d, err := ofDump(r)
	if err != nil {
		return d, err
	}
	w := dump{ctx: ctx, pause: pause}
	if err := w.deleteSizes(r, d.Compact, visit); err != nil {
		return d, err
	}
	it, err := r.NewIter(engine.VersionBounds(kv.Range{Key: []byte{0}, End: []byte{0}}))
	if err != nil {
		return d, err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if err := w.step(); err != nil {
			return d, err
		}
		key, rev, err := engine.DecodeVersion(it.Key())
		if err != nil {
			return d, err
		}
		if tail := it.ValueLen() - 1; tail > 0 { // else a tombstone
			visit(bucketKeyBytes, valueBytes(key)+tail+1+uvarintBytes(uint64(rev.Main)))
		}
	}
	return d, it.Err()
}

// deleteSizes is DumpSizes of deletes, which may be kept longer than the tombstones that they made.
func (w *dump) deleteSizes(r engine.Reader, compact int64, visit func(key, value int)) error {
	it, err := r.NewIter(engine.PrefixBounds([]byte{engine.PrefixRevision}))
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if err := w.step(); err != nil {
			return err
		}
		rev, c, err := decodeChange(it)
		if err != nil {
			return err
		}
		if c.Type != kv.Put && rev.Main >= compact {
			visit(bucketKeyBytes+1, valueBytes(c.Key))
		}
	}
	return it.Err()
}

// bucketKeyBytes is how long the key of a bucket row is, without the mark of a tombstone.
const bucketKeyBytes = 8 + 1 + 8

// valueBytes is how long the value of a bucket row is without what the version's tail holds.
func valueBytes(key []byte) int { return 1 + uvarintBytes(uint64(len(key))) + len(key) }

// dump is one walk.
type dump struct {
	ctx   context.Context
	r     engine.Reader
	max   bounds
	pause func() error
	visit func(key, value []byte) error
	kept  kept
	next  kv.Revision // the first that was not looked at
	rows  int64
	row   []byte
	n     int // steps since the last pause

	// Of one window.
	changes      []windowChange
	byKey        []int32
	keys, values []byte
}

// windowChange is a change whose key and value lie in the window's bytes.
type windowChange struct {
	rev           kv.Revision
	deleted       bool
	state         uint8
	key, keyEnd   int
	value, endsAt int
}

// What is known of a put's value.
const (
	notLooked = iota // there was no room for it
	garbage
	found
)

func (w *dump) step() error {
	if w.n++; w.n%checkEvery != 0 {
		return nil
	}
	if err := w.ctx.Err(); err != nil {
		return err
	}
	return w.pause()
}

// window goes on for a window of changes and reports whether there are more.
func (w *dump) window() (more bool, err error) {
	if more, err = w.readChanges(); err != nil {
		return false, err
	}
	versions, err := w.r.NewLookup()
	if err != nil {
		return false, err
	}
	defer versions.Close()
	if err := w.readValues(versions); err != nil {
		return false, err
	}
	for i := range w.changes {
		if err := w.show(versions, &w.changes[i]); err != nil {
			return false, err
		}
	}
	return more, nil
}

func (w *dump) readChanges() (more bool, err error) {
	w.changes, w.keys, w.values = w.changes[:0], w.keys[:0], w.values[:0]
	it, err := w.r.NewIter(engine.PrefixBounds(engine.AppendRevision(nil, kv.Revision{})[:1]))
	if err != nil {
		return false, err
	}
	defer it.Close()
	for ok := it.SeekGE(engine.AppendRevision(nil, w.next)); ok; ok = it.Next() {
		if err := w.step(); err != nil {
			return false, err
		}
		rev, c, err := decodeChange(it)
		if err != nil {
			return false, err
		}
		if len(w.changes) == w.max.rows || len(w.keys) >= w.max.bytes {
			w.next = rev
			return true, nil
		}
		if c.Type != kv.Put && rev.Main < w.kept.compact {
			continue // etcd keeps the tombstones of the compact revision itself, for watches from there
		}
		at := len(w.keys)
		w.keys = append(w.keys, c.Key...)
		w.changes = append(w.changes, windowChange{rev: rev, deleted: c.Type != kv.Put, key: at, keyEnd: len(w.keys)})
	}
	return false, it.Err()
}

// readValues looks puts up in the order of the engine's rows, as long as there is room for what they hold.
func (w *dump) readValues(versions *engine.Iter) error {
	w.byKey = w.byKey[:0]
	for i := range w.changes {
		if !w.changes[i].deleted {
			w.byKey = append(w.byKey, int32(i))
		}
	}
	slices.SortFunc(w.byKey, func(a, b int32) int {
		x, y := &w.changes[a], &w.changes[b]
		if c := bytes.Compare(w.keys[x.key:x.keyEnd], w.keys[y.key:y.keyEnd]); c != 0 {
			return c
		}
		return cmp.Compare(b, a) // newest first
	})
	for _, i := range w.byKey {
		if len(w.values) >= w.max.bytes {
			return nil
		}
		if err := w.step(); err != nil {
			return err
		}
		c := &w.changes[i]
		tail, err := w.kept.tail(versions, c.rev, w.keys[c.key:c.keyEnd])
		if err != nil {
			return err
		}
		if c.state = garbage; tail != nil {
			c.state, c.value = found, len(w.values)
			w.values = append(w.values, tail...)
			c.endsAt = len(w.values)
		}
	}
	return nil
}

func (w *dump) show(versions *engine.Iter, c *windowChange) error {
	if err := w.step(); err != nil {
		return err
	}
	key := w.keys[c.key:c.keyEnd]
	var tail []byte
	switch {
	case c.deleted:
	case c.state == garbage:
		return nil
	case c.state == found:
		tail = w.values[c.value:c.endsAt]
	default:
		var err error
		if tail, err = w.kept.tail(versions, c.rev, key); err != nil || tail == nil {
			return err
		}
	}
	var value int
	w.row, value = appendBucketRow(w.row[:0], c.rev, key, tail)
	w.rows++
	return w.visit(w.row[:value], w.row[value:])
}
