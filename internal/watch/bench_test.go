package watch

import (
	"context"
	"fmt"
	"runtime"
	"sync"
	"testing"

	"github.com/trivet-kv/trivet/internal/kv"
)

// makeEvents returns one revision of one put.
func makeEvents(rev int64, key []byte) []kv.Event {
	return []kv.Event{{Revision: kv.Revision{Main: rev}, KV: kv.KeyValue{Key: key, Value: make([]byte, 256), ModRevision: rev, CreateRevision: rev, Version: 1}}}
}

// BenchmarkOthers publishes events of a key that none of so many watchers wants, and waits until they are dispatched.
func BenchmarkOthers(b *testing.B) {
	for _, kind := range []string{"keys", "ranges"} {
		for _, n := range []int{0, 10_000} {
			b.Run(fmt.Sprintf("%s/%d", kind, n), func(b *testing.B) {
				h := New(Options{History: newFakeStore()})
				defer h.Close()
				s := h.NewStream()
				defer s.Close()
				for i := range n {
					r := kv.Range{Key: fmt.Appendf(nil, "other/%06d/", i)}
					if kind == "ranges" {
						r.End = fmt.Appendf(nil, "other/%06d0", i)
					}
					if _, err := s.Create(context.Background(), CreateOptions{Range: r}); err != nil {
						b.Fatal(err)
					}
					if _, err := s.Next(context.Background()); err != nil {
						b.Fatal(err)
					}
				}
				key := []byte("other/005000x")
				b.ReportAllocs()
				b.ResetTimer()
				for i := range b.N {
					h.Publish(int64(i)+2, makeEvents(int64(i)+2, key))
				}
				for h.dispatched.Load() < int64(b.N)+1 {
				}
			})
		}
	}
}

// BenchmarkFanOut delivers each event to a thousand streams with a watcher of one prefix each. The time is that of one
// event for all of them.
func BenchmarkFanOut(b *testing.B) {
	const streams = 1000
	h := New(Options{History: newFakeStore()})
	defer h.Close()
	var consumers sync.WaitGroup
	var all []*Stream
	for range streams {
		s := h.NewStream()
		all = append(all, s)
		if _, err := s.Create(context.Background(), CreateOptions{Range: kv.Range{Key: []byte("a"), End: []byte("b")}}); err != nil {
			b.Fatal(err)
		}
		consumers.Go(func() {
			for got := 0; got < b.N; {
				batch, err := s.Next(context.Background())
				if err != nil {
					b.Error(err)
					return
				}
				got += len(batch.Events)
				for _, e := range batch.Events {
					e.Wire(false, func(dst []byte, e *Event, _ *kv.KeyValue) []byte { return append(dst, e.KV.Value...) })
				}
			}
		})
	}
	b.ResetTimer()
	for i := range b.N {
		// Nobody may fall behind the ring: there is no store behind it here.
		for h.delivered.Load() < int64(i-10_000)*streams {
			runtime.Gosched()
		}
		h.Publish(int64(i)+2, makeEvents(int64(i)+2, []byte("abc")))
	}
	consumers.Wait()
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/streams, "ns/delivery")
	for _, s := range all {
		s.Close()
	}
}
