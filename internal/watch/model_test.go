package watch

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/kv"
)

// expectation is what a watcher must be given from now on.
type expectation struct {
	o    CreateOptions
	next int64 // everything of an older revision was given out
	// over: it gets nothing any more; canceled: its id is free.
	over, canceled bool
}

func (x *expectation) wants(e kv.Event) bool {
	return x.o.Contains(e.KV.Key) && !(e.Type == kv.Put && x.o.NoPut) && !(e.Type == kv.Delete && x.o.NoDelete)
}

// client is one stream of the model test and what it may be given.
type client struct {
	t     *testing.T
	store *fakeStore
	s     *Stream

	mu       sync.Mutex
	made     []CreateOptions // not answered yet, in order
	watchers map[int64]*expectation
	asked    int64 // the store's revision when progress was last asked for
	answers  int   // requests for progress that may yet be answered
	last     int64 // the last progress of the whole stream
	given    int
}

func (c *client) fatalf(format string, args ...any) {
	c.t.Helper()
	c.t.Errorf(format, args...)
	panic("the stream broke a promise")
}

// take checks one batch against the history of the store.
func (c *client) take(b Batch) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch b.Kind {
	case Created:
		o := c.made[0]
		c.made = c.made[1:]
		if o.ID != 0 && o.ID != b.ID {
			c.fatalf("watcher %d was made as %d", o.ID, b.ID)
		}
		x := &expectation{o: o, next: o.StartRevision}
		if x.next == 0 {
			x.next = b.Revision + 1
		}
		if old := c.watchers[b.ID]; old != nil && !old.canceled {
			c.fatalf("watcher %d was made twice", b.ID)
		}
		c.watchers[b.ID] = x
	case Refused:
		o := c.made[0]
		c.made = c.made[1:]
		c.checkRefusal(o, b)
	case Canceled:
		// A watcher that has ended by a compaction is there until it is cancelled.
		x := c.watchers[b.ID]
		if x == nil || x.canceled {
			c.fatalf("cancelled watcher %d, which is not there", b.ID)
		}
		x.over, x.canceled = true, true
	case Compacted:
		x := c.watcher(b)
		if x.over = true; b.CompactRevision <= x.next {
			c.fatalf("watcher %d ended because of a compaction at %d, but wants revision %d", b.ID, b.CompactRevision, x.next)
		}
	case Progress:
		c.progress(b)
	case Events:
		c.events(b)
	}
}

func (c *client) checkRefusal(o CreateOptions, b Batch) {
	x := c.watchers[o.ID]
	switch {
	case o.StartRevision < 0 && errors.Is(b.Err, kv.ErrCompacted):
	case !o.Single() && string(o.Key) >= string(o.End) && errors.Is(b.Err, ErrEmptyRange):
	case x != nil && errors.Is(b.Err, ErrDuplicateID):
	default:
		c.fatalf("%+v was refused: %v", o, b.Err)
	}
}

func (c *client) watcher(b Batch) *expectation {
	x := c.watchers[b.ID]
	if x == nil || x.over {
		c.fatalf("batch of kind %d for watcher %d, which is not there", b.Kind, b.ID)
	}
	return x
}

// silent checks that x has been given everything up to rev.
func (c *client) silent(what string, id int64, x *expectation, rev int64) {
	for _, e := range c.store.between(x.next, rev) {
		if x.wants(e) {
			c.fatalf("%s at %d for watcher %d, which was not given %v of %q", what, rev, id, e.Revision, e.KV.Key)
		}
	}
	x.next = max(x.next, rev+1)
}

func (c *client) progress(b Batch) {
	if b.ID != InvalidID {
		if x := c.watcher(b); x.o.StartRevision > b.Revision {
			c.fatalf("progress %d of watcher %d, which begins at %d", b.Revision, b.ID, x.o.StartRevision)
		}
		c.silent("progress", b.ID, c.watcher(b), b.Revision)
		return
	}
	if c.answers--; c.answers < 0 {
		c.fatalf("progress that nobody asked for")
	}
	if b.Revision < c.last || c.requests() == 0 && b.Revision < c.asked {
		c.fatalf("progress %d after %d, asked for at %d", b.Revision, c.last, c.asked)
	}
	c.last = b.Revision
	for id, x := range c.watchers {
		if !x.over {
			if x.o.StartRevision > b.Revision {
				c.fatalf("progress %d with a watcher that begins at %d", b.Revision, x.o.StartRevision)
			}
			c.silent("progress", id, x, b.Revision)
		}
	}
}

