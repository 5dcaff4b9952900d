package engine

import (
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
)

// sizes is what Size and Garbage add up. Bytes count from Open.
type sizes struct {
	written  counter // by what each batch commits
	dropped  counter // by the rows that batches delete, as far as they are told the size
	measured atomic.Pointer[measure]
}

// counter counts what was committed, and how much of it flushed files hold at the least.
type counter struct {
	all     atomic.Int64
	begun   atomic.Int64 // all when the last flush began
	flushed atomic.Int64 // all when the last flush that succeeded began
}

func (c *counter) begin() { c.begun.Store(c.all.Load()) }
func (c *counter) end()   { c.flushed.Store(c.begun.Load()) }

type measure struct {
	live    int64 // bytes of the files of the current version
	garbage int64 // of those, about how many are rows that were deleted
	values  int64 // and how many are large values that nothing refers to
	busy    bool
	// What these files hold of the counters at the least.
	written, dropped int64
}

// Size is how many bytes the state takes: the files that hold current rows as of the last Measure, and what was committed
// since the flush that they hold. It costs next to nothing. Rows are larger before they are flushed, being neither
// compressed nor merged; so it may fall by itself.
func (e *Engine) Size() int64 {
	m := e.sizes.measured.Load()
	return m.live + e.sizes.written.all.Load() - m.written
}

// Unflushed is how much of Size is not in files yet.
func (e *Engine) Unflushed() int64 {
	return e.sizes.written.all.Load() - e.sizes.measured.Load().written
}

// Measure looks at the files anew. The engine does so after a flush; after compactions somebody else has to.
func (e *Engine) Measure() {
	if e.gate.enter() != nil {
		return
	}
	defer e.gate.leave()
	var next *measure
	var m *pebble.Metrics
	for again := true; again; { // what is flushed meanwhile would count twice
		next = &measure{written: e.sizes.written.flushed.Load(), dropped: e.sizes.dropped.flushed.Load()}
		m = e.db.Metrics()
		again = next.written != e.sizes.written.flushed.Load()
	}
	next.live = int64(m.Table.Local.LiveSize + m.BlobFiles.Local.LiveSize)
	next.garbage = int64(m.Table.Garbage.PointDeletionsBytesEstimate + m.Table.Garbage.RangeDeletionsBytesEstimate)
	if v := &m.BlobFiles; v.ValueSize > 0 { // values are counted as they were before they were compressed
		next.values = int64(float64(v.LiveSize) / float64(v.ValueSize) * float64(v.ValueSize-v.ReferencedValueSize))
	}
	next.busy = m.Compact.NumInProgress > 0 || m.Table.PendingStatsCollectionCount > 0
	for {
		last := e.sizes.measured.Load()
		if last != nil && last.written > next.written {
			return // somebody who came later was faster
		}
		if e.sizes.measured.CompareAndSwap(last, next) {
			return
		}
	}
}
