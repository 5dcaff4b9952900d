package engine

import (
	"bytes"
	"errors"
	"log/slog"
	"testing"
	"testing/synctest"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// Close waits for a read that is under way, and refuses those that begin after it.
func TestCloseWaitsForReaders(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		e, err := Open(Options{FS: vfs.NewMem(), Dir: "state"})
		if err != nil {
			t.Fatal(err)
		}
		it, err := e.NewIter(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan error, 1)
		go func() { closed <- e.Close() }()
		synctest.Wait()
		select {
		case err := <-closed:
			t.Fatalf("closed under a reader: %v", err)
		default:
		}
		if _, err := e.NewIter(nil, nil); !errors.Is(err, ErrClosed) {
			t.Fatalf("a read that began after Close: %v", err)
		}
		if _, _, err := e.Get([]byte("x")); !errors.Is(err, ErrClosed) {
			t.Fatalf("a read that began after Close: %v", err)
		}
		if it.First() {
			t.Fatal("an empty store has a row")
		}
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		if err := e.Close(); !errors.Is(err, ErrClosed) {
			t.Fatalf("closed twice: %v", err)
		}
	})
}

// A flush that ends while Close waits for a reader is no news, and no error.
func TestFlushDuringClose(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		e, err := Open(Options{
			FS: vfs.NewMem(), Dir: "state", OnFlush: func(uint64) {},
			Logger: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: slog.LevelError})),
		})
		if err != nil {
			t.Fatal(err)
		}
		it, err := e.NewIter(nil, nil)
		if err != nil {
			t.Fatal(err)
		}
		closed := make(chan error, 1)
		go func() { closed <- e.Close() }()
		synctest.Wait()
		e.flushed <- struct{}{}
		synctest.Wait()
		if err := it.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-closed; err != nil {
			t.Fatal(err)
		}
		if log.Len() > 0 {
			t.Errorf("logged as an error: %s", &log)
		}
	})
}
