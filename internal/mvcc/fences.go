package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"sort"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// A fence is a key and the number of live keys from it, inclusive, to the next fence. Together the fences tile all keys,
// so that the keys of a range are counted by adding up whole fences and walking only the two at its edges. Fences split
// and merge so that most hold between fenceMin and fenceMax keys; no two neighbours are both below fenceMin, so there
// are at most one for every fenceMin/2 live keys, and one.
const (
	fenceKeys  = 512
	fenceMax   = 2 * fenceKeys     // a fence with more is split into fences of fenceKeys
	fenceMin   = fenceKeys / 4     // a fence with fewer is merged with a neighbour,
	fenceMerge = fenceKeys * 3 / 2 // unless they would have more than this together
)

// fence is one of them. The first has the empty key.
type fence struct {
	key   string
	count int64
}

// fences is all of them, sorted by key; never empty. Kept as slices of each so that counting touches numbers only: a million
// keys are about 2,000 of them, and adding those up takes about a microsecond.
type fences struct {
	keys    []string
	counts  []int64
	changed []int64 // the revision at which a key last came or went, or the fence was made; zero: before the start
}

// loadFences reads the fence rows.
func loadFences(r engine.Reader) (fences, error) {
	lower, upper := engine.PrefixBounds([]byte{engine.PrefixFence})
	it, err := r.NewIter(lower, upper)
	if err != nil {
		return fences{}, err
	}
	defer it.Close()
	f := fences{keys: []string{""}, counts: []int64{0}, changed: []int64{0}}
	for ok := it.First(); ok; ok = it.Next() {
		key, err := engine.DecodeFence(it.Key())
		if err != nil {
			return fences{}, err
		}
		n, err := decodeFenceCount(it.Value())
		if err != nil {
			return fences{}, fmt.Errorf("fence %q: %w", key, err)
		}
		if len(key) == 0 {
			f.counts[0] = n
			continue
		}
		f.keys, f.counts, f.changed = append(f.keys, string(key)), append(f.counts, n), append(f.changed, 0)
	}
	return f, it.Err()
}

func appendFenceCount(dst []byte, n int64) []byte { return binary.AppendUvarint(dst, uint64(n)) }

func decodeFenceCount(value []byte) (int64, error) {
	n, used := binary.Uvarint(value)
	if used <= 0 || used != len(value) || n > 1<<62 {
		return 0, fmt.Errorf("%w: fence value %x", engine.ErrMalformed, value)
	}
	return int64(n), nil
}

// find returns the index of the fence that key falls into.
func (f *fences) find(key []byte) int {
	return sort.Search(len(f.keys)-1, func(i int) bool { return f.keys[i+1] > string(key) })
}

// total returns the number of live keys.
func (f *fences) total() int64 { return sum(f.counts) }

func sum(counts []int64) (n int64) {
	for _, c := range counts {
		n += c
	}
	return n
}

// fenceCount is what the fences know of a range: those from to to (excluded) lie in it with all their keys, and the edges
// are those of which a part does.
type fenceCount struct {
	whole    int64
	from, to int
	edges    []edge // at most two
}

// edge is a fence that a bound of a range cuts, or both.
type edge struct {
	fence   int
	keys    int64       // of the whole fence
	changed int64       // when a key of the fence last came or went
	inside  kv.Range    // the part that lies in the range; of a page, what it has not walked over yet
	before  int64       // keys that a page has walked over, before inside
	outside [2]kv.Range // the parts that do not; those with an empty End are none
}

// count takes what the fences know of r. Of a single key they know nothing.
func (f *fences) count(r kv.Range) fenceCount {
	if r.Single() || !r.FromKey() && bytes.Compare(r.Key, r.End) >= 0 {
		return fenceCount{}
	}
	// Keys are never empty, so a range from the smallest key begins with the first fence.
	from := 0
	if len(r.Key) > 0 && string(r.Key) != "\x00" {
		from = sort.SearchStrings(f.keys, string(r.Key))
	}
	to := len(f.keys)
	if !r.FromKey() {
		to = f.find(r.End)
	}
	if from > to {
		return fenceCount{from: from, to: from, edges: []edge{f.edge(to, r)}}
	}
	c := fenceCount{from: from, to: to, whole: sum(f.counts[from:to])}
	if from > 0 && (from == len(f.keys) || f.keys[from] != string(r.Key)) {
		c.edges = append(c.edges, f.edge(from-1, kv.Range{Key: r.Key, End: f.end(from - 1)}))
	}
	if to < len(f.keys) && f.keys[to] != string(r.End) {
		c.edges = append(c.edges, f.edge(to, kv.Range{Key: []byte(f.keys[to]), End: r.End}))
	}
	return c
}

// edge parts fence i by inside, which lies in it.
func (f *fences) edge(i int, inside kv.Range) edge {
	e := edge{fence: i, keys: f.counts[i], changed: f.changed[i], inside: inside}
	if f.keys[i] < string(inside.Key) {
		e.outside[0] = kv.Range{Key: []byte(f.keys[i]), End: inside.Key}
	}
	if end := f.end(i); !bytes.Equal(end, inside.End) {
		e.outside[1] = kv.Range{Key: inside.End, End: end}
	}
	return e
}

