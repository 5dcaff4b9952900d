package mvcc

import (
	"errors"
	"fmt"
	"strings"
	"testing"
)

// TestDumpWindows dumps histories in one window, and in windows of few rows with room for hardly any value or key: the rows are
// the same, each put with the value that the model knows, in order.
func TestDumpWindows(t *testing.T) {
	for seed := range uint64(6) {
		w := newWorld(t, seed, 40)
		for range 120 {
			w.batch()
			_, _, err := w.s.CompactStep(t.Context(), w.rng.IntN(20))
			w.check(err, "compact step")
		}
		b := w.e.NewBatch() // enough that no compaction has come over
		wr := w.s.NewWriter(b)
		for range 100 {
			txn := wr.Begin()
			for range 6 {
				w.op(txn)
			}
			txn.End()
			w.m.end()
		}
		_, err := wr.Publish()
		w.check(errors.Join(err, b.Close()), "publish")
		r, err := w.e.NewSnapshot()
		w.check(err, "snapshot")
		dumped := func(max bounds) string {
			t.Helper()
			var b strings.Builder
			d, err := dumpIn(t.Context(), r, max, func() error { return nil }, func(key, value []byte) error {
				fmt.Fprintf(&b, "%x=%x\n", key, value)
				return nil
			})
			w.check(err, "dump")
			fmt.Fprintf(&b, "%+v\n", d)
			return b.String()
		}
		want := dumped(windowBounds)
		if n := strings.Count(want, "\n"); n < 300 {
			t.Fatalf("seed %d: only %d rows", seed, n)
		}
		shown, planned := map[[2]int]int{}, map[[2]int]int{}
		_, err = Dump(t.Context(), r, func() error { return nil }, func(key, value []byte) error { shown[[2]int{len(key), len(value)}]++; return nil })
		w.check(err, "dump")
		_, err = DumpSizes(t.Context(), r, func() error { return nil }, func(key, value int) { planned[[2]int{key, value}]++ })
		w.check(err, "sizes")
		for size, n := range shown {
			if planned[size] < n {
				t.Fatalf("seed %d: %d rows have %d bytes of key and value, said were %d", seed, n, size, planned[size])
			}
		}
		for _, b := range []bounds{{1, 1 << 20}, {7, 1 << 20}, {64, 1}, {64, 100}, {1 << 20, 1}, {1 << 20, 200}, {50, 0}} {
			if b.bytes == 0 {
				b.bytes = 1 + w.rng.IntN(1000)
			}
			if got := dumped(b); got != want {
				t.Fatalf("seed %d: in windows of %+v there are other rows", seed, b)
			}
		}
		stop := errors.New("stop")
		if _, err := Dump(t.Context(), r, func() error { return stop }, func(_, _ []byte) error { return nil }); !errors.Is(err, stop) {
			t.Errorf("seed %d: an error of pause: %v", seed, err)
		}
		w.check(r.Close(), "close")
		w.close()
	}
}
