package mvcc

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

func benchStore(b *testing.B, keys, size int) (*engine.Engine, *Store) {
	b.Helper()
	e, err := engine.Open(engine.Options{FS: vfs.Default, Dir: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { e.Close() })
	s, err := Open(e, Options{})
	if err != nil {
		b.Fatal(err)
	}
	fill(b, e, s, keys, size)
	if err := e.Flush(); err != nil {
		b.Fatal(err)
	}
	return e, s
}

func benchPuts(b *testing.B, e *engine.Engine, s *Store, perBatch int, key func(i int) []byte) {
	value := make([]byte, 256)
	b.ReportAllocs()
	i := 0
	for b.Loop() {
		batch := e.NewBatch()
		w := s.NewWriter(batch)
		for range perBatch {
			t := w.Begin()
			if _, err := t.Put(key(i), value, 0); err != nil {
				b.Fatal(err)
			}
			t.End()
			i++
		}
		if err := batch.Set(engine.MetaApplied(), engine.AppendApplied(nil, uint64(i), 1)); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Publish(); err != nil {
			b.Fatal(err)
		}
		batch.Close()
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(i), "ns/put")
}

// A put of 256 bytes to one of 100,000 keys: of those in the cache, at random, and of keys never seen.
func BenchmarkPut(b *testing.B) {
	for _, perBatch := range []int{1, 64} {
		name := fmt.Sprintf("batch=%d/", perBatch)
		b.Run(name+"known", func(b *testing.B) {
			e, s := benchStore(b, 100_000, 256)
			benchPuts(b, e, s, perBatch, func(i int) []byte { return []byte(fmt.Sprintf("key/%08d", i%10_000)) })
		})
		b.Run(name+"random", func(b *testing.B) {
			e, s := benchStore(b, 500_000, 64)
			rng := rand.New(rand.NewPCG(1, 1))
			benchPuts(b, e, s, perBatch, func(int) []byte { return []byte(fmt.Sprintf("key/%08d", rng.IntN(500_000))) })
		})
		b.Run(name+"new", func(b *testing.B) {
			e, s := benchStore(b, 100_000, 256)
			rng := rand.New(rand.NewPCG(1, 1))
			benchPuts(b, e, s, perBatch, func(int) []byte { return []byte(fmt.Sprintf("key/%08d/%x", rng.IntN(100_000), rng.Uint64())) })
		})
	}
}

// BenchmarkLoad puts b.N values of 256 bytes, 200 to a batch, to as many keys in no order, or to a hundredth of them,
// and waits until the engine is at rest. The figure is the CPU of the process, flushes and compactions included.
func BenchmarkLoad(b *testing.B) {
	for _, kind := range []string{"new", "again"} {
		b.Run(kind, func(b *testing.B) {
			e, s := benchStore(b, 1, 256)
			value := make([]byte, 256)
			rng := rand.New(rand.NewPCG(1, 1))
			pick := func(n int) uint64 { return uint64(n) }
			if kind == "again" {
				pick = func(int) uint64 { return rng.Uint64N(max(uint64(b.N)/100, 1)) }
			}
			before := cpuTime(b)
			b.ResetTimer()
			for n := 0; n < b.N; {
				batch := e.NewBatch()
				w := s.NewWriter(batch)
				var keys [][]byte
				for range min(200, b.N-n) {
					keys = append(keys, fmt.Appendf(nil, "key/%016x", pick(n)*0x9e3779b97f4a7c15))
					n++
				}
				if err := w.Prepare(slices.Clone(keys)); err != nil {
					b.Fatal(err)
				}
				for _, key := range keys {
					for i := 0; i < len(value); i += 8 {
						binary.LittleEndian.PutUint64(value[i:], rng.Uint64())
					}
					t := w.Begin()
					if _, err := t.Put(key, value, 0); err != nil {
						b.Fatal(err)
					}
					t.End()
				}
				if _, err := w.Publish(); err != nil {
					b.Fatal(err)
				}
				batch.Close()
			}
			if err := e.Flush(); err != nil {
				b.Fatal(err)
			}
			b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/float64(b.N), "cpu-ns/put")
			total, _ := e.DiskUsage()
			b.ReportMetric(float64(total)/float64(b.N), "disk-B/put")
		})
	}
}

// cpuTime is the user and system time of the process so far.
func cpuTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

func BenchmarkPointRead(b *testing.B) {
	_, s := benchStore(b, 100_000, 256)
	rng := rand.New(rand.NewPCG(1, 1))
	b.ReportAllocs()
	for b.Loop() {
		o := kv.RangeOptions{Range: kv.Range{Key: []byte(fmt.Sprintf("key/%08d", rng.IntN(100_000)))}}
		r, _, err := s.Range(o)
		if err != nil || len(r.KVs) != 1 {
			b.Fatal(err)
		}
	}
}

