package watch

import (
	"bytes"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Stream is the watchers of one client stream, multiplexed. Next gives out, one after the other, everything that must be
// sent. One goroutine at a time may call Next; the other methods may be called from any.
type Stream struct {
	h      *Hub
	signal chan struct{} // capacity 1: something may be ready
	room   chan struct{} // one place for each entry of control
	ended  chan struct{}

	touched bool // guarded by Hub.mu: in Hub.touched

	mu       sync.Mutex
	err      error // why the stream has ended
	watchers map[int64]*watcher
	live     int   // watchers that have not ended by compaction
	nextID   int64 // where the search for a free id begins

	control []Batch    // answers to Create, Cancel and Refuse, sent before anything else
	revoked []Batch    // the ends of watchers that Revoke ended, sent next
	out     []outgoing // what catching up has made
	ready   []*watcher // synced watchers with pending events, each once, perhaps some that are not so any more
	pending int        // positions that wait in all watchers
	lag     lagging

	requests   int   // progress requests that are not answered yet
	requestRev int64 // the revision of the store when the last of them came
	lastStart  int64 // the greatest start revision of all watchers, perhaps of some that have gone
	stale      bool  // a watcher has gone since lastStart was computed

	// The rest belongs to the goroutine in Next.
	events []*Event // reused for the batches of synced watchers
	turn   bool     // the next thing to do is to catch up, if somebody lags
	tick   time.Time
	timer  *time.Timer
	notify int // guarded by mu: watchers with ProgressNotify
}

// outgoing is a batch and whom it is for.
type outgoing struct {
	watcher *watcher
	batch   Batch
}

// maxRequests bounds the progress requests remembered; more are answered together.
const maxRequests = 1024

type state uint8

const (
	synced state = iota // in the index of the hub: the dispatcher gives it events
	behind              // in the stream's list of lagging watchers: it reads for itself
	over                // cancelled, or its history is compacted
)

// watcher is one watch: a cursor with options.
type watcher struct {
	CreateOptions // never changes; ID is the one chosen
	stream        *Stream

	group *group // where it is in an index: the hub's, guarded by Hub.mu, or the stream's, guarded by Stream.mu
	slot  int

	// Guarded by Stream.mu; state changes between synced and lagging need Hub.mu too.
	state state
	// next is the cursor of a lagging watcher: everything of an older revision was given out. A synced watcher is given
	// no event of an older revision; what it has got since is not written down here, for the dispatcher's revision says it.
	next            int64
	pending         []uint64 // positions in the ring, ascending
	pendingRevision int64    // the revision of the first of them
	ready           bool     // in Stream.ready
	lagSlot         int      // place in lagging.watchers
	slice           uint64   // the slice of catching up that it takes part in
	got             []*Event // what that slice has found for it
	quiet           bool     // nothing was sent since the last tick for progress
}

// NewStream makes a stream. The caller must Close it.
func (h *Hub) NewStream() *Stream {
	jitter := time.Duration(rand.Int64N(int64(h.o.ProgressInterval)/10 + 1))
	s := &Stream{
		h:        h,
		signal:   make(chan struct{}, 1),
		room:     make(chan struct{}, h.o.ControlQueue),
		ended:    make(chan struct{}),
		watchers: make(map[int64]*watcher),
		lag:      lagging{index: newIndex()},
		tick:     time.Now().Add(h.o.ProgressInterval + jitter),
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.closed {
		s.err = kv.ErrStopped
		close(s.ended)
		return s
	}
	h.streams[s] = struct{}{}
	return s
}

// Close ends the stream and its watchers. Next and the others return ErrClosed from then on.
func (s *Stream) Close() { s.end(ErrClosed) }

func (s *Stream) end(why error) {
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		return
	}
	s.err = why
	for _, w := range s.watchers {
		s.removeLocked(w)
	}
	for _, o := range s.out {
		h.pending.Add(-int64(len(o.batch.Events)))
	}
	s.control, s.revoked, s.out, s.ready = nil, nil, nil, nil
	delete(h.streams, s)
	delete(h.waiting, s)
	close(s.ended)
}

// wake makes Next look again.
func (s *Stream) wake() {
	select {
	case s.signal <- struct{}{}:
	default:
	}
}

// queue waits for a place in control. After it has returned nil, answer or the giving back of the place must follow.
func (s *Stream) queue(ctx context.Context) error {
	select {
	case s.room <- struct{}{}:
		return nil
	default:
	}
	select {
	case s.room <- struct{}{}:
		return nil
	case <-s.ended:
		return s.err
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (s *Stream) answerLocked(b Batch) {
	s.control = append(s.control, b)
	s.wake()
}

// Create makes a watcher. Next gives out the answer, Created or Refused, before any of its events; Created may be
// followed at once by Compacted. The id is that of the watcher or, if it was refused, InvalidID. Create waits while too
// many answers are unsent; an error is the end of ctx or of the stream, and nothing was made then.
func (s *Stream) Create(ctx context.Context, o CreateOptions) (int64, error) {
	if err := s.queue(ctx); err != nil {
		return InvalidID, err
	}
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		<-s.room
		return InvalidID, s.err
	}
	if len(o.Key) == 0 {
		o.Key = []byte{0} // the smallest key
	}
	rev := h.source.Revision()
	if err := s.admitLocked(&o); err != nil {
		s.answerLocked(Batch{Kind: Refused, ID: InvalidID, Revision: rev, Err: err})
		return InvalidID, nil
	}
	w := &watcher{CreateOptions: o, stream: s, next: o.StartRevision, quiet: true}
	if o.StartRevision == 0 {
		w.next = rev + 1
	}
	s.watchers[w.ID] = w
	s.live++
	s.lastStart = max(s.lastStart, w.StartRevision)
	if w.ProgressNotify {
		s.notify++
	}
	h.watchers.Add(1)
	s.answerLocked(Batch{Kind: Created, ID: w.ID, Revision: rev})
	switch compacted := h.source.CompactRevision(); {
	case w.next < compacted:
		w.state = behind
		s.lag.add(w)
		h.slow.Add(1)
		s.compactLocked(w, compacted)
	case w.next > h.dispatched.Load():
		h.index.add(w)
	default:
		w.state = behind
		s.lag.add(w)
		h.slow.Add(1)
	}
	return w.ID, nil
}

// admitLocked checks o and gives it an id.
func (s *Stream) admitLocked(o *CreateOptions) error {
	switch {
	case o.StartRevision < 0:
		return kv.ErrCompacted
	case !o.Single() && !o.FromKey() && bytes.Compare(o.Key, o.End) >= 0:
		return ErrEmptyRange
	case o.ID != 0:
		if _, taken := s.watchers[o.ID]; taken {
			return ErrDuplicateID
		}
		return nil
	}
	for {
		o.ID = s.nextID
		s.nextID++
		if _, taken := s.watchers[o.ID]; !taken {
			return nil
		}
	}
}

// Refuse lets Next give out, in its turn, that a watcher could not be made because of why.
func (s *Stream) Refuse(ctx context.Context, why error) error {
	if err := s.queue(ctx); err != nil {
		return err
	}
	rev := s.h.storeRevision()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answerLocked(Batch{Kind: Refused, ID: InvalidID, Revision: rev, Err: why})
	return nil
}

// Cancel ends a watcher. Next gives out Canceled, and nothing of that watcher after it. There is no answer if the stream
// has no such watcher. Cancel waits and fails as Create does.
func (s *Stream) Cancel(ctx context.Context, id int64) error {
	if err := s.queue(ctx); err != nil {
		return err
	}
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.watchers[id]
	if w == nil || s.err != nil {
		<-s.room
		return s.err
	}
	s.removeLocked(w)
	delete(s.watchers, id)
	s.stale = true
	s.answerLocked(Batch{Kind: Canceled, ID: id, Revision: h.source.Revision()})
	return nil
}

// Revoke ends the watchers for whose range refuse returns an error, and lets Next give out Canceled with that error as the
// reason. refuse is called under the stream's locks and must not block. A batch of such a watcher that Next has returned
// already is the caller's to drop: see Watching.
func (s *Stream) Revoke(refuse func(kv.Range) error) {
	h := s.h
	h.mu.Lock()
	defer h.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	rev := h.source.Revision()
	for _, id := range slices.Sorted(maps.Keys(s.watchers)) {
		w := s.watchers[id]
		if w.state == over {
			continue
		}
		if err := refuse(w.Range); err != nil {
			s.removeLocked(w)
			delete(s.watchers, id)
			s.stale = true
			s.revoked = append(s.revoked, Batch{Kind: Canceled, ID: id, Revision: rev, Err: err})
			s.wake()
		}
	}
}

// Watching reports whether the stream has a watcher of this id that was neither cancelled nor revoked.
func (s *Stream) Watching(id int64) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.watchers[id] != nil
}

// RequestProgress asks for a Progress for the whole stream. Next gives it out once all watchers of the stream have been
// given everything that the store holds now; while one of them begins in the future, not before that. A stream without
// watchers has no progress and does not answer.
func (s *Stream) RequestProgress() {
	// The store's revision, not the hub's: who has read the answer to a put may ask before its events are published.
	last := s.h.storeRevision()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live == 0 || s.err != nil {
		return
	}
	s.requests = min(s.requests+1, maxRequests)
	s.requestRev = max(s.requestRev, last)
	s.wake()
}

// removeLocked ends w. The caller holds both locks.
func (s *Stream) removeLocked(w *watcher) {
	if w.state == over {
		return
	}
	if w.state == synced {
		s.h.index.remove(w)
		s.dropPendingLocked(w)
	} else {
		s.lag.remove(w)
		s.h.slow.Add(-1)
	}
	w.state = over
	s.live--
	if w.ProgressNotify {
		s.notify--
	}
	s.h.watchers.Add(-1)
}

// compactLocked ends a lagging watcher whose history is gone. Its id stays taken until the client cancels it.
func (s *Stream) compactLocked(w *watcher, compacted int64) {
	s.removeLocked(w)
	s.stale = true
	s.out = append(s.out, outgoing{w, Batch{Kind: Compacted, ID: w.ID, CompactRevision: compacted}})
}

func (s *Stream) dropPendingLocked(w *watcher) {
	s.pending -= len(w.pending)
	s.h.pending.Add(-int64(len(w.pending)))
	w.pending = nil
}

// demoteLocked lets a synced watcher go on for itself from revision next. The caller holds both locks.
func (w *watcher) demoteLocked(next int64) {
	s := w.stream
	s.h.index.remove(w)
	s.dropPendingLocked(w)
	w.state, w.next = behind, next
	s.lag.add(w)
	s.h.slow.Add(1)
	s.wake()
}

func (w *watcher) filters(t kv.EventType) bool {
	return t == kv.Put && w.NoPut || t == kv.Delete && w.NoDelete
}
