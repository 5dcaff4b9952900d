package watch

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/kv"
)

// bench is a hub over a fake store, with one stream, in a bubble of fake time.
type bench struct {
	t *testing.T
	s *fakeStore
	h *Hub
	w *Stream
}

func scenario(t *testing.T, o Options, f func(b *bench)) {
	t.Helper()
	bubble.Test(t, func(t *testing.T) {
		s := newFakeStore()
		o.History = s
		h := New(o)
		b := &bench{t: t, s: s, h: h, w: h.NewStream()}
		defer h.Close()
		defer b.w.Close()
		f(b)
	})
}

// put makes one revision for each key and publishes it.
func (b *bench) put(keys ...string) {
	for _, k := range keys {
		b.txn([2]string{k, fmt.Sprint("v", b.s.Revision()+1)})
	}
}

func (b *bench) txn(changes ...[2]string) {
	events := b.s.txn(changes...)
	b.h.Publish(b.s.Revision(), events)
	synctest.Wait()
}

// create makes a watcher and takes the answer.
func (b *bench) create(o CreateOptions) int64 {
	b.t.Helper()
	if _, err := b.w.Create(context.Background(), o); err != nil {
		b.t.Fatal(err)
	}
	got := b.next()
	if got.Kind != Created {
		b.t.Fatalf("created: %+v", got)
	}
	return got.ID
}

func (b *bench) next() Batch {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Hour)
	defer cancel()
	got, err := b.w.Next(ctx)
	if err != nil {
		b.t.Fatal(err)
	}
	return got
}

// want takes one batch and compares it: «kind id revision: events».
func (b *bench) want(want string) {
	b.t.Helper()
	if got := describe(b.next()); got != want {
		b.t.Fatalf("got  %s\nwant %s", got, want)
	}
}

// wantBoth takes two batches, in any order.
func (b *bench) wantBoth(one, other string) {
	b.t.Helper()
	got := []string{describe(b.next()), describe(b.next())}
	if slices.Sort(got); got[0] != one || got[1] != other {
		b.t.Fatalf("got  %q\nwant %q", got, []string{one, other})
	}
}

// nothing checks that nothing comes within a minute.
func (b *bench) nothing() {
	b.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if got, err := b.w.Next(ctx); !errors.Is(err, context.DeadlineExceeded) {
		b.t.Fatalf("got %s, %v", describe(got), err)
	}
}

func describe(b Batch) string {
	kinds := []string{"events", "created", "refused", "canceled", "compacted", "progress"}
	s := fmt.Sprintf("%s %d %d:", kinds[b.Kind], b.ID, b.Revision)
	for _, e := range b.Events {
		op := "put"
		if e.Type == kv.Delete {
			op = "delete"
		}
		s += fmt.Sprintf(" %s %s@%d", op, e.KV.Key, e.Revision.Main)
		if p := e.Prev(); p != nil {
			s += fmt.Sprintf("(%s@%d)", p.Value, p.ModRevision)
		}
	}
	if b.CompactRevision != 0 {
		s += fmt.Sprintf(" from %d", b.CompactRevision)
	}
	if b.Err != nil {
		s += " " + b.Err.Error()
	}
	return s
}

func all() kv.Range { return kv.Range{Key: []byte{0}, End: []byte{0}} }

func single(key string) kv.Range { return kv.Range{Key: []byte(key)} }

// TestStartRevisions: 0 is from now on; the past is caught up with, in one header revision; a future one waits (E#20286);
// a negative one is refused (E#20707).
func TestStartRevisions(t *testing.T) {
	scenario(t, Options{}, func(b *bench) {
		b.put("a", "b", "a") // 2 3 4
		b.create(CreateOptions{Range: single("a")})
		b.create(CreateOptions{Range: single("a"), StartRevision: 2})
		b.want("events 1 4: put a@2 put a@4")
		b.create(CreateOptions{Range: single("a"), StartRevision: 7})
		b.put("a")
		b.put("b", "a") // 5 6 7
		b.want("events 0 7: put a@5 put a@7")
		b.want("events 1 7: put a@5 put a@7")
		b.want("events 2 7: put a@7")
		if _, err := b.w.Create(context.Background(), CreateOptions{Range: all(), StartRevision: -1}); err != nil {
			t.Fatal(err)
		}
		b.want("refused -1 7: required revision has been compacted")
		b.nothing()
	})
}

