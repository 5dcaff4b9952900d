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

// Fences stay right, split and merge, through growth and shrinking of thousands of keys in big and small batches, and
// every count and page agrees with the keys there are, now and at older revisions.
func TestFences(t *testing.T) {
	steps := 60
	if testing.Short() {
		steps = 40
	}
	for seed := range uint64(3) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 400+seed, 6000)
			defer w.close()
			live := map[string]bool{}
			var history []fenceMark
			splits, merges := 0, 0
			for i := range steps {
				before := len(w.s.fences.keys)
				growing := i/15%2 == 0
				w.fenceBatch(live, growing)
				if n := len(w.s.fences.keys); n > before {
					splits++
				} else if n < before {
					merges++
				}
				keys := sortedKeys(live)
				w.check(checkFences(&w.s.fences, keys), "fences after step %d", i)
				loaded, err := loadFences(w.e)
				w.check(err, "load fences")
				if !slices.Equal(loaded.keys, w.s.fences.keys) || !slices.Equal(loaded.counts, w.s.fences.counts) {
					t.Fatalf("step %d: fences in rows differ from those in memory", i)
				}
				history = append(history, fenceMark{w.s.Revision(), keys})
				for range 4 {
					w.fenceReads(history)
				}
			}
			if splits == 0 || merges == 0 {
				t.Fatalf("%d splits, %d merges", splits, merges)
			}
		})
	}
}

type fenceMark struct {
	revision int64
	live     []string
}

func sortedKeys(live map[string]bool) []string {
	keys := make([]string, 0, len(live))
	for k := range live {
		keys = append(keys, k)
	}
	slices.Sort(keys)
	return keys
}

func (w *world) fenceBatch(live map[string]bool, growing bool) {
	w.t.Helper()
	b := w.e.NewBatch()
	defer b.Close()
	wr := w.s.NewWriter(b)
	n := 1 + w.rng.IntN(400)
	if w.rng.IntN(10) == 0 {
		n *= 5
	}
	for n > 0 {
		txn := wr.Begin()
		for range 1 + w.rng.IntN(100) {
			n--
			key := w.key()
			switch {
			case growing || w.rng.IntN(10) == 0:
				_, err := txn.Put(key, nil, 0)
				w.check(err, "put")
				live[string(key)] = true
			case w.rng.IntN(50) == 0:
				r := kv.Range{Key: key, End: append(bytes.Clone(key[:2]), byte('0'+w.rng.IntN(10)), 0xff)}
				_, err := txn.Delete(r, false, nil)
				w.check(err, "delete range")
				for k := range live {
					if r.Contains([]byte(k)) {
						delete(live, k)
					}
				}
			default:
				_, err := txn.Delete(kv.Range{Key: key}, false, nil)
				w.check(err, "delete")
				delete(live, string(key))
			}
		}
		// What the transaction counts includes its own changes, which no fence knows of yet.
		if w.rng.IntN(3) == 0 {
			r := w.span()
			got, err := txn.Range(kv.RangeOptions{Range: r, CountOnly: true})
			w.check(err, "count")
			if want := countIn(sortedKeys(live), r); got.Count != want {
				w.t.Fatalf("transaction counts %d keys in %q, want %d", got.Count, r, want)
			}
		}
		txn.End()
	}
	_, err := wr.Publish()
	w.check(err, "publish")
}

func countIn(keys []string, r kv.Range) (n int64) {
	for _, k := range keys {
		if r.Contains([]byte(k)) {
			n++
		}
	}
	return n
}

// fenceReads counts and pages at a random moment of history.
func (w *world) fenceReads(history []fenceMark) {
	w.t.Helper()
	at := history[len(history)-1-w.rng.IntN(min(len(history), 12))]
	o := kv.RangeOptions{Range: w.span(), Revision: at.revision, CountOnly: w.rng.IntN(2) == 0, KeysOnly: true}
	if !o.CountOnly {
		o.Limit = 1 + w.rng.Int64N(700)
		o.Order = kv.SortOrder(w.rng.IntN(3))
	}
	if w.rng.IntN(2) == 0 {
		o.Revision, at = 0, history[len(history)-1]
	}
	got, _, err := w.s.Range(o)
	w.check(err, "range")
	want := countIn(at.live, o.Range)
	if got.Count != want || got.More != (o.Limit > 0 && want > o.Limit) {
		w.t.Fatalf("%+v counts %d, more %t; want %d", o, got.Count, got.More, want)
	}
}

