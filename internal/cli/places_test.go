package cli

import (
	"runtime"
	"testing"
	"testing/synctest"
	"time"

	"github.com/trivet-kv/trivet/internal/bubble"
)

// A job of the state that goes on for a while has a place for as long as it does, two at the most; short ones stop nobody.
func TestPlaces(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		var set []int
		p := newPlaces(4, func(n int) { set = append(set, n) })
		defer close(p.change) // which ends its goroutine
		for _, step := range []struct {
			changes []int
			wait    time.Duration
			want    []int // all that was set so far
		}{
			{[]int{+1}, shortJob / 2, nil},
			{[]int{-1}, time.Second, nil}, // it was short
			{[]int{+1}, time.Second, []int{5}},
			{[]int{+1, +1}, time.Second, []int{5, 6}}, // three jobs, two places
			{[]int{-1}, time.Second, []int{5, 6}},
			{[]int{-1, -1}, time.Second, []int{5, 6, 4}},
		} {
			for _, c := range step.changes {
				p.job(c)
			}
			time.Sleep(step.wait)
			synctest.Wait()
			if len(set) != len(step.want) || len(set) > 0 && set[len(set)-1] != step.want[len(set)-1] {
				t.Fatalf("after %v: set %v, want %v", step.changes, set, step.want)
			}
		}
	})
}

// What somebody has set stands, be it by the environment or by a control group's bound.
func TestPlacesOfOthers(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	all := runtime.NumCPU()
	for _, c := range []struct {
		env   string
		procs int
		ours  bool
	}{
		{"", all, true},
		{"", all + 1, false},
		{"5", all, false},
	} {
		t.Setenv("GOMAXPROCS", c.env)
		runtime.GOMAXPROCS(c.procs)
		if got := ownPlaces(); got != c.ours {
			t.Errorf("with GOMAXPROCS=%q and %d of %d processors: ours is %v", c.env, c.procs, all, got)
		}
	}
}