// TestRefusals: the reasons why a watcher is not made, in their turn.
func TestRefusals(t *testing.T) {
	scenario(t, Options{}, func(b *bench) {
		ctx := context.Background()
		for _, o := range []CreateOptions{
			{ID: 5, Range: all()},
			{ID: 5, Range: single("a")},
			{Range: kv.Range{Key: []byte("b"), End: []byte("b")}},
			{Range: kv.Range{Key: []byte("b"), End: []byte("a")}},
			{}, // the key that sorts first
			{ID: 1, Range: single("a")},
			{Range: single("a")}, // the next free id
			{Range: single("a")},
		} {
			if _, err := b.w.Create(ctx, o); err != nil {
				t.Fatal(err)
			}
		}
		if err := errors.Join(b.w.Refuse(ctx, kv.ErrNoSpace), b.w.Cancel(ctx, 77), b.w.Cancel(ctx, 5), b.w.Cancel(ctx, 5)); err != nil {
			t.Fatal(err)
		}
		b.want("created 5 1:")
		b.want("refused -1 1: " + ErrDuplicateID.Error())
		b.want("refused -1 1: " + ErrEmptyRange.Error())
		b.want("refused -1 1: " + ErrEmptyRange.Error())
		b.want("created 0 1:")
		b.want("created 1 1:")
		b.want("created 2 1:")
		b.want("created 3 1:")
		b.want("refused -1 1: " + kv.ErrNoSpace.Error())
		b.want("canceled 5 1:")
		b.txn([2]string{"\x00", "first"})
		b.want("events 0 2: put \x00@2")
		b.nothing()
	})
}

// TestCompacted: a start that is compacted, a start at the compact revision, and a delete at it (E#18089, E#19179).
func TestCompacted(t *testing.T) {
	scenario(t, Options{RingEvents: 1}, func(b *bench) {
		b.put("a", "a") // 2 3
		b.txn([2]string{"a", ""})
		b.put("b") // 5
		b.s.compactTo(4)
		b.create(CreateOptions{Range: all(), StartRevision: 3})
		b.want("compacted 0 0: from 4")
		b.create(CreateOptions{Range: all(), StartRevision: 4, PrevKV: true})
		b.want("events 1 5: delete a@4 put b@5")
		if err := b.w.Cancel(context.Background(), 0); err != nil {
			t.Fatal(err)
		}
		b.want("canceled 0 5:") // the id of an ended watcher is answered once
		if err := b.w.Cancel(context.Background(), 0); err != nil {
			t.Fatal(err)
		}
		b.nothing()
	})
}

// TestManyLaggingAtCompaction (E#21174): a compaction passes a thousand watchers that are behind; each is told so.
func TestManyLaggingAtCompaction(t *testing.T) {
	scenario(t, Options{RingEvents: 4, SliceEvents: 5}, func(b *bench) {
		for range 100 {
			b.put("a")
		}
		for i := range 1000 {
			b.create(CreateOptions{Range: single("none"), StartRevision: int64(2 + i%20)})
		}
		if s := b.h.Stats(); s.Slow != 1000 || s.Watchers != 1000 {
			t.Fatalf("stats %+v", s)
		}
		b.s.compactTo(50)
		for range 1000 {
			if got := b.next(); got.Kind != Compacted || got.CompactRevision != 50 {
				t.Fatalf("got %s", describe(got))
			}
		}
		if s := b.h.Stats(); s.Slow != 0 || s.Watchers != 0 {
			t.Fatalf("stats %+v", s)
		}
	})
}

// TestCompactionSparesTheRing: a slow watcher whose events are in the ring loses nothing by a compaction.
func TestCompactionSparesTheRing(t *testing.T) {
	scenario(t, Options{WatcherPending: 2}, func(b *bench) {
		b.create(CreateOptions{Range: all()})
		b.put("a", "b", "c", "d")
		synctest.Wait()
		b.s.compactTo(5)
		b.want("events 0 5: put a@2 put b@3 put c@4 put d@5")
	})
}

