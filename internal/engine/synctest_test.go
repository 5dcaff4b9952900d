package engine

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// The engine works inside a bubble of fake time, several times in one process: what the simulation stands on.
func TestInsideSynctest(t *testing.T) {
	for round := range 3 {
		bubble.Test(t, func(t *testing.T) {
			began := time.Now()
			var mu sync.Mutex
			var told []uint64
			e, err := Open(Options{FS: vfs.NewMem(), Dir: "state", MemTableBytes: 64 << 10, CacheBytes: 1 << 20, OnFlush: func(i uint64) {
				mu.Lock()
				defer mu.Unlock()
				told = append(told, i)
			}})
			if err != nil {
				t.Fatal(err)
			}
			for i := range 500 {
				b := e.NewBatch()
				for j := range 10 {
					if err := b.Set([]byte(fmt.Sprintf("u%d/%d", i, j)), make([]byte, 100)); err != nil {
						t.Fatal(err)
					}
				}
				if err := b.Set(MetaApplied(), AppendApplied(nil, uint64(i+1), 1)); err != nil {
					t.Fatal(err)
				}
				if err := b.Commit(); err != nil {
					t.Fatal(err)
				}
				if err := b.Close(); err != nil {
					t.Fatal(err)
				}
				if i%100 == 0 {
					time.Sleep(time.Second)
				}
			}
			if err := e.Flush(); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
			time.Sleep(time.Hour)
			mu.Lock()
			if len(told) == 0 || told[len(told)-1] != 500 {
				t.Errorf("told of flushes %v", told)
			}
			mu.Unlock()
			if err := e.Checkpoint("copy"); err != nil {
				t.Fatal(err)
			}
			if err := e.Close(); err != nil {
				t.Fatal(err)
			}
			t.Logf("round %d: %v of fake time", round, time.Since(began))
		})
	}
}
