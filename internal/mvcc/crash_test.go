package mvcc

import (
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
)

// crash loses what was not synced, perhaps not all of it, and opens what is left.
func (w *world) crash() {
	w.t.Helper()
	durable, err := w.e.DurableApplied()
	w.check(err, "durable applied")
	left := w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: w.rng.IntN(101), RNG: rand.New(rand.NewPCG(w.rng.Uint64(), 2))})
	w.close()
	w.fs = left
	w.open()
	w.recovered(durable)
}

// recovered finds out which batch was the last to survive, takes the model back to it and checks all rows.
func (w *world) recovered(durable uint64) {
	w.t.Helper()
	applied := uint64(0)
	row, found, err := w.e.Get(engine.MetaApplied())
	w.check(err, "applied row")
	if found {
		applied, _, err = engine.DecodeApplied(row)
		w.check(err, "applied row")
	}
	if applied < durable || applied >= uint64(len(w.marks)) {
		w.t.Fatalf("batch %d was said to be durable, of %d; after the crash the last is %d", durable, len(w.marks)-1, applied)
	}
	w.lost += len(w.marks) - 1 - int(applied)
	w.marks = w.marks[:applied+1]
	w.m.cut(w.marks[applied].revision, w.marks[applied].compact)
	w.verify(false)
}

// A crash at any moment, again and again, leaves a prefix of history, and the store goes on from there.
func TestCrash(t *testing.T) {
	seeds, crashes := uint64(6), 12
	if testing.Short() {
		seeds = 2
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 100+seed, 40)
			defer func() { w.close() }()
			for range crashes {
				for range w.rng.IntN(40) {
					w.step()
					if w.rng.IntN(15) == 0 {
						w.check(w.e.Flush(), "flush")
					}
				}
				w.crash()
				w.read()
			}
			w.sweepAll()
			w.verify(true)
			if w.lost == 0 {
				t.Fatal("no crash lost anything: it attacks nothing")
			}
			t.Logf("%d batches lost in %d crashes", w.lost, crashes)
		})
	}
}

// A crash while a flush, a compaction of the engine or a checkpoint is under way leaves a prefix of history too; and so
// does the checkpoint, if it was made.
func TestCrashDuringFlushAndCheckpoint(t *testing.T) {
	seeds, rounds := uint64(4), 8
	if testing.Short() {
		seeds = 1
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			w := newWorld(t, 200+seed, 30)
			defer func() { w.close() }()
			for round := range rounds {
				for range 10 + w.rng.IntN(30) {
					w.step()
				}
				w.crashBeside(round)
			}
			t.Logf("%d batches lost in %d crashes", w.lost, rounds)
		})
	}
}

// crashBeside takes the crash while the engine works beside.
func (w *world) crashBeside(round int) {
	w.t.Helper()
	dir := fmt.Sprintf("copy%d", round)
	durable, err := w.e.DurableApplied()
	w.check(err, "durable applied")
	var beside sync.WaitGroup
	made := make(chan error, 1)
	beside.Add(1)
	go func() {
		defer beside.Done()
		made <- w.e.Checkpoint(dir)
	}()
	var left *vfs.MemFS
	complete := false
	for i := range w.rng.IntN(3000) {
		if i%64 == 0 {
			select {
			case err := <-made:
				w.check(err, "checkpoint")
				complete = true
			default:
			}
		}
	}
	left = w.fs.CrashClone(vfs.CrashCloneCfg{UnsyncedDataPercent: w.rng.IntN(101), RNG: rand.New(rand.NewPCG(w.rng.Uint64(), 3))})
	beside.Wait()
	w.close()
	last := uint64(len(w.marks) - 1)
	w.fs = left
	w.open()
	w.recovered(durable)
	if !complete {
		return
	}
	// The checkpoint was made before the crash: it holds everything.
	e, err := engine.Open(engine.Options{FS: left, Dir: dir, MustExist: true})
	w.check(err, "open checkpoint")
	row, _, err := e.Get(engine.MetaApplied())
	w.check(err, "applied row of checkpoint")
	applied, _, err := engine.DecodeApplied(row)
	w.check(err, "applied row of checkpoint")
	if applied != last {
		w.t.Fatalf("checkpoint holds batch %d, %d were committed", applied, last)
	}
	w.check(e.Close(), "close checkpoint")
}

// A checkpoint opens to the same store, and goes its own way from there.
func TestCheckpoint(t *testing.T) {
	w := newWorld(t, 300, 40)
	for range 100 {
		w.step()
	}
	w.check(w.e.Checkpoint("copy"), "checkpoint")
	original := *w
	for range 20 {
		original.m = newModel() // no longer compared
		b := original.e.NewBatch()
		wr := original.s.NewWriter(b)
		txn := wr.Begin()
		_, err := txn.Put([]byte("later"), nil, 0)
		w.check(err, "put")
		txn.End()
		_, err = wr.Publish()
		w.check(err, "publish")
		w.check(b.Close(), "close batch")
	}
	original.close()
	var err error
	w.e, err = engine.Open(engine.Options{FS: w.fs, Dir: "copy", MustExist: true})
	w.check(err, "open checkpoint")
	defer w.close()
	w.s, err = Open(w.e, Options{})
	w.check(err, "open store")
	w.verify(false)
	for range 20 {
		w.step()
	}
	w.verify(false)
}