// TestFilters: events that are filtered out are neither sent nor waked for.
func TestFilters(t *testing.T) {
	scenario(t, Options{}, func(b *bench) {
		b.create(CreateOptions{Range: all(), NoPut: true})
		b.create(CreateOptions{Range: all(), NoDelete: true})
		b.create(CreateOptions{Range: all(), NoDelete: true, NoPut: true, StartRevision: 1})
		b.put("a")
		b.txn([2]string{"a", ""}, [2]string{"b", "1"})
		b.want("events 1 3: put a@2 put b@3")
		b.want("events 0 3: delete a@3")
		b.nothing()
	})
}

// TestPrevKV: the pair that was replaced, from the ring and from the store, none for a new key, none once it is compacted.
func TestPrevKV(t *testing.T) {
	for _, ring := range []int{1, 100} {
		scenario(t, Options{RingEvents: ring}, func(b *bench) {
			b.create(CreateOptions{Range: all(), PrevKV: true})
			b.txn([2]string{"a", "1"})
			b.want("events 0 2: put a@2")
			b.txn([2]string{"a", "2"})
			b.want("events 0 3: put a@3(1@2)")
			b.txn([2]string{"a", ""})
			b.want("events 0 4: delete a@4(2@3)")
			b.txn([2]string{"a", "3"})
			b.want("events 0 5: put a@5")
			b.create(CreateOptions{Range: all(), PrevKV: true, StartRevision: 3})
			b.want("events 1 5: put a@3(1@2) delete a@4(2@3) put a@5")
			b.s.compactTo(3) // 1@2 cannot be read any more, though it was given out before
			b.create(CreateOptions{Range: all(), PrevKV: true, StartRevision: 3})
			b.want("events 2 5: put a@3 delete a@4(2@3) put a@5")
		})
	}
}

// TestProgressRequests: an answer comes after all events up to the request (E#15220), though nothing else ever goes quiet
// (E#17507), one for each request, not for a watcher that is yet to begin, and not without watchers.
func TestProgressRequests(t *testing.T) {
	scenario(t, Options{RingEvents: 2, SliceEvents: 1, BatchRevisions: 1}, func(b *bench) {
		b.w.RequestProgress() // nobody to speak for
		b.put("a", "a", "a")  // 2 3 4
		b.create(CreateOptions{Range: all(), StartRevision: 2})
		b.w.RequestProgress()
		for i := range 3 {
			b.put("a")
			b.want(fmt.Sprintf("events 0 %d: put a@%d", i+2, i+2))
		}
		b.put("a")
		b.want("progress -1 4:")
		for i := range 4 {
			b.want(fmt.Sprintf("events 0 %d: put a@%d", i+5, i+5))
		}
		b.w.RequestProgress()
		b.w.RequestProgress()
		b.want("progress -1 8:")
		b.want("progress -1 8:")
		b.create(CreateOptions{Range: single("b"), StartRevision: 10})
		b.w.RequestProgress()
		b.nothing()
		b.put("c")
		b.want("events 0 9: put c@9")
		b.nothing()
		b.put("c")
		b.want("events 0 10: put c@10")
		b.want("progress -1 10:")
		b.create(CreateOptions{Range: single("b"), StartRevision: 100})
		b.w.RequestProgress()
		if err := b.w.Cancel(context.Background(), 2); err != nil {
			t.Fatal(err)
		}
		b.want("canceled 2 10:")
		b.want("progress -1 10:")
		b.nothing()
	})
}

// TestProgressNotify: watchers that asked are told their progress at intervals in which they got nothing.
func TestProgressNotify(t *testing.T) {
	scenario(t, Options{ProgressInterval: 10 * time.Minute}, func(b *bench) {
		start := time.Now()
		b.create(CreateOptions{Range: single("a"), ProgressNotify: true})
		b.create(CreateOptions{Range: single("a")})
		b.create(CreateOptions{Range: single("b"), ProgressNotify: true, StartRevision: 4})
		b.put("x") // 2
		b.want("progress 0 2:")
		if waited := time.Since(start); waited < 10*time.Minute || waited > 11*time.Minute {
			t.Fatalf("progress after %v", waited)
		}
		b.put("a") // 3
		b.want("events 0 3: put a@3")
		b.want("events 1 3: put a@3")
		start = time.Now()
		b.want("progress 0 3:")
		if waited := time.Since(start); waited < 20*time.Minute-time.Second || waited > 20*time.Minute {
			t.Fatalf("progress after %v", waited)
		}
	})
}

