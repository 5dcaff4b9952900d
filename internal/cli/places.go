package cli

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"time"
)

// places lets Go run as many goroutines at once as there are processors, and one more for each flush or compaction of the state under
// way, up to two. Without, these hold all the places on a small machine, and what a write waits for gets one when Go's scheduler
// takes it from them, after 10 ms and more each time; the operating system lets a thread that slept go first. With more places than
// that, a goroutine that could wait for its turn wakes another thread (docs/decisions/0014).
type places struct {
	set    func(n int) // sets how many run at once; it stops all of them for a moment
	base   int
	jobs   atomic.Int32
	change chan struct{} // of capacity 1
}

// mostJobs is how many jobs of the state get a place of their own: it compacts twice at once at the most.
const mostJobs = 2

// shortJob is how long a job takes a place of the others before it gets one: for most it is not worth stopping everybody.
const shortJob = 5 * time.Millisecond

// newPlaces starts the goroutine that sets them, which ends with the process.
func newPlaces(base int, set func(int)) *places {
	p := &places{set: set, base: base, change: make(chan struct{}, 1)}
	go p.follow()
	return p
}

// stateJob returns what is told of the state's jobs in this process; nil if the places are not ours to set.
var stateJob = sync.OnceValue(func() func(change int) {
	if !ownPlaces() {
		return nil
	}
	return newPlaces(runtime.GOMAXPROCS(0), func(n int) { runtime.GOMAXPROCS(n) }).job
})

// ownPlaces tells whether nobody else says how many goroutines run: GOMAXPROCS is not set, and no control group allows fewer
// processors than there are, since more threads would use that up sooner and then all stand still.
func ownPlaces() bool {
	return os.Getenv("GOMAXPROCS") == "" && runtime.GOMAXPROCS(0) == runtime.NumCPU()
}

// job is told +1 when a job begins and -1 when it has ended. It does not block.
func (p *places) job(change int) {
	p.jobs.Add(int32(change))
	select {
	case p.change <- struct{}{}:
	default:
	}
}

func (p *places) follow() {
	now := p.base
	for range p.change {
		time.Sleep(shortJob)
		if n := p.base + min(int(p.jobs.Load()), mostJobs); n != now {
			p.set(n)
			now = n
		}
	}
}
