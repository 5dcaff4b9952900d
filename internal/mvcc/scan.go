package mvcc

import (
	"bytes"
	"context"
	"math"
	"sort"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// checkEvery is how many rows a scan visits between looks at its context.
const checkEvery = 256

// ScanResult is what Scan says beside the rows.
type ScanResult struct {
	Count    int64 // keys in the range, whatever the limit and the bounds on revisions
	More     bool  // the limit cut the rows short
	Revision int64 // newest revision of the store when the scan began
}

// Range answers o from the published state, with the store's revision at that moment. Errors: kv.ErrCompacted,
// kv.ErrFutureRevision, or the engine's.
func (s *Store) Range(o kv.RangeOptions) (kv.RangeResult, int64, error) {
	v, err := s.view(&o)
	if err != nil {
		return kv.RangeResult{}, v.current, err
	}
	defer v.close()
	r, err := v.collect(o)
	return r, v.current, err
}

// Scan answers o as Range does, but shows the rows to visit one by one. In key order, up or down, they come straight
// from the iterator and are valid until visit returns; in other orders they are collected first. An error of visit ends
// the scan and is returned as it is. All rows and the count are of one moment, however long visit takes; meanwhile the
// engine keeps the files they lie in.
func (s *Store) Scan(ctx context.Context, o kv.RangeOptions, visit func(Row) error) (ScanResult, error) {
	v, err := s.view(&o)
	if err != nil {
		return ScanResult{Revision: v.current}, err
	}
	defer v.close()
	return v.scan(ctx, &o, visit)
}

// resolve returns the revision to read at when asked for one (0 or less: the current).
func resolve(asked, current, compact int64) (int64, error) {
	if asked > current {
		return 0, kv.ErrFutureRevision
	}
	if asked <= 0 {
		asked = current
	}
	if asked < compact {
		return 0, kv.ErrCompacted
	}
	return asked, nil
}

// view is what one read reads: an iterator over the version rows of its range, and what the fences say of the range.
type view struct {
	it       *engine.Iter // nil: what is asked for is known
	revision int64        // to read at
	current  int64        // newest that the iterator is known to hold whole
	count    fenceCount   // at current
	known    *knownEdges  // where a walk over an edge is remembered; nil: nowhere
}

func (v *view) close() error {
	if v.it == nil {
		return nil
	}
	return v.it.Close()
}

// view opens the newest view of o.
func (s *Store) view(o *kv.RangeOptions) (view, error) {
	for {
		v, err := s.viewAt(s.now(o.Range, o.CountOnly || o.Limit > 0), o)
		if err == kv.ErrCompacted && o.Revision <= 0 {
			continue // a compaction has overtaken the moment: there is a newer one
		}
		return v, err
	}
}

// viewAt opens the view of o at a moment. The iterator is made after the revision was taken, so it holds all of it. The
// compact revision is looked at after that: if it lies at or below the revision, nothing that the revision needs was
// deleted before the iterator was made, and what is deleted later the iterator does not see.
func (s *Store) viewAt(m moment, o *kv.RangeOptions) (view, error) {
	v := view{current: m.revision, count: m.count, known: &s.known}
	var err error
	if v.revision, err = resolve(o.Revision, m.revision, neverCompacted); err != nil {
		return v, err
	}
	if o.CountOnly && !o.Single() && v.revision == v.current && len(v.count.edges) == 0 {
		return v, nil
	}
	var lower, upper []byte
	if !o.Single() { // one key is sought by its prefix, and bounds would be compared with each block on the way
		lower, upper = engine.VersionBounds(o.Range)
	}
	if v.it, err = s.e.NewIter(lower, upper); err != nil {
		return v, err
	}
	if v.revision < s.CompactRevision() {
		if err := v.it.Close(); err != nil {
			return v, err
		}
		return v, kv.ErrCompacted
	}
	return v, nil
}

// collect answers o with pairs of their own.
func (v *view) collect(o kv.RangeOptions) (kv.RangeResult, error) {
	var r kv.RangeResult
	res, err := v.scan(context.Background(), &o, func(row Row) error {
		pair, err := row.keyValue()
		r.KVs = append(r.KVs, pair)
		return err
	})
	r.Count, r.More = res.Count, res.More
	return r, err
}

// admits reports whether the bounds on revisions let a pair through.
func admits(o *kv.RangeOptions, mod, create int64) bool {
	return (o.MaxMod == 0 || mod <= o.MaxMod) && (o.MinMod == 0 || mod >= o.MinMod) &&
		(o.MaxCreate == 0 || create <= o.MaxCreate) && (o.MinCreate == 0 || create >= o.MinCreate)
}

func bounded(o *kv.RangeOptions) bool {
	return o.MaxMod != 0 || o.MinMod != 0 || o.MaxCreate != 0 || o.MinCreate != 0
}

func (v *view) scan(ctx context.Context, o *kv.RangeOptions, visit func(Row) error) (ScanResult, error) {
	res := ScanResult{Revision: v.current}
	if o.Single() {
		err := v.one(o, &res, visit)
		return res, err
	}
	if o.CountOnly {
		n, err := v.total(ctx, o.Range)
		res.Count = n
		return res, err
	}
	if o.Target == kv.SortByKey {
		show := visit
		if o.KeysOnly {
			show = func(r Row) error {
				r.Tail = cutValue(r.Tail)
				return visit(r)
			}
		}
		err := v.stream(ctx, o, o.Limit, &res, show)
		return res, err
	}
	err := v.sorted(ctx, o, &res, visit)
	return res, err
}

// one answers o for its single key: one seek, and a filter that says where there is nothing.
func (v *view) one(o *kv.RangeOptions, res *ScanResult, visit func(Row) error) error {
	c := newCursor(v.it, v.revision)
	if !c.only(o.Key) {
		return c.err
	}
	res.Count = 1
	row := c.row()
	row.keepLease = o.Target == kv.SortByValue
	t, err := engine.DecodeTail(row.Tail)
	if err != nil || o.CountOnly || !admits(o, row.ModRevision, t.Create) {
		return err
	}
	if o.KeysOnly {
		row.Tail = cutValue(row.Tail)
	}
	return visit(row)
}

// stream visits the rows of o in key order, up to limit of them (0 or less: all), and fills res.
func (v *view) stream(ctx context.Context, o *kv.RangeOptions, limit int64, res *ScanResult, visit func(Row) error) error {
	if limit <= 0 {
		limit = math.MaxInt64
	}
	down := o.Target == kv.SortByKey && o.Order == kv.SortDescend
	start := v.startEdge(o, down)
	c := newCursor(v.it, v.revision)
	filter := bounded(o)
	var seen, shown int64
	var ok bool
	if down {
		ok = c.last()
	} else {
		ok = c.first()
	}
	for ok {
		if seen++; seen%checkEvery == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		row := c.row()
		start.meet(row.Key, seen-1)
		pass := true
		if filter {
			t, err := engine.DecodeTail(row.Tail)
			if err != nil {
				return err
			}
			pass = admits(o, row.ModRevision, t.Create)
		}
		if pass && shown == limit {
			res.More = true
			start.walked(row.Key, seen-1)
			n, err := v.total(ctx, o.Range)
			res.Count = n
			return err
		}
		if pass {
			shown++
			if err := visit(row); err != nil {
				return err
			}
		}
		if down {
			ok = c.prev()
		} else {
			ok = c.next()
		}
	}
	res.Count = seen
	return c.err
}

// cutValue returns a tail without its value, as a copy if need be.
func cutValue(tail []byte) []byte {
	t, err := engine.DecodeTail(tail)
	if err != nil {
		panic(err)
	}
	if t.ValueEnd == len(tail) {
		return tail[:t.Head]
	}
	return append(bytes.Clone(tail[:t.Head]), tail[t.ValueEnd:]...)
}

// sorted collects the rows of o, orders them as etcd does and visits them.
func (v *view) sorted(ctx context.Context, o *kv.RangeOptions, res *ScanResult, visit func(Row) error) error {
	// etcd's own oddity, kept because answers are to be equal: a limit with a target but no order is applied, plus one,
	// to the keys in key order before they are sorted.
	early := int64(0)
	if o.Order == kv.SortNone && !bounded(o) && o.Limit > 0 && o.Limit < math.MaxInt64 {
		early = o.Limit + 1
	}
	set := sortSet{target: o.Target}
	err := v.stream(ctx, o, early, res, func(r Row) error {
		t, err := engine.DecodeTail(r.Tail)
		if err != nil {
			return err
		}
		tail := r.Tail
		if o.KeysOnly && o.Target != kv.SortByValue {
			tail = append(bytes.Clone(tail[:t.Head]), tail[t.ValueEnd:]...)
		} else {
			tail = bytes.Clone(tail)
		}
		if t, err = engine.DecodeTail(tail); err != nil {
			return err
		}
		row := Row{Key: bytes.Clone(r.Key), ModRevision: r.ModRevision, Tail: tail, keepLease: o.Target == kv.SortByValue}
		set.rows = append(set.rows, sortRow{row, t})
		return nil
	})
	if err != nil {
		return err
	}
	// The order among equals is that of sort.Sort over key order, as in etcd.
	if o.Order == kv.SortDescend {
		sort.Sort(sort.Reverse(&set))
	} else {
		sort.Sort(&set)
	}
	res.More = false
	if o.Limit > 0 && int64(len(set.rows)) > o.Limit {
		set.rows, res.More = set.rows[:o.Limit], true
	}
	for i := range set.rows {
		row := set.rows[i].row
		if o.KeysOnly {
			row.Tail = cutValue(row.Tail)
		}
		if err := visit(row); err != nil {
			return err
		}
	}
	return nil
}

type sortRow struct {
	row  Row
	tail engine.Tail
}

// sortSet orders rows by a target other than the key.
type sortSet struct {
	rows   []sortRow
	target kv.SortTarget
}

func (s *sortSet) Len() int      { return len(s.rows) }
func (s *sortSet) Swap(i, j int) { s.rows[i], s.rows[j] = s.rows[j], s.rows[i] }
func (s *sortSet) Less(i, j int) bool {
	a, b := &s.rows[i], &s.rows[j]
	switch s.target {
	case kv.SortByVersion:
		return a.tail.Version < b.tail.Version
	case kv.SortByCreate:
		return a.tail.Create < b.tail.Create
	case kv.SortByMod:
		return a.row.ModRevision < b.row.ModRevision
	case kv.SortByValue:
		return bytes.Compare(a.tail.Value, b.tail.Value) < 0
	}
	return bytes.Compare(a.row.Key, b.row.Key) < 0
}
