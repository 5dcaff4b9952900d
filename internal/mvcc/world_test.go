package mvcc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// world drives a store and the model with the same random commands.
type world struct {
	t     *testing.T
	rng   *rand.Rand
	fs    *vfs.MemFS
	e     *engine.Engine
	s     *Store
	m     *model
	keys  int // how many different keys there are, about
	many  int // most changes in one transaction
	marks []mark
	lost  int // batches lost in crashes
}

// mark is the model's state after one batch: what a crash may leave.
type mark struct{ revision, compact int64 }

func newWorld(t *testing.T, seed uint64, keys int) *world {
	w := &world{t: t, rng: rand.New(rand.NewPCG(seed, 1)), fs: vfs.NewCrashableMem(), m: newModel(), keys: keys, many: 5}
	w.marks = []mark{{w.m.revision, w.m.compact}}
	w.open()
	return w
}

func (w *world) options() engine.Options {
	return engine.Options{FS: w.fs, Dir: "state", MemTableBytes: 64 << 10, CacheBytes: 1 << 20}
}

func (w *world) open() {
	w.t.Helper()
	var err error
	if w.e, err = engine.Open(w.options()); err != nil {
		w.t.Fatal(err)
	}
	// A head cache so small that keys fall out of it.
	if w.s, err = Open(w.e, Options{HeadCacheBytes: 40 * headBytes}); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) close() {
	w.t.Helper()
	if w.t.Failed() {
		return // iterators may be open, and the failure is what counts
	}
	if err := w.e.Close(); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) reopen() {
	w.t.Helper()
	if err := w.e.Flush(); err != nil {
		w.t.Fatal(err)
	}
	w.close()
	w.open()
}

func (w *world) check(err error, what string, args ...any) {
	w.t.Helper()
	if err != nil {
		w.t.Fatalf("%s: %v", fmt.Sprintf(what, args...), err)
	}
}

// key makes keys that share prefixes, hold zero bytes and end in bytes that look like suffix lengths.
func (w *world) key() []byte {
	n := w.rng.IntN(w.keys)
	key := []byte(fmt.Sprintf("%c/%d", 'a'+byte(n%3), n))
	switch n % 7 {
	case 0:
		key = append(key, 0)
	case 1:
		key = append(key, 0, 0)
	case 2:
		key = append(key, 13)
	case 3:
		key = append(key, 0xff, 0xff)
	case 4:
		key = append(key, 0, 0xff, 3)
	}
	return key
}

func (w *world) value() []byte {
	if w.rng.IntN(5) == 0 {
		return nil
	}
	b := make([]byte, w.rng.IntN(40))
	for i := range b {
		b[i] = byte(w.rng.UintN(256))
	}
	if len(b) == 39 { // a large one now and then, which gets into a file of its own kind
		b = bytes.Repeat(b, 16<<10/len(b)+1)
	}
	return b
}

func (w *world) span() kv.Range {
	r := kv.Range{Key: w.key()}
	switch w.rng.IntN(8) {
	case 0, 1:
		return r
	case 2:
		r.End = []byte{0}
	case 3:
		return kv.Range{Key: []byte{0}, End: []byte{0}}
	case 4:
		r.Key = []byte{'a' + byte(w.rng.IntN(3))}
		r.End = []byte{r.Key[0] + 1}
	default:
		r.End = w.key()
	}
	return r
}

// bound is now and then a revision.
func (w *world) bound() int64 {
	if w.rng.IntN(4) != 0 {
		return 0
	}
	return w.revision()
}

// revision is anything near what there is.
func (w *world) revision() int64 {
	switch w.rng.IntN(14) {
	case 12, 13: // that of a change near the end
		if n := len(w.m.events); n > 0 {
			return w.m.events[n-1-w.rng.IntN(min(n, 20))].Revision.Main
		}
	case 0:
		return w.m.current() + 1 + w.rng.Int64N(3)
	case 1:
		return w.m.compact - w.rng.Int64N(3)
	case 2:
		return w.m.compact
	case 3:
		return w.m.current()
	}
	return w.m.current() - w.rng.Int64N(min(w.m.current(), 60))
}

