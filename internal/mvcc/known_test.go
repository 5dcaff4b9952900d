package mvcc

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Whoever asks again for bounds that were asked for before gets today's count, whatever came and went between: in the fence of a
// bound or in another, as many keys as before or not, in fences that split and merge.
func TestKnownEdges(t *testing.T) {
	for seed := range uint64(4) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			e, s := openMem(t)
			x := script{t, e, s}
			rng := rand.New(rand.NewPCG(seed, 9))
			key := func(n int) []byte { return fmt.Appendf(nil, "key/%05d", n) }
			const space = 6000
			live := map[string]bool{}
			var asked []kv.Range
			for range 12 {
				from := rng.IntN(space)
				asked = append(asked, kv.Range{Key: key(from), End: key(from + rng.IntN(space/3))})
			}
			asked = append(asked, kv.Range{Key: []byte("key/"), End: []byte("key0")}, kv.Range{Key: key(77), End: []byte{0}})
			known, unknown := 0, 0
			for step := range 120 {
				at, n := rng.IntN(space), rng.IntN(4)
				if step%10 == 0 {
					n = 2000 // fences split, or merge
				}
				x.txn(func(txn *Txn) {
					for i := range n {
						k := key((at + i) % space)
						var err error
						if gone := step/10%2 == 1; gone || n < 4 && i%2 == 1 {
							delete(live, string(k))
							_, err = txn.Delete(kv.Range{Key: k}, false, nil)
						} else {
							live[string(k)] = true
							_, err = txn.Put(k, k, 0)
						}
						if err != nil {
							t.Fatal(err)
						}
					}
				})
				keys := sortedKeys(live)
				for range 20 {
					o := kv.RangeOptions{Range: asked[rng.IntN(len(asked))], CountOnly: true}
					if rng.IntN(3) == 0 {
						o.CountOnly, o.Limit = false, 1+rng.Int64N(900)
					}
					if len(s.now(o.Range, true).count.edges) == 0 {
						known++
					} else {
						unknown++
					}
					got, revision, err := s.Range(o)
					if want := countIn(keys, o.Range); err != nil || got.Count != want || revision != s.Revision() {
						t.Fatalf("step %d: %q counts %d at %d of %d, want %d, %v", step, o.Range, got.Count, revision, s.Revision(), want, err)
					}
				}
			}
			if known < 200 || unknown < 200 {
				t.Errorf("%d counts were known and %d were not: neither is tested", known, unknown)
			}
		})
	}
}

// A key that comes and another that goes leave a fence with as many keys, and a bound between them with others on either side.
func TestKnownEdgesOfAsManyKeys(t *testing.T) {
	e, s := openMem(t)
	fill(t, e, s, 10, 10)
	key := func(i int) []byte { return fmt.Appendf(nil, "key/%08d", i) }
	count := func(want int64) {
		t.Helper()
		o := kv.RangeOptions{Range: kv.Range{Key: key(0), End: key(5)}, CountOnly: true}
		if got, _, err := s.Range(o); err != nil || got.Count != want {
			t.Fatalf("%d keys, %v, want %d", got.Count, err, want)
		}
	}
	count(5)
	script{t, e, s}.txn(func(txn *Txn) {
		if _, err := txn.Put(key(11), nil, 0); err != nil {
			t.Fatal(err)
		}
		if _, err := txn.Delete(kv.Range{Key: key(2)}, false, nil); err != nil {
			t.Fatal(err)
		}
	})
	count(4)
}

// What is remembered is bounded, and the newest is kept.
func TestKnownEdgesAreBounded(t *testing.T) {
	var k knownEdges
	r := func(n int) kv.Range { return kv.Range{Key: fmt.Appendf(nil, "%d", n), End: []byte("z")} }
	k.add(kv.Range{Key: slices.Repeat([]byte("k"), maxKnownBytes), End: []byte("z")}, 1, 1)
	if len(k.of) != 0 {
		t.Error("long bounds are remembered")
	}
	for n := range 3 * maxKnownEdges {
		k.add(r(n), int64(n), 7)
		if len(k.of) > maxKnownEdges {
			t.Fatalf("%d are remembered", len(k.of))
		}
	}
	last := r(3*maxKnownEdges - 1)
	k.add(last, 1, 6) // by one who began before and comes late
	for _, c := range []struct{ changed, whole int64 }{{7, 3*maxKnownEdges - 1}, {8, 0}} {
		got := fenceCount{edges: []edge{{inside: last, changed: c.changed}}}
		k.settle(&got)
		if got.whole != c.whole || len(got.edges) != 1-int(min(c.whole, 1)) {
			t.Errorf("changed at %d: %d keys are known, %d edges left", c.changed, got.whole, len(got.edges))
		}
	}
}
