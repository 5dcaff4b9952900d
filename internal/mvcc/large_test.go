package mvcc

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// readFS counts what is read of files of large values.
type readFS struct {
	vfs.FS
	read atomic.Int64
}

type readFile struct {
	vfs.File
	fs *readFS
}

func (f *readFS) Open(name string, opts ...vfs.OpenOption) (vfs.File, error) {
	file, err := f.FS.Open(name, opts...)
	if err != nil || !strings.HasSuffix(name, ".blob") {
		return file, err
	}
	return readFile{file, f}, nil
}

func (f readFile) ReadAt(p []byte, off int64) (int, error) {
	f.fs.read.Add(int64(len(p)))
	return f.File.ReadAt(p, off)
}

// Who only wants to know which keys are live reads no large value: to count keys, at older revisions too, and to cut a fence
// that has become too long, for which a put would have to wait.
func TestCountReadsNoLargeValues(t *testing.T) {
	fs := &readFS{FS: vfs.NewMem()}
	e, err := engine.Open(engine.Options{FS: fs, Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	defer e.Close()
	s, err := Open(e, Options{})
	if err != nil {
		t.Fatal(err)
	}
	x := script{t, e, s}
	noise := make([]byte, 64<<10)
	for i := range noise {
		noise[i] = byte(rand.Uint32())
	}
	const keys, size = fenceMax + 10, 20 << 10
	for i := range keys {
		if i == keys/2 {
			if err := e.Flush(); err != nil { // the fence is cut later
				t.Fatal(err)
			}
		}
		x.put(fmt.Sprintf("key%05d", i), string(noise[i:i+size]))
	}
	if err := e.Flush(); err != nil {
		t.Fatal(err)
	}
	x.delete("key00000")
	at := s.Revision()
	for i := range 2 * minCorrections {
		x.put("zzz", fmt.Sprint(i))
	}
	if len(s.fences.keys) < 2 {
		t.Fatal("no fence was cut")
	}
	for _, revision := range []int64{0, at} {
		r, _, err := s.Range(kv.RangeOptions{
			Range: kv.Range{Key: []byte("key00000"), End: []byte("key009")}, CountOnly: true, Revision: revision,
		})
		if err != nil || r.Count != 899 {
			t.Errorf("a count of %d at revision %d, %v", r.Count, revision, err)
		}
	}
	// Files are opened by reading their ends.
	if got := fs.read.Load(); got > 10*size {
		t.Errorf("%d bytes of values were read", got)
	}
}