func benchScan(b *testing.B, s *Store, o kv.RangeOptions, rows, count int) {
	b.ReportAllocs()
	var buf []byte
	for b.Loop() {
		n := 0
		buf = buf[:0]
		res, err := s.Scan(context.Background(), o, func(r Row) error {
			n++
			buf = r.AppendWire(buf, o.KeysOnly)
			return nil
		})
		if err != nil || n != rows || res.Count != int64(count) {
			b.Fatal(n, res, err)
		}
	}
}

var everything = kv.Range{Key: []byte{0}, End: []byte{0}}

func BenchmarkRange5000x1KiB(b *testing.B) {
	_, s := benchStore(b, 5000, 1024)
	for _, order := range []kv.SortOrder{kv.SortNone, kv.SortDescend} {
		b.Run(fmt.Sprintf("order=%d", order), func(b *testing.B) {
			benchScan(b, s, kv.RangeOptions{Range: everything, Order: order}, 5000, 5000)
		})
	}
	b.Run("byValue", func(b *testing.B) {
		benchScan(b, s, kv.RangeOptions{Range: everything, Target: kv.SortByValue}, 5000, 5000)
	})
}

func BenchmarkPage500Of100000(b *testing.B) {
	e, s := benchStore(b, 100_000, 256)
	prefix := kv.Range{Key: []byte("key/"), End: []byte("key0")}
	middle := kv.Range{Key: []byte("key/00050123"), End: []byte("key/00099777")}
	b.Run("all", func(b *testing.B) { benchScan(b, s, kv.RangeOptions{Range: prefix, Limit: 500}, 500, 100_000) })
	b.Run("middle", func(b *testing.B) { benchScan(b, s, kv.RangeOptions{Range: middle, Limit: 500}, 500, 49_654) })
	at := s.Revision()
	i := 0
	churn(b, e, s, 1000, &i)
	b.Run("older", func(b *testing.B) {
		benchScan(b, s, kv.RangeOptions{Range: middle, Limit: 500, Revision: at}, 500, 49_654)
	})
}

// churn puts n new versions of old keys.
func churn(b *testing.B, e *engine.Engine, s *Store, n int, i *int) {
	b.Helper()
	value := make([]byte, 256)
	for done := 0; done < n; {
		batch := e.NewBatch()
		w := s.NewWriter(batch)
		for range 100 {
			t := w.Begin()
			if _, err := t.Put([]byte(fmt.Sprintf("key/%08d", *i*7919%100_000)), value, 0); err != nil {
				b.Fatal(err)
			}
			t.End()
			*i++
			done++
		}
		if _, err := w.Publish(); err != nil {
			b.Fatal(err)
		}
		batch.Close()
	}
}

func BenchmarkCount100000(b *testing.B) {
	_, s := benchStore(b, 100_000, 256)
	middle := kv.Range{Key: []byte("key/00010123"), End: []byte("key/00089777")}
	b.Run("all", func(b *testing.B) { benchScan(b, s, kv.RangeOptions{Range: everything, CountOnly: true}, 0, 100_000) })
	prefix := kv.Range{Key: []byte("key/"), End: []byte("key0")}
	b.Run("prefix", func(b *testing.B) { benchScan(b, s, kv.RangeOptions{Range: prefix, CountOnly: true}, 0, 100_000) })
	b.Run("middle", func(b *testing.B) { benchScan(b, s, kv.RangeOptions{Range: middle, CountOnly: true}, 0, 79_654) })
}

// BenchmarkEvents replays history: the figure is for one event.
func BenchmarkEvents(b *testing.B) {
	_, s := benchStore(b, 100_000, 256)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		err := s.Events(context.Background(), 2, 101, func(kv.Event) error {
			n++
			return nil
		})
		if err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/event")
}

// BenchmarkCompaction compacts 20,000 overwritten versions: the figure is for one of them.
func BenchmarkCompaction(b *testing.B) {
	e, s := benchStore(b, 100_000, 256)
	i, n := 0, 0
	b.ReportAllocs()
	for b.Loop() {
		b.StopTimer()
		churn(b, e, s, 20_000, &i)
		n += 20_000
		batch := e.NewBatch()
		w := s.NewWriter(batch)
		if err := w.Compact(s.Revision()); err != nil {
			b.Fatal(err)
		}
		if _, err := w.Publish(); err != nil {
			b.Fatal(err)
		}
		batch.Close()
		b.StartTimer()
		sweepAll(b, s, 1000)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(n), "ns/version")
}

func BenchmarkHashKV100000(b *testing.B) {
	_, s := benchStore(b, 100_000, 256)
	for b.Loop() {
		if _, _, _, err := s.HashKV(context.Background(), 0); err != nil {
			b.Fatal(err)
		}
	}
}
