package mvcc

import (
	"bytes"
	"cmp"
	"fmt"
	"slices"
	"sort"

	"github.com/trivet-kv/trivet/internal/kv"
)

// model is the store as a child would write it: every version of every key in a map of slices, nothing ever deleted. It
// is what the tests compare the store with.
type model struct {
	keys     map[string][]version // oldest first
	events   []kv.Event           // the whole history
	revision int64
	compact  int64
	sub      int64 // changes of the transaction under way
}

type version struct {
	rev     kv.Revision
	pair    kv.KeyValue
	deleted bool
}

func newModel() *model {
	return &model{keys: map[string][]version{}, revision: firstRevision, compact: neverCompacted}
}

// current is the newest revision that the transaction under way sees.
func (m *model) current() int64 {
	if m.sub > 0 {
		return m.revision + 1
	}
	return m.revision
}

func (m *model) end() int64 {
	m.revision = m.current()
	m.sub = 0
	return m.revision
}

// at returns the version of key that shows at a revision.
func (m *model) at(key string, revision int64) (version, bool) {
	vs := m.keys[key]
	for i := len(vs) - 1; i >= 0; i-- {
		if vs[i].rev.Main <= revision {
			return vs[i], !vs[i].deleted
		}
	}
	return version{}, false
}

func (m *model) add(v version, key string, superseded kv.Revision) {
	m.sub++
	m.keys[key] = append(m.keys[key], v)
	e := kv.Event{Revision: v.rev, Superseded: superseded, KV: v.pair}
	if v.deleted {
		e.Type = kv.Delete
	}
	m.events = append(m.events, e)
}

func (m *model) put(key, value []byte, lease kv.LeaseID) (before kv.KeyValue) {
	rev := kv.Revision{Main: m.revision + 1, Sub: m.sub}
	pair := kv.KeyValue{Key: key, Value: value, CreateRevision: rev.Main, ModRevision: rev.Main, Version: 1, Lease: lease}
	var superseded kv.Revision
	if old, live := m.at(string(key), m.current()); live {
		before, superseded = old.pair, old.rev
		before.Value = nil
		pair.CreateRevision, pair.Version = old.pair.CreateRevision, old.pair.Version+1
	}
	m.add(version{rev: rev, pair: pair}, string(key), superseded)
	return before
}

// sorted returns the keys that are live in r at a revision.
func (m *model) sorted(r kv.Range, revision int64) (keys []string) {
	for k := range m.keys {
		if _, live := m.at(k, revision); live && r.Contains([]byte(k)) {
			keys = append(keys, k)
		}
	}
	slices.Sort(keys)
	return keys
}

func (m *model) delete(r kv.Range) (before []kv.KeyValue) {
	for _, k := range m.sorted(r, m.current()) {
		old, _ := m.at(k, m.current())
		before = append(before, old.pair)
		rev := kv.Revision{Main: m.revision + 1, Sub: m.sub}
		m.add(version{rev: rev, deleted: true, pair: kv.KeyValue{Key: []byte(k), ModRevision: rev.Main}}, k, old.rev)
	}
	return before
}

func (m *model) compactTo(rev int64) error {
	if rev <= m.compact {
		return kv.ErrCompacted
	}
	if rev > m.revision {
		return kv.ErrFutureRevision
	}
	m.compact = rev
	return nil
}

// rangeAt answers o as etcd's own sources say: fetch, filter, sort, cut.
func (m *model) rangeAt(o kv.RangeOptions) (kv.RangeResult, error) {
	at := o.Revision
	if at > m.current() {
		return kv.RangeResult{}, kv.ErrFutureRevision
	}
	if at <= 0 {
		at = m.current()
	}
	if at < m.compact {
		return kv.RangeResult{}, kv.ErrCompacted
	}
	keys := m.sorted(o.Range, at)
	res := kv.RangeResult{Count: int64(len(keys))}
	if o.CountOnly {
		return res, nil
	}
	filtered := o.MinMod != 0 || o.MaxMod != 0 || o.MinCreate != 0 || o.MaxCreate != 0
	inOrder := o.Order == kv.SortNone || o.Target == kv.SortByKey && o.Order == kv.SortAscend
	if inOrder && !filtered && o.Limit > 0 && int64(len(keys)) > o.Limit+1 {
		keys = keys[:o.Limit+1]
	}
	for _, k := range keys {
		v, _ := m.at(k, at)
		p := v.pair
		if o.MaxMod != 0 && p.ModRevision > o.MaxMod || o.MinMod != 0 && p.ModRevision < o.MinMod ||
			o.MaxCreate != 0 && p.CreateRevision > o.MaxCreate || o.MinCreate != 0 && p.CreateRevision < o.MinCreate {
			continue
		}
		res.KVs = append(res.KVs, p)
	}
	sort.Sort(byTarget{res.KVs, o.Target, o.Order == kv.SortDescend})
	if o.Limit > 0 && int64(len(res.KVs)) > o.Limit {
		res.KVs, res.More = res.KVs[:o.Limit], true
	}
	if o.KeysOnly {
		for i := range res.KVs {
			res.KVs[i].Value = nil
		}
	}
	return res, nil
}