func (w *world) rangeOptions() kv.RangeOptions {
	o := kv.RangeOptions{Range: w.span(), KeysOnly: w.rng.IntN(4) == 0, CountOnly: w.rng.IntN(4) == 0}
	if w.rng.IntN(2) == 0 {
		o.Revision = w.revision()
	}
	if w.rng.IntN(2) == 0 {
		o.Limit = w.rng.Int64N(int64(w.keys/3+2)) - 1
	}
	if w.rng.IntN(2) == 0 {
		o.Target, o.Order = kv.SortTarget(w.rng.IntN(5)), kv.SortOrder(w.rng.IntN(3))
	}
	if w.rng.IntN(3) == 0 {
		o.MinMod, o.MaxMod, o.MinCreate, o.MaxCreate = w.bound(), w.bound(), w.bound(), w.bound()
	}
	return o
}

// batch applies a few transactions to store and model, each checked as it goes.
func (w *world) batch() {
	w.t.Helper()
	b := w.e.NewBatch()
	defer b.Close()
	if w.rng.IntN(20) == 0 { // one that is given up
		wr := w.s.NewWriter(b)
		txn := wr.Begin()
		_, err := txn.Put(w.key(), w.value(), 7)
		w.check(err, "put")
		_, err = txn.Delete(w.span(), false, nil)
		w.check(err, "delete")
		b = w.e.NewBatch()
		defer b.Close()
	}
	wr := w.s.NewWriter(b)
	before := len(w.m.events)
	for range 1 + w.rng.IntN(4) {
		if w.rng.IntN(12) == 0 {
			rev := w.revision()
			if got, want := wr.Compact(rev), w.m.compactTo(rev); got != want {
				w.t.Fatalf("compact to %d: %v, want %v", rev, got, want)
			}
		}
		txn := wr.Begin()
		for range w.rng.IntN(w.many) {
			w.op(txn)
		}
		if got, want := txn.End(), w.m.end(); got != want {
			w.t.Fatalf("transaction ended at revision %d, want %d", got, want)
		}
	}
	w.check(b.Set(engine.MetaApplied(), engine.AppendApplied(nil, uint64(len(w.marks)), 1)), "applied row")
	events, err := wr.Publish()
	w.check(err, "publish")
	w.check(sameEvents(events, w.m.events[before:]), "published events")
	w.marks = append(w.marks, mark{w.m.revision, w.m.compact})
}

func (w *world) op(txn *Txn) {
	w.t.Helper()
	switch n := w.rng.IntN(10); {
	case n < 5:
		key, value, lease := w.key(), w.value(), kv.LeaseID(w.rng.IntN(3))
		before, err := txn.Put(key, value, lease)
		w.check(err, "put")
		w.check(samePair(before, w.m.put(key, value, lease)), "replaced by put")
	case n < 7:
		r := w.span()
		if w.rng.IntN(3) != 0 {
			r.End = nil
		}
		var got []kv.KeyValue
		var visit func(kv.KeyValue) error
		if w.rng.IntN(2) == 0 {
			visit = func(p kv.KeyValue) error {
				got = append(got, p)
				return nil
			}
		}
		values := w.rng.IntN(2) == 0
		n, err := txn.Delete(r, values, visit)
		w.check(err, "delete")
		want := w.m.delete(r)
		if n != int64(len(want)) {
			w.t.Fatalf("deleted %d keys, want %d", n, len(want))
		}
		if !values {
			for i := range want {
				want[i].Value = nil
			}
		}
		if visit != nil {
			w.check(samePairs(got, want), "deleted pairs of %q", r)
		}
	case n < 8:
		key := w.key()
		got, found, err := txn.Head(key)
		w.check(err, "head")
		want, live := w.m.at(string(key), w.m.current())
		if found != live {
			w.t.Fatalf("head of %q found %t, want %t", key, found, live)
		}
		if live {
			w.check(samePair(got, want.pair), "head of %q", key)
		}
	default:
		o := w.rangeOptions()
		got, err := txn.Range(o)
		w.sameRange(o, got, err)
	}
	if got, want := txn.Revision(), w.m.current(); got != want {
		w.t.Fatalf("transaction sees revision %d, want %d", got, want)
	}
}

