// Package bubble runs tests in a bubble of fake time, so that the race detector survives them.
package bubble

import (
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
)

// Test is [synctest.Test]. Under the race detector the process runs on one processor for as long as any bubble is there:
// goroutines of a bubble that start timers which are due at once run them with one race context among them all, and when
// two do so at the same moment the detector itself crashes, as of Go 1.26 (golang/go issue 78156). Races are found as
// before, since the detector goes by what happened before what and not by what met.
func Test(t *testing.T, f func(t *testing.T)) {
	t.Helper()
	if underRace {
		oneProcessor.enter()
		defer oneProcessor.leave()
	}
	synctest.Test(t, f)
}

// A narrowing keeps the process on one processor while anybody is in it.
type narrowing struct {
	mu     sync.Mutex
	inside int // bubbles that are there, guarded by mu
	before int // processors when the first came, guarded by mu
}

var oneProcessor narrowing

func (n *narrowing) enter() {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.inside == 0 {
		n.before = runtime.GOMAXPROCS(1)
	}
	n.inside++
}

func (n *narrowing) leave() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.inside--
	if n.inside == 0 {
		runtime.GOMAXPROCS(n.before)
	}
}
