package main

import "fmt"

// target is what a figure has to reach. With Trivet alone there is nothing to judge except limits.
type target struct {
	workload, figure string
	kind             kind
	value            float64
}

type kind int

const (
	atMost  kind = iota // of the other's
	atLeast             // of the other's
	limit               // in the figure's own unit, whatever the other does
)

// targets are those that the project has set itself. A target that cannot be met stays, with the reason in
// docs/performance.md.
var targets = []target{
	{"put 256 B, 1 client", p50, atMost, 0.7},
	{"put 256 B, 64 clients", cpuPerOp, atMost, 0.45},
	{"put 256 B, 64 clients", ops, atLeast, 1.6},
	{"put 256 B, 512 clients", cpuPerOp, atMost, 0.45},
	{"put 256 B, 512 clients", ops, atLeast, 1.6},
	{"get and compare-and-put 1 KiB", cpuPerOp, atMost, 0.45},
	{"linearizable get, 1 client", cpuPerOp, atMost, 0.5},
	{"linearizable get, 1 client", p50, atMost, 0.5},
	{"linearizable get, 64 clients", cpuPerOp, atMost, 0.5},
	{"linearizable get, 64 clients", p50, atMost, 0.5},
	{"linearizable get while 64 clients put", p99, atMost, 0.3},
	{"serializable get, 64 clients", cpuPerOp, atMost, 0.6},
	{"range of 5,000 keys of 1 KiB", cpuPerOp, atMost, 0.25},
	{"page of 500 out of 100,000 keys", cpuPerOp, atMost, 0.05},
	{"count of 100,000 keys", cpuPerOp, atMost, 0.02},
	{"put while 4 watchers replay history", ops, atLeast, 8},
	{"put while 4 watchers replay history", p99OverAlone, limit, 1.5},
	{"1,000 watchers of one prefix", cpuPerEvent, atMost, 0.5},
	{"lease keepalive, 64 clients", cpuPerOp, atMost, 0.8},
	{"large store", memoryAnonymous, atMost, 0.25},
	{"large store", diskPerMember, atMost, 1},
	{"large store", loadCPU, atMost, 0.5},
	{"large store", restartTime, atMost, 0.1},
	{"large store", countTime, atMost, 0.02},
	{"large store", longestCompaction, limit, 0.05},
	{"leader killed", gap, limit, 0.15},
	{"leader told to stop", gap, limit, 0.05},
}

// The figures that targets name.
const (
	ops               = "per second"
	p50               = "p50"
	p99               = "p99"
	cpuPerOp          = "CPU per op"
	cpuPerEvent       = "CPU per event"
	p99OverAlone      = "p99 over p99 alone"
	memoryAnonymous   = "anonymous memory"
	diskPerMember     = "disk"
	loadCPU           = "load: CPU per key"
	restartTime       = "restart after kill -9"
	countTime         = "count"
	longestCompaction = "compaction: longest put"
	gap               = "gap in writes"
)

// judge fills in the ratio, and whether the target is met.
func (r *row) judge(systems []string) {
	own, other := r.Median[systems[0]], 0.0
	if len(systems) > 1 {
		if other = r.Median[systems[1]]; other != 0 {
			r.Ratio = own / other
		}
	}
	for _, t := range targets {
		if t.workload != r.Workload || t.figure != r.Figure {
			continue
		}
		var met bool
		switch t.kind {
		case atMost:
			r.Target, met = fmt.Sprintf("at most %v", t.value), r.Ratio <= t.value
		case atLeast:
			r.Target, met = fmt.Sprintf("at least %v", t.value), r.Ratio >= t.value
		case limit:
			r.Target, met = "under "+r.Unit.text(t.value), own < t.value
		}
		if t.kind == limit || other != 0 {
			r.Met = &met
		}
	}
}
