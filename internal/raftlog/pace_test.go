package raftlog

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// TestPace: the median is of the last three commits of the last ten seconds, the one under way counts once it makes it longer,
// and how long the disk has been waited for is told while it is.
func TestPace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var sync atomic.Int64
		o := memOptions()
		o.FS = &stepFS{FS: vfs.NewMem(), step: func(op string) error {
			if strings.HasPrefix(op, "syncdata ") {
				time.Sleep(time.Duration(sync.Load()))
			}
			return nil
		}}
		l := mustOpen(t, o)
		next := uint64(0)
		begin := func(took time.Duration) <-chan struct{} {
			sync.Store(int64(took))
			next++
			done := make(chan struct{})
			l.Append(Write{Entries: entriesFrom(next, 1, 10, 1), Sync: true, Done: func() { close(done) }})
			return done
		}
		want := func(when string, median, busy time.Duration) {
			t.Helper()
			synctest.Wait()
			if m, b := l.Pace(); m != median || b != busy {
				t.Errorf("%s: a median of %v and busy for %v, want %v and %v", when, m, b, median, busy)
			}
		}
		want("at first", 0, 0)
		<-begin(2 * time.Second)
		want("after one commit", 0, 0)
		<-begin(10 * time.Millisecond)
		want("after two", 10*time.Millisecond, 0)
		<-begin(20 * time.Millisecond)
		want("after three", 20*time.Millisecond, 0)
		done := begin(3 * time.Second)
		time.Sleep(5 * time.Millisecond)
		want("while one has just begun", 20*time.Millisecond, 5*time.Millisecond)
		time.Sleep(time.Second)
		want("while one hangs", 20*time.Millisecond, 1005*time.Millisecond)
		<-done
		want("after it", 20*time.Millisecond, 0)
		done = begin(3 * time.Second)
		time.Sleep(2 * time.Second)
		want("while another hangs", 2*time.Second, 2*time.Second)
		<-done
		want("after it", 3*time.Second, 0)
		<-begin(time.Millisecond)
		want("after a quick one", 3*time.Second, 0)
		<-begin(time.Millisecond)
		want("after two", time.Millisecond, 0)
		time.Sleep(11 * time.Second)
		want("a while after", 0, 0)
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	})
}
