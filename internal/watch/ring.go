package watch

import (
	"fmt"
	"sync"

	"github.com/trivet-kv/trivet/internal/kv"
)

// ring holds the newest events, whole revisions, in order. Every event has a position, counted from 0 over the ring's
// life, so that eight bytes name it. Its lock is a leaf and the only one that the apply loop takes; whoever holds it
// copies pointers and nothing more.
type ring struct {
	maxEvents int
	maxBytes  int64

	mu         sync.Mutex
	slots      []*Event // the event of position p is in p & (len-1); len is a power of two
	first, end uint64   // positions held: first ≤ p < end
	bytes      int64
	// from: every event published with a revision ≥ from is held. last is the newest revision published.
	from, last int64
}

// append takes the events of whole revisions, all newer than the last append's. It returns the ring's new end.
func (r *ring) append(last int64, events []kv.Event) {
	made := make([]Event, len(events))
	for i := range events {
		e := &made[i]
		e.Event, e.holder = events[i], r
		e.cost = int64(e.size()) + eventOverhead
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if first := events[0].Revision.Main; first <= r.last || last < first {
		panic(fmt.Sprintf("watch: events from revision %d to %d published after revision %d", first, last, r.last))
	}
	r.last = last
	// A revision larger than the whole ring never enters it: it would be gone before anybody read it.
	if skip := r.fit(made); skip > 0 {
		r.end += uint64(skip)
		r.clear()
		r.from = made[skip-1].Revision.Main + 1
		made = made[skip:]
	}
	for i := range made {
		r.push(&made[i])
	}
	r.evict()
}

// fit returns how many events at the front of made, whole revisions, must be left out for the rest to fit into the ring.
func (r *ring) fit(made []Event) int {
	var bytes int64
	keep := len(made) // where the revisions that fit begin
	for i := len(made) - 1; i >= 0; i-- {
		bytes += made[i].cost
		if len(made)-i > r.maxEvents || bytes > r.maxBytes {
			return keep
		}
		if i == 0 || made[i-1].Revision.Main != made[i].Revision.Main {
			keep = i
		}
	}
	return 0
}

func (r *ring) push(e *Event) {
	if r.end-r.first == uint64(len(r.slots)) {
		grown := make([]*Event, max(256, 2*len(r.slots)))
		for p := r.first; p < r.end; p++ {
			grown[p&uint64(len(grown)-1)] = r.at(p)
		}
		r.slots = grown
	}
	e.position = r.end
	r.slots[r.end&uint64(len(r.slots)-1)] = e
	r.end++
	r.bytes += e.cost
}

func (r *ring) at(p uint64) *Event { return r.slots[p&uint64(len(r.slots)-1)] }

// evict lets the oldest revisions go until the bounds hold.
func (r *ring) evict() {
	for r.end > r.first && (r.end-r.first > uint64(r.maxEvents) || r.bytes > r.maxBytes) {
		oldest := r.at(r.first).Revision.Main
		for r.end > r.first && r.at(r.first).Revision.Main == oldest {
			slot := &r.slots[r.first&uint64(len(r.slots)-1)]
			r.bytes -= (*slot).cost
			*slot = nil
			r.first++
		}
		r.from = oldest + 1
	}
}

// clear empties the ring. The caller sets from.
func (r *ring) clear() {
	clear(r.slots)
	r.first, r.bytes = r.end, 0
}

// reset empties the ring; it goes on after revision rev.
func (r *ring) reset(rev int64) uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.clear()
	r.from, r.last = rev+1, rev
	return r.end
}

func (r *ring) charge(e *Event, n int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if e.position < r.first {
		return
	}
	e.cost += n
	r.bytes += n
	r.evict()
}

// bounds returns from and last.
func (r *ring) bounds() (from, last int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.from, r.last
}

func (r *ring) size() (events, bytes int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return int64(r.end - r.first), r.bytes
}

// copyFrom appends the events from position p on to dst: at least limit of them, up to the end of a revision, if there
// are so many. If p has left the ring it returns false and the oldest position held.
func (r *ring) copyFrom(dst []*Event, p uint64, limit int) (_ []*Event, next uint64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if p < r.first {
		return dst, r.first, false
	}
	for n := 0; p < r.end; p, n = p+1, n+1 {
		e := r.at(p)
		if n >= limit && e.Revision.Main != dst[len(dst)-1].Revision.Main {
			break
		}
		dst = append(dst, e)
	}
	return dst, p, true
}

// seek returns the position of the first event of revision rev or later, false if events from rev on have left the ring.
func (r *ring) seek(rev int64) (uint64, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if rev < r.from {
		return 0, false
	}
	lo, hi := r.first, r.end
	for lo < hi {
		mid := lo + (hi-lo)/2
		if r.at(mid).Revision.Main < rev {
			lo = mid + 1
		} else {
			hi = mid
		}
	}
	return lo, true
}

// take resolves positions, ascending, whose revisions are whole, up to revision limit and up to the end of a revision
// once they have maxBytes or maxRevisions. It returns how many it took and the revision of the first that is left (0 if
// none is). ok is false if the first of them has left the ring.
func (r *ring) take(dst []*Event, positions []uint64, limit int64, maxBytes, maxRevisions int) (_ []*Event, n int, next int64, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if positions[0] < r.first {
		return dst, 0, 0, false
	}
	bytes, revisions, rev := 0, 0, int64(0)
	for _, p := range positions {
		e := r.at(p)
		if e.Revision.Main != rev {
			if e.Revision.Main > limit || bytes >= maxBytes || revisions >= maxRevisions {
				return dst, n, e.Revision.Main, true
			}
			rev = e.Revision.Main
			revisions++
		}
		dst = append(dst, e)
		bytes += e.size()
		n++
	}
	return dst, n, 0, true
}
