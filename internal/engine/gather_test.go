package engine

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"

	"github.com/trivet-kv/trivet/internal/kv"
)

// sizesFS notes how large the writes to each file are.
type sizesFS struct {
	vfs.FS
	mu    sync.Mutex
	sizes map[string][]int
}

func (f *sizesFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	return sizesFile{file, name, f}, err
}

type sizesFile struct {
	vfs.File
	name string
	fs   *sizesFS
}

func (f sizesFile) Write(p []byte) (int, error) {
	f.fs.mu.Lock()
	f.fs.sizes[f.name] = append(f.fs.sizes[f.name], len(p))
	f.fs.mu.Unlock()
	return f.File.Write(p)
}

// A table is written in whole pieces, but for its end, and holds what was committed.
func TestTablesAreWrittenInPieces(t *testing.T) {
	fsys := &sizesFS{FS: vfs.NewMem(), sizes: map[string][]int{}}
	e, err := Open(Options{FS: fsys, Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	value := make([]byte, 100)
	random := rand.NewChaCha8([32]byte{1})
	b := e.NewBatch()
	for i := range int64(10_000) {
		random.Read(value)
		key := AppendVersion(nil, binary.BigEndian.AppendUint64(nil, uint64(i)), kv.Revision{Main: i})
		if err := b.Set(key, value); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(b.Commit(), b.Close(), e.Flush()); err != nil {
		t.Fatal(err)
	}
	pieces := 0
	for name, sizes := range fsys.sizes {
		if !bytes.HasSuffix([]byte(name), []byte(".sst")) {
			continue
		}
		for i, n := range sizes {
			if n != gatherBytes && i < len(sizes)-1 {
				t.Errorf("write %d of %d to %s has %d bytes", i+1, len(sizes), name, n)
			}
			pieces++
		}
	}
	if pieces < 10 {
		t.Errorf("a megabyte was written to tables in %d pieces", pieces)
	}
	it, err := e.NewIter(nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	rows := 0
	for ok := it.First(); ok; ok = it.Next() {
		rows++
	}
	if err := it.Close(); err != nil || rows != 10_000 {
		t.Errorf("%d rows, %v", rows, err)
	}
}

// After a write that failed, a table that is being written says so each time it is asked, and writes nothing more.
func TestGatherAfterAFailedWrite(t *testing.T) {
	full := errors.New("no space left")
	broken := false
	mem := vfs.NewMem()
	fsys := gatherFS{errorfs.Wrap(mem, errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken && op.Kind == errorfs.OpFileWrite {
			return full
		}
		return nil
	}))}
	f, err := fsys.Create("1.sst", vfs.WriteCategoryUnspecified)
	if err != nil {
		t.Fatal(err)
	}
	write := func(n int) error {
		_, err := f.Write(make([]byte, n))
		return err
	}
	if err := write(gatherBytes + 1); err != nil {
		t.Fatal(err)
	}
	broken = true
	if err := write(2 * gatherBytes); !errors.Is(err, full) {
		t.Errorf("write: %v", err)
	}
	broken = false
	_, toErr := f.SyncTo(1)
	_, statErr := f.Stat()
	for i, err := range []error{write(1), toErr, statErr, f.Sync(), f.SyncData(), f.Close()} {
		if !errors.Is(err, full) {
			t.Errorf("call %d: %v", i, err)
		}
	}
	f, err = mem.Open("1.sst")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if b, err := io.ReadAll(f); err != nil || len(b) != gatherBytes {
		t.Errorf("%d bytes, %v", len(b), err)
	}
}
