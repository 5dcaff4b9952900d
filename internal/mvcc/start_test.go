package mvcc

import (
	"fmt"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// meteredFS counts the bytes that are read from files.
type meteredFS struct {
	vfs.FS
	read atomic.Int64
}

func (m *meteredFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	f, err := m.FS.Open(name, opts...)
	if err != nil {
		return nil, err
	}
	return meteredFile{f, &m.read}, nil
}

type meteredFile struct {
	vfs.File
	read *atomic.Int64
}

func (f meteredFile) Read(p []byte) (int, error) {
	n, err := f.File.Read(p)
	f.read.Add(int64(n))
	return n, err
}

func (f meteredFile) ReadAt(p []byte, off int64) (int, error) {
	n, err := f.File.ReadAt(p, off)
	f.read.Add(int64(n))
	return n, err
}

// TestStartReadsNoHistory opens a store with a long history (E#5317: etcd reads every revision when it starts). What is read
// of the files is a small part of what they hold, and all is there: the count of keys, a key, an old revision, a page.
func TestStartReadsNoHistory(t *testing.T) {
	const keys, rounds, size = 2000, 10, 500
	fs := &meteredFS{FS: vfs.NewMem()}
	e, err := engine.Open(engine.Options{FS: fs, Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	for range rounds {
		fill(t, e, s, keys, size)
	}
	old := s.Revision() / 2
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	if err := e.Close(); err != nil {
		t.Fatal(err)
	}
	var whole int64
	names, err := fs.List("state")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range names {
		if info, err := fs.Stat(fs.PathJoin("state", name)); err == nil && !info.IsDir() {
			whole += info.Size()
		}
	}

	fs.read.Store(0)
	if e, err = engine.Open(engine.Options{FS: fs, Dir: "state", MustExist: true}); err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	if s, err = Open(e, Options{}); err != nil {
		t.Fatal(err)
	}
	all := kv.Range{Key: []byte("key/"), End: []byte("key0")}
	if got, _, err := s.Range(kv.RangeOptions{Range: all, CountOnly: true}); err != nil || got.Count != keys {
		t.Errorf("%d keys, %v", got.Count, err)
	}
	read := fs.read.Load()
	if read > whole/10 {
		t.Errorf("%d bytes of %d were read to start and to count", read, whole)
	}
	t.Logf("%d bytes of %d", read, whole)
	for _, o := range []kv.RangeOptions{
		{Range: kv.Range{Key: []byte(fmt.Sprintf("key/%08d", keys-1))}}, {Range: all, Revision: old, Limit: 1}, {Range: all, Limit: 1},
	} {
		if got, _, err := s.Range(o); err != nil || len(got.KVs) != 1 || len(got.KVs[0].Value) != size {
			t.Errorf("%+v: %d pairs, %v", o, len(got.KVs), err)
		}
	}
}
