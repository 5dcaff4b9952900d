package engine

import (
	"errors"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"
	"github.com/cockroachdb/pebble/v2/vfs/errorfs"
)

// A manifest that cannot be written is told to Fatal, in a sentence that holds the cause.
func TestFatal(t *testing.T) {
	full := errors.New("no space left")
	var broken atomic.Bool
	fsys := errorfs.Wrap(vfs.NewMem(), errorfs.InjectorFunc(func(op errorfs.Op) error {
		if broken.Load() && strings.Contains(op.Path, "MANIFEST") {
			return full
		}
		return nil
	}))
	told := make(chan error, 1)
	e, err := Open(Options{FS: fsys, Dir: "state", Fatal: func(err error) {
		told <- err
		select {} // as if the process had ended
	}})
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewBatch()
	if err := errors.Join(b.Set(MetaRevision(), AppendNumber(nil, 1)), b.Commit()); err != nil {
		t.Fatal(err)
	}
	broken.Store(true)
	go e.Flush() // never returns: the engine is left as it is
	if err := <-told; !strings.Contains(err.Error(), full.Error()) {
		t.Errorf("told %v", err)
	}
}
