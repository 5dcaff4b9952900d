package watch

import (
	"cmp"
	"context"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// fakeStore is a store as a child would write it: all events, ever, and two numbers.
type fakeStore struct {
	mu            sync.Mutex
	rev, compact  int64
	events        []kv.Event
	heads         map[string]kv.KeyValue
	slow          func() // called between the events of a read
	reads         int    // calls of Changes
	pairs         int    // pairs that were read there
	compactedRead bool   // reads that a compaction passes fail
}

func newFakeStore() *fakeStore {
	return &fakeStore{rev: 1, compact: -1, heads: map[string]kv.KeyValue{}, slow: func() {}}
}

func (s *fakeStore) Revision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rev
}

func (s *fakeStore) CompactRevision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.compact
}

// txn makes one revision of the given changes: key=value puts, a key alone deletes. It returns the events.
func (s *fakeStore) txn(changes ...[2]string) []kv.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	var events []kv.Event
	for i, c := range changes {
		rev := kv.Revision{Main: s.rev + 1, Sub: int64(i)}
		before, existed := s.heads[c[0]]
		e := kv.Event{Type: kv.Put, Revision: rev, KV: kv.KeyValue{Key: []byte(c[0]), ModRevision: rev.Main}}
		if existed {
			e.Superseded = s.find(c[0], before.ModRevision)
		}
		if c[1] == "" {
			if !existed {
				continue
			}
			e.Type = kv.Delete
			delete(s.heads, c[0])
		} else {
			e.KV.Value = []byte(c[1])
			e.KV.Version, e.KV.CreateRevision = before.Version+1, cmp.Or(before.CreateRevision, rev.Main)
			s.heads[c[0]] = e.KV
		}
		events = append(events, e)
	}
	if len(events) > 0 {
		s.rev++
		s.events = append(s.events, events...)
	}
	return events
}

func (s *fakeStore) find(key string, mod int64) kv.Revision {
	for i := len(s.events) - 1; i >= 0; i-- {
		if e := s.events[i]; e.Revision.Main == mod && string(e.KV.Key) == key {
			return e.Revision
		}
	}
	return kv.Revision{}
}

func (s *fakeStore) compactTo(rev int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compact = max(s.compact, rev)
}

// between returns the events of the revisions from to to, all of them, compacted or not.
func (s *fakeStore) between(from, to int64) []kv.Event {
	s.mu.Lock()
	defer s.mu.Unlock()
	begin, _ := slices.BinarySearchFunc(s.events, from, func(e kv.Event, rev int64) int { return cmp.Compare(e.Revision.Main, rev) })
	end, _ := slices.BinarySearchFunc(s.events, to+1, func(e kv.Event, rev int64) int { return cmp.Compare(e.Revision.Main, rev) })
	return slices.Clone(s.events[begin:max(begin, end)])
}

func (s *fakeStore) Changes(ctx context.Context, from, to int64, visit func(kv.Event, func() (kv.KeyValue, error)) error) error {
	s.mu.Lock()
	s.reads++
	slow := s.slow
	s.mu.Unlock()
	events := s.between(from, to)
	for i, e := range events {
		if i%4 == 0 {
			slow()
		}
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if s.CompactRevision() > from && (i == 0 || s.compactedRead) {
			return kv.ErrCompacted
		}
		shown := e
		shown.KV = kv.KeyValue{Key: slices.Clone(e.KV.Key), ModRevision: e.KV.ModRevision}
		err := visit(shown, func() (kv.KeyValue, error) {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.pairs++
			return e.KV, nil
		})
		clear(shown.KV.Key) // it was visit's until now
		if err != nil {
			return err
		}
	}
	return nil
}

func (s *fakeStore) Previous(e kv.Event) (kv.KeyValue, bool, error) {
	if e.Creates() || e.Revision.Main-1 < s.CompactRevision() {
		return kv.KeyValue{}, false, nil
	}
	old, found := s.before(e)
	return old, found, nil
}

// before is the key of an event at the revision before, compacted or not.
func (s *fakeStore) before(e kv.Event) (kv.KeyValue, bool) {
	old := kv.Event{Type: kv.Delete}
	for _, o := range s.between(0, e.Revision.Main-1) {
		if string(o.KV.Key) == string(e.KV.Key) {
			old = o
		}
	}
	return old.KV, old.Type == kv.Put
}

// nap waits a random time, mostly none.
func nap(r *rand.Rand, most time.Duration) {
	if r.IntN(3) == 0 {
		time.Sleep(time.Duration(r.Int64N(int64(most))))
	}
}
