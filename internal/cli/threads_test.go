package cli

import (
	"runtime"
	"testing"
)

// What somebody has set stands, be it by the environment or by a control group's bound.
func TestMoreThreads(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	defer runtime.GOMAXPROCS(before)
	all := runtime.NumCPU()
	for _, c := range []struct {
		env       string
		set, want int
	}{
		{"", all, all + backgroundThreads},
		{"", all + 1, all + 1},
		{"5", all, all},
	} {
		t.Setenv("GOMAXPROCS", c.env)
		runtime.GOMAXPROCS(c.set)
		moreThreads()
		if got := runtime.GOMAXPROCS(0); got != c.want {
			t.Errorf("with GOMAXPROCS=%q and %d of %d processors: %d, want %d", c.env, c.set, all, got, c.want)
		}
	}
}
