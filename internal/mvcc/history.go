package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Events shows visit the changes of revisions from to to, both included, in order, each with its pair; see Changes. Keys
// and values are the callee's.
func (s *Store) Events(ctx context.Context, from, to int64, visit func(kv.Event) error) error {
	return s.Changes(ctx, from, to, func(e kv.Event, pair func() (kv.KeyValue, error)) error {
		var err error
		if e.KV, err = pair(); err != nil {
			return err
		}
		return visit(e)
	})
}

// Changes shows visit the changes of revisions from to to, both included, in order; to beyond the newest revision means
// the newest. Of the event's KV it gives key and ModRevision, valid until visit returns; pair, which may be called until
// then, reads the rest, and what it returns is the callee's: for a put it costs several times what passing over the change
// costs. It returns kv.ErrCompacted if from lies below the compact revision: the compact revision itself can still be
// watched from, deletes included, as in etcd. An error of visit ends it and is returned as it is. The engine keeps the
// files of the moment of the call until it returns: ask for long history piece by piece.
func (s *Store) Changes(ctx context.Context, from, to int64, visit func(e kv.Event, pair func() (kv.KeyValue, error)) error) error {
	to = min(to, s.Revision())
	if from > to {
		if from < s.CompactRevision() {
			return kv.ErrCompacted
		}
		return nil
	}
	// Version rows are looked up through a clone, so that both iterators see one moment.
	it, err := s.e.NewIter(engine.AppendRevision(nil, kv.Revision{Main: max(from, 0)}), engine.AppendRevision(nil, kv.Revision{Main: to + 1}))
	if err != nil {
		return err
	}
	defer it.Close()
	if from < s.CompactRevision() {
		return kv.ErrCompacted
	}
	versions, err := it.Clone(nil, nil)
	if err != nil {
		return err
	}
	defer versions.Close()
	var row []byte
	var e kv.Event
	pair := func() (kv.KeyValue, error) {
		if e.Type == kv.Delete {
			return kv.KeyValue{Key: bytes.Clone(e.KV.Key), ModRevision: e.KV.ModRevision}, nil
		}
		row = engine.AppendVersion(row[:0], e.KV.Key, e.Revision)
		return pairAt(versions, row)
	}
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		rev, c, err := decodeChange(it)
		if err != nil {
			return err
		}
		e = kv.Event{Type: c.Type, Revision: rev, Superseded: c.Superseded, KV: kv.KeyValue{Key: c.Key, ModRevision: rev.Main}}
		if err := visit(e, pair); err != nil {
			return err
		}
	}
	return it.Err()
}

func decodeChange(it *engine.Iter) (kv.Revision, engine.Change, error) {
	rev, err := engine.DecodeRevision(it.Key())
	if err != nil {
		return rev, engine.Change{}, err
	}
	c, err := engine.DecodeChange(it.Value())
	if err != nil {
		return rev, c, fmt.Errorf("revision %s: %w", rev, err)
	}
	return rev, c, nil
}

// pairAt reads the live version row with the given key.
func pairAt(it *engine.Iter, row []byte) (kv.KeyValue, error) {
	if !it.SeekPrefix(row) || !bytes.Equal(it.Key(), row) {
		if err := it.Err(); err != nil {
			return kv.KeyValue{}, err
		}
		return kv.KeyValue{}, fmt.Errorf("%w: history names version row %x, which is not there", engine.ErrMalformed, row)
	}
	key, rev, err := engine.DecodeVersion(row)
	if err != nil {
		return kv.KeyValue{}, err
	}
	tail, tombstone, err := engine.DecodeVersionValue(it.Value())
	if err != nil || tombstone {
		return kv.KeyValue{}, fmt.Errorf("%w: version row %x is a tombstone (%t): %w", engine.ErrMalformed, row, tombstone, err)
	}
	return Row{Key: key, ModRevision: rev.Main, Tail: tail}.keyValue()
}

// version returns the version of key that the change at rev made; none if it was a delete, or is gone. Which versions
// that no readable revision shows are gone depends on how far deleting has come: see Previous.
func (s *Store) version(key []byte, rev kv.Revision) (kv.KeyValue, bool, error) {
	row, found, err := s.e.Get(engine.AppendVersion(nil, key, rev))
	if err != nil || !found {
		return kv.KeyValue{}, false, err
	}
	tail, tombstone, err := engine.DecodeVersionValue(row)
	if err != nil || tombstone {
		return kv.KeyValue{}, false, err
	}
	pair, err := Row{Key: key, ModRevision: rev.Main, Tail: tail}.keyValue()
	return pair, err == nil, err
}

// Previous returns what watchers call prev_kv: the key at the revision before the event's. As in etcd there is none if the
// event made the key, or if that revision can no longer be read; and for a key that a transaction changed twice, none of
// the transaction's own versions counts.
func (s *Store) Previous(e kv.Event) (kv.KeyValue, bool, error) {
	if e.Creates() || e.Revision.Main-1 < s.CompactRevision() {
		return kv.KeyValue{}, false, nil
	}
	if e.Superseded.Main < e.Revision.Main {
		return s.version(e.KV.Key, e.Superseded)
	}
	r, _, err := s.Range(kv.RangeOptions{Range: kv.Range{Key: e.KV.Key}, Revision: e.Revision.Main - 1})
	if errors.Is(err, kv.ErrCompacted) || err == nil && len(r.KVs) == 0 {
		return kv.KeyValue{}, false, nil
	}
	if err != nil {
		return kv.KeyValue{}, false, err
	}
	return r.KVs[0], true, nil
}
