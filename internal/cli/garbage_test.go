package cli

import (
	"runtime"
	"slices"
	"testing"
	"time"
)

// The same garbage is let grow beside little and beside much, within bounds, and a small change stops nobody.
func TestGarbageIsBounded(t *testing.T) {
	var lives int64
	var set []int
	g := &garbage{budget: 20 << 20, living: func() int64 { return lives }, set: func(percent int) { set = append(set, percent) }}
	for _, mib := range []int64{0, 4, 10, 19, 20, 21, 50, 53, 40, 80, 200, 2000, 50} {
		lives = mib << 20
		g.adjust()
	}
	// 4 and 10 MiB are at the upper bound as nothing is, 20 and 21 near 19, 53 near 50, 2,000 at the lower bound as 200 is.
	if want := []int{mostPercent, 105, 40, 50, 25, leastPercent, 40}; !slices.Equal(set, want) {
		t.Errorf("set %v, want %v", set, want)
	}
}

// It is adjusted after each collection, by what the runtime says lives.
func TestGarbageIsFollowed(t *testing.T) {
	adjusted := make(chan int64, 100)
	g := &garbage{budget: garbageBudget, set: func(int) {}, living: func() int64 {
		n := living()
		adjusted <- n
		return n
	}}
	g.follow()
	held := make([]byte, 64<<20)
	for range 3 {
		runtime.GC()
		select {
		case n := <-adjusted:
			if n < int64(len(held)) {
				t.Errorf("%d bytes are said to live, and %d are held", n, len(held))
			}
		case <-time.After(10 * time.Second):
			t.Fatal("not adjusted after a collection")
		}
	}
	runtime.KeepAlive(held)
}
