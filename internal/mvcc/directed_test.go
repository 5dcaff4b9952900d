package mvcc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// script writes to a store in single steps.
type script struct {
	t testing.TB
	e *engine.Engine
	s *Store
}

func (x script) write(f func(w *Writer)) {
	x.t.Helper()
	b := x.e.NewBatch()
	defer b.Close()
	w := x.s.NewWriter(b)
	f(w)
	if _, err := w.Publish(); err != nil {
		x.t.Fatal(err)
	}
}

func (x script) txn(f func(t *Txn)) (rev int64) {
	x.t.Helper()
	x.write(func(w *Writer) {
		t := w.Begin()
		f(t)
		rev = t.End()
	})
	return rev
}

func (x script) put(key, value string) int64 {
	x.t.Helper()
	return x.txn(func(t *Txn) {
		if _, err := t.Put([]byte(key), []byte(value), 0); err != nil {
			x.t.Fatal(err)
		}
	})
}

func (x script) delete(key string) int64 {
	x.t.Helper()
	return x.txn(func(t *Txn) {
		if _, err := t.Delete(kv.Range{Key: []byte(key)}, false, nil); err != nil {
			x.t.Fatal(err)
		}
	})
}

func (x script) compact(rev int64) {
	x.t.Helper()
	x.write(func(w *Writer) {
		if err := w.Compact(rev); err != nil {
			x.t.Fatal(err)
		}
	})
	sweepAll(x.t, x.s, 2)
}

func (x script) events(from, to int64) (all []string) {
	x.t.Helper()
	err := x.s.Events(context.Background(), from, to, func(e kv.Event) error {
		kind := "put"
		if e.Type == kv.Delete {
			kind = "delete"
		}
		all = append(all, fmt.Sprintf("%d %s %s=%s", e.Revision.Main, kind, e.KV.Key, e.KV.Value))
		return nil
	})
	if err != nil {
		x.t.Fatal(err)
	}
	return all
}

func (x script) expect(got any, want string) {
	x.t.Helper()
	if s := fmt.Sprint(got); s != want {
		x.t.Fatalf("got %s, want %s", s, want)
	}
}

// A watch from the compact revision sees what happened at it, a delete too, before and after the garbage is gone
// (E#18089, E#19179); the tombstone goes with the next compaction.
func TestDeleteAtCompactRevision(t *testing.T) {
	e, s := openMem(t)
	x := script{t, e, s}
	x.put("a", "1")
	x.put("b", "2")
	at := x.delete("a")
	x.put("c", "3")
	x.write(func(w *Writer) {
		if err := w.Compact(at); err != nil {
			t.Fatal(err)
		}
	})
	x.expect(x.events(at, 100), "[4 delete a= 5 put c=3]")
	sweepAll(t, s, 1)
	x.expect(x.events(at, 100), "[4 delete a= 5 put c=3]")
	if err := s.Events(context.Background(), at-1, 100, nil); !errors.Is(err, kv.ErrCompacted) {
		t.Fatalf("events before the compact revision: %v", err)
	}
	for _, o := range []kv.RangeOptions{{Revision: at}, {Revision: at, CountOnly: true}, {Revision: at, Limit: 1}} {
		o.Range = kv.Range{Key: []byte{0}, End: []byte{0}}
		if r, _, err := s.Range(o); err != nil || r.Count != 1 || !o.CountOnly && string(r.KVs[0].Key) != "b" {
			t.Fatalf("range at the compact revision: %+v, %v", r, err)
		}
	}
	if _, _, err := s.Range(kv.RangeOptions{Range: kv.Range{Key: []byte("b")}, Revision: at - 1}); !errors.Is(err, kv.ErrCompacted) {
		t.Fatalf("range before the compact revision: %v", err)
	}
	x.compact(at + 1)
	rows := 0
	lower, upper := engine.VersionBounds(kv.Range{Key: []byte("a")})
	it, err := e.NewIter(lower, upper)
	if err != nil {
		t.Fatal(err)
	}
	for ok := it.First(); ok; ok = it.Next() {
		rows++
	}
	if err := it.Close(); err != nil || rows != 0 {
		t.Fatalf("%d rows of a deleted key are left, %v", rows, err)
	}
}

