package engine

import (
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Size counts what is in memory and what is in files, neither twice after a flush, and Shrink gives back what was deleted.
func TestSize(t *testing.T) {
	e, err := Open(Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	const rows, size = 64, 16 << 10
	value := make([]byte, size)
	for i := range value {
		value[i] = byte(rand.Uint32())
	}
	change := func(f func(b *Batch, key []byte) error) {
		t.Helper()
		b := e.NewBatch()
		defer b.Close()
		for i := range rows {
			if err := f(b, MetaName(fmt.Sprint(i))); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
	}
	around := func(when string, low, high int64) {
		t.Helper()
		if got := e.Size(); got < low || got > high {
			t.Errorf("%s the size is %d, not within %d and %d", when, got, low, high)
		}
	}
	around("at first", 0, size)
	change(func(b *Batch, key []byte) error { return b.Set(key, value) })
	around("before the flush", rows*size, rows*size*3/2)
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	e.Measure()
	around("after the flush", rows*size*9/10, rows*size*3/2)
	change(func(b *Batch, key []byte) error { return b.Delete(key) })
	if err := e.Shrink(t.Context()); err != nil {
		t.Fatal(err)
	}
	around("after shrinking", 0, size)
}

// A batch that is large beside a memtable counts as much as the same rows in small ones.
func TestSizeOfLargeBatch(t *testing.T) {
	e, err := Open(Options{FS: vfs.NewMem(), Dir: "state", MemTableBytes: 64 << 10})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	b := e.NewBatch()
	defer b.Close()
	before := e.sizes.written.Load()
	const size = 256 << 10
	if err := b.Set(MetaName("large"), make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := e.sizes.written.Load() - before; got < size {
		t.Errorf("%d bytes of %d count", got, size)
	}
}
