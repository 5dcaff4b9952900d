package watch

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// lagging is the watchers of a stream that read for themselves. It is guarded by Stream.mu, its index included; watchers
// come and go under Hub.mu too.
type lagging struct {
	index    index
	watchers []*watcher
	lost     []*watcher // synced watchers whose pending events have left the ring; they lag from the next slice on
	slices   uint64     // slices begun
}

func (l *lagging) any() bool { return len(l.watchers)+len(l.lost) > 0 }

func (l *lagging) add(w *watcher) {
	if len(l.watchers) == 0 {
		w.stream.h.behind.Add(1)
	}
	l.index.add(w)
	w.lagSlot = len(l.watchers)
	l.watchers = append(l.watchers, w)
}

func (l *lagging) remove(w *watcher) {
	l.index.remove(w)
	last := len(l.watchers) - 1
	moved := l.watchers[last]
	l.watchers[w.lagSlot], moved.lagSlot = moved, w.lagSlot
	l.watchers[last] = nil
	l.watchers = l.watchers[:last]
	w.slice, w.got = 0, nil
	if h := w.stream.h; last == 0 && h.behind.Add(-1) == 0 {
		h.source.past.clear()
	}
}

// catchUp brings the lagging watchers of the stream on by one slice from the ring, for those that the ring still serves,
// and by one slice from the store for the others. What it finds goes to out. Only the goroutine in Next calls it, when
// out is empty, so what waits there is bounded by a slice. If it must wait for its turn to read the store, and may be
// interrupted, it gives up when something else may be ready.
func (s *Stream) catchUp(ctx context.Context, interruptible bool) error {
	source := s.h.acquire()
	defer source.release()
	s.demoteLost()
	if err := s.ringSlice(); err != nil {
		return err
	}
	if err := s.storeSlice(ctx, source, interruptible); err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if source.ctx.Err() != nil {
			return nil // the store was replaced, or the hub closed: the next turn sees it
		}
		return fmt.Errorf("watch: read history: %w", err)
	}
	s.promote()
	return nil
}

func (s *Stream) demoteLost() {
	s.h.mu.Lock()
	defer s.h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.lag.lost {
		if w.state == synced && len(w.pending) > 0 {
			w.demoteLocked(w.pendingRevision)
		}
	}
	s.lag.lost = nil
}

// promote gives the watchers that have caught up with the dispatcher back to it.
func (s *Stream) promote() {
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	dispatched := h.dispatched.Load()
	for i := len(s.lag.watchers) - 1; i >= 0; i-- {
		w := s.lag.watchers[i]
		if w.next <= dispatched {
			continue
		}
		s.lag.remove(w)
		w.state = synced
		h.index.add(w)
		h.slow.Add(-1)
	}
}

// slice is one pass over a stretch of history for some of the lagging watchers.
type slice struct {
	s        *Stream
	id       uint64
	from     int64
	ranges   []kv.Range // of its watchers: each of them is in one of these, as long as there are not more than maxCovers
	found    []*watcher // in the order in which they got their first event
	rev      int64      // of the newest event seen
	scanned  int        // events seen
	bytes    int        // of the events that somebody got, each once
	given    int        // events that watchers got, together
	revision int        // revisions of which somebody got something
	counted  int64      // the last of them
}

// errSlice ends a slice that has had enough.
var errSlice = errors.New("the slice is full")

// beginLocked starts a slice for the lagging watchers that in accepts; nil if there is none.
func (s *Stream) beginLocked(in func(*watcher) bool) *slice {
	s.lag.slices++
	sl := &slice{s: s, id: s.lag.slices}
	for _, w := range s.lag.watchers {
		if !in(w) {
			continue
		}
		w.slice = sl.id
		if len(sl.ranges) <= maxCovers && !covered([]kv.Range{w.Range}, sl.ranges) {
			sl.ranges = append(sl.ranges, w.Range)
		}
		if sl.from == 0 || w.next < sl.from {
			sl.from = w.next
		}
	}
	if sl.from == 0 {
		return nil
	}
	return sl
}

// wants reports whether key is of interest to the watchers of the slice.
func (sl *slice) wants(key []byte) bool {
	if len(sl.ranges) <= maxCovers {
		return slices.ContainsFunc(sl.ranges, func(r kv.Range) bool { return r.Contains(key) })
	}
	sl.s.mu.Lock()
	defer sl.s.mu.Unlock()
	wanted := false
	sl.s.lag.index.visit(key, func(w *watcher) { wanted = wanted || w.slice == sl.id })
	return wanted
}

