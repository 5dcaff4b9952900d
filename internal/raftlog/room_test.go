package raftlog

import (
	"errors"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// TestFullDisk runs logs on disks that are full again and again, for a few operations of
// any kind, syncs of files and of the directory too: each write is acknowledged once there is room, and a crash at any later time
// finds it.
func TestFullDisk(t *testing.T) {
	from, to := seeds(t, 20, 200)
	for seed := from; seed < to; seed++ {
		bubble.Test(t, func(t *testing.T) {
			u := newUniverse(t, seed)
			r := rand.New(rand.NewPCG(seed, 9))
			var armed atomic.Bool
			left, refused := 0, 0 // operations until the disk is full or not any more; under the lock of the file system
			isFull := false
			u.full = func(op string) bool {
				if !armed.Load() {
					return false
				}
				if left--; left <= 0 {
					isFull = !isFull
					left = 1 + r.IntN(10)
				}
				if isFull {
					refused++
				}
				return isFull
			}
			for range 3 {
				armed.Store(false)
				u.begun = func() { armed.Store(true) }
				u.ending = func() { // a log that is told to close on a full disk gives up
					armed.Store(false)
					time.Sleep(time.Second)
				}
				u.live(1<<30, 60)
				if t.Failed() {
					t.Fatalf("seed %d", seed)
				}
			}
			if refused == 0 {
				t.Errorf("seed %d: the disk was never full", seed)
			}
		})
	}
}

// TestCutMakesRoom: a log that waits for room for a new segment uses one that may be cut meanwhile.
func TestCutMakesRoom(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var full atomic.Bool
		o := memOptions()
		o.FS = &stepFS{FS: vfs.NewMem(), step: func(op string) error {
			if full.Load() && op[:6] == "create" {
				return syscall.ENOSPC
			}
			return nil
		}}
		l := mustOpen(t, o)
		last := uint64(0)
		write := func() <-chan struct{} {
			last++
			done := make(chan struct{})
			l.Append(Write{Entries: entriesFrom(last, 1, 1000, 1), Sync: true, Done: func() { close(done) }})
			return done
		}
		for l.Stats().Segments < 3 {
			<-write()
		}
		full.Store(true)
		var waits <-chan struct{}
		for waits == nil {
			done := write()
			select {
			case <-done:
			case <-time.After(time.Second):
				waits = done
			}
		}
		if _, busy := l.Pace(); busy < 500*time.Millisecond {
			t.Errorf("it has waited for the disk for %v", busy)
		}
		l.Cut(last - 20)
		<-waits
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}

// TestCloseOnFullDisk: a log that waits for room stops waiting when it is closed, and says why.
func TestCloseOnFullDisk(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var full atomic.Bool
		o := memOptions()
		o.FS = &stepFS{FS: vfs.NewMem(), step: func(string) error {
			if full.Load() {
				return syscall.ENOSPC
			}
			return nil
		}}
		l := mustOpen(t, o)
		full.Store(true)
		l.Append(Write{Entries: entriesFrom(1, 1, 10, 1), Sync: true, Done: func() { t.Error("acknowledged") }})
		time.Sleep(time.Second)
		if err := l.Close(); !IsNoRoom(err) {
			t.Errorf("close gives %v", err)
		}
	})
}

// TestCloseOnHungDisk: a log whose disk does not answer is given up by Close after a while. When the disk answers after all,
// nothing is acknowledged or written any more.
func TestCloseOnHungDisk(t *testing.T) {
	for _, at := range []string{"syncdata log/", "write log/", "sync log"} { // the last is the folder
		bubble.Test(t, func(t *testing.T) {
			var hung atomic.Bool
			var steps atomic.Int64
			answers := make(chan struct{})
			fsys := &stepFS{FS: vfs.NewMem()}
			fsys.step = func(op string) error {
				if steps.Add(1); hung.Load() && (op == at || strings.HasSuffix(at, "/") && strings.HasPrefix(op, at)) {
					fsys.mu.Unlock() // so that the rest of the disk answers
					<-answers
					fsys.mu.Lock()
				}
				return nil
			}
			o := memOptions()
			o.FS = fsys
			l := mustOpen(t, o)
			hung.Store(true)
			for i := range uint64(100) { // goes on in further segments, whose names are synced
				l.Append(Write{Entries: entriesFrom(1+i, 1, 1000, 1), Sync: true, Done: func() {
					if l.abandoned.Load() {
						t.Errorf("%s: acknowledged after Close has given up", at)
					}
				}})
			}
			began := time.Now()
			if err := l.Close(); !errors.Is(err, ErrHung) {
				t.Errorf("%s: close gives %v", at, err)
			}
			if took := time.Since(began); took != closePatience { // of the bubble's time
				t.Errorf("%s: it took %v", at, took)
			}
			if err := l.Close(); err != ErrClosed {
				t.Errorf("%s: a second close gives %v", at, err)
			}
			before := steps.Load()
			hung.Store(false)
			close(answers)
			<-l.done
			l.filler.stopped(t)
			if after := steps.Load(); after > before+1 { // the filler may have been between two steps
				t.Errorf("%s: %d operations after Close had given up", at, after-before)
			}
		})
	}
}

// stopped waits for the end of the filler's goroutine.
func (f *filler) stopped(t *testing.T) {
	t.Helper()
	select {
	case <-f.done:
	case <-time.After(time.Minute):
		t.Error("the filler goes on")
	}
}
