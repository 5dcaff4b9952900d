package raftlog

import (
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// TestPace: the median is of the last three commits of the last ten seconds, the one under way counts once it makes it longer,
// and how long the disk has been waited for is told while it is.
func TestPace(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
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

// TestPaceStoodStill: time in which the process stood still is taken off a commit that is under way and off those that ended, as
// far as it was theirs.
func TestPaceStoodStill(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		l := &Log{}
		commit := func(took time.Duration) {
			l.pace.begin()
			time.Sleep(took)
			l.pace.end(true)
		}
		want := func(when string, median, busy time.Duration) {
			t.Helper()
			if m, b := l.Pace(); m != median || b != busy {
				t.Errorf("%s: a median of %v and busy for %v, want %v and %v", when, m, b, median, busy)
			}
		}
		begin := time.Now()
		commit(3 * time.Second)
		commit(2 * time.Second)
		want("before anything is said", 2*time.Second, 0)
		l.StoodStill(begin.Add(time.Second), begin.Add(3500*time.Millisecond)) // 2 s of the first, 0.5 s of the second
		want("afterwards", time.Second, 0)
		l.StoodStill(begin.Add(10*time.Second), begin.Add(20*time.Second))
		l.StoodStill(begin.Add(-10*time.Second), begin)
		want("after pauses in which nothing was committed", time.Second, 0)
		l.pace.begin()
		time.Sleep(4 * time.Second)
		want("while one is under way", 1500*time.Millisecond, 4*time.Second)
		now := time.Now()
		l.StoodStill(now.Add(-3*time.Second), now)
		want("and stood still meanwhile", time.Second, time.Second)
		time.Sleep(time.Second)
		want("and goes on", 1500*time.Millisecond, 2*time.Second)
		now = time.Now()
		l.StoodStill(now.Add(-5*time.Second), now)
		want("and stood still all the time", time.Second, 0)
		l.pace.end(true)
		want("and has ended", time.Second, 0)
	})
}
