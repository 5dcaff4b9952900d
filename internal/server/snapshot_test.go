package server

import (
	"context"
	"errors"
	"io"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// standing returns a snapshot of which a goroutine makes pieces without end, and the error that ends it.
func standing() (*snapshot, <-chan error) {
	ctx, cancel := context.WithCancel(context.Background())
	s := &snapshot{
		ctx: ctx, cancel: cancel, pacer: new(pacer), done: func() {},
		pieces: make(chan []byte, snapshotPieces), taken: make(chan []byte, snapshotPieces+1),
	}
	ended := make(chan error, 1)
	go func() {
		for n := byte(0); s.err == nil; n++ {
			_, s.err = s.Write([]byte{n, n})
		}
		close(s.pieces)
		ended <- s.err
	}()
	return s, ended
}

// A client that takes nothing for too long loses its snapshot, whether it comes back or not, and one that is slow does not.
func TestSnapshotStandsStill(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, ended := standing()
		defer s.Close()
		var b [3]byte
		for n := range 100 {
			if _, err := io.ReadFull(s, b[:2]); err != nil || b[0] != byte(n) || b[1] != byte(n) {
				t.Fatalf("piece %d: %v, %v", n, b, err)
			}
			time.Sleep(maxStandstill - time.Second)
		}
		time.Sleep(2 * time.Second)
		if err := <-ended; err == nil || !strings.Contains(err.Error(), "has taken nothing for") {
			t.Errorf("it ended with %v", err)
		}
		n, err := io.Copy(io.Discard, s)
		if n != 2*snapshotPieces || err == nil {
			t.Errorf("afterwards there were %d bytes and %v", n, err)
		}
	})
}

// Closing ends a maker that waits for its client.
func TestSnapshotCloses(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s, ended := standing()
		synctest.Wait()
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-ended; !errors.Is(err, context.Canceled) {
			t.Errorf("it ended with %v", err)
		}
	})
}