// see offers an event to the watchers of the slice.
func (sl *slice) see(e *Event) error {
	o := &sl.s.h.o
	if e.Revision.Main != sl.rev {
		if sl.scanned >= o.SliceEvents || sl.bytes >= o.BatchBytes || sl.given >= o.StreamPending || sl.revision >= o.BatchRevisions {
			return errSlice
		}
		sl.rev = e.Revision.Main
	}
	sl.scanned++
	sl.s.mu.Lock()
	defer sl.s.mu.Unlock()
	wanted := false
	sl.s.lag.index.visit(e.KV.Key, func(w *watcher) {
		if w.slice != sl.id || e.Revision.Main < w.next || w.filters(e.Type) {
			return
		}
		if !wanted {
			wanted = true
			sl.bytes += e.size()
		}
		if len(w.got) == 0 {
			sl.found = append(sl.found, w)
		}
		w.got = append(w.got, e)
		sl.given++
	})
	if wanted && sl.counted != sl.rev {
		sl.counted = sl.rev
		sl.revision++
	}
	return nil
}

// end moves the watchers of the slice on to after revision end, up to which everything was seen, and queues what they
// got. newest says that end was the newest revision there was.
func (sl *slice) end(end int64, newest bool) {
	s := sl.s
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, w := range s.lag.watchers {
		if w.slice == sl.id {
			w.next = max(w.next, end+1)
		}
	}
	for _, w := range sl.found {
		if w.slice != sl.id { // it has left meanwhile
			continue
		}
		rev := w.got[len(w.got)-1].Revision.Main
		if newest {
			rev = end
		}
		s.out = append(s.out, outgoing{w, w.batch(w.got, rev)})
		s.h.pending.Add(int64(len(w.got)))
		w.got, w.quiet = nil, false
	}
}

// abandon forgets what a slice has found; the cursors stay.
func (sl *slice) abandon() {
	sl.s.mu.Lock()
	defer sl.s.mu.Unlock()
	for _, w := range sl.found {
		if w.slice == sl.id {
			w.got = nil
		}
	}
}

// ringSlice serves the lagging watchers whose next revision is still in the ring.
func (s *Stream) ringSlice() error {
	r := &s.h.ring
	first, last := r.bounds()
	s.mu.Lock()
	sl := s.beginLocked(func(w *watcher) bool { return w.next >= first && w.next <= last })
	s.mu.Unlock()
	if sl == nil {
		return nil
	}
	position, ok := r.seek(sl.from)
	if !ok {
		return nil
	}
	var events []*Event
	for {
		if events, position, ok = r.copyFrom(events[:0], position, dispatchChunk); !ok {
			sl.abandon()
			return nil
		}
		if len(events) == 0 {
			// Everything up to last was seen, and perhaps more that came since.
			last = max(last, sl.rev)
			sl.end(last, true)
			return nil
		}
		for _, e := range events {
			if sl.see(e) != nil {
				sl.end(sl.rev, false)
				return nil
			}
		}
	}
}

// storeSlice serves the lagging watchers that are behind the ring, and ends those whose next revision is compacted.
func (s *Stream) storeSlice(ctx context.Context, source *source, interruptible bool) error {
	first, _ := s.h.ring.bounds()
	if !s.behindRing(first) {
		return nil
	}
	var interrupt <-chan struct{}
	if interruptible {
		interrupt = s.signal
	}
	select {
	case s.h.reads <- struct{}{}:
	case <-interrupt:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	case <-source.ctx.Done():
		return source.ctx.Err()
	case <-s.ended:
		return nil
	}
	var took time.Duration
	var got int64
	defer func() { s.h.rest(took, got) }()
	sl := s.beginStore(source, first)
	if sl == nil {
		return nil
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(source.ctx, cancel)()
	p, newest, err := source.piece(ctx, sl)
	if err != nil {
		sl.abandon()
		if errors.Is(err, kv.ErrCompacted) && sl.from < source.CompactRevision() {
			return nil // a compaction has passed; the next slice tells those whom it hit
		}
		return err
	}
	took, got = p.took, p.end-sl.from+1
	begin, _ := slices.BinarySearchFunc(p.events, sl.from, func(e *Event, rev int64) int { return cmp.Compare(e.Revision.Main, rev) })
	for _, e := range p.events[begin:] {
		if sl.see(e) != nil {
			sl.end(sl.rev, false)
			return nil
		}
	}
	sl.end(p.end, newest)
	return nil
}

// behindRing reports whether a lagging watcher needs a revision older than first.
func (s *Stream) behindRing(first int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.lag.watchers, func(w *watcher) bool { return w.next < first })
}

// beginStore ends the watchers behind the ring that need compacted history, and begins a slice for the others.
func (s *Stream) beginStore(source *source, first int64) *slice {
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	compacted := source.CompactRevision()
	for i := len(s.lag.watchers) - 1; i >= 0; i-- {
		if w := s.lag.watchers[i]; w.next < first && w.next < compacted {
			s.compactLocked(w, compacted)
		}
	}
	return s.beginLocked(func(w *watcher) bool { return w.next < first })
}
