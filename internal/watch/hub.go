package watch

import (
	"context"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// dispatchChunk is how many events the dispatcher looks up before it lets go of Hub.mu, so that streams that want to
// create or cancel watchers get their turn.
const dispatchChunk = 256

// Hub is the watchers of one member.
type Hub struct {
	o    Options
	ring ring

	mu      sync.Mutex
	source  *source
	index   index // the watchers that are synced
	streams map[*Stream]struct{}
	waiting map[*Stream]int64 // streams that must be woken once dispatched has reached a revision
	next    uint64            // position in the ring of the next event to dispatch
	touched []*Stream         // streams that were given events in this round
	full    []*watcher        // watchers that were given too many
	closed  bool

	// dispatched: every event up to this revision is with the synced watchers that want it. Written under mu.
	dispatched atomic.Int64

	nudge chan struct{} // capacity 1
	stop  chan struct{}
	done  chan struct{}
	reads chan struct{} // one place for each stream that may read the store now, taken until the rest after it is over

	start     time.Time
	published atomic.Int64 // when Publish was last called, in nanoseconds after start
	behind    atomic.Int64 // streams with lagging watchers; changed under mu

	watchers, slow, pending, delivered atomic.Int64
}

// source is a History while it is the hub's. It is counted who reads it, so that Reset can wait for them.
type source struct {
	History
	ctx     context.Context // ends when the history is replaced
	cancel  context.CancelFunc
	readers sync.WaitGroup // Add only under Hub.mu while it is the hub's source
	past    past
}

func (h *Hub) newSource(history History) *source {
	s := &source{History: history, past: past{maxBytes: h.o.PastBytes}}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// New starts a hub whose events go on after the history's revision. Close ends it.
func New(o Options) *Hub {
	o.fill()
	rev := o.History.Revision()
	h := &Hub{
		o:       o,
		ring:    ring{maxEvents: o.RingEvents, maxBytes: o.RingBytes, from: rev + 1, last: rev},
		index:   newIndex(),
		streams: make(map[*Stream]struct{}),
		waiting: make(map[*Stream]int64),
		nudge:   make(chan struct{}, 1),
		stop:    make(chan struct{}),
		done:    make(chan struct{}),
		reads:   make(chan struct{}, o.Reads),
		start:   time.Now(),
	}
	h.source = h.newSource(o.History)
	h.dispatched.Store(rev)
	go h.dispatch()
	return h
}

// Close ends all streams with kv.ErrStopped and the dispatcher. Publish must not be called any more.
func (h *Hub) Close() {
	h.mu.Lock()
	if h.closed {
		h.mu.Unlock()
		return
	}
	h.closed = true
	streams := h.streamsLocked()
	h.source.cancel()
	source := h.source
	h.mu.Unlock()
	for _, s := range streams {
		s.end(kv.ErrStopped)
	}
	close(h.stop)
	<-h.done
	source.readers.Wait()
}

func (h *Hub) streamsLocked() []*Stream {
	streams := make([]*Stream, 0, len(h.streams))
	for s := range h.streams {
		streams = append(streams, s)
	}
	return streams
}

// Publish tells the hub of the events of the revisions up to rev, all of them, in order. It is called by the apply loop
// after the store shows them to readers; it never waits for watchers. The hub keeps what the events point to.
func (h *Hub) Publish(rev int64, events []kv.Event) {
	if len(events) == 0 {
		return
	}
	h.ring.append(rev, events)
	h.published.Store(int64(time.Since(h.start)))
	select {
	case h.nudge <- struct{}{}:
	default:
	}
}

// Reset tells the hub that the store was replaced by a newer one, as by a snapshot from the leader. Watchers go on from
// where they are by the history of the new store. It returns when the old history is not read any more. Only the apply
// loop calls it, never together with Publish.
func (h *Hub) Reset(history History) {
	rev := history.Revision()
	h.mu.Lock()
	if old := h.dispatched.Load(); rev < old {
		panic(fmt.Sprintf("watch: the store was replaced by one at revision %d, older than %d", rev, old))
	}
	old := h.source
	h.source = h.newSource(history)
	if h.closed {
		h.source.cancel()
	}
	old.cancel()
	h.next = h.ring.reset(rev)
	h.demoteAll()
	h.dispatched.Store(rev)
	h.wakeWaitingLocked()
	h.mu.Unlock()
	old.readers.Wait()
}

// storeRevision is the newest revision of the store, which may be ahead of the hub's for a moment.
func (h *Hub) storeRevision() int64 {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.source.Revision()
}

// Stats returns the counts now. It is cheap.
func (h *Hub) Stats() Stats {
	h.mu.Lock()
	streams := int64(len(h.streams))
	h.mu.Unlock()
	s := Stats{
		Streams: streams, Watchers: h.watchers.Load(), Slow: h.slow.Load(),
		Pending: h.pending.Load(), Delivered: h.delivered.Load(),
	}
	s.RingEvents, s.RingBytes = h.ring.size()
	return s
}

// acquire returns the history to read from, and keeps it readable until release.
func (h *Hub) acquire() *source {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.source.readers.Add(1)
	return h.source
}

func (s *source) release() { s.readers.Done() }

// dispatch is the hub's goroutine: it gives the events of the ring to the synced watchers.
func (h *Hub) dispatch() {
	defer close(h.done)
	var events []*Event
	for {
		select {
		case <-h.stop:
			return
		case <-h.nudge:
		}
		for more := true; more; {
			clear(events)
			events, more = h.dispatchSome(events[:0])
		}
	}
}

// dispatchSome gives out one chunk of whole revisions and reports whether there may be more.
func (h *Hub) dispatchSome(events []*Event) ([]*Event, bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	events, next, ok := h.ring.copyFrom(events, h.next, dispatchChunk)
	if !ok {
		// The ring has moved on over events that were not given out yet: all watchers read them for themselves.
		h.demoteAll()
		from, _ := h.ring.bounds()
		if next, ok = h.ring.seek(from); !ok {
			return events, true // it moved again
		}
		h.next = next
		h.dispatched.Store(from - 1)
		h.wakeWaitingLocked()
		return events, true
	}
	if len(events) == 0 {
		return events, false
	}
	for _, e := range events {
		h.index.visit(e.KV.Key, func(w *watcher) { w.give(h, e) })
		for _, w := range h.full {
			w.stream.mu.Lock()
			if w.state == synced {
				w.demoteLocked(w.pendingRevision)
			}
			w.stream.mu.Unlock()
		}
		h.full = h.full[:0]
	}
	h.next = next
	h.dispatched.Store(events[len(events)-1].Revision.Main)
	for _, s := range h.touched {
		s.touched = false
		s.wake()
	}
	clear(h.touched)
	h.touched = h.touched[:0]
	h.wakeWaitingLocked()
	return events, true
}

// give leaves an event of the ring with a synced watcher. The caller holds Hub.mu.
func (w *watcher) give(h *Hub, e *Event) {
	if w.filters(e.Type) {
		return
	}
	s := w.stream
	s.mu.Lock()
	defer s.mu.Unlock()
	if e.Revision.Main < w.next {
		return
	}
	if len(w.pending) > 0 && (len(w.pending) >= h.o.WatcherPending || s.pending >= h.o.StreamPending) {
		h.full = append(h.full, w)
		return
	}
	if len(w.pending) == 0 {
		w.pendingRevision = e.Revision.Main
	}
	w.pending = append(w.pending, e.position)
	s.pending++
	h.pending.Add(1)
	if !w.ready {
		w.ready = true
		s.ready = append(s.ready, w)
	}
	if !s.touched {
		s.touched = true
		h.touched = append(h.touched, s)
	}
}

// demoteAll makes all synced watchers lag. The caller holds mu and has not yet moved dispatched on.
func (h *Hub) demoteAll() {
	after := h.dispatched.Load() + 1
	for s := range h.streams {
		s.mu.Lock()
		for _, w := range s.watchers {
			if w.state != synced {
				continue
			}
			next := max(w.next, after)
			if len(w.pending) > 0 {
				next = w.pendingRevision
			}
			w.demoteLocked(next)
		}
		s.mu.Unlock()
	}
}

// wakeWaitingLocked wakes the streams that wait for a revision that has come.
func (h *Hub) wakeWaitingLocked() {
	for s, rev := range h.waiting {
		if rev <= h.dispatched.Load() {
			delete(h.waiting, s)
			s.wake()
		}
	}
}
