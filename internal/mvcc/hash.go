package mvcc

import (
	"context"
	"encoding/binary"
	"hash"
	"hash/crc32"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// HashKV returns the hash of all history up to rev (0: the newest) as etcd's HashKV computes it: over the bytes that etcd
// would keep in its key bucket, in order of revision, so that members agree, and agree with a store of etcd that holds
// the same history. It does not depend on how far deleting has come. It reads every version once. Errors:
// kv.ErrCompacted, kv.ErrFutureRevision, the context's.
func (s *Store) HashKV(ctx context.Context, rev int64) (hash uint32, compactRev, hashRev int64, err error) {
	return s.HashKVCompacted(ctx, rev, -1)
}

// HashKVCompacted is HashKV as it would be if history had been compacted at least up to a revision (-1: as it is), to compare
// with a store that has compacted further.
func (s *Store) HashKVCompacted(ctx context.Context, rev, least int64) (hash uint32, compactRev, hashRev int64, err error) {
	for {
		has, current := s.CompactRevision(), s.Revision()
		compact := max(has, least)
		if rev > 0 && rev < compact {
			return 0, 0, 0, kv.ErrCompacted
		}
		if max(rev, compact) > current {
			return 0, 0, 0, kv.ErrFutureRevision
		}
		at := rev
		if at == 0 {
			at = current
		}
		it, err := s.e.NewIter(nil, nil)
		if err != nil {
			return 0, 0, 0, err
		}
		if s.CompactRevision() != has {
			if err := it.Close(); err != nil {
				return 0, 0, 0, err
			}
			continue
		}
		h := hasher{base: it, compact: compact, rev: at, sum: crc32.New(crc32.MakeTable(crc32.Castagnoli))}
		err = h.run(ctx)
		if e := it.Close(); err == nil {
			err = e
		}
		return h.sum.Sum32(), compact, at, err
	}
}

// hasher computes one HashKV over the moment of base.
type hasher struct {
	base         *engine.Iter
	compact, rev int64
	kept         kept
	sum          hash.Hash32
	buf          []byte
}

func (h *hasher) run(ctx context.Context) error {
	h.sum.Write([]byte("key")) // the name of etcd's bucket
	if h.rev < 0 {
		return nil // etcd takes a negative revision for one before all history
	}
	// etcd marks what a compaction at rev would keep, and leaves out of the old versions what is not marked; but if
	// nothing is marked, it leaves out nothing, and what the last compaction kept counts.
	alive, err := h.anythingAlive()
	if err != nil {
		return err
	}
	h.kept = kept{compact: h.compact, visibleAt: h.rev}
	if !alive {
		h.kept.visibleAt = h.compact
	}
	it, err := h.base.Clone(engine.AppendRevision(nil, kv.Revision{}), engine.AppendRevision(nil, kv.Revision{Main: h.rev + 1}))
	if err != nil {
		return err
	}
	defer it.Close()
	versions, err := h.base.Clone(nil, nil)
	if err != nil {
		return err
	}
	defer versions.Close()
	n := 0
	for ok := it.First(); ok; ok = it.Next() {
		if n++; n%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		rev, c, err := decodeChange(it)
		if err != nil {
			return err
		}
		if err := h.change(versions, rev, c); err != nil {
			return err
		}
	}
	return it.Err()
}

func (h *hasher) anythingAlive() (bool, error) {
	lower, upper := engine.VersionBounds(kv.Range{Key: []byte{0}, End: []byte{0}})
	it, err := h.base.Clone(lower, upper)
	if err != nil {
		return false, err
	}
	defer it.Close()
	c := newKeyCursor(it, h.rev)
	return c.first(), c.err
}

func (h *hasher) change(versions *engine.Iter, rev kv.Revision, c engine.Change) error {
	if c.Type == kv.Delete {
		if rev.Main > h.compact {
			h.write(rev, c.Key, nil)
		}
		return nil
	}
	tail, err := h.kept.tail(versions, rev, c.Key)
	if err == nil && tail != nil {
		h.write(rev, c.Key, tail)
	}
	return err
}

func (h *hasher) write(rev kv.Revision, key, tail []byte) {
	h.buf, _ = appendBucketRow(h.buf[:0], rev, key, tail)
	h.sum.Write(h.buf)
}

// kept tells which puts of history etcd would keep, however far deleting has come here: all above the compact revision,
// and of those at or below it the ones that are visible at a revision.
type kept struct {
	compact, visibleAt int64
	seek               []byte // scratch
}

// tail returns the tail of the version that the put at rev made, nil if it is not kept. It is valid until versions moves.
func (k *kept) tail(versions *engine.Iter, rev kv.Revision, key []byte) ([]byte, error) {
	at := rev
	if rev.Main <= k.compact {
		at = kv.Revision{Main: k.visibleAt, Sub: 1<<32 - 1}
	}
	k.seek = engine.AppendVersion(k.seek[:0], key, at)
	if !versions.SeekPrefix(k.seek) {
		return nil, versions.Err()
	}
	_, found, err := engine.DecodeVersion(versions.Key())
	if err != nil || found != rev {
		return nil, err // superseded by found, and garbage
	}
	tail, _, err := engine.DecodeVersionValue(versions.Value())
	return tail, err
}

// appendBucketRow appends what etcd keeps for one change, and returns where the value begins: its bucket's key, then an
// mvccpb.KeyValue in the order of its fields. A tombstone (nil tail) has a mark on the key and a value with the user key
// only.
func appendBucketRow(dst []byte, rev kv.Revision, key, tail []byte) (row []byte, value int) {
	b := binary.BigEndian.AppendUint64(dst, uint64(rev.Main))
	b = binary.BigEndian.AppendUint64(append(b, '_'), uint64(rev.Sub))
	if tail == nil {
		b = append(b, 't')
	}
	value = len(b)
	b = binary.AppendUvarint(append(b, 1<<3|2), uint64(len(key)))
	b = append(b, key...)
	if tail != nil {
		// The tail begins with field 2, the create revision; field 3 comes after it.
		_, n := binary.Uvarint(tail[1:])
		b = append(b, tail[:1+n]...)
		b = binary.AppendUvarint(append(b, 3<<3), uint64(rev.Main))
		b = append(b, tail[1+n:]...)
	}
	return b, value
}

// Hash returns a hash of everything this member stores for its users: HashKV at the newest revision, the leases and their
// attachments, users and roles. It reads all of them.
func (s *Store) Hash(ctx context.Context) (hash uint32, compactRev, rev int64, err error) {
	hash, compactRev, rev, err = s.HashKV(ctx, 0)
	if err != nil {
		return 0, 0, 0, err
	}
	sum := crc32.New(crc32.MakeTable(crc32.Castagnoli))
	sum.Write(binary.BigEndian.AppendUint32(nil, hash))
	for _, prefix := range []byte{engine.PrefixLease, engine.PrefixAttachment, engine.PrefixAuth} {
		lower, upper := engine.PrefixBounds([]byte{prefix})
		it, err := s.e.NewIter(lower, upper)
		if err != nil {
			return 0, 0, 0, err
		}
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			if n++; n%checkEvery == 0 && ctx.Err() != nil {
				it.Close()
				return 0, 0, 0, ctx.Err()
			}
			sum.Write(it.Key())
			sum.Write(it.Value())
		}
		if err := it.Close(); err != nil {
			return 0, 0, 0, err
		}
	}
	return sum.Sum32(), compactRev, rev, nil
}
