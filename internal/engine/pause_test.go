package engine

import (
	"errors"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// enough tries for the test to end without pauses too, where fake time stands still
const manyTries = 1000

// failingTables opens a state that holds one row, in memory only, and whose new tables cannot be written while broken.
func failingTables(t *testing.T, mem vfs.FS) (e *Engine, broken *atomic.Bool, tries *atomic.Int64) {
	t.Helper()
	broken, tries = new(atomic.Bool), new(atomic.Int64)
	fsys := errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if !broken.Load() || !IsTable(op.Path) || op.Kind != errorfs.OpFileWrite {
			return nil
		}
		if tries.Add(1) == manyTries {
			broken.Store(false)
		}
		return errors.New("input/output error")
	}))
	e, err := Open(Options{FS: fsys, Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewBatch()
	if err := errors.Join(b.Set(MetaApplied(), AppendApplied(nil, 7, 1)), b.Commit(), b.Close()); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	if _, err := e.db.AsyncFlush(); err != nil {
		t.Fatal(err)
	}
	return e, broken, tries
}

// Tables that cannot be written are tried at growing pauses, reads go on meanwhile, and when the disk is well again the
// state is written by itself.
func TestPauseAfterFailure(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e, broken, tries := failingTables(t, vfs.NewMem())
		time.Sleep(30*time.Second + time.Millisecond)
		// 0, 10, 30, 70, 150, 310, 630, 1270 ms, and from there on once a second.
		if n := tries.Load(); n != 36 {
			t.Errorf("%d tries in 30 s, want 36", n)
		}
		began := time.Now()
		if _, found, err := e.Get(MetaApplied()); err != nil || !found {
			t.Errorf("a read during the pause: %v, %v", found, err)
		}
		if index, err := e.DurableApplied(); index != 0 || err != nil {
			t.Errorf("durable before it was written: %d, %v", index, err)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("reads waited %v", waited)
		}
		broken.Store(false)
		time.Sleep(maxPause)
		synctest.Wait()
		if index, err := e.DurableApplied(); index != 7 || err != nil {
			t.Errorf("durable after the disk was well again: %d, %v", index, err)
		}
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
}

func TestCloseEndsPause(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e, _, tries := failingTables(t, vfs.NewMem())
		time.Sleep(10*time.Second + time.Millisecond)
		began, before := time.Now(), tries.Load()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
		if waited := time.Since(began); waited != 0 {
			t.Errorf("Close waited %v", waited)
		}
		if before == 0 || before > 20 {
			t.Errorf("%d tries in 10 s", before)
		}
	})
}