// When everything is deleted and compacted, and the member crashes, the revision is still there (E#17780).
func TestRevisionSurvivesEmptyStore(t *testing.T) {
	fs := vfs.NewCrashableMem()
	e, err := engine.Open(engine.Options{FS: fs, Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	x := script{t, e, s}
	x.put("a", "1")
	x.put("a", "2")
	x.compact(x.delete("a"))
	x.put("b", "1")
	last := x.delete("b")
	x.compact(last)
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	left := fs.CrashClone(vfs.CrashCloneCfg{})
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if e, err = engine.Open(engine.Options{FS: left, Dir: "state"}); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if s, err = Open(e, Options{}); err != nil {
		t.Fatal(err)
	}
	if s.Revision() != last || s.CompactRevision() != last {
		t.Fatalf("revision %d, compacted %d, want %d", s.Revision(), s.CompactRevision(), last)
	}
}

// A transaction that writes and then reads at an older revision reads that revision, and one in the future is refused
// (E#18667).
func TestTxnReadsOlderRevision(t *testing.T) {
	e, s := openMem(t)
	x := script{t, e, s}
	old := x.put("a", "1")
	x.put("a", "2")
	x.txn(func(txn *Txn) {
		read := func(rev int64) string {
			r, err := txn.Range(kv.RangeOptions{Range: kv.Range{Key: []byte("a")}, Revision: rev})
			if err != nil {
				return err.Error()
			}
			return string(r.KVs[0].Value)
		}
		if _, err := txn.Put([]byte("a"), []byte("3"), 0); err != nil {
			t.Fatal(err)
		}
		x.expect([]string{read(old), read(old + 1), read(old + 2), read(0)}, "[1 2 3 3]")
		x.expect(read(old+3), kv.ErrFutureRevision.Error())
	})
}

// Compaction is refused as etcd refuses it, and reading a negative revision reads the newest.
func TestCompactionBounds(t *testing.T) {
	e, s := openMem(t)
	x := script{t, e, s}
	if s.Revision() != 1 || s.CompactRevision() != -1 {
		t.Fatalf("an empty store is at %d, compacted at %d", s.Revision(), s.CompactRevision())
	}
	x.put("a", "1")
	x.write(func(w *Writer) {
		for _, c := range []struct {
			rev  int64
			want error
		}{{3, kv.ErrFutureRevision}, {-1, kv.ErrCompacted}, {0, nil}, {0, kv.ErrCompacted}, {2, nil}, {1, kv.ErrCompacted}} {
			if err := w.Compact(c.rev); err != c.want {
				t.Fatalf("compact to %d: %v, want %v", c.rev, err, c.want)
			}
		}
	})
	r, rev, err := s.Range(kv.RangeOptions{Range: kv.Range{Key: []byte("a")}, Revision: -5})
	if err != nil || rev != 2 || len(r.KVs) != 1 {
		t.Fatalf("%+v at %d, %v", r, rev, err)
	}
}

// Steps tell how many versions they deleted: those that were replaced, and tombstones.
func TestCompactStepCounts(t *testing.T) {
	e, s := openMem(t)
	x := script{t, e, s}
	for range 3 {
		x.put("a", "1")
	}
	x.put("b", "1")
	x.delete("b")
	last := x.put("c", "1")
	x.write(func(w *Writer) {
		if err := w.Compact(last); err != nil {
			t.Fatal(err)
		}
	})
	total := 0
	for done := false; !done; {
		n, d, err := s.CompactStep(context.Background(), 2)
		if err != nil {
			t.Fatal(err)
		}
		total, done = total+n, d
	}
	if total != 4 { // two of a, b and its tombstone
		t.Errorf("%d versions were deleted", total)
	}
}

// A state of another format is refused, and says so.
func TestOtherFormatIsRefused(t *testing.T) {
	e, s := openMem(t)
	script{t, e, s}.put("a", "1")
	b := e.NewBatch()
	defer b.Close()
	if err := b.Set(engine.MetaFormat(), engine.AppendNumber(nil, formatVersion+1)); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(e, Options{}); err == nil {
		t.Fatal("a state of a format to come was opened")
	}
}

// Rows are what protobuf would write of the pair.
func TestRowAppendWire(t *testing.T) {
	pair := kv.KeyValue{Key: []byte("k"), Value: []byte("v"), CreateRevision: 300, ModRevision: 301, Version: 2, Lease: 5}
	row := Row{Key: pair.Key, ModRevision: pair.ModRevision, Tail: engine.AppendLiveValue(nil, pair)[1:]}
	x := script{t: t}
	x.expect(row.AppendWire(nil, false), fmt.Sprint([]byte("\x0a\x01k\x18\xad\x02\x10\xac\x02\x20\x02\x2a\x01v\x30\x05")))
	x.expect(row.AppendWire(nil, true), fmt.Sprint([]byte("\x0a\x01k\x18\xad\x02\x10\xac\x02\x20\x02")))
	row.keepLease = true
	x.expect(row.AppendWire(nil, true), fmt.Sprint([]byte("\x0a\x01k\x18\xad\x02\x10\xac\x02\x20\x02\x30\x05")))
}

// A read that began before a compaction, and opens its view when the rows are gone already, is refused; one of the newest
// revision begins anew.
func TestViewAfterCompaction(t *testing.T) {
	e, s := openMem(t)
	x := script{t, e, s}
	x.put("a", "1")
	o := kv.RangeOptions{Range: kv.Range{Key: []byte("a")}}
	m := s.now(o.Range, true)
	x.compact(x.put("a", "2"))
	if _, err := s.viewAt(m, &o); err != kv.ErrCompacted {
		t.Fatalf("an overtaken view opened: %v", err)
	}
	if r, _, err := s.Range(o); err != nil || string(r.KVs[0].Value) != "2" {
		t.Fatalf("%+v, %v", r, err)
	}
}

// A read whose revision is compacted, and whose rows are deleted, between any two of its steps is refused or right.
func TestReadsBesideCompaction(t *testing.T) {
	e, s := openMem(t)
	x := script{t, e, s}
	keys := 40
	for i := range keys {
		x.put(fmt.Sprintf("k%02d", i), "")
	}
	stop := make(chan struct{})
	var all sync.WaitGroup
	for seed := range 4 {
		all.Add(1)
		go func() {
			defer all.Done()
			rng := rand.New(rand.NewPCG(uint64(seed), 1))
			for {
				select {
				case <-stop:
					return
				default:
				}
				o := kv.RangeOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}, Revision: s.Revision()}
				if rng.IntN(3) == 0 {
					o.Revision = 0
				}
				r, rev, err := s.Range(o)
				if errors.Is(err, kv.ErrCompacted) && o.Revision > 0 && o.Revision < s.CompactRevision() {
					continue
				}
				if err != nil || r.Count != int64(keys) || len(r.KVs) != keys {
					t.Errorf("at %d of %d, compacted %d: %d of %d keys, %v", o.Revision, rev, s.CompactRevision(), len(r.KVs), r.Count, err)
					return
				}
			}
		}()
	}
	steps := 3000
	if testing.Short() {
		steps = 500
	}
	for i := range steps {
		x.write(func(w *Writer) {
			for j := range 5 {
				txn := w.Begin()
				if _, err := txn.Put([]byte(fmt.Sprintf("k%02d", (5*i+j)%keys)), nil, 0); err != nil {
					t.Error(err)
				}
				txn.End()
			}
			if err := w.Compact(w.Revision()); err != nil {
				t.Error(err)
			}
		})
		sweepAll(t, s, 1000)
	}
	close(stop)
	all.Wait()
}
