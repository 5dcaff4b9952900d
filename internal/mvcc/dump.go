package mvcc

import (
	"context"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// dumpRows is how many changes Dump reads through one pair of iterators: what they pin of the engine is let go then.
const dumpRows = 1 << 16

// Dumped is what Dump says beside the rows.
type Dumped struct {
	Revision int64 // newest main revision
	Compact  int64 // compact revision; -1 if there was no compaction
	Rows     int64
}

// Dump shows visit the history that the store in r holds as etcd would keep it in the bucket of its keys: one row for
// each change, in order of revision, deleted history left out whether or not deleting has come that far here. What
// HashKV hashes is a part of it. The slices are valid until visit returns; an error of visit ends it and is returned as
// it is. r must stay the same throughout, so it is a snapshot.
func Dump(ctx context.Context, r engine.Reader, visit func(key, value []byte) error) (Dumped, error) {
	d := Dumped{Revision: firstRevision, Compact: neverCompacted}
	if n, found, err := readNumber(r, engine.MetaRevision()); err != nil {
		return d, err
	} else if found {
		d.Revision = n
	}
	if n, found, err := readNumber(r, engine.MetaCompact()); err != nil {
		return d, err
	} else if found {
		d.Compact = n
	}
	w := dump{ctx: ctx, r: r, visit: visit, kept: kept{compact: d.Compact, visibleAt: d.Compact}}
	for more := true; more; {
		var err error
		if more, err = w.some(); err != nil {
			return d, err
		}
	}
	d.Rows = w.rows
	return d, nil
}

// dump is one walk.
type dump struct {
	ctx   context.Context
	r     engine.Reader
	visit func(key, value []byte) error
	kept  kept
	next  kv.Revision // the first that was not looked at
	rows  int64
	row   []byte
}

// some goes on for dumpRows changes and reports whether there are more.
func (d *dump) some() (bool, error) {
	it, err := d.r.NewIter(engine.PrefixBounds(engine.AppendRevision(nil, kv.Revision{})[:1]))
	if err != nil {
		return false, err
	}
	defer it.Close()
	versions, err := d.r.NewLookup()
	if err != nil {
		return false, err
	}
	defer versions.Close()
	n := 0
	for ok := it.SeekGE(engine.AppendRevision(nil, d.next)); ok; ok = it.Next() {
		if n++; n%checkEvery == 0 && d.ctx.Err() != nil {
			return false, d.ctx.Err()
		}
		rev, c, err := decodeChange(it)
		if err != nil {
			return false, err
		}
		if n > dumpRows {
			d.next = rev
			return true, nil
		}
		if err := d.change(versions, rev, c); err != nil {
			return false, err
		}
	}
	return false, it.Err()
}

func (d *dump) change(versions *engine.Iter, rev kv.Revision, c engine.Change) error {
	var tail []byte
	if c.Type == kv.Put {
		var err error
		if tail, err = d.kept.tail(versions, rev, c.Key); err != nil || tail == nil {
			return err
		}
	} else if rev.Main < d.kept.compact {
		return nil // etcd keeps the tombstones of the compact revision itself, for watches from there
	}
	var value int
	d.row, value = appendBucketRow(d.row[:0], rev, c.Key, tail)
	d.rows++
	return d.visit(d.row[:value], d.row[value:])
}
