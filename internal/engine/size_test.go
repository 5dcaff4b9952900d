package engine

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Size counts what is in memory and what is in files, neither twice after a flush, and Reclaim gives back what was deleted.
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
	if files, unflushed := e.Garbage(); files != 0 || unflushed != 0 {
		t.Errorf("%d and %d bytes of garbage before anything was deleted", files, unflushed)
	}
	change(func(b *Batch, key []byte) error { return b.DeleteSized(key, size) })
	if files, unflushed := e.Garbage(); files != 0 || unflushed < rows*size*9/10 || unflushed > rows*size*3/2 {
		t.Errorf("%d bytes of garbage in files and %d that are not flushed, of %d deleted", files, unflushed, rows*size)
	}
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); ; time.Sleep(time.Millisecond) {
		if err := e.Reclaim(t.Context()); err != nil {
			t.Fatal(err)
		}
		e.Measure()
		if e.Size() < size {
			break
		}
		if time.Since(begun) > time.Minute { // the engine looks into new files in its own time
			t.Fatalf("the size is still %d", e.Size())
		}
	}
	if files, unflushed := e.Garbage(); files > size || unflushed != 0 {
		t.Errorf("%d and %d bytes of garbage are left", files, unflushed)
	}
}

// What Reclaim rewrites is where the most garbage is, and of the topmost level no more than a key of what lies below.
func TestWorstPart(t *testing.T) {
	file := func(from, to string, size, garbage uint64) pebble.SSTableInfo {
		var f pebble.SSTableInfo
		f.Smallest.UserKey, f.Largest.UserKey, f.Size = []byte(from), []byte(to), size
		f.TableStats.PointDeletionsBytesEstimate = garbage
		return f
	}
	const large = reclaimBytes/2 + 1
	for _, c := range []struct {
		name         string
		levels       [][]pebble.SSTableInfo
		lower, upper string
	}{
		{"nothing", [][]pebble.SSTableInfo{{file("a", "z", 1, 0)}, nil, {file("a", "z", 1, 0)}}, "", ""},
		{"the last level frees nothing", [][]pebble.SSTableInfo{nil, nil, {file("a", "z", 1, 9)}}, "", ""},
		{"a point of the top", [][]pebble.SSTableInfo{{file("a", "z", 1, 9)}, {file("b", "c", 1, 8)}, nil}, "a", "a"},
		{"neighbours with garbage", [][]pebble.SSTableInfo{nil, {
			file("a", "b", 1, 0), file("c", "d", 1, 1), file("e", "f", 1, 5), file("g", "h", 1, 1), file("i", "j", 1, 0), file("k", "l", 1, 4),
		}, nil}, "c", "h"},
		{"not many large ones", [][]pebble.SSTableInfo{nil, {
			file("c", "d", large, 1), file("e", "f", large, 5), file("g", "h", large, 1), file("i", "j", large, 4),
		}, nil}, "e", "h"},
	} {
		lower, upper := worstPart(c.levels)
		if string(lower) != c.lower || string(upper) != c.upper {
			t.Errorf("%s: from %q to %q, want %q to %q", c.name, lower, upper, c.lower, c.upper)
		}
	}
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
	before := e.sizes.written.all.Load()
	const size = 256 << 10
	if err := b.Set(MetaName("large"), make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if got := e.sizes.written.all.Load() - before; got < size {
		t.Errorf("%d bytes of %d count", got, size)
	}
}

// What is flushed while somebody measures is not counted twice.
func TestSizeMeasuredDuringFlush(t *testing.T) {
	const size = 256 << 10
	value := make([]byte, size)
	for i := range value {
		value[i] = byte(rand.Uint32())
	}
	for range 40 {
		e, err := Open(Options{FS: vfs.NewMem(), Dir: "state"})
		if err != nil {
			t.Fatal(err)
		}
		b := e.NewBatch()
		if err := errors.Join(b.Set(MetaName("large"), value), b.Commit(), b.Close()); err != nil {
			t.Fatal(err)
		}
		flushed := make(chan error)
		go func() { flushed <- e.Flush() }()
		for under := true; under; {
			select {
			case err = <-flushed:
				under = false
			default:
			}
			if e.Measure(); e.Size() > size*3/2 {
				t.Errorf("a store of %d bytes measures %d", size, e.Size())
			}
		}
		if err := errors.Join(err, e.Close()); err != nil {
			t.Fatal(err)
		}
		if t.Failed() {
			return
		}
	}
}