// A range's count from fences and edges is right for every pair of bounds around fence keys.
func TestFenceCountEdges(t *testing.T) {
	f := fences{keys: []string{"", "c", "f"}, counts: []int64{3, 2, 4}, changed: make([]int64, 3)}
	all := []string{"a", "aa", "b", "c", "d", "f", "g", "h", "i"}
	bounds := []string{"\x00", "a", "b", "bz", "c", "c\x00", "d", "f", "f\x00", "i", "j", "z"}
	for _, from := range bounds {
		for _, to := range bounds {
			r := kv.Range{Key: []byte(from), End: []byte(to)}
			c := f.count(r)
			inside, outside := c.whole, c.whole
			for _, e := range c.edges {
				inside += countIn(all, e.inside)
				outside += e.keys
				for _, o := range e.outside {
					if len(o.End) > 0 {
						outside -= countIn(all, o)
					}
				}
			}
			if want := countIn(all, r); inside != want || outside != want {
				t.Errorf("%q counts %d by what is inside, %d by what is outside, want %d (%+v)", r, inside, outside, want, c)
			}
		}
	}
}

// Whichever side of an edge is walked to its end first, the count is the same; and where nothing lies on the other side,
// the keys of the range are not walked (E#16510).
func TestCountEdgeFromEitherSide(t *testing.T) {
	e, s := openMem(t)
	fill(t, e, s, 900, 1)
	for _, c := range []struct {
		from, to string
		want     int64
	}{
		{"key/", "key0", 900}, {"key/00000000", "key/00000900", 900}, {"a", "b", 0}, {"x", "z", 0},
		{"key/00000001", "key0", 899}, {"key/00000020", "key/00000890", 870}, {"key/00000100", "key/00000110", 10},
		{"key/00000100", "\x00", 800}, {"\x00", "key/00000100", 100}, {"key/00000450", "key/00000451", 1},
	} {
		o := kv.RangeOptions{Range: kv.Range{Key: []byte(c.from), End: []byte(c.to)}, CountOnly: true}
		got, _, err := s.Range(o)
		if err != nil || got.Count != c.want {
			t.Errorf("%q to %q counts %d, want %d, %v", c.from, c.to, got.Count, c.want, err)
		}
	}
	o := kv.RangeOptions{Range: kv.Range{Key: []byte("key/"), End: []byte("key0")}, CountOnly: true}
	s.known.of = nil
	v, err := s.view(&o)
	if err != nil {
		t.Fatal(err)
	}
	defer v.it.Close()
	for i := range v.count.edges {
		v.count.edges[i].inside = kv.Range{Key: []byte("a"), End: []byte("key0")} // would count wrong if it were walked to its end
		v.count.edges[i].keys = 12345
		if got, err := v.countEdge(context.Background(), &v.count.edges[i]); err != nil || got != 12345 {
			t.Fatalf("edge %d counts %d, %v", i, got, err)
		}
	}
}

// A page counts its range right wherever it begins and ends and however far it goes, also by revision, and what it has
// walked over is not walked again for the count.
func TestPageCounts(t *testing.T) {
	e, s := openMem(t)
	fill(t, e, s, 3000, 1)
	var live []string
	b := e.NewBatch()
	w := s.NewWriter(b)
	txn := w.Begin()
	for i := range 3000 {
		key := fmt.Sprintf("key/%08d", i)
		if i%7 != 3 {
			live = append(live, key)
		} else if _, err := txn.Delete(kv.Range{Key: []byte(key)}, false, nil); err != nil {
			t.Fatal(err)
		}
	}
	txn.End()
	if _, err := w.Publish(); err != nil {
		t.Fatal(err)
	}
	b.Close()
	bounds := []string{"\x00", "key/", "key/00000001", "key/00000500", string(s.fences.keys[1]), string(s.fences.keys[2]) + "\x00", "key/00002999", "key0"}
	for _, from := range bounds {
		for _, to := range bounds {
			for _, limit := range []int64{1, 10, 255, 600, 3000} {
				o := kv.RangeOptions{Range: kv.Range{Key: []byte(from), End: []byte(to)}, Limit: limit}
				want := countIn(live, o.Range)
				got, _, err := s.Range(o)
				if err != nil || got.Count != want || int64(len(got.KVs)) != min(want, limit) || got.More != (want > limit) {
					t.Errorf("%q, %d at most: %d keys of %d, more %t, want %d, %v", o.Range, limit, len(got.KVs), got.Count, got.More, want, err)
				}
				if o.Order = kv.SortDescend; !o.FromKey() {
					if got, _, err := s.Range(o); err != nil || got.Count != want || int64(len(got.KVs)) != min(want, limit) {
						t.Errorf("%q down, %d at most: %d keys of %d, want %d, %v", o.Range, limit, len(got.KVs), got.Count, want, err)
					}
				}
				o.Order, o.MinMod = kv.SortNone, 5
				if got, _, err := s.Range(o); err != nil || got.Count != want {
					t.Errorf("%q from revision 5, %d at most: a count of %d, want %d, %v", o.Range, limit, got.Count, want, err)
				}
			}
		}
	}
	for limit, left := range map[int64]string{600: "[]", 5: "[5 key/00000007]"} {
		o := kv.RangeOptions{Range: kv.Range{Key: []byte("key/00000001"), End: []byte("z")}, Limit: limit}
		s.known.of = nil
		v, err := s.view(&o)
		if err != nil {
			t.Fatal(err)
		}
		v.count.edges = v.count.edges[:1]
		if _, err := v.scan(context.Background(), &o, func(Row) error { return nil }); err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, e := range v.count.edges {
			got = append(got, fmt.Sprint(e.before, " ", string(e.inside.Key)))
		}
		if fmt.Sprint(got) != left {
			t.Errorf("after a page of %d the edges left are %q, want %q", limit, got, left)
		}
		v.it.Close()
	}
}

