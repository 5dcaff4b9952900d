package engine

import (
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// How long flushes and compactions wait after one that failed: it doubles with each failure in a row.
const (
	minPause = 10 * time.Millisecond
	maxPause = time.Second
)

// pauses keeps Pebble, which tries a failed flush or compaction again at once and without end, from using a whole core for
// that. Pebble tells of the failure with its lock held, so it is only noted then; the wait is before the next table is
// made, by the flush or compaction itself, when no lock is held. Batches, reads and Close go on meanwhile.
type pauses struct {
	failures atomic.Uint64 // in a row, since a flush or compaction ended well
	due      atomic.Bool   // a failure that nobody has waited for yet
	stop     <-chan struct{}
}

// failed notes a failure and returns how many there were in a row.
func (p *pauses) failed() uint64 {
	n := p.failures.Add(1)
	p.due.Store(true)
	return n
}

func (p *pauses) ended() {
	p.failures.Store(0)
	p.due.Store(false)
}

// wait waits if one has failed since the last wait, until stop at the longest.
func (p *pauses) wait() {
	if !p.due.Swap(false) {
		return
	}
	t := time.NewTimer(pauseAfter(p.failures.Load()))
	defer t.Stop()
	select {
	case <-p.stop:
	case <-t.C:
	}
}

func pauseAfter(failures uint64) time.Duration {
	pause := minPause
	for ; failures > 1 && pause < maxPause; failures-- {
		pause *= 2
	}
	return min(pause, maxPause)
}

// pauseFS is a file system whose new tables wait for the pause that is due.
type pauseFS struct {
	vfs.FS
	pauses *pauses
}

func (f pauseFS) Unwrap() vfs.FS { return f.FS }

func (f pauseFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	if IsTable(name) {
		f.pauses.wait()
	}
	return f.FS.Create(name, c)
}
