package engine

import (
	"context"
	"log/slog"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// lines counts what is logged as an error.
type lines struct {
	slog.Handler
	n atomic.Int64
}

func (l *lines) Enabled(context.Context, slog.Level) bool { return true }

func (l *lines) Handle(_ context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		l.n.Add(1)
	}
	return nil
}

// A disk that fails is tried again after a pause and without end, and the log is not flooded with that. The state is written
// when the disk works again.
func TestFailingDiskDoesNotFloodTheLog(t *testing.T) {
	bubble.Test(t, testFailingDiskDoesNotFloodTheLog)
}

func testFailingDiskDoesNotFloodTheLog(t *testing.T) {
	fs := vfs.NewMem()
	const tries = 2000
	var log lines
	var failed atomic.Int64
	enough := make(chan struct{})
	e, err := Open(Options{FS: fs, Dir: "state", Logger: slog.New(&log), OnError: func(error) {
		if failed.Add(1) == tries {
			close(enough)
		}
	}})
	if err != nil {
		t.Fatal(err)
	}
	b := e.NewBatch()
	if err := b.Set([]byte("key"), []byte("value")); err != nil {
		t.Fatal(err)
	}
	if err := b.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(); err != nil {
		t.Fatal(err)
	}
	if err := fs.RemoveAll("state"); err != nil {
		t.Fatal(err)
	}
	flushed := make(chan error, 1)
	go func() { flushed <- e.Flush() }()
	<-enough
	if n := log.n.Load(); n == 0 || n > 40 {
		t.Errorf("%d lines in the log of %d failures", n, failed.Load())
	}
	if err := fs.MkdirAll("state", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := <-flushed; err != nil {
		t.Errorf("a flush on a disk that works again: %v", err)
	}
	if err := e.Close(); err != nil {
		t.Error(err)
	}
}