// end returns the End of a range that ends with fence i.
func (f *fences) end(i int) []byte {
	if i+1 < len(f.keys) {
		return []byte(f.keys[i+1])
	}
	return []byte{0}
}

// fenceEdit replaces the fences from at to at+remove by others.
type fenceEdit struct {
	at, remove int
	insert     []fence
}

// apply makes the edits that follow from delta, the keys that came or went up to a revision. Edits are sorted and do not overlap. A
// fence whose keys are as many as before may have others.
func (f *fences) apply(revision int64, delta map[int]int64, edits []fenceEdit) {
	for i := range delta {
		f.changed[i] = revision
	}
	for _, e := range slices.Backward(edits) {
		if e.remove == 1 && len(e.insert) == 1 {
			f.counts[e.at] = e.insert[0].count
			continue
		}
		keys, counts, changed := make([]string, len(e.insert)), make([]int64, len(e.insert)), make([]int64, len(e.insert))
		for i, x := range e.insert {
			keys[i], counts[i], changed[i] = x.key, x.count, revision
		}
		f.keys = slices.Replace(f.keys, e.at, e.at+e.remove, keys...)
		f.counts = slices.Replace(f.counts, e.at, e.at+e.remove, counts...)
		f.changed = slices.Replace(f.changed, e.at, e.at+e.remove, changed...)
	}
}

// plan works out how the fences change when the keys in them change by delta (index to difference). cut walks the n
// live keys from..to (to is empty for the last) and makes fences of about fenceKeys of them. Counts and rows that contradict
// each other are those of a state that is not what the log made of it: engine.ErrMalformed, after which a member rebuilds itself.
func (f *fences) plan(delta map[int]int64, cut func(from, to string, n int64) ([]fence, error)) ([]fenceEdit, error) {
	touched := make([]int, 0, len(delta))
	for i, d := range delta {
		if d != 0 {
			touched = append(touched, i)
		}
	}
	slices.Sort(touched)
	edits := make([]fenceEdit, 0, len(touched))
	done := -1 // fences up to this index are settled
	for _, i := range touched {
		if i <= done {
			continue
		}
		n := f.counts[i] + delta[i]
		if n < 0 {
			return nil, fmt.Errorf("%w: fence %d at %q had %d keys and lost %d", engine.ErrMalformed, i, f.keys[i], f.counts[i], -delta[i])
		}
		done = i
		e := fenceEdit{at: i, remove: 1, insert: []fence{{f.keys[i], n}}}
		switch {
		case n > fenceMax:
			pieces, err := cut(f.keys[i], f.keyAfter(i), n)
			if err != nil {
				return nil, err
			}
			got := int64(0)
			for _, p := range pieces {
				got += p.count
			}
			if got != n {
				return nil, fmt.Errorf("%w: fence %d at %q counts %d keys, walking found %d", engine.ErrMalformed, i, f.keys[i], n, got)
			}
			e.insert = pieces
		case n < fenceMin:
			if f.mergeBack(&edits, i, n) {
				continue
			}
			if next := i + 1; next < len(f.keys) && n+f.counts[next]+delta[next] <= fenceMerge {
				e.remove, done = 2, next
				e.insert[0].count += f.counts[next] + delta[next]
			}
		}
		edits = append(edits, e)
	}
	return edits, nil
}

// mergeBack merges fence i, which has n keys now, into the one before it, if there is one and it has room.
func (f *fences) mergeBack(edits *[]fenceEdit, i int, n int64) bool {
	if i == 0 {
		return false
	}
	if k := len(*edits) - 1; k >= 0 && (*edits)[k].at+(*edits)[k].remove == i {
		last := &(*edits)[k]
		before := &last.insert[len(last.insert)-1]
		if before.count+n > fenceMerge {
			return false
		}
		before.count += n
		last.remove++
		return true
	}
	if f.counts[i-1]+n > fenceMerge {
		return false
	}
	*edits = append(*edits, fenceEdit{at: i - 1, remove: 2, insert: []fence{{f.keys[i-1], f.counts[i-1] + n}}})
	return true
}

// keyAfter returns the key at which fence i ends; empty for the last.
func (f *fences) keyAfter(i int) string {
	if i+1 < len(f.keys) {
		return f.keys[i+1]
	}
	return ""
}

// write puts edits into the rows of b.
func (f *fences) write(b *engine.Batch, edits []fenceEdit) error {
	var key, value []byte
	for _, e := range edits {
		for i := e.at; i < e.at+e.remove; i++ {
			kept := slices.ContainsFunc(e.insert, func(x fence) bool { return x.key == f.keys[i] })
			if kept {
				continue
			}
			key = engine.AppendFence(key[:0], []byte(f.keys[i]))
			if err := b.Delete(key); err != nil {
				return err
			}
		}
		for _, x := range e.insert {
			key = engine.AppendFence(key[:0], []byte(x.key))
			value = appendFenceCount(value[:0], x.count)
			if err := b.Set(key, value); err != nil {
				return err
			}
		}
	}
	return nil
}