// TestSnapshot (E#15515): the store is replaced; watchers go on from their cursors, get nothing of the past, keep their
// starts in the future, and end if their next revision is compacted there.
func TestSnapshot(t *testing.T) {
	scenario(t, Options{}, func(b *bench) {
		b.put("a", "a", "a") // 2 3 4
		b.create(CreateOptions{Range: single("a")})
		b.create(CreateOptions{Range: single("a"), StartRevision: 9})
		b.create(CreateOptions{Range: single("c")})
		for range 6 {
			b.s.txn([2]string{"a", "new"}) // 5 to 10, made elsewhere
		}
		b.h.Reset(b.s)
		b.want("events 0 10: put a@5 put a@6 put a@7 put a@8 put a@9 put a@10")
		b.want("events 1 10: put a@9 put a@10")
		b.put("a") // 11
		b.wantBoth("events 0 11: put a@11", "events 1 11: put a@11")
		b.create(CreateOptions{Range: single("a"), StartRevision: 40})
		for range 20 {
			b.s.txn([2]string{"a", "new"})
		}
		b.s.compactTo(20)
		b.h.Reset(b.s)
		ended := map[int64]bool{}
		for range 3 {
			got := b.next()
			if got.Kind != Compacted || got.CompactRevision != 20 {
				t.Fatalf("got %s", describe(got))
			}
			ended[got.ID] = true
		}
		if !ended[0] || !ended[1] || !ended[2] {
			t.Fatalf("ended: %v", ended)
		}
		b.nothing()
	})
}

// TestWholeRevisions: a revision larger than the ring and all bounds comes in one batch, caught up with or not.
func TestWholeRevisions(t *testing.T) {
	o := Options{RingEvents: 10, WatcherPending: 3, StreamPending: 5, SliceEvents: 2, BatchBytes: 1, BatchRevisions: 1}
	scenario(t, o, func(b *bench) {
		b.create(CreateOptions{Range: all()})
		for i, n := range []int{1, 8, 500, 2} {
			var changes [][2]string
			for k := range n {
				changes = append(changes, [2]string{fmt.Sprintf("key%03d", k), "v"})
			}
			b.txn(changes...)
			if i%2 == 0 {
				synctest.Wait()
			}
		}
		b.create(CreateOptions{Range: all(), StartRevision: 2})
		sizes := map[int64][]int{}
		for range 8 {
			got := b.next()
			sizes[got.ID] = append(sizes[got.ID], len(got.Events))
		}
		if got := fmt.Sprint(sizes); got != "map[0:[1 8 500 2] 1:[1 8 500 2]]" {
			t.Fatalf("batches of %s", got)
		}
	})
}