func (c *client) events(b Batch) {
	x := c.watcher(b)
	if len(b.Events) == 0 {
		c.fatalf("an empty batch for watcher %d", b.ID)
	}
	last := b.Events[len(b.Events)-1].Revision.Main
	got := b.Events
	for _, want := range c.store.between(x.next, last) {
		if !x.wants(want) {
			continue
		}
		if len(got) == 0 {
			c.fatalf("watcher %d was not given %v of %q", b.ID, want.Revision, want.KV.Key)
		}
		e := got[0]
		got = got[1:]
		if e.Revision != want.Revision || e.Type != want.Type || string(e.KV.Key) != string(want.KV.Key) || string(e.KV.Value) != string(want.KV.Value) {
			c.fatalf("watcher %d was given %v of %q, want %v of %q, from %d on", b.ID, e.Revision, e.KV.Key, want.Revision, want.KV.Key, x.next)
		}
		if b.PrevKV {
			c.checkPrev(e)
		}
	}
	if len(got) > 0 {
		c.fatalf("watcher %d was given %v of %q again, or before its start %d", b.ID, got[0].Revision, got[0].KV.Key, x.next)
	}
	x.next = last + 1
	if b.Revision < last {
		c.fatalf("header revision %d with an event of %d", b.Revision, last)
	}
	c.silent("header", b.ID, x, b.Revision)
	c.given += len(b.Events)
}

// checkPrev: the previous pair is the key at the revision before, or absent if the event made the key or if that revision
// is compacted.
func (c *client) checkPrev(e *Event) {
	prev := e.Prev()
	old, existed := c.store.before(e.Event)
	existed = existed && !e.Creates()
	if prev == nil {
		if existed && c.store.CompactRevision() < e.Revision.Main {
			c.fatalf("event %v has no previous pair", e.Revision)
		}
		return
	}
	if !existed || old.ModRevision != prev.ModRevision || string(old.Value) != string(prev.Value) || string(prev.Key) != string(e.KV.Key) {
		c.fatalf("event %v has the previous pair %q=%q", e.Revision, prev.Key, prev.Value)
	}
}

// consume takes batches until the stream ends, at a random pace.
func (c *client) consume(r *rand.Rand) {
	for {
		b, err := c.s.Next(context.Background())
		if errors.Is(err, ErrClosed) {
			return
		}
		if err != nil {
			c.fatalf("next: %v", err)
		}
		for ready := true; ready; {
			c.take(b)
			if ready = r.IntN(4) > 0; ready {
				b, ready, err = c.s.Ready()
			}
			if err != nil {
				c.fatalf("what is ready: %v", err)
			}
		}
		nap(r, 20*time.Millisecond)
	}
}

// act makes random requests.
func (c *client) act(r *rand.Rand) {
	ctx := context.Background()
	switch r.IntN(5) {
	case 0, 1:
		o := CreateOptions{
			Range: kv.Range{Key: []byte(key(r))}, NoPut: r.IntN(5) == 0, NoDelete: r.IntN(5) == 0,
			PrevKV: r.IntN(2) == 0, ProgressNotify: r.IntN(2) == 0,
		}
		switch r.IntN(4) {
		case 0:
			o.End = []byte(key(r))
		case 1:
			o.End = []byte{0}
		}
		switch rev := c.store.Revision(); r.IntN(6) {
		case 0:
			o.StartRevision = rev + r.Int64N(10)
		case 1, 2, 3:
			o.StartRevision = r.Int64N(rev + 1)
		case 4:
			o.StartRevision = -r.Int64N(2)
		}
		if r.IntN(3) == 0 {
			o.ID = 1 + r.Int64N(20)
		}
		c.mu.Lock()
		c.made = append(c.made, o)
		c.mu.Unlock()
		if _, err := c.s.Create(ctx, o); err != nil {
			c.fatalf("create: %v", err)
		}
	case 2:
		if err := c.s.Cancel(ctx, r.Int64N(20)); err != nil {
			c.fatalf("cancel: %v", err)
		}
	case 3:
		c.request()
	}
	nap(r, 50*time.Millisecond)
}

// requests is how many requests for progress the stream has yet to answer.
func (c *client) requests() int {
	c.s.mu.Lock()
	defer c.s.mu.Unlock()
	return c.s.requests
}

func (c *client) request() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.answers++ // an upper bound: a stream without watchers does not answer
	c.asked = c.store.Revision()
	c.s.RequestProgress()
}

func key(r *rand.Rand) string { return string(rune('a' + r.IntN(8))) }