type byTarget struct {
	kvs    []kv.KeyValue
	target kv.SortTarget
	down   bool
}

func (b byTarget) Len() int      { return len(b.kvs) }
func (b byTarget) Swap(i, j int) { b.kvs[i], b.kvs[j] = b.kvs[j], b.kvs[i] }
func (b byTarget) Less(i, j int) bool {
	if b.down {
		i, j = j, i
	}
	x, y := b.kvs[i], b.kvs[j]
	switch b.target {
	case kv.SortByVersion:
		return x.Version < y.Version
	case kv.SortByCreate:
		return x.CreateRevision < y.CreateRevision
	case kv.SortByMod:
		return x.ModRevision < y.ModRevision
	case kv.SortByValue:
		return bytes.Compare(x.Value, y.Value) < 0
	}
	return bytes.Compare(x.Key, y.Key) < 0
}

// eventsBetween returns the changes of revisions from to to.
func (m *model) eventsBetween(from, to int64) (events []kv.Event, err error) {
	if from < m.compact {
		return nil, kv.ErrCompacted
	}
	for _, e := range m.events {
		if e.Revision.Main >= from && e.Revision.Main <= to {
			events = append(events, e)
		}
	}
	return events, nil
}

// kept returns the revisions whose rows must be there once all garbage of a compaction at compact is gone, in order: what
// is newer, what is visible, and the tombstones at compact itself.
func (m *model) kept(compact int64) (revs []kv.Revision) {
	for _, vs := range m.keys {
		for i, v := range vs {
			visible := (i == len(vs)-1 || vs[i+1].rev.Main > compact) && !v.deleted
			if v.rev.Main > compact || visible || v.deleted && v.rev.Main == compact {
				revs = append(revs, v.rev)
			}
		}
	}
	slices.SortFunc(revs, compareRevisions)
	return revs
}

func compareRevisions(a, b kv.Revision) int {
	return cmp.Or(cmp.Compare(a.Main, b.Main), cmp.Compare(a.Sub, b.Sub))
}

// cut forgets everything after a revision, as a crash does.
func (m *model) cut(revision, compact int64) {
	m.revision, m.compact, m.sub = revision, compact, 0
	for k, vs := range m.keys {
		i := 0
		for i < len(vs) && vs[i].rev.Main <= revision {
			i++
		}
		m.keys[k] = vs[:i:i]
	}
	i := sort.Search(len(m.events), func(i int) bool { return m.events[i].Revision.Main > revision })
	m.events = m.events[:i:i]
}

func samePairs(a, b []kv.KeyValue) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d pairs, want %d", len(a), len(b))
	}
	for i := range a {
		if err := samePair(a[i], b[i]); err != nil {
			return fmt.Errorf("pair %d: %w", i, err)
		}
	}
	return nil
}

func samePair(a, b kv.KeyValue) error {
	if !bytes.Equal(a.Key, b.Key) || !bytes.Equal(a.Value, b.Value) || a.CreateRevision != b.CreateRevision ||
		a.ModRevision != b.ModRevision || a.Version != b.Version || a.Lease != b.Lease {
		return fmt.Errorf("got %+v, want %+v", a, b)
	}
	return nil
}

func sameEvents(a, b []kv.Event) error {
	if len(a) != len(b) {
		return fmt.Errorf("%d events, want %d", len(a), len(b))
	}
	for i := range a {
		if a[i].Type != b[i].Type || a[i].Revision != b[i].Revision || a[i].Superseded != b[i].Superseded {
			return fmt.Errorf("event %d: got %+v, want %+v", i, a[i], b[i])
		}
		if err := samePair(a[i].KV, b[i].KV); err != nil {
			return fmt.Errorf("event %d: %w", i, err)
		}
	}
	return nil
}