// TestNobodyWaits: while one stream is stuck in reading the store and another is never read, publishing takes no time, and
// what they cost stays within bounds.
// With etcd a watcher far behind holds writers up (E#22264, E#18109, E#16839).
func TestNobodyWaits(t *testing.T) {
	o := Options{RingEvents: 64, WatcherPending: 16, StreamPending: 32, Reads: 1}
	scenario(t, o, func(b *bench) {
		for range 100 {
			b.put("a")
		}
		stuck, silent := b.h.NewStream(), b.h.NewStream()
		defer stuck.Close()
		defer silent.Close()
		b.s.slow = func() { time.Sleep(time.Hour) }
		for i := range 100 {
			for _, s := range []*Stream{stuck, silent} {
				if _, err := s.Create(context.Background(), CreateOptions{Range: all(), StartRevision: int64(i % 3)}); err != nil {
					t.Fatal(err)
				}
				if s == stuck {
					if _, err := s.Next(context.Background()); err != nil {
						t.Fatal(err)
					}
				} else {
					<-s.room // as if sent
				}
			}
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { _, err := stuck.Next(ctx); done <- err }()
		synctest.Wait()
		start := time.Now()
		for range 1000 {
			b.put("a", "b")
		}
		if took := time.Since(start); took != 0 {
			t.Fatalf("publishing took %v", took)
		}
		synctest.Wait()
		if s := b.h.Stats(); s.Pending > 2*32 || s.RingEvents > 64 {
			t.Fatalf("stats %+v", s)
		}
		cancel()
		if err := <-done; !errors.Is(err, context.Canceled) {
			t.Fatal(err)
		}
		for range 34 { // give back what was taken
			select {
			case silent.room <- struct{}{}:
			default:
			}
		}
	})
}

// TestSharedEncoding: an event is encoded once for all watchers of the same options, and counted against the ring.
func TestSharedEncoding(t *testing.T) {
	scenario(t, Options{RingBytes: 4000}, func(b *bench) {
		b.txn([2]string{"a", "0"})
		encoded := map[bool]int{}
		encode := func(dst []byte, e *Event, prev *kv.KeyValue) []byte {
			encoded[prev != nil]++
			return append(dst, e.KV.Value...)
		}
		for i := range 6 {
			b.create(CreateOptions{Range: all(), PrevKV: i%2 == 0})
		}
		b.txn([2]string{"a", "1"})
		before := int64(0)
		for i := range 6 {
			got := b.next()
			if i == 0 {
				before = b.h.Stats().RingBytes
			}
			if w := got.Events[0].Wire(got.PrevKV, encode); string(w) != "1" {
				t.Fatalf("encoded %q", w)
			}
		}
		if encoded[true] != 1 || encoded[false] != 1 {
			t.Fatalf("encoded %v", encoded)
		}
		if after := b.h.Stats().RingBytes; after <= before {
			t.Fatalf("the ring holds %d bytes after %d", after, before)
		}
		b.txn([2]string{"a", "2"})
		b.next().Events[0].Wire(false, func([]byte, *Event, *kv.KeyValue) []byte { return make([]byte, 1_000_000) })
		if s := b.h.Stats(); s.RingBytes > 4000 {
			t.Fatalf("the ring holds %d bytes", s.RingBytes)
		}
	})
}

// TestControlQueue: a client that sends requests and reads no answers is held up, not remembered without bound.
func TestControlQueue(t *testing.T) {
	scenario(t, Options{ControlQueue: 3}, func(b *bench) {
		for range 3 {
			if _, err := b.w.Create(context.Background(), CreateOptions{Range: all()}); err != nil {
				t.Fatal(err)
			}
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := b.w.Create(ctx, CreateOptions{Range: all()}); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatal(err)
		}
		done := make(chan error)
		go func() { done <- b.w.Cancel(context.Background(), 1) }()
		b.want("created 0 1:")
		if err := <-done; err != nil {
			t.Fatal(err)
		}
		b.want("created 1 1:")
		b.want("created 2 1:")
		b.want("canceled 1 1:")
	})
}

// TestEnds: streams end by Close, by the hub, and by a store that cannot be read, and say so to everybody who waits.
func TestEnds(t *testing.T) {
	scenario(t, Options{RingEvents: 1}, func(b *bench) {
		ends := make(chan error, 2)
		wait := func(s *Stream) {
			_, err := s.Next(context.Background())
			ends <- err
		}
		s := b.h.NewStream()
		go wait(s)
		synctest.Wait()
		s.Close()
		s.Close()
		if err := <-ends; !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		if _, err := s.Create(context.Background(), CreateOptions{}); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		if err := s.Cancel(context.Background(), 0); !errors.Is(err, ErrClosed) {
			t.Fatal(err)
		}
		b.put("a", "b")
		b.create(CreateOptions{Range: all(), StartRevision: 1})
		b.s.compactedRead = true
		b.s.slow = func() { panic("not read") }
		b.s.events[0].Revision.Main = 2
		go wait(b.h.NewStream())
		synctest.Wait()
		b.h.Close()
		if err := <-ends; !errors.Is(err, kv.ErrStopped) {
			t.Fatal(err)
		}
		if _, err := b.w.Next(context.Background()); !errors.Is(err, kv.ErrStopped) {
			t.Fatal(err)
		}
		if _, err := b.h.NewStream().Next(context.Background()); !errors.Is(err, kv.ErrStopped) {
			t.Fatal(err)
		}
	})
}

// TestPublishOrder: revisions that come twice or backwards are a broken invariant of the apply loop.
func TestPublishOrder(t *testing.T) {
	scenario(t, Options{}, func(b *bench) {
		events := b.s.txn([2]string{"a", "1"})
		b.h.Publish(2, events)
		defer func() {
			if text := fmt.Sprint(recover()); !strings.Contains(text, "from revision 2 to 2 published after revision 2") {
				t.Fatalf("panic: %v", text)
			}
		}()
		b.h.Publish(2, events)
	})
}
