package front

import (
	"slices"
	"testing"
	"testing/synctest"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// The goroutine that worked last is taken first, no more than maxIdle wait, and none is left at the end.
func TestWorkers(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		release := map[*call]chan struct{}{}
		var order []uint32
		w := &workers{run: func(k *call) {
			if c := release[k]; c != nil {
				<-c
			}
			order = append(order, k.id)
		}}
		start := func(id uint32) *call {
			k := &call{id: id}
			release[k] = make(chan struct{})
			w.do(k)
			synctest.Wait()
			return k
		}
		end := func(k *call) {
			close(release[k])
			synctest.Wait()
		}
		idle := func() []chan *call {
			w.mu.Lock()
			defer w.mu.Unlock()
			return slices.Clone(w.idle)
		}
		a, b := start(1), start(2)
		end(a)
		end(b)
		two := idle()
		if len(two) != 2 {
			t.Fatalf("%d wait, want two", len(two))
		}
		c := start(3)
		if left := idle(); len(left) != 1 || left[0] != two[0] {
			t.Error("the one that worked last was not taken")
		}
		end(c)
		if !slices.Equal(order, []uint32{1, 2, 3}) {
			t.Errorf("ran %v", order)
		}

		var many []*call
		for i := range uint32(maxIdle + 10) {
			many = append(many, start(10+i))
		}
		for _, k := range many[5:] {
			end(k)
		}
		if n := len(idle()); n != maxIdle {
			t.Errorf("%d wait, want %d", n, maxIdle)
		}
		w.end()
		for _, k := range many[:5] {
			end(k)
		}
		if n := len(idle()); n != 0 {
			t.Errorf("%d wait after the end", n)
		}
	}) // which wants every goroutine to have ended
}
