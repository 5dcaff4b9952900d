package watch

import (
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Event is one change, shared by all watchers that get it. The embedded event never changes.
type Event struct {
	kv.Event

	prev atomic.Pointer[kv.KeyValue] // nil: not looked for yet; noPrev: there is none
	wire [2]atomic.Pointer[[]byte]   // the encodings without and with the previous pair

	holder holder // what counts the event's bytes

	// The rest is the ring's, for events that it holds.
	position uint64
	cost     int64 // bytes, guarded by ring.mu
}

// holder is the ring, or the piece of history, that holds an event.
type holder interface {
	// charge counts n more bytes for e.
	charge(e *Event, n int64)
}

// noPrev marks an event whose key did not exist before or whose previous version is compacted.
var noPrev = new(kv.KeyValue)

// eventOverhead is about what an event costs the ring beside keys and values, in bytes.
const eventOverhead = 256

func (e *Event) size() int { return len(e.KV.Key) + len(e.KV.Value) }

// Prev returns the pair that the event replaced, or nil. It is known for events of batches with PrevKV only.
func (e *Event) Prev() *kv.KeyValue {
	if p := e.prev.Load(); p != noPrev {
		return p
	}
	return nil
}

// Wire returns the event's encoding, with the previous pair if prevKV. The first to ask makes it by encode, which appends
// it to dst; everybody else gets the same bytes, which nobody may change. encode must depend on its arguments only, and
// be the same function in every call.
func (e *Event) Wire(prevKV bool, encode func(dst []byte, e *Event, prev *kv.KeyValue) []byte) []byte {
	slot, prev := &e.wire[0], (*kv.KeyValue)(nil)
	if prevKV {
		if prev = e.Prev(); prev != nil {
			slot = &e.wire[1]
		}
	}
	if b := slot.Load(); b != nil {
		return *b
	}
	size := e.size() + 64
	if prev != nil {
		size += len(prev.Key) + len(prev.Value) + 64
	}
	b := encode(make([]byte, 0, size), e, prev)
	if !slot.CompareAndSwap(nil, &b) {
		return *slot.Load()
	}
	e.charge(cap(b))
	return b
}

// loadPrev looks for the pair that e replaced. It returns e, or an event of the same change without a previous pair if a
// compaction took it away after another watcher was given it: the answer follows the compaction, not the cache.
func (e *Event) loadPrev(h History) (*Event, error) {
	p := e.prev.Load()
	if p == noPrev {
		return e, nil
	}
	// The previous pair is the key at the revision before the event's. That cannot be asked for once it is compacted.
	gone := e.Creates() || e.Revision.Main-1 < h.CompactRevision()
	switch {
	case p != nil && gone:
		c := &Event{Event: e.Event}
		c.prev.Store(noPrev)
		return c, nil
	case p != nil:
		return e, nil
	case gone:
		e.prev.Store(noPrev)
		return e, nil
	}
	pair, found, err := h.Previous(e.Event)
	if err != nil {
		return nil, err
	}
	if !found {
		e.prev.Store(noPrev)
		return e, nil
	}
	if e.prev.CompareAndSwap(nil, &pair) {
		e.charge(len(pair.Key) + len(pair.Value) + eventOverhead/2)
	}
	return e, nil
}

// charge counts n more bytes for e against the bound of what holds it.
func (e *Event) charge(n int) {
	if e.holder != nil {
		e.holder.charge(e, int64(n))
	}
}
