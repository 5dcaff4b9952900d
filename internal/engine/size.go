package engine

import (
	"context"
	"sync/atomic"
)

// sizes is what Size adds up. Bytes count from Open; written goes up by what each batch commits.
type sizes struct {
	written  atomic.Int64
	begun    atomic.Int64 // written when the last flush began
	flushed  atomic.Int64 // written when the last flush that succeeded began
	dropped  atomic.Int64 // bytes of rows that batches deleted, as far as they were told the size
	measured atomic.Pointer[measure]
}

type measure struct {
	live    int64 // bytes of the files of the current version
	flushed int64 // written that these files hold at the least
}

// Size is how many bytes the state takes: the files that hold current rows as of the last Measure, and what was committed
// since the flush that they hold. It costs next to nothing. Rows are larger before they are flushed, being neither
// compressed nor merged; so it may fall by itself.
func (e *Engine) Size() int64 {
	m := e.sizes.measured.Load()
	return m.live + e.sizes.written.Load() - m.flushed
}

// Unflushed is how much of Size is not in files yet.
func (e *Engine) Unflushed() int64 { return e.sizes.written.Load() - e.sizes.measured.Load().flushed }

// Measure looks at the files anew. The engine does so after a flush; after compactions somebody else has to.
func (e *Engine) Measure() {
	if e.gate.enter() != nil {
		return
	}
	defer e.gate.leave()
	flushed := e.sizes.flushed.Load() // first: what is flushed meanwhile counts twice rather than not at all
	m := e.db.Metrics()
	e.sizes.measured.Store(&measure{live: int64(m.Table.Local.LiveSize + m.BlobFiles.Local.LiveSize), flushed: flushed})
}

// Shrink flushes and rewrites all rows, so that the space of deleted ones comes back now rather than later.
func (e *Engine) Shrink(ctx context.Context) error {
	if err := e.Flush(); err != nil {
		return err
	}
	if err := e.Compact(ctx, []byte{0}, []byte{0xff}); err != nil {
		return err
	}
	e.Measure()
	return nil
}