func (w *world) sameRange(o kv.RangeOptions, got kv.RangeResult, err error) {
	w.t.Helper()
	want, wantErr := w.m.rangeAt(o)
	if !errors.Is(err, wantErr) || err != nil && wantErr == nil {
		w.t.Fatalf("range %+v: error %v, want %v (at %d, compacted %d)", o, err, wantErr, w.m.current(), w.m.compact)
	}
	if err != nil {
		return
	}
	if got.Count != want.Count || got.More != want.More {
		w.t.Fatalf("range %+v: count %d more %t, want %d %t", o, got.Count, got.More, want.Count, want.More)
	}
	w.check(samePairs(got.KVs, want.KVs), "range %+v at %d", o, w.m.current())
}

// read compares a few random reads.
func (w *world) read() {
	w.t.Helper()
	for range 4 {
		o := w.rangeOptions()
		got, rev, err := w.s.Range(o)
		w.sameRange(o, got, err)
		if rev != w.m.revision {
			w.t.Fatalf("range at revision %d, want %d", rev, w.m.revision)
		}
	}
	from := w.revision()
	to := from + w.rng.Int64N(30)
	var got []kv.Event
	err := w.s.Events(context.Background(), from, to, func(e kv.Event) error {
		got = append(got, e)
		return nil
	})
	want, wantErr := w.m.eventsBetween(from, to)
	if !errors.Is(err, wantErr) || err != nil && wantErr == nil {
		w.t.Fatalf("events %d to %d: error %v, want %v", from, to, err, wantErr)
	}
	w.check(sameEvents(got, want), "events %d to %d (at %d, compacted %d)", from, to, w.m.revision, w.m.compact)
	for _, e := range got {
		w.previous(e)
	}
}

// previous checks what watchers call prev_kv.
func (w *world) previous(e kv.Event) {
	w.t.Helper()
	got, found, err := w.s.Previous(e)
	w.check(err, "previous")
	var want *kv.KeyValue
	if !e.Creates() && e.Revision.Main-1 >= w.m.compact {
		for _, v := range w.m.keys[string(e.KV.Key)] {
			if v.rev.Main < e.Revision.Main {
				want = nil
				if !v.deleted {
					want = &v.pair
				}
			}
		}
	}
	if found != (want != nil) {
		w.t.Fatalf("previous of %+v found %t, compacted %d", e, found, w.m.compact)
	}
	if found {
		w.check(samePair(got, *want), "previous of %+v", e)
	}
}

func (w *world) step() {
	w.t.Helper()
	w.batch()
	w.read()
	if w.rng.IntN(5) == 0 {
		_, _, err := w.s.CompactStep(context.Background(), 1+w.rng.IntN(20))
		w.check(err, "compact step")
	}
}

// sweepAll deletes all garbage.
func (w *world) sweepAll() {
	w.t.Helper()
	for {
		_, done, err := w.s.CompactStep(context.Background(), 1+w.rng.IntN(50))
		w.check(err, "compact step")
		if done {
			return
		}
	}
}

// verify checks every row: revision rows against the model's history, version rows against revision rows, fences against
// live keys, and the numbers in meta rows. With swept, the rows must be exactly those that are needed.
func (w *world) verify(swept bool) {
	w.t.Helper()
	if got, want := w.s.Revision(), w.m.revision; got != want {
		w.t.Fatalf("revision %d, want %d", got, want)
	}
	if got, want := w.s.CompactRevision(), w.m.compact; got != want {
		w.t.Fatalf("compact revision %d, want %d", got, want)
	}
	revs := w.revisionRows()
	w.versionRows(revs)
	needed := w.m.kept(w.m.compact)
	for _, r := range needed {
		if _, ok := revs[r]; !ok {
			w.t.Fatalf("revision %s is needed and gone (at %d, compacted %d, %+v)", r, w.m.revision, w.m.compact, w.s.progress)
		}
	}
	if swept && len(revs) != len(needed) {
		w.t.Fatalf("%d revisions left after all garbage was deleted, want %d", len(revs), len(needed))
	}
	w.verifyFences()
}

func (w *world) rows(prefix byte, visit func(key, value []byte)) {
	w.t.Helper()
	lower, upper := engine.PrefixBounds([]byte{prefix})
	it, err := w.e.NewIter(lower, upper)
	w.check(err, "iterator")
	for ok := it.First(); ok; ok = it.Next() {
		visit(it.Key(), it.Value())
	}
	w.check(it.Close(), "iterator")
}

