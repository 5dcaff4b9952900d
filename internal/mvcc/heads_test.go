package mvcc

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// The cache finds what was put into it in this generation and the one before, key by key, with keys of all lengths, and
// stays within its bounds.
func TestHeadCache(t *testing.T) {
	const limit = 512 << 10
	rng := rand.New(rand.NewPCG(7, 7))
	c := newHeadCache(limit, 1)
	key := func(n int) []byte {
		k := fmt.Appendf(nil, "key/%d", n)
		switch n % 50 {
		case 0:
			return append(k, bytes.Repeat([]byte{'x'}, 300*(n%10))...)
		case 1:
			if n%1000 == 1 {
				return append(k, bytes.Repeat([]byte{'y'}, keyChunk-len(k)-7+n/1000%10)...)
			}
		}
		return k
	}
	model := map[int]int64{}      // number of a key to its version
	written := map[int]int64{}    // to the revision that wrote it last
	inYoung := map[int]struct{}{} // those that must be found, whatever turns next
	turns := 0
	for revision := int64(2); revision < 60_000; revision++ {
		if rng.IntN(100) == 0 {
			young := c.young
			c.turn(revision - 1)
			if c.young != young {
				turns++
				for n := range model {
					if _, ok := inYoung[n]; !ok {
						delete(model, n)
					}
				}
				clear(inYoung)
			}
		}
		if rng.IntN(20_000) == 0 {
			c.forget(revision - 1)
			clear(model)
			clear(inYoung)
		}
		n := rng.IntN(9000)
		h := c.get(key(n))
		version, known := model[n]
		switch {
		case h == nil && known:
			t.Fatalf("revision %d: key %d is gone", revision, n)
		case h == nil && written[n] > c.since:
			t.Fatalf("revision %d: key %d was written at %d, behind %d, and is gone", revision, n, written[n], c.since)
		case h == nil:
			h = c.add(key(n))
		case !known || h.version != version:
			t.Fatalf("revision %d: key %d has version %d, want %d (known %t)", revision, n, h.version, version, known)
		}
		h.version, h.main = revision, revision
		model[n], written[n] = revision, revision
		inYoung[n] = struct{}{}
		// A generation may be over its bound by what came since the last chance to turn.
		if size := c.young.bytes() + c.old.bytes(); size > limit+2*(100<<10+4*keyChunk) {
			t.Fatalf("revision %d: %d bytes of %d", revision, size, limit)
		}
	}
	if turns < 10 {
		t.Fatalf("%d turns", turns)
	}
}

// A head that fell out of the cache is looked up rightly whether its key lies in a memtable, in files or in both, is
// deleted, was compacted, or never was.
func TestHeadsAreLookedUp(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 700+seed, 1)
			defer w.close()
			durable, full := 0, 0
			heads := map[string]kv.KeyValue{}
			for range 400 {
				b := w.e.NewBatch()
				wr := w.s.NewWriter(b)
				for range 1 + w.rng.IntN(20) {
					key := fmt.Appendf(nil, "%d", w.rng.IntN(300))
					want := heads[string(key)]
					txn := wr.Begin()
					rev := txn.Revision() + 1
					if w.rng.IntN(3) == 0 {
						n, err := txn.Delete(kv.Range{Key: key}, false, nil)
						w.check(err, "delete")
						if (n == 1) != (want.Version > 0) {
							t.Fatalf("deleted %d of %q, which has version %d", n, key, want.Version)
						}
						delete(heads, string(key))
						txn.End()
						continue
					}
					got, err := txn.Put(key, bytes.Repeat([]byte{'v'}, w.rng.IntN(200)), 0)
					w.check(err, "put")
					if got.Version != want.Version || got.ModRevision != want.ModRevision || got.CreateRevision != want.CreateRevision {
						t.Fatalf("put of %q replaced %+v, want %+v", key, got, want)
					}
					if want.Version == 0 {
						want.CreateRevision = rev
					}
					want.Version++
					want.ModRevision = rev
					heads[string(key)] = want
					txn.End()
				}
				if w.rng.IntN(20) == 0 && wr.Revision() > wr.CompactRevision() {
					w.check(wr.Compact(wr.Revision()), "compact")
				}
				if wr.heads != nil && w.s.durable >= w.s.heads.since {
					durable++
				} else if wr.heads != nil {
					full++
				}
				if w.rng.IntN(30) == 0 {
					wr.Discard()
					heads = w.headsNow()
				} else {
					_, err := wr.Publish()
					w.check(err, "publish")
				}
				w.check(b.Close(), "close")
				switch w.rng.IntN(20) {
				case 0:
					w.check(w.e.Flush(), "flush")
				case 1:
					sweepAll(t, w.s, 10)
				case 2: // another store, whose cache knows nothing of what is in the memtables
					var err error
					w.s, err = Open(w.e, Options{HeadCacheBytes: 40 * headBytes})
					w.check(err, "open")
				}
			}
			if durable < 20 || full < 20 {
				t.Fatalf("%d batches looked into the durable state, %d into everything", durable, full)
			}
		})
	}
}

func (w *world) headsNow() map[string]kv.KeyValue {
	w.t.Helper()
	heads := map[string]kv.KeyValue{}
	r, _, err := w.s.Range(kv.RangeOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}})
	w.check(err, "range")
	for _, pair := range r.KVs {
		heads[string(pair.Key)] = pair
	}
	return heads
}

// A store that was never flushed has nothing durable, and the cache has all that was written: new keys are looked for where there
// is nothing, not in the memtable.
func TestHeadsOfAFreshStore(t *testing.T) {
	w := newWorld(t, 1, 1)
	defer w.close()
	for i := range 3 {
		b := w.e.NewBatch()
		wr := w.s.NewWriter(b)
		txn := wr.Begin()
		_, err := txn.Put(fmt.Appendf(nil, "%d", i), nil, 0)
		w.check(err, "put")
		txn.End()
		if wr.heads == nil || wr.heads.SeekPrefix(engine.MetaRevision()) {
			t.Fatal("a new key was looked for among what is not durable")
		}
		_, err = wr.Publish()
		w.check(err, "publish")
		w.check(b.Close(), "close")
	}
}
