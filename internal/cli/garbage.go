package cli

import (
	"os"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// garbage has the collector come whenever about so many bytes of garbage have grown, however much lives. Nearly all that lives in
// a member is caches and memtables without pointers, which cost the collector little: Go's default of 100 % would double them, and
// a small percentage would have it come all the time where little lives (docs/decisions/0005).
type garbage struct {
	budget  int64             // in bytes
	living  func() int64      // what the percentage is of, in bytes
	set     func(percent int) // stops everybody for a moment
	percent int               // what is set
}

const (
	garbageBudget = 22 << 20
	// leastPercent holds where so much lives that for the budget the collector would look at it again and again.
	leastPercent = 20
	// mostPercent holds where hardly anything lives, since a moment later it may be many times as much.
	mostPercent = 200
)

// boundGarbage sets the collector, now and after each collection, unless whoever started the process has set GOGC.
func boundGarbage() {
	if _, set := os.LookupEnv("GOGC"); set {
		return
	}
	g := &garbage{budget: garbageBudget, living: living, set: func(percent int) { debug.SetGCPercent(percent) }}
	g.adjust()
	g.follow()
}

// follow has adjust called after each collection, by a goroutine of the runtime's: what nobody refers to is gone after it.
func (g *garbage) follow() {
	type mark struct{ g *garbage } // one without a pointer could share its memory with something that stays
	runtime.AddCleanup(&mark{g}, func(g *garbage) {
		g.adjust()
		g.follow()
	}, g)
}

// adjust sets the percentage if what lives has changed by enough to move it by more than a tenth.
func (g *garbage) adjust() {
	p := min(max(int(g.budget*100/max(g.living(), 1)), leastPercent), mostPercent)
	if d := 10 * (p - g.percent); d > g.percent || -d > g.percent {
		g.set(p)
		g.percent = p
	}
}

// living is what the collector's percentage is of: what lived after the last collection, with stacks and globals.
func living() int64 {
	s := []metrics.Sample{{Name: "/gc/heap/live:bytes"}, {Name: "/gc/scan/stack:bytes"}, {Name: "/gc/scan/globals:bytes"}}
	metrics.Read(s)
	var sum int64
	for _, m := range s {
		sum += int64(m.Value.Uint64())
	}
	return sum
}