func (w *world) revisionRows() map[kv.Revision]engine.Change {
	w.t.Helper()
	revs := map[kv.Revision]engine.Change{}
	w.rows(engine.PrefixRevision, func(key, value []byte) {
		rev, err := engine.DecodeRevision(key)
		w.check(err, "revision key")
		c, err := engine.DecodeChange(value)
		w.check(err, "revision value")
		c.Key = bytes.Clone(c.Key)
		revs[rev] = c
		i, ok := slices.BinarySearchFunc(w.m.events, rev, func(e kv.Event, r kv.Revision) int { return compareRevisions(e.Revision, r) })
		if !ok {
			w.t.Fatalf("revision row %s is no part of history", rev)
		}
		if e := w.m.events[i]; e.Type != c.Type || e.Superseded != c.Superseded || !bytes.Equal(e.KV.Key, c.Key) {
			w.t.Fatalf("revision row %s is %+v, history has %+v", rev, c, e)
		}
		if want := w.sizeOf(string(c.Key), c.Superseded); c.Frees != want {
			w.t.Fatalf("revision row %s is %+v, what it superseded is %d bytes long", rev, c, want)
		}
	})
	return revs
}

// sizeOf is how long the value of a version's row is; 0 if rev is none.
func (w *world) sizeOf(key string, rev kv.Revision) uint32 {
	if rev.IsZero() {
		return 0
	}
	vs := w.m.keys[key]
	i := slices.IndexFunc(vs, func(v version) bool { return v.rev == rev })
	return uint32(len(engine.AppendLiveValue(nil, vs[i].pair)))
}

func (w *world) versionRows(revs map[kv.Revision]engine.Change) {
	w.t.Helper()
	n := 0
	w.rows(engine.PrefixVersion, func(row, value []byte) {
		n++
		key, rev, err := engine.DecodeVersion(row)
		w.check(err, "version key")
		c, ok := revs[rev]
		if !ok || !bytes.Equal(c.Key, key) {
			w.t.Fatalf("version row of %q at %s has no revision row", key, rev)
		}
		tail, tombstone, err := engine.DecodeVersionValue(value)
		w.check(err, "version value")
		if tombstone != (c.Type == kv.Delete) {
			w.t.Fatalf("version row of %q at %s: tombstone %t, revision row %+v", key, rev, tombstone, c)
		}
		if !tombstone {
			vs := w.m.keys[string(key)]
			i := slices.IndexFunc(vs, func(v version) bool { return v.rev == rev })
			w.check(samePair(Row{Key: key, ModRevision: rev.Main, Tail: tail}.KeyValue(), vs[i].pair), "version row")
		}
	})
	if n != len(revs) {
		w.t.Fatalf("%d version rows, %d revision rows", n, len(revs))
	}
}

func (w *world) verifyFences() {
	w.t.Helper()
	loaded, err := loadFences(w.e)
	w.check(err, "load fences")
	if !slices.Equal(loaded.keys, w.s.fences.keys) || !slices.Equal(loaded.counts, w.s.fences.counts) {
		w.t.Fatalf("fences in rows %v, in memory %v", loaded, w.s.fences)
	}
	live := w.m.sorted(kv.Range{Key: []byte{0}, End: []byte{0}}, w.m.revision)
	w.check(checkFences(&loaded, live), "fences")
}

// checkFences checks every invariant of fences against the sorted live keys.
func checkFences(f *fences, live []string) error {
	if f.keys[0] != "" || !slices.IsSorted(f.keys) {
		return fmt.Errorf("keys %q", f.keys)
	}
	for i, key := range f.keys {
		n := 0
		for n < len(live) && (i+1 == len(f.keys) || live[n] < f.keys[i+1]) {
			n++
		}
		if f.counts[i] != int64(n) {
			return fmt.Errorf("fence %d at %q counts %d, there are %d", i, key, f.counts[i], n)
		}
		if n > fenceMax {
			return fmt.Errorf("fence %d has %d keys", i, n)
		}
		if i > 0 && n < fenceMin && f.counts[i-1] < fenceMin {
			return fmt.Errorf("fences %d and %d have %d and %d keys", i-1, i, f.counts[i-1], n)
		}
		live = live[n:]
	}
	return nil
}
