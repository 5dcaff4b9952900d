package watch

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/trivet-kv/trivet/internal/kv"
)

// TestIndex compares random ranges, many of them alike, with asking each watcher whether it wants a key.
func TestIndex(t *testing.T) {
	for seed := range uint64(20) {
		r := rand.New(rand.NewPCG(seed, 5))
		word := func() []byte {
			b := make([]byte, 1+r.IntN(3))
			for i := range b {
				b[i] = byte(r.IntN(4)) * 85 // 0, 85, 170, 255
			}
			return b
		}
		x := newIndex()
		var all []*watcher
		for range 600 {
			if len(all) > 0 && r.IntN(3) == 0 {
				i := r.IntN(len(all))
				x.remove(all[i])
				all = slices.Delete(all, i, i+1)
			} else {
				w := &watcher{CreateOptions: CreateOptions{ID: r.Int64(), Range: kv.Range{Key: word()}}}
				switch r.IntN(4) {
				case 0:
					w.End = []byte{0}
				case 1, 2:
					if end := word(); bytes.Compare(w.Key, end) < 0 {
						w.End = end
					}
				}
				x.add(w)
				all = append(all, w)
			}
			key := word()
			var got, want []int64
			x.visit(key, func(w *watcher) { got = append(got, w.ID) })
			for _, w := range all {
				if w.Contains(key) {
					want = append(want, w.ID)
				}
			}
			slices.Sort(got)
			slices.Sort(want)
			if !slices.Equal(got, want) {
				t.Fatalf("seed %d: key %x has watchers %x, want %x", seed, key, got, want)
			}
		}
		for _, w := range all {
			x.remove(w)
		}
		if len(x.keys) > 0 || x.ranges != nil {
			t.Fatalf("seed %d: an empty index holds %d keys and %v", seed, len(x.keys), x.ranges)
		}
	}
}

// TestIndexDepth: ranges in ascending order, the worst for a plain tree, make one of logarithmic depth.
func TestIndexDepth(t *testing.T) {
	x := newIndex()
	for i := range 10_000 {
		key := fmt.Sprintf("key%06d", i)
		x.add(&watcher{CreateOptions: CreateOptions{Range: kv.Range{Key: []byte(key), End: []byte(key + "~")}}})
	}
	if d := depth(x.ranges); d > 50 {
		t.Fatalf("a tree of 10,000 ranges is %d deep", d)
	}
}

func depth(n *node) int {
	if n == nil {
		return 0
	}
	return 1 + max(depth(n.left), depth(n.right))
}
