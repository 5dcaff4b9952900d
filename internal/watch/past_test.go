package watch

import (
	"context"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// replay makes a stream with one watcher from revision 2 on and takes the answer.
func (b *bench) replay(r kv.Range, o CreateOptions) *Stream {
	b.t.Helper()
	s := b.h.NewStream()
	o.Range, o.StartRevision = r, 2
	if _, err := s.Create(context.Background(), o); err != nil {
		b.t.Fatal(err)
	}
	if got, err := s.Next(context.Background()); err != nil || got.Kind != Created {
		b.t.Fatalf("created: %s, %v", describe(got), err)
	}
	return s
}

// TestSharedPast: streams that read the same history at about the same place read it from the store once, and encode it
// once; what nobody wants is not read; and the memory for it is bounded, and given back.
func TestSharedPast(t *testing.T) {
	const events = 200
	value := string(make([]byte, 1000))
	for _, room := range []int64{1, 1 << 20} {
		scenario(t, Options{RingEvents: 1, SliceEvents: 10 * wantedCost, PastBytes: room}, func(b *bench) {
			for i := range events {
				b.txn([2]string{fmt.Sprintf("a%03d", i), value}, [2]string{"b", value})
			}
			b.put("end") // in the ring
			b.s.pairs = 0
			a := kv.Range{Key: []byte("a"), End: []byte("b")}
			streams := []*Stream{
				b.replay(a, CreateOptions{}), b.replay(kv.Range{Key: []byte("a0"), End: []byte("b")}, CreateOptions{}),
				b.replay(a, CreateOptions{PrevKV: true}), b.replay(kv.Range{Key: []byte("a"), End: []byte("aa")}, CreateOptions{NoDelete: true}),
			}
			encoded := 0
			got := make([]int, len(streams))
			for got[0] < events || got[1] < events || got[2] < events || got[3] < events {
				for i, s := range streams {
					ctx, cancel := context.WithTimeout(context.Background(), time.Second)
					batch, err := s.Next(ctx)
					cancel()
					if err != nil {
						continue // it has everything
					}
					for _, e := range batch.Events {
						got[i]++
						if want := fmt.Sprintf("a%03d", e.Revision.Main-2); string(e.KV.Key) != want {
							t.Fatalf("revision %d is of %q", e.Revision.Main, e.KV.Key)
						}
						e.Wire(batch.PrevKV, func(dst []byte, e *Event, _ *kv.KeyValue) []byte {
							encoded++
							return append(dst, e.KV.Value...)
						})
					}
					if size := b.h.source.past.size(); size > room {
						t.Fatalf("%d bytes of history are held", size)
					}
				}
			}
			if fmt.Sprint(got) != "[200 200 200 200]" {
				t.Fatalf("given %v", got)
			}
			if want := events; room > 1 && (b.s.pairs != want || encoded != want) {
				t.Errorf("%d pairs were read and %d events encoded, want %d", b.s.pairs, encoded, want)
			}
			if want := 4 * events; room == 1 && (b.s.pairs < want || encoded != want) {
				t.Errorf("%d pairs were read and %d events encoded without room to share, want %d", b.s.pairs, encoded, want)
			}
			for _, s := range streams {
				s.Close()
			}
			if size, behind := b.h.source.past.size(), b.h.behind.Load(); size != 0 || behind != 0 {
				t.Errorf("%d bytes of history are held, and %d streams are behind, after all have gone", size, behind)
			}
		})
	}
}

// TestPastIsWhole: a piece that was read while its watcher was cancelled serves another stream with nothing missing.
func TestPastIsWhole(t *testing.T) {
	scenario(t, Options{RingEvents: 1}, func(b *bench) {
		for range 40 {
			b.put("a")
		}
		b.put("end")
		first := b.replay(single("a"), CreateOptions{})
		defer first.Close()
		b.s.slow = func() { time.Sleep(time.Second) }
		go func() {
			time.Sleep(3500 * time.Millisecond)
			if err := first.Cancel(context.Background(), 0); err != nil {
				t.Error(err)
			}
		}()
		go first.Next(context.Background())
		time.Sleep(500 * time.Millisecond) // it has the turn
		second := b.replay(single("a"), CreateOptions{})
		defer second.Close()
		got, err := second.Next(context.Background())
		if err != nil || len(got.Events) != 40 {
			t.Fatalf("got %s, %v", describe(got), err)
		}
		if b.s.reads != 1 {
			t.Fatalf("history was read %d times", b.s.reads)
		}
	})
}

// TestManyRanges: a slice for more ranges than are remembered gives each what it wants, and is not shared.
func TestManyRanges(t *testing.T) {
	scenario(t, Options{RingEvents: 1}, func(b *bench) {
		const keys = 3 * maxCovers
		for i := range keys {
			b.put(fmt.Sprintf("k%02d", i))
		}
		b.put("other", "end")
		b.s.pairs = 0
		for i := range keys {
			b.create(CreateOptions{Range: single(fmt.Sprintf("k%02d", i)), StartRevision: 2})
			b.want(fmt.Sprintf("events %d %d: put k%02d@%d", i, b.s.Revision(), i, i+2))
		}
		for i := range keys {
			if err := b.w.Cancel(context.Background(), int64(i)); err != nil {
				t.Fatal(err)
			}
			b.next()
		}
		if b.s.pairs != keys {
			t.Fatalf("%d pairs were read one by one", b.s.pairs)
		}
		for i := range keys {
			if _, err := b.w.Create(context.Background(), CreateOptions{Range: single(fmt.Sprintf("k%02d", i)), StartRevision: 2}); err != nil {
				t.Fatal(err)
			}
			<-b.w.room // as if sent
		}
		b.w.control = nil
		for i := range keys {
			b.want(fmt.Sprintf("events %d %d: put k%02d@%d", keys+i, b.s.Revision(), i, i+2))
		}
		if b.s.pairs != 2*keys || b.h.source.past.size() != 0 {
			t.Fatalf("%d pairs were read, %d bytes are held", b.s.pairs, b.h.source.past.size())
		}
	})
}

// paced replays history while writers publish something every so often, or at least wait for a write, and returns how
// much of the time was spent reading, in percent, and how much time that was.
func paced(t *testing.T, every time.Duration, writing bool) (share int64, took time.Duration) {
	scenario(t, Options{RingEvents: 1, SliceEvents: wantedCost, Writing: func() bool { return writing }}, func(b *bench) {
		for range 200 {
			b.put("a")
		}
		s := b.replay(single("a"), CreateOptions{})
		defer s.Close()
		const read = 2 * time.Millisecond
		b.s.slow = func() { time.Sleep(read) }
		stop := make(chan struct{})
		if every > 0 {
			go func() {
				for {
					select {
					case <-stop:
						return
					case <-time.After(every):
						events := b.s.txn([2]string{"b", "1"})
						b.h.Publish(b.s.Revision(), events)
					}
				}
			}()
			time.Sleep(every + 1)
		}
		start := time.Now()
		for got := 0; got < 200; {
			batch, err := s.Next(context.Background())
			if err != nil {
				t.Fatal(err)
			}
			got += len(batch.Events)
		}
		close(stop)
		took = time.Since(start)
		share = int64(200 * read * 100 / took)
		synctest.Wait()
	})
	return share, took
}

// TestPace: reading history leaves most of the time to writers, so long as there are some, yet it gains on them.
func TestPace(t *testing.T) {
	most := int64(100/(1+restFactor) + 1)
	if share, took := paced(t, 0, false); share < 95 {
		t.Errorf("without writers %d %% of %v was spent reading", share, took)
	}
	if share, took := paced(t, 0, true); share > most {
		t.Errorf("while somebody waits for a write %d %% of %v was spent reading", share, took)
	}
	if share, took := paced(t, 5*time.Millisecond, false); share > most+35 {
		t.Errorf("with writers %d %% of %v was spent reading", share, took)
	}
	if share, took := paced(t, 100*time.Millisecond, false); share < 80 {
		t.Errorf("with a write now and then %d %% of %v was spent reading", share, took)
	}
}

// TestTurnIsInterrupted: while a stream waits for its turn to read history, the events of its other watchers and the
// answers to its requests come.
func TestTurnIsInterrupted(t *testing.T) {
	scenario(t, Options{RingEvents: 4, Reads: 1}, func(b *bench) {
		for range 10 {
			b.put("a")
		}
		b.h.reads <- struct{}{} // somebody reads
		b.create(CreateOptions{Range: single("b")})
		b.create(CreateOptions{Range: single("a"), StartRevision: 2})
		go func() {
			time.Sleep(time.Second)
			b.put("b")
		}()
		b.want("events 0 12: put b@12")
		go func() {
			time.Sleep(time.Second)
			<-b.h.reads
		}()
		b.want("events 1 12: put a@2 put a@3 put a@4 put a@5 put a@6 put a@7 put a@8 put a@9 put a@10 put a@11")
		b.nothing()
	})
}
