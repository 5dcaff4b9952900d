package compactor

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// fakeStore has so many rows to delete for each revision.
type fakeStore struct {
	mu      sync.Mutex
	compact int64
	rows    int // left up to compact
	steps   int
	fail    int           // so many more steps fail
	takes   time.Duration // that a step takes, unless it is told to end
	running int           // steps under way
	dead    bool          // a step now is a bug
	broken  string
}

func (s *fakeStore) CompactRevision() int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.compact
}

func (s *fakeStore) compactTo(rev int64, rows int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.compact, s.rows = rev, s.rows+rows
}

func (s *fakeStore) left() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.rows
}

func (s *fakeStore) CompactStep(ctx context.Context, limit int) (int, bool, error) {
	s.mu.Lock()
	s.steps++
	if s.dead {
		s.broken = "a step on a store that was replaced"
	}
	fail := s.fail > 0
	s.fail--
	s.running++
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		s.running--
		s.mu.Unlock()
	}()
	select {
	case <-time.After(s.takes):
	case <-ctx.Done():
		return 0, false, ctx.Err()
	}
	if fail {
		return 0, false, errors.New("no disk today")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	deleted := min(limit, s.rows)
	s.rows -= deleted
	return deleted, s.rows == 0, nil
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// TestDriver: what is left from before goes first; a channel closes when the rows are gone and not before; rests are as
// long as steps; a failure is tried again.
func TestDriver(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &fakeStore{compact: 7, rows: 2500, takes: 10 * time.Millisecond}
		var ends []int64
		d := Start(Options{Store: s, Limit: 1000, OnDone: func(rev int64, took time.Duration) { ends = append(ends, rev, took.Milliseconds()) }})
		defer d.Stop()
		time.Sleep(25 * time.Millisecond)
		first := d.Done(7)
		if s.left() != 1500 || closed(first) {
			t.Fatalf("%d rows left after a step and a half", s.left())
		}
		<-first
		if s.left() != 0 {
			t.Fatalf("told that all is gone with %d rows left", s.left())
		}
		if !closed(d.Done(7)) || !closed(d.Done(3)) {
			t.Fatal("what is gone is waited for")
		}
		s.mu.Lock()
		s.fail = 2
		s.mu.Unlock()
		start := time.Now()
		s.compactTo(9, 10)
		<-d.Done(9)
		if took := time.Since(start); took < 20*time.Second || took > 21*time.Second {
			t.Fatalf("took %v with two failures", took)
		}
		synctest.Wait()
		if fmt.Sprint(ends) != "[7 50 9 20030]" {
			t.Fatalf("ends: %v", ends)
		}
		steps := s.steps
		time.Sleep(time.Hour)
		if s.steps != steps {
			t.Fatal("steps without work")
		}
	})
}

// TestReset: when Reset returns, the store before is left alone; who waits is served by the new one.
func TestReset(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		old := &fakeStore{compact: 5, rows: 5000, takes: time.Hour}
		d := Start(Options{Store: old})
		defer d.Stop()
		done := d.Done(5)
		time.Sleep(time.Second)
		next := &fakeStore{compact: 8, rows: 100, takes: time.Second}
		start := time.Now()
		d.Reset(next)
		if took := time.Since(start); took > 0 || old.running > 0 {
			t.Fatalf("a step went on for %v, %d still do", took, old.running)
		}
		old.dead = true
		<-done
		if next.left() != 0 || !closed(d.Done(8)) {
			t.Fatal("told before the new store was done")
		}
		d.Reset(&fakeStore{compact: 8, rows: 1, takes: time.Second})
		again := d.Done(8) // that it was gone from the store before says nothing
		if closed(again) {
			t.Fatal("told before the newest store was done")
		}
		<-again
		if old.broken != "" {
			t.Fatal(old.broken)
		}
	})
}

// TestStop: a step under way is ended; channels stay open.
func TestStop(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &fakeStore{compact: 5, rows: 1, takes: time.Hour}
		d := Start(Options{Store: s})
		done := d.Done(5)
		synctest.Wait()
		start := time.Now()
		d.Stop()
		if took := time.Since(start); took > 0 || closed(done) {
			t.Fatalf("stopped after %v", took)
		}
	})
}

// TestRandom compacts, waits and replaces at random: no channel closes early, all close in the end.
func TestRandom(t *testing.T) {
	for seed := range uint64(20) {
		bubble.Test(t, func(t *testing.T) {
			r := rand.New(rand.NewPCG(seed, 1))
			s := &fakeStore{takes: time.Millisecond}
			d := Start(Options{Store: s, Limit: 10, Retry: time.Second})
			defer d.Stop()
			var all sync.WaitGroup
			for rev := range int64(60) {
				s.compactTo(rev+1, r.IntN(100))
				if r.IntN(10) == 0 {
					s.mu.Lock()
					next := &fakeStore{takes: time.Millisecond, compact: s.compact, rows: s.rows + 5, fail: r.IntN(3)}
					s.mu.Unlock()
					d.Reset(next)
					s.dead, s = true, next
				}
				at, done := s, d.Done(rev+1)
				all.Go(func() {
					<-done
					at.mu.Lock()
					defer at.mu.Unlock()
					if at.compact == rev+1 && at.rows > 0 && !at.dead {
						t.Errorf("revision %d is said to be gone with %d rows left", rev+1, at.rows)
					}
					if at.broken != "" {
						t.Error(at.broken)
					}
				})
				time.Sleep(time.Duration(r.IntN(20)) * time.Millisecond)
			}
			all.Wait()
		})
	}
}

// TestNothingToDo: a start where no compaction is under way is none; one that finds nothing to delete is.
func TestNothingToDo(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		s := &fakeStore{compact: 7}
		var ends []int64
		steps := 0
		d := Start(Options{Store: s, OnStep: func(int, time.Duration) { steps++ }, OnDone: func(rev int64, _ time.Duration) { ends = append(ends, rev) }})
		defer d.Stop()
		synctest.Wait()
		if steps != 0 || ends != nil {
			t.Errorf("%d steps of compactions told at the start, which ended at %v", steps, ends)
		}
		s.compactTo(9, 0)
		<-d.Done(9)
		synctest.Wait()
		if steps != 1 || !slices.Equal(ends, []int64{9}) {
			t.Errorf("%d steps of compactions told, which ended at %v", steps, ends)
		}
	})
}
