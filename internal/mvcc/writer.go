package mvcc

import (
	"bytes"
	"errors"
	"fmt"
	"slices"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Writer makes changes in one engine batch. One Writer is open at a time; the next one may be made when this one was
// published, or given up because its batch was.
type Writer struct {
	s        *Store
	b        *engine.Batch
	revision int64 // of the newest change in the batch, or the store's
	compact  int64
	delta    map[int]int64 // by index of fence: live keys more or fewer
	events   []kv.Event
	frees    []uint32     // by event: how long the value of the superseded version's row is
	noted    int          // of events, how many have their revision row in the batch
	heads    *engine.Iter // where heads that are not in the cache are looked up; opened when first needed
	values   *engine.Iter // of what was committed before; opened when first needed
	open     bool         // a Txn is open

	key, value []byte // scratch
}

// NewWriter returns a Writer for b. The caller owns b, writes other rows into it if it likes, and closes it. A Writer
// that was not published before is discarded.
func (s *Store) NewWriter(b *engine.Batch) *Writer {
	if s.writer != nil {
		s.writer.Discard()
	}
	s.heads.turn(s.Revision())
	s.writer = &Writer{s: s, b: b, revision: s.Revision(), compact: s.CompactRevision(), delta: map[int]int64{}}
	return s.writer
}

// Discard gives the Writer up, with everything it was told. It does nothing after Publish.
func (w *Writer) Discard() {
	if w.s.writer != w {
		return
	}
	w.s.writer = nil
	w.s.heads.forget(w.s.Revision())
	w.closeLookups() // they only read: an error of theirs was returned where it happened
}

func (w *Writer) closeLookups() (err error) {
	for _, it := range []**engine.Iter{&w.heads, &w.values} {
		if *it != nil {
			err = errors.Join(err, (*it).Close())
			*it = nil
		}
	}
	return err
}

// Revision returns the main revision after the last Txn that ended.
func (w *Writer) Revision() int64 { return w.revision }

// Events are the changes so far, in order. They belong to the Writer.
func (w *Writer) Events() []kv.Event { return w.events }

// CompactRevision returns the compact revision, a Compact in this batch included.
func (w *Writer) CompactRevision() int64 { return w.compact }

// Compact makes rev the oldest revision that can be read. The rows go later, in CompactStep. It returns
// kv.ErrCompacted if that was done already and kv.ErrFutureRevision if rev has not come.
func (w *Writer) Compact(rev int64) error {
	if rev <= w.compact {
		return kv.ErrCompacted
	}
	if rev > w.revision {
		return kv.ErrFutureRevision
	}
	w.compact = rev
	return nil
}

// Publish adds the rows that sum up the batch, commits it, and shows readers the new state. It returns the changes in
// order; their keys and values are those that were given to Put, and must not be changed. After an error nothing of the
// batch is visible, and the Writer is to be discarded. The Writer is spent.
func (w *Writer) Publish() ([]kv.Event, error) {
	if w.open {
		panic("mvcc: Publish while a transaction is open")
	}
	edits, err := w.finish()
	if e := w.closeLookups(); err == nil {
		err = e
	}
	if err == nil {
		err = w.b.Commit()
	}
	if err != nil {
		return nil, fmt.Errorf("mvcc: write revision %d: %w", w.revision, err)
	}
	w.s.publish(w.revision, w.compact, w.delta, edits)
	w.s.writer, w.s.fresh = nil, false
	return w.events, nil
}

// finish writes the rows that depend on the whole batch.
func (w *Writer) finish() ([]fenceEdit, error) {
	set := func(key []byte, n int64) error { return w.b.Set(key, engine.AppendNumber(nil, n)) }
	if w.s.fresh {
		if err := set(engine.MetaFormat(), formatVersion); err != nil {
			return nil, err
		}
	}
	if err := set(engine.MetaRevision(), w.revision); err != nil {
		return nil, err
	}
	if w.compact != w.s.CompactRevision() {
		if err := set(engine.MetaCompact(), w.compact); err != nil {
			return nil, err
		}
	}
	if err := w.note(); err != nil || len(w.delta) == 0 {
		return nil, err
	}
	edits, err := w.s.fences.plan(w.delta, w.cut)
	if err != nil {
		return nil, err
	}
	return edits, w.s.fences.write(w.b, edits)
}

// cut walks the n live keys from..to (to is empty for no bound), with this batch's changes, and makes fences of them. It
// merges what was committed with the changes, so that the batch need not be read.
func (w *Writer) cut(from, to string, n int64) ([]fence, error) {
	r := kv.Range{Key: []byte(from), End: []byte(to)}
	if to == "" {
		r.End = []byte{0}
	}
	lower, upper := engine.VersionBounds(r)
	it, err := w.s.e.NewIter(lower, upper)
	if err != nil {
		return nil, err
	}
	defer it.Close()
	each := n / (n / fenceKeys)
	pieces := []fence{{key: from}}
	add := func(key []byte) {
		last := &pieces[len(pieces)-1]
		if last.count >= each && int64(len(pieces)) < n/fenceKeys {
			pieces = append(pieces, fence{key: string(key)})
			last = &pieces[len(pieces)-1]
		}
		last.count++
	}
	changes := w.lastChanges(r)
	// until adds the changed keys before key, and reports whether key itself was changed.
	until := func(key []byte) bool {
		for ; len(changes) > 0; changes = changes[1:] {
			e := changes[0]
			if key != nil && bytes.Compare(e.KV.Key, key) >= 0 {
				return bytes.Equal(e.KV.Key, key)
			}
			if e.Type == kv.Put {
				add(e.KV.Key)
			}
		}
		return false
	}
	c := newKeyCursor(it, w.s.Revision())
	for ok := c.first(); ok; ok = c.next() {
		if !until(c.key) {
			add(c.key)
		}
	}
	until(nil)
	return pieces, c.err
}

// lastChanges returns the last change of each key of r, in order of keys.
func (w *Writer) lastChanges(r kv.Range) []*kv.Event {
	var last []*kv.Event
	for i := range slices.Backward(w.events) {
		if e := &w.events[i]; bytes.Compare(e.KV.Key, r.Key) >= 0 && r.Contains(e.KV.Key) {
			last = append(last, e)
		}
	}
	byKey := func(a, b *kv.Event) int { return bytes.Compare(a.KV.Key, b.KV.Key) }
	slices.SortStableFunc(last, byKey)
	return slices.CompactFunc(last, func(a, b *kv.Event) bool { return byKey(a, b) == 0 })
}

// note writes the revision rows of the changes so far. They come after all version rows, because the engine's memtable adds a
// row that follows the one before it in order without a search; the keys of version rows are in no order.
func (w *Writer) note() error {
	for i := w.noted; i < len(w.events); i++ {
		e := &w.events[i]
		w.key = engine.AppendRevision(w.key[:0], e.Revision)
		w.value = engine.AppendChange(w.value[:0], engine.Change{Type: e.Type, Superseded: e.Superseded, Frees: w.frees[i], Key: e.KV.Key})
		if err := w.b.Set(w.key, w.value); err != nil {
			return err
		}
	}
	w.noted = len(w.events)
	return nil
}

// head returns what is known of the key's newest version, this batch's changes included.
func (w *Writer) head(key []byte) (*head, error) {
	if h := w.s.heads.get(key); h != nil {
		return h, nil
	}
	if w.heads == nil {
		if err := w.openHeads(); err != nil {
			return nil, err
		}
	}
	row, err := w.find(w.heads, key)
	if err != nil {
		return nil, err
	}
	h := w.s.heads.add(key)
	if row == nil {
		return h, nil
	}
	_, rev, err := engine.DecodeVersion(w.heads.Key())
	if err != nil {
		return nil, err
	}
	tail, tombstone, err := engine.DecodeVersionValue(row)
	if err != nil || tombstone {
		return h, err
	}
	t, err := engine.DecodeTail(tail)
	if err != nil {
		return nil, err
	}
	h.main, h.sub, h.size, h.create, h.version, h.lease = rev.Main, uint32(rev.Sub), uint32(len(row)), t.Create, t.Version, t.Lease
	return h, nil
}

// Prepare looks up what puts of keys must know of them, in order of keys: a lookup behind its neighbour finds the files open
// and their blocks at hand. It changes no answer. keys is reordered.
func (w *Writer) Prepare(keys [][]byte) error {
	w.events, w.frees = slices.Grow(w.events, len(keys)), slices.Grow(w.frees, len(keys))
	unknown := keys[:0]
	for _, key := range keys {
		if w.s.heads.get(key) == nil {
			unknown = append(unknown, key)
		}
	}
	slices.SortFunc(unknown, bytes.Compare)
	for _, key := range unknown {
		if _, err := w.head(key); err != nil {
			return err
		}
	}
	return nil
}

// openHeads opens the durable state if what was written since is in the cache, else what was committed before this batch.
// Between a key's newest version in the durable state and now lies no change of it then, but perhaps a compaction: it may
// have deleted a tombstone, which is no head either way.
func (w *Writer) openHeads() (err error) {
	if w.heads, err = w.s.e.NewDurableLookup(); err != nil || w.s.durable >= w.s.heads.since {
		return err
	}
	if w.heads.SeekPrefix(engine.MetaRevision()) {
		if w.s.durable, err = engine.DecodeNumber(w.heads.Value()); err != nil {
			return err
		}
	}
	if err = w.heads.Err(); err != nil || w.s.durable >= w.s.heads.since {
		return err
	}
	if err = w.heads.Close(); err != nil {
		return err
	}
	w.heads, err = w.s.e.NewLookup()
	return err
}

// find moves it to the newest version of key that it has, and returns the row's value; nil if there is none. The value is
// valid until the next find.
func (w *Writer) find(it *engine.Iter, key []byte) ([]byte, error) {
	w.key = engine.AppendVersionPrefix(w.key[:0], key)
	if !it.SeekPrefix(w.key) {
		return nil, it.Err()
	}
	return it.Value(), nil
}

// valueOf returns the value of a live head's version. It is valid until the next call.
func (w *Writer) valueOf(key []byte, h *head) ([]byte, error) {
	if h.main > w.s.Revision() { // it was made in this batch
		return w.events[h.event].KV.Value, nil
	}
	if w.values == nil {
		it, err := w.s.e.NewLookup()
		if err != nil {
			return nil, err
		}
		w.values = it
	}
	row, err := w.find(w.values, key)
	if err != nil {
		return nil, err
	}
	tail, tombstone, err := engine.DecodeVersionValue(row)
	if err != nil || tombstone {
		return nil, fmt.Errorf("mvcc: newest version of %q should be %s: tombstone %t, %w", key, h.mod(), tombstone, err)
	}
	t, err := engine.DecodeTail(tail)
	return t.Value, err
}

// set writes the version row of one change, which e describes, and makes h its head.
func (w *Writer) set(e kv.Event, h *head) error {
	w.key = engine.AppendVersion(w.key[:0], e.KV.Key, e.Revision)
	size := engine.TombstoneBytes
	var err error
	if e.Type == kv.Put {
		size, err = w.b.SetLive(w.key, e.KV)
	} else {
		w.value = engine.AppendTombstoneValue(w.value[:0])
		err = w.b.Set(w.key, w.value)
	}
	if err != nil {
		return err
	}
	if e.Superseded.IsZero() {
		h.size = 0
	}
	w.frees = append(w.frees, h.size)
	h.main, h.sub, h.size, h.event = e.Revision.Main, uint32(e.Revision.Sub), uint32(size), uint32(len(w.events))
	h.create, h.version, h.lease = e.KV.CreateRevision, e.KV.Version, e.KV.Lease
	w.events = append(w.events, e)
	return nil
}

// Begin starts a transaction: all its changes make one revision. Only one is open at a time.
func (w *Writer) Begin() *Txn {
	if w.open {
		panic("mvcc: Begin while a transaction is open")
	}
	w.open = true
	return &Txn{w: w}
}

// Txn is one transaction. It sees its own changes and those made before in the batch.
type Txn struct {
	w       *Writer
	changes int64
}

// Revision returns the newest revision that the transaction sees: its own once it has changed something.
func (t *Txn) Revision() int64 {
	if t.changes > 0 {
		return t.w.revision + 1
	}
	return t.w.revision
}

func (t *Txn) nextRevision() kv.Revision { return kv.Revision{Main: t.w.revision + 1, Sub: t.changes} }

// Put sets key to value with a lease (0: none), and returns the pair it replaced, without its value; its Version is 0 if
// there was none. The events refer to key and value: the caller must not change them afterwards.
func (t *Txn) Put(key, value []byte, lease kv.LeaseID) (before kv.KeyValue, err error) {
	h, err := t.w.head(key)
	if err != nil {
		return kv.KeyValue{}, err
	}
	rev := t.nextRevision()
	e := kv.Event{Type: kv.Put, Revision: rev, Superseded: h.superseded()}
	e.KV = kv.KeyValue{Key: key, Value: value, CreateRevision: rev.Main, ModRevision: rev.Main, Version: 1, Lease: lease}
	if h.live() {
		before = h.pair(key)
		e.KV.CreateRevision, e.KV.Version = h.create, h.version+1
	} else {
		t.w.delta[t.w.s.fences.find(key)]++
	}
	t.changes++
	return before, t.w.set(e, h)
}

// Head returns the newest pair of key.
func (t *Txn) Head(key []byte) (kv.KeyValue, bool, error) {
	h, err := t.w.head(key)
	if err != nil || !h.live() {
		return kv.KeyValue{}, false, err
	}
	value, err := t.w.valueOf(key, h)
	pair := h.pair(bytes.Clone(key))
	pair.Value = bytes.Clone(value)
	return pair, err == nil, err
}

// Delete deletes the keys of r in order and returns how many there were. It calls visit, unless it is nil, with each pair
// before it is deleted; the pair is the callee's, and has its value only if values is set. An error of visit ends it.
func (t *Txn) Delete(r kv.Range, values bool, visit func(kv.KeyValue) error) (int64, error) {
	if r.Single() {
		return t.deleteOne(r.Key, values, visit)
	}
	n := int64(0)
	lower, upper := engine.VersionBounds(r)
	it, err := t.w.b.NewIter(lower, upper)
	if err != nil {
		return 0, err
	}
	defer it.Close()
	c := newCursor(it, t.Revision())
	for ok := c.first(); ok; ok = c.next() {
		key := bytes.Clone(c.key)
		if visit != nil {
			row := c.row()
			if !values {
				row.Tail = cutValue(row.Tail)
			}
			pair, err := row.keyValue()
			if err != nil {
				return n, err
			}
			if err := visit(pair); err != nil {
				return n, err
			}
		}
		h := t.w.s.heads.get(key)
		if h == nil {
			h = t.w.s.heads.add(key)
			h.main, h.sub, h.size = c.rev.Main, uint32(c.rev.Sub), uint32(1+len(c.tail))
		}
		if err := t.delete(key, h); err != nil {
			return n, err
		}
		n++
	}
	return n, c.err
}

func (t *Txn) deleteOne(key []byte, values bool, visit func(kv.KeyValue) error) (int64, error) {
	h, err := t.w.head(key)
	if err != nil || !h.live() {
		return 0, err
	}
	if visit != nil {
		pair := h.pair(key)
		if values {
			value, err := t.w.valueOf(key, h)
			if err != nil {
				return 0, err
			}
			pair.Value = bytes.Clone(value)
		}
		if err := visit(pair); err != nil {
			return 0, err
		}
	}
	return 1, t.delete(key, h)
}

func (t *Txn) delete(key []byte, h *head) error {
	rev := t.nextRevision()
	t.w.delta[t.w.s.fences.find(key)]--
	t.changes++
	return t.w.set(kv.Event{
		Type: kv.Delete, Revision: rev, Superseded: h.mod(), KV: kv.KeyValue{Key: key, ModRevision: rev.Main},
	}, h)
}

// Range reads as Store.Range does, at the newest revision the transaction sees or at an older one.
func (t *Txn) Range(o kv.RangeOptions) (kv.RangeResult, error) {
	w, current := t.w, t.Revision()
	rev, err := resolve(o.Revision, current, w.compact)
	if err != nil {
		return kv.RangeResult{}, err
	}
	if o.Single() && rev == current {
		return t.point(o)
	}
	if err := w.note(); err != nil { // a count at an older revision reads them
		return kv.RangeResult{}, err
	}
	lower, upper := engine.VersionBounds(o.Range)
	it, err := w.b.NewIter(lower, upper)
	if err != nil {
		return kv.RangeResult{}, err
	}
	defer it.Close()
	v := view{it: it, revision: rev, current: current, count: w.s.fences.count(o.Range)}
	for i, d := range w.delta {
		if i >= v.count.from && i < v.count.to {
			v.count.whole += d
		}
	}
	for i := range v.count.edges {
		v.count.edges[i].keys += w.delta[v.count.edges[i].fence]
	}
	return v.collect(o)
}

// point reads one key at the newest revision; it needs no iterator, and no read at all if the head is known and the
// value is not asked for.
func (t *Txn) point(o kv.RangeOptions) (kv.RangeResult, error) {
	h, err := t.w.head(o.Key)
	if err != nil || !h.live() {
		return kv.RangeResult{}, err
	}
	r := kv.RangeResult{Count: 1}
	if o.CountOnly || !admits(&o, h.main, h.create) {
		return r, nil
	}
	pair := h.pair(bytes.Clone(o.Key))
	if !o.KeysOnly {
		value, err := t.w.valueOf(o.Key, h)
		if err != nil {
			return kv.RangeResult{}, err
		}
		pair.Value = bytes.Clone(value)
	}
	r.KVs = []kv.KeyValue{pair}
	return r, nil
}

// End ends the transaction and returns the revision after it: a new one if it changed something.
func (t *Txn) End() (rev int64) {
	if !t.w.open {
		panic("mvcc: End of a transaction that ended")
	}
	if t.changes > 0 {
		t.w.revision++
	}
	t.w.open = false
	return t.w.revision
}
