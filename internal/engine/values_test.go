package engine

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Large values are written beside their tables, and merging these does not write them again. What is deleted of them comes back,
// little of it only if the owner is short of room.
func TestLargeValues(t *testing.T) {
	o := Options{FS: vfs.NewMem(), Dir: "state"}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { e.Close() }()
	const rounds, rows, size = 4, 50, 4 * largeValue
	noise := make([]byte, 2*size)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	pair := func(round, i int) kv.KeyValue {
		from := (round*rows + i) * 17
		return kv.KeyValue{CreateRevision: 1, Version: int64(round + 1), Value: noise[from : from+size]}
	}
	key := func(round, i int) []byte {
		return AppendVersion(nil, fmt.Append(nil, i), kv.Revision{Main: int64(round + 1), Sub: int64(i)})
	}
	change := func(f func(b *Batch, i int) error) {
		t.Helper()
		b := e.NewBatch()
		defer b.Close()
		for i := range rows {
			if err := f(b, i); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
	}
	lengths := make(map[string]int)
	for round := range rounds {
		change(func(b *Batch, i int) error {
			n, err := b.SetLive(key(round, i), pair(round, i))
			lengths[string(key(round, i))] = n
			return err
		})
	}
	lower, upper := VersionBounds(kv.Range{Key: []byte{0}, End: []byte{0}})
	compact := func() {
		t.Helper()
		if err := e.db.Compact(t.Context(), lower, upper, false); err != nil {
			t.Fatal(err)
		}
	}
	compact()
	m := e.db.Metrics()
	if tables, values := m.Table.Local.LiveSize, m.BlobFiles.Local.LiveSize; tables > size || values < rounds*rows*size || values > rounds*rows*size*11/10 {
		t.Errorf("tables have %d bytes, files of values %d", tables, values)
	}
	for i, l := range m.Levels[1:] { // level 0 is what flushes write
		if l.BlobBytesCompacted != 0 {
			t.Errorf("compactions into level %d wrote %d bytes of values again", i+1, l.BlobBytesCompacted)
		}
	}
	read := func(from int) {
		t.Helper()
		it, err := e.NewIter(lower, upper)
		if err != nil {
			t.Fatal(err)
		}
		defer it.Close()
		n := 0
		for ok := it.First(); ok; ok = it.Next() {
			n++
			_, rev, err := DecodeVersion(it.Key())
			if err != nil {
				t.Fatal(err)
			}
			want := AppendLiveValue(nil, pair(int(rev.Main-1), int(rev.Sub)))
			if it.ValueLen() != len(want) || lengths[string(it.Key())] != len(want) || !bytes.Equal(it.Value(), want) {
				t.Fatalf("version %v has another value", rev)
			}
		}
		if err := it.Err(); err != nil || n != (rounds-from)*rows {
			t.Fatalf("%d rows, %v", n, err)
		}
	}
	read(0)
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	if e, err = Open(o); err != nil {
		t.Fatal(err)
	}
	read(0)

	within := func(when string, garbage, all int64) {
		t.Helper()
		for begun := time.Now(); ; time.Sleep(time.Millisecond) {
			if err := e.Reclaim(t.Context()); err != nil {
				t.Fatal(err)
			}
			files, _ := e.Garbage()
			if files <= garbage && e.Size() <= all {
				return
			}
			if time.Since(begun) > time.Minute {
				t.Fatalf("%s the state has %d bytes, of which %d are garbage", when, e.Size(), files)
			}
		}
	}
	gone := func(round, from, to int) {
		t.Helper()
		change(func(b *Batch, i int) error {
			if i < from || i >= to {
				return nil
			}
			return b.DeleteSized(key(round, i), uint32(lengths[string(key(round, i))]))
		})
		compact()
	}
	gone(0, 0, rows/2)
	const all = rounds * rows * size
	e.Measure()
	if files, _ := e.Garbage(); files < all/9 || files > all/7 {
		t.Errorf("%d bytes of garbage, of %d that nothing refers to", files, all/8)
	}
	e.Short(true)
	within("short of room", all/50, all*9/10)
	e.Short(false)
	gone(0, rows/2, rows)
	gone(1, 0, rows)
	within("half empty", all/8, all*5/8)
	read(2)
}

// Damage in a file of values is told, as that in a table is: to who reads it, and to the owner.
func TestDamagedValue(t *testing.T) {
	var told error
	o := Options{FS: vfs.NewMem(), Dir: "state", OnError: func(err error) { told = err }}
	e, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { e.Close() }()
	key := AppendVersion(nil, []byte("key"), kv.Revision{Main: 1})
	b := e.NewBatch()
	defer b.Close()
	if _, err := b.SetLive(key, kv.KeyValue{CreateRevision: 1, Value: make([]byte, largeValue)}); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(b.Commit(), e.Flush()); err != nil {
		t.Fatal(err)
	}
	names, err := o.FS.List("state")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if strings.HasSuffix(name, ".blob") {
			f, err := o.FS.OpenReadWrite(o.FS.PathJoin("state", name), vfs.WriteCategoryUnspecified)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := f.WriteAt([]byte("spoiled"), 100); err != nil {
				t.Fatal(err)
			}
			if err := f.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	got := func(how string, err error) {
		t.Helper()
		if !IsDamage(err) || !IsDamage(told) {
			t.Errorf("%s: %v, and the owner is told %v", how, err, told)
		}
		told = nil
	}
	_, _, err = e.Get(key)
	got("get", err)
	it, err := e.NewIter(VersionBounds(kv.Range{Key: []byte("key")}))
	if err != nil {
		t.Fatal(err)
	}
	if !it.First() || it.Value() != nil {
		t.Error("there is a value")
	}
	got("iterator", it.Err())
	got("iterator at its end", it.Close())
}
