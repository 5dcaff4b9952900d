package rpc

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
	"github.com/trivet-kv/trivet/internal/kv"
)

func TestBudgetWaitsAndGoesOn(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := newBudget(100)
		first, lane, third := share{b: b}, share{b: b}, share{b: b}
		ctx := context.Background()
		if err := first.take(ctx, 80); err != nil {
			t.Fatal(err)
		}
		// More than there is: the lane lets one go over.
		if err := lane.take(ctx, 500); err != nil || !lane.inLane {
			t.Fatalf("%v, in the lane: %v", err, lane.inLane)
		}
		got := make(chan error, 1)
		go func() { got <- third.take(ctx, 50) }()
		synctest.Wait()
		first.release()
		synctest.Wait()
		select {
		case err := <-got:
			t.Fatalf("took 50 bytes of a budget 400 bytes over: %v", err)
		default:
		}
		lane.release()
		if err := <-got; err != nil {
			t.Fatal(err)
		}
		third.release()
		if b.free != 100 || len(b.lane) != 1 {
			t.Errorf("%d bytes free and %d lanes at the end", b.free, len(b.lane))
		}
	})
}

func TestBudgetGivesUp(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		b := newBudget(100)
		a, c := share{b: b}, share{b: b}
		if err := a.take(context.Background(), 1000); err != nil {
			t.Fatal(err)
		}
		begin := time.Now()
		if err := c.take(context.Background(), 1); !errors.Is(err, kv.ErrTooManyRequests) || time.Since(begin) != budgetWait {
			t.Errorf("%v after %v", err, time.Since(begin))
		}
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if err := c.take(ctx, 1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	})
}

// However many answers grow at a time, the memory stays under the budget and one answer, and all of them end.
func TestBudgetBoundsMemory(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		const limit, answers, step, steps = 1000, 50, 30, 10
		b := newBudget(limit)
		var held, most atomic.Int64
		var done sync.WaitGroup
		for range answers {
			done.Go(func() {
				s := share{b: b}
				for range steps {
					if err := s.take(context.Background(), step); err != nil {
						t.Error(err)
						break
					}
					now := held.Add(step)
					for m := most.Load(); now > m && !most.CompareAndSwap(m, now); m = most.Load() {
					}
					time.Sleep(time.Millisecond)
				}
				held.Add(-s.held)
				s.release()
			})
		}
		done.Wait()
		if most.Load() > limit+step*steps {
			t.Errorf("%d bytes were held at a time", most.Load())
		}
		if b.free != limit || len(b.lane) != 1 {
			t.Errorf("%d bytes free and %d lanes at the end", b.free, len(b.lane))
		}
	})
}