// Counts that the rows contradict are an error, after which a member can rebuild itself, and no panic, after which it could not.
func TestFencesContradictRows(t *testing.T) {
	w := newWorld(t, 501, 1)
	defer func() { w.close() }()
	fill(t, w.e, w.s, 10, 10)
	key := func(i int) []byte { return fmt.Appendf(nil, "key/%08d", i) }
	for name, change := range map[string]func(t *Txn) error{
		"one more than walking finds": func(t *Txn) error {
			w.s.fences.counts[0] = fenceMax
			_, err := t.Put(key(10), nil, 0)
			return err
		},
		"fewer than none": func(t *Txn) error {
			w.s.fences.counts[0] = 0
			_, err := t.Delete(kv.Range{Key: key(1)}, false, nil)
			return err
		},
	} {
		b := w.e.NewBatch()
		writer := w.s.NewWriter(b)
		txn := writer.Begin()
		if err := change(txn); err != nil {
			t.Fatal(err)
		}
		txn.End()
		if _, err := writer.Publish(); !errors.Is(err, engine.ErrMalformed) {
			t.Errorf("%s: %v", name, err)
		}
		writer.Discard()
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	w.s.fences.counts[0] = 1
	o := kv.RangeOptions{Range: kv.Range{Key: key(5), End: key(10)}, CountOnly: true}
	if r, err := w.s.Scan(t.Context(), o, nil); !errors.Is(err, engine.ErrMalformed) {
		t.Errorf("a count: %+v, %v", r, err)
	}
	w.s.fences.counts[0] = 10
}

// A store with many keys opens without walking them: the count is there at once.
func TestFencesAreLoaded(t *testing.T) {
	w := newWorld(t, 500, 1)
	defer func() { w.close() }()
	fill(t, w.e, w.s, 5000, 10)
	w.reopen()
	if got := w.s.fences.total(); got != 5000 {
		t.Fatalf("%d keys counted after reopening", got)
	}
	if n := len(w.s.fences.keys); n < 5 || n > 40 {
		t.Fatalf("%d fences for 5000 keys", n)
	}
}

// fill puts n keys of the form key/00000000 with values of size bytes, 100 to a transaction, 10 transactions to a batch.
func fill(t testing.TB, e *engine.Engine, s *Store, n, size int) {
	t.Helper()
	value := bytes.Repeat([]byte("v"), size)
	rng := rand.New(rand.NewPCG(1, 2))
	for i := 0; i < n; {
		b := e.NewBatch()
		w := s.NewWriter(b)
		for j := 0; j < 10 && i < n; j++ {
			txn := w.Begin()
			for k := 0; k < 100 && i < n; k++ {
				v := bytes.Clone(value)
				for x := 0; x+8 < len(v); x += 16 {
					v[x] = byte(rng.Uint32())
				}
				if _, err := txn.Put([]byte(fmt.Sprintf("key/%08d", i)), v, 0); err != nil {
					t.Fatal(err)
				}
				i++
			}
			txn.End()
		}
		if _, err := w.Publish(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

func openMem(t testing.TB) (*engine.Engine, *Store) {
	t.Helper()
	e, err := engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	s, err := Open(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	return e, s
}

func sweepAll(t testing.TB, s *Store, limit int) {
	t.Helper()
	for {
		_, done, err := s.CompactStep(context.Background(), limit)
		if err != nil {
			t.Fatal(err)
		}
		if done {
			return
		}
	}
}
