package watch

import (
	"slices"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// TestHalfARevision: while the dispatcher is in the middle of a revision, nothing of it is given out, and no progress
// covers it.
func TestHalfARevision(t *testing.T) {
	scenario(t, Options{}, func(b *bench) {
		b.create(CreateOptions{Range: all()})
		w := b.w.watchers[0]
		b.h.mu.Lock() // the dispatcher stands still
		defer b.h.mu.Unlock()
		events := append(b.s.txn([2]string{"a", "1"}), b.s.txn([2]string{"b", "1"}, [2]string{"c", "1"})...)
		b.h.Publish(3, events)
		given, _, _ := b.h.ring.copyFrom(nil, 0, 10)
		look := func(want string) {
			t.Helper()
			got, step, err := b.w.look()
			text := "wait"
			if step == give {
				text = describe(got)
			}
			if err != nil || text != want {
				t.Fatalf("got %s, %v, want %s", text, err, want)
			}
		}
		w.give(b.h, given[0])
		look("wait")
		b.h.dispatched.Store(2)
		w.give(b.h, given[1])
		look("events 0 2: put a@2")
		look("wait")
		b.w.requests, b.w.requestRev = 1, 3 // as RequestProgress, which would wait for the lock
		look("wait")
		w.give(b.h, given[2])
		look("wait")
		b.h.dispatched.Store(3)
		b.h.next = 3
		look("events 0 3: put b@3 put c@3")
		look("progress -1 3:")
	})
}

// TestChunksEndWithRevisions: what the dispatcher takes from the ring at once ends where a revision ends, however many
// events that takes: what it has been through is told by revision.
func TestChunksEndWithRevisions(t *testing.T) {
	s := newFakeStore()
	r := ring{maxEvents: 100, maxBytes: 1 << 20, from: 2, last: 1}
	change := [2]string{"k", "v"}
	for _, n := range []int{1, 4, 1, 3} {
		r.append(s.Revision()+1, s.txn(slices.Repeat([][2]string{change}, n)...))
	}
	for limit, want := range [][]uint64{1: {1, 5, 6, 9}, 2: {5, 9}, 5: {5, 9}, 6: {6, 9}, 7: {9}} {
		p, events, ok := uint64(0), []*Event(nil), true
		for _, end := range want {
			if events, p, ok = r.copyFrom(events[:0], p, limit); !ok || p != end {
				t.Errorf("at least %d events: up to position %d (%v), want %d", limit, p, ok, end)
			}
		}
	}
}

// TestProgressBehindLost: a watcher whose events left the ring before it took them is asked about like all others: its
// stream's progress comes behind what it still has to get.
func TestProgressBehindLost(t *testing.T) {
	scenario(t, Options{RingEvents: 4}, func(b *bench) {
		b.create(CreateOptions{Range: single("a")})
		b.create(CreateOptions{Range: single("b")})
		b.put("a", "b", "b", "b", "b")
		b.w.RequestProgress()
		b.want("events 1 6: put b@3 put b@4 put b@5 put b@6")
		b.want("events 0 6: put a@2")
		b.want("progress -1 6:")
	})
}

// TestLaggingIsServed: a watcher that is behind gets its events though others of its stream have some all the time.
func TestLaggingIsServed(t *testing.T) {
	scenario(t, Options{RingEvents: 4, SliceEvents: 1}, func(b *bench) {
		b.put("a", "a", "a", "a", "a", "a", "a", "a")
		b.create(CreateOptions{Range: single("b")})
		b.create(CreateOptions{Range: single("a"), StartRevision: 2})
		got := 0
		for range 20 {
			b.put("b")
			if b.next().ID == 1 {
				got++
			}
		}
		if got < 8 {
			t.Fatalf("%d of 8 batches of the watcher that is behind", got)
		}
	})
}

// TestCompactionDuringSlice: a compaction passes while a slice is read for two watchers; one ends, the other loses
// nothing and gets nothing twice.
func TestCompactionDuringSlice(t *testing.T) {
	scenario(t, Options{RingEvents: 1}, func(b *bench) {
		for range 20 {
			b.put("a")
		}
		b.create(CreateOptions{Range: all(), StartRevision: 2})
		b.create(CreateOptions{Range: all(), StartRevision: 6})
		b.s.compactedRead = true
		b.s.slow = func() { time.Sleep(time.Second) }
		go func() {
			time.Sleep(3500 * time.Millisecond)
			b.s.compactTo(4)
		}()
		b.want("compacted 0 0: from 4")
		got := b.next()
		if got.ID != 1 || len(got.Events) != 16 || got.Events[0].Revision.Main != 6 || got.Revision != 21 {
			t.Fatalf("got %s", describe(got))
		}
		b.nothing()
	})
}

// TestProgressWhenOthersWrite: a request that waits for a revision is answered when it comes, though no event of it
// concerns the stream.
func TestProgressWhenOthersWrite(t *testing.T) {
	scenario(t, Options{}, func(b *bench) {
		b.create(CreateOptions{Range: single("b"), StartRevision: 4})
		b.w.RequestProgress()
		go func() {
			for range 3 {
				time.Sleep(time.Second)
				events := b.s.txn([2]string{"other", "1"})
				b.h.Publish(b.s.Revision(), events)
			}
		}()
		b.want("progress -1 4:")
	})
	bubble.Test(t, func(t *testing.T) { // the same while the hub is told by a snapshot
		s := newFakeStore()
		h := New(Options{History: s})
		defer h.Close()
		b := &bench{t: t, s: s, h: h, w: h.NewStream()}
		defer b.w.Close()
		b.create(CreateOptions{Range: single("b"), StartRevision: 4})
		b.w.RequestProgress()
		go func() {
			time.Sleep(time.Second)
			for range 3 {
				s.txn([2]string{"other", "1"})
			}
			h.Reset(s)
		}()
		b.want("progress -1 4:")
	})
}