// write makes random revisions and compactions, and now and then puts another store in place, as a snapshot would.
func write(h *Hub, s *fakeStore, r *rand.Rand, n int) {
	for range n {
		var events []kv.Event
		for range 1 + r.IntN(3) {
			var changes [][2]string
			used := map[string]bool{}
			for range 1 + r.IntN(4) {
				if k := key(r); !used[k] {
					used[k] = true
					v := fmt.Sprint(r.IntN(1000))
					if r.IntN(3) == 0 {
						v = ""
					}
					changes = append(changes, [2]string{k, v})
				}
			}
			events = append(events, s.txn(changes...)...)
		}
		if r.IntN(30) == 0 {
			h.Reset(s) // the events came with the snapshot
		} else {
			nap(r, time.Millisecond) // the store is ahead of the hub
			h.Publish(s.Revision(), events)
		}
		if r.IntN(20) == 0 {
			s.compactTo(max(s.Revision()-r.Int64N(40), 1))
		}
		nap(r, 5*time.Millisecond)
	}
}

func tightOptions(r *rand.Rand, s *fakeStore) Options {
	return Options{
		History: s, RingEvents: 8 + r.IntN(40), RingBytes: 2000 + r.Int64N(40000), BatchBytes: 1 + r.IntN(40),
		BatchRevisions: 1 + r.IntN(8), WatcherPending: 1 + r.IntN(8), StreamPending: 1 + r.IntN(20),
		SliceEvents: 1 + r.IntN(30), Reads: 1 + r.IntN(2), ControlQueue: 1 + r.IntN(3), ProgressInterval: 300 * time.Millisecond,
	}
}

// TestModel lets random watchers, slow ones and ones from the past among them, follow random writes through bounds so
// tight that all of them are hit, and compares everything they are told with the history of the store.
func TestModel(t *testing.T) {
	seeds := uint64(60)
	if testing.Short() {
		seeds = 10
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			bubble.Test(t, func(t *testing.T) { testModel(t, seed) })
		})
	}
}

func testModel(t *testing.T, seed uint64) {
	r := rand.New(rand.NewPCG(seed, 7))
	fork := func() *rand.Rand { return rand.New(rand.NewPCG(r.Uint64(), 0)) }
	s := newFakeStore()
	s.compactedRead = r.IntN(2) == 0
	slow := fork()
	var slowMu sync.Mutex
	s.slow = func() {
		slowMu.Lock()
		d := time.Duration(slow.Int64N(int64(3 * time.Millisecond)))
		slowMu.Unlock()
		time.Sleep(d)
	}
	h := New(tightOptions(r, s))
	clients := make([]*client, 1+r.IntN(4))
	var consumers, actors sync.WaitGroup
	for i := range clients {
		c := &client{t: t, store: s, s: h.NewStream(), watchers: map[int64]*expectation{}}
		clients[i] = c
		pace, acts := fork(), fork()
		consumers.Go(func() { c.consume(pace) })
		actors.Go(func() {
			for range 60 {
				c.act(acts)
			}
		})
	}
	write(h, s, fork(), 400)
	actors.Wait()

	// Everybody must be told everything: up to the end, and that it is the end.
	for range 30 { // beyond all start revisions in the future
		events := s.txn([2]string{"a", "end"}, [2]string{"z", "end"})
		h.Publish(s.Revision(), events)
	}
	given := 0
	for i, c := range clients {
		last := CreateOptions{ID: 99, Range: kv.Range{Key: []byte("none")}}
		c.mu.Lock()
		c.made = append(c.made, last)
		c.mu.Unlock()
		if _, err := c.s.Create(context.Background(), last); err != nil {
			t.Fatal(err)
		}
		c.request()
		time.Sleep(time.Minute)
		c.mu.Lock()
		if c.requests() != 0 || c.last != s.Revision() || len(c.made) != 0 {
			t.Errorf("stream %d: %d requests without an answer, last progress %d of %d, %d unanswered", i, c.requests(), c.last, s.Revision(), len(c.made))
		}
		given += c.given
		c.mu.Unlock()
	}
	stats := h.Stats()
	if stats.Pending != 0 || stats.Slow != 0 || stats.Delivered != int64(given) || stats.RingEvents > int64(h.o.RingEvents) || stats.RingBytes > h.o.RingBytes {
		t.Errorf("at rest: %+v, given %d", stats, given)
	}
	for _, c := range clients {
		c.s.Close()
	}
	consumers.Wait()
	if stats := h.Stats(); stats.Watchers != 0 || stats.Streams != 0 || len(h.index.keys) != 0 || h.index.ranges != nil {
		t.Errorf("after all have gone: %+v", stats)
	}
	h.Close()
}
