package mvcc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Readers beside a writer and beside the deletion of old history see whole moments: every transaction here makes two keys
// and deletes an old one, so the revision alone says which keys there are.
func TestReadersBesideWriters(t *testing.T) {
	e, s := openMem(t)
	steps := 600
	if testing.Short() {
		steps = 150
	}
	key := func(n int64) []byte { return []byte(fmt.Sprintf("k%08d", n*7919%100_000_000)) }
	stop := make(chan struct{})
	var all sync.WaitGroup
	for i := range 3 {
		all.Add(1)
		go func() {
			defer all.Done()
			readBeside(t, s, stop, uint64(i))
		}()
	}
	all.Add(1)
	go func() {
		defer all.Done()
		for {
			select {
			case <-stop:
				return
			default:
			}
			if _, _, err := s.CompactStep(context.Background(), 37); err != nil {
				t.Error(err)
			}
		}
	}()
	rng := rand.New(rand.NewPCG(5, 5))
	for range steps {
		b := e.NewBatch()
		w := s.NewWriter(b)
		for range 1 + rng.IntN(5) {
			txn := w.Begin()
			n := txn.Revision()
			for _, k := range [][]byte{key(2 * n), key(2*n + 1)} {
				if _, err := txn.Put(k, k, 0); err != nil {
					t.Fatal(err)
				}
			}
			if _, err := txn.Delete(kv.Range{Key: key(n)}, false, nil); err != nil {
				t.Fatal(err)
			}
			txn.End()
		}
		if rng.IntN(4) == 0 {
			if err := w.Compact(w.Revision() - rng.Int64N(30)); err != nil && !errors.Is(err, kv.ErrCompacted) {
				t.Fatal(err)
			}
		}
		if _, err := w.Publish(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
	}
	close(stop)
	all.Wait()
}

// liveAfter is how many keys there are after the transaction that made revision: transaction n (from revision n to n+1)
// makes keys 2n and 2n+1 and deletes key n, which is there if n ≥ 2.
func liveAfter(revision int64) (n int64) {
	for txn := int64(firstRevision); txn < revision; txn++ {
		n += 2
		if txn >= 2 {
			n--
		}
	}
	return n
}

func readBeside(t *testing.T, s *Store, stop chan struct{}, seed uint64) {
	rng := rand.New(rand.NewPCG(seed, 6))
	for {
		select {
		case <-stop:
			return
		default:
		}
		o := kv.RangeOptions{Range: kv.Range{Key: []byte{0}, End: []byte{0}}, Order: kv.SortOrder(rng.IntN(3))}
		if rng.IntN(2) == 0 {
			o.Range = kv.Range{Key: []byte("k"), End: []byte("l")} // has edges, with all keys inside
		}
		switch rng.IntN(3) {
		case 0:
			o.CountOnly = true
		case 1:
			o.Limit = 1 + rng.Int64N(200)
		}
		if rng.IntN(2) == 0 {
			o.Revision = max(s.Revision()-rng.Int64N(40), 1)
		}
		rows := int64(0)
		res, err := s.Scan(context.Background(), o, func(r Row) error {
			rows++
			if p := r.KeyValue(); string(p.Key) != string(p.Value) {
				return fmt.Errorf("key %q has value %q", p.Key, p.Value)
			}
			return nil
		})
		if errors.Is(err, kv.ErrCompacted) && o.Revision > 0 && o.Revision < s.CompactRevision() {
			continue
		}
		at := o.Revision
		if at == 0 {
			at = res.Revision
		}
		want := liveAfter(at)
		shown := want
		if o.Limit > 0 {
			shown = min(want, o.Limit)
		}
		if o.CountOnly {
			shown = 0
		}
		if err != nil || res.Count != want || rows != shown || res.More != (!o.CountOnly && shown < want) {
			t.Errorf("at %d of %d: count %d, %d rows, more %t, error %v; want %d keys (%+v)",
				at, res.Revision, res.Count, rows, res.More, err, want, o)
			return
		}
		readEvents(t, s, rng)
	}
}

// readEvents reads a piece of history and checks that nothing of it is missing.
func readEvents(t *testing.T, s *Store, rng *rand.Rand) {
	from := max(s.Revision()-rng.Int64N(40), 2)
	to := from + rng.Int64N(10)
	end := min(to, s.Revision())
	counts := map[int64]int{}
	err := s.Events(context.Background(), from, end, func(e kv.Event) error {
		counts[e.Revision.Main]++
		return nil
	})
	if errors.Is(err, kv.ErrCompacted) && from < s.CompactRevision() {
		return
	}
	if err != nil {
		t.Error(err)
		return
	}
	for rev := from; rev <= end; rev++ {
		want := 3
		if rev-1 < 2 {
			want = 2
		}
		if counts[rev] != want {
			t.Errorf("revision %d has %d events, want %d", rev, counts[rev], want)
		}
	}
}
