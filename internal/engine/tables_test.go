package engine

import (
	"encoding/binary"
	"errors"
	"log/slog"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/kv"
)

// putRows commits n versions of keys at random, with their revision rows, and flushes them.
func putRows(t *testing.T, e *Engine, random *rand.Rand, from, n int64) {
	t.Helper()
	b := e.NewBatch()
	for main := from; main < from+n; main++ {
		rev := kv.Revision{Main: main}
		key := binary.BigEndian.AppendUint64(nil, random.Uint64N(1000))
		err := errors.Join(b.Set(AppendVersion(nil, key, rev), AppendLiveValue(nil, kv.KeyValue{Value: key})),
			b.Set(AppendRevision(nil, rev), AppendChange(nil, Change{Key: key})))
		if err != nil {
			t.Fatal(err)
		}
	}
	if from == 1 {
		if err := b.Set(AppendAlarm(nil, 1, 1), nil); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.Set(MetaRevision(), AppendNumber(nil, from+n)), b.Commit(), b.Close(), e.Flush()); err != nil {
		t.Fatal(err)
	}
}

// tablesOf returns the numbers of the tables of revision rows, and how many tables the last level has.
func tablesOf(t *testing.T, e *Engine) (revisions []uint64, bottom int) {
	t.Helper()
	levels, err := e.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	for _, level := range levels {
		for _, table := range level {
			first, last := table.Smallest.UserKey, table.Largest.UserKey
			if (first[0] == PrefixRevision) != (last[0] == PrefixRevision) || first[0] < PrefixRevision && last[0] > PrefixRevision {
				t.Fatalf("a table from %x to %x", first, last)
			}
			if first[0] == PrefixRevision {
				revisions = append(revisions, uint64(table.FileNum))
			}
		}
		bottom = len(level)
	}
	return revisions, bottom
}

// Revision rows lie in tables of their own, flushed and compacted; and where there are rows below, compactions of other rows
// leave these tables alone.
func TestTablesOfRevisions(t *testing.T) {
	e, err := Open(Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	random := rand.New(rand.NewPCG(1, 1))
	var old []uint64
	made := int64(0)
	for bottom := 0; bottom == 0; made++ { // the first compaction takes all there is
		putRows(t, e, random, 1+made*500, 500)
		old, bottom = tablesOf(t, e)
	}
	for end := made + 6; made < end; made++ {
		putRows(t, e, random, 1+made*500, 500)
		now, _ := tablesOf(t, e)
		for _, table := range old {
			if !slices.Contains(now, table) {
				t.Errorf("table %d of revisions is gone", table)
			}
		}
		old = now
	}
	if err := e.db.Compact(t.Context(), []byte{'a'}, []byte{'z'}, false); err != nil {
		t.Fatal(err)
	}
	tablesOf(t, e)
	it, err := e.NewIter(PrefixBounds([]byte{PrefixRevision}))
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	next := int64(1)
	for ok := it.First(); ok; ok = it.Next() {
		if rev, err := DecodeRevision(it.Key()); err != nil || rev.Main != next {
			t.Fatalf("revision %d where %d should be, %v", rev.Main, next, err)
		}
		next++
	}
	if next != made*500+1 {
		t.Errorf("revisions end before %d", next)
	}
}

// A state of an older binary, whose tables hold revision rows beside others, opens, is read and is parted by compactions.
func TestTablesOfOlderStates(t *testing.T) {
	fsys := vfs.NewMem()
	options := Options{FS: fsys, Dir: "state", Logger: slog.New(slog.DiscardHandler)}
	random := rand.New(rand.NewPCG(1, 1))
	old := &Engine{fs: fsys, logger: options.Logger, gate: newGate(nil), flushed: make(chan struct{}, 1)}
	p := old.pebbleOptions(options)
	p.Experimental.SpanPolicyFunc = nil
	var err error
	if old.db, err = pebble.Open("state", p); err != nil {
		t.Fatal(err)
	}
	putRows(t, old, random, 1, 500)
	levels, err := old.db.SSTables()
	if err != nil {
		t.Fatal(err)
	}
	if len(levels[0]) != 1 {
		t.Fatalf("%d tables of an older binary, want one", len(levels[0]))
	}
	if err := old.db.Close(); err != nil {
		t.Fatal(err)
	}
	e, err := Open(options)
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	putRows(t, e, random, 501, 500)
	if err := e.db.Compact(t.Context(), []byte{'a'}, []byte{'z'}, false); err != nil {
		t.Fatal(err)
	}
	if revisions, _ := tablesOf(t, e); len(revisions) != 1 {
		t.Errorf("%d tables of revisions, want one", len(revisions))
	}
	for main := range int64(1000) {
		if _, found, err := e.Get(AppendRevision(nil, kv.Revision{Main: main + 1})); !found || err != nil {
			t.Fatalf("revision %d: %t, %v", main+1, found, err)
		}
	}
}

// Flushes and compactions are told as jobs, and each job's end too.
func TestJobsAreTold(t *testing.T) {
	var mu sync.Mutex
	running, began := 0, 0
	e, err := Open(Options{FS: vfs.NewMem(), Dir: "state", OnJob: func(change int) {
		mu.Lock()
		defer mu.Unlock()
		running += change
		began += max(change, 0)
	}})
	if err != nil {
		t.Fatal(err)
	}
	random := rand.New(rand.NewPCG(1, 2))
	for i := range int64(8) { // tables over the same keys, which are merged
		putRows(t, e, random, i*100, 100)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if running != 0 || began <= 8 {
		t.Errorf("%d jobs run after Close, %d began: want none, and more than the 8 flushes", running, began)
	}
}
