package engine

import (
	"fmt"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func openForTest(t *testing.T) *Engine {
	t.Helper()
	e, err := Open(Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return e
}

func rowsOf(t *testing.T, r Reader) string {
	t.Helper()
	it, err := r.NewIter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer it.Close()
	text := ""
	for ok := it.First(); ok; ok = it.Next() {
		text += fmt.Sprintf("%s=%s ", it.Key(), it.Value())
	}
	return text
}

// A batch sees its own changes of all kinds over what is committed, those made before it was first read and those after,
// and commits all of them.
func TestBatchIsReadAtAnyTime(t *testing.T) {
	for readAt := range 6 {
		e := openForTest(t)
		first := e.NewBatch()
		for _, key := range []string{"x1", "x2", "x3", "x4"} {
			if err := first.Set([]byte(key), []byte("old")); err != nil {
				t.Fatal(err)
			}
		}
		if err := first.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := first.Close(); err != nil {
			t.Fatal(err)
		}
		b := e.NewBatch()
		changes := []func() error{
			func() error { return b.Set([]byte("x2"), []byte("new")) },
			func() error { return b.DeleteRange([]byte("x3"), []byte("x5")) },
			func() error { return b.Delete([]byte("x1")) },
			func() error { return b.Set([]byte("x4"), []byte("back")) },
			func() error { return b.Delete([]byte("x2")) },
		}
		want := []string{
			"x1=old x2=old x3=old x4=old ", "x1=old x2=new x3=old x4=old ", "x1=old x2=new ", "x2=new ", "x2=new x4=back ", "x4=back ",
		}
		for i, change := range changes {
			if i >= readAt {
				if got := rowsOf(t, b); got != want[i] {
					t.Errorf("read from %d on, after %d changes: %s, want %s", readAt, i, got, want[i])
				}
			}
			if err := change(); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if got := rowsOf(t, e); got != want[5] {
			t.Errorf("read from %d on, committed: %s, want %s", readAt, got, want[5])
		}
	}
}

// A durable lookup finds what was flushed, and only that.
func TestDurableLookup(t *testing.T) {
	e := openForTest(t)
	look := func() string {
		it, err := e.NewDurableLookup()
		if err != nil {
			t.Fatal(err)
		}
		defer it.Close()
		if !it.SeekPrefix(MetaRevision()) {
			return "nothing"
		}
		return string(it.Value())
	}
	for _, value := range []string{"1", "2"} {
		before := look()
		b := e.NewBatch()
		if err := b.Set(MetaRevision(), []byte(value)); err != nil {
			t.Fatal(err)
		}
		if err := b.Commit(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != before {
			t.Errorf("%s before the flush, %s found before the batch", got, before)
		}
		if err := e.Flush(); err != nil {
			t.Fatal(err)
		}
		if got := look(); got != value {
			t.Errorf("%s after the flush, want %s", got, value)
		}
	}
}
