package watch

import (
	"context"
	"errors"
	"runtime"
	"slices"
	"sync"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

const (
	// wantedCost is how many times as much as passing over a change it costs to read its pair.
	wantedCost = 8
	// maxCovers bounds the ranges for which a piece of history is complete; one that was read for more is not shared.
	maxCovers = 8
	// pieceOverhead is about what a piece costs beside its events, in bytes. It bounds how many there are, too.
	pieceOverhead = 16 << 10
	// yieldEvery is how many pairs are read between moments at which other goroutines may go first.
	yieldEvery = 64
)

// past is the pieces of a source's history that were read last, so that several streams that read the same at about the
// same place read it, and encode it, once. It is emptied when nobody lags, and goes with its source.
type past struct {
	maxBytes int64

	mu     sync.Mutex // a leaf
	pieces []*piece   // used last is last
	bytes  int64
}

// piece is a stretch of history: all events of its ranges in the revisions from from to end. It never changes.
type piece struct {
	past      *past
	covers    []kv.Range
	from, end int64
	events    []*Event
	took      time.Duration // what reading it took

	cost int64 // bytes, guarded by past.mu
	held bool  // is one of past.pieces, guarded by past.mu
}

// find returns a piece with revision from that is complete for ranges, or nil.
func (p *past) find(from int64, ranges []kv.Range) *piece {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, c := range p.pieces {
		if c.from <= from && from <= c.end && covered(ranges, c.covers) {
			p.pieces = append(append(p.pieces[:i], p.pieces[i+1:]...), c)
			return c
		}
	}
	return nil
}

func covered(ranges, by []kv.Range) bool {
	for _, r := range ranges {
		if !slices.ContainsFunc(by, func(c kv.Range) bool { return c.Covers(r) }) {
			return false
		}
	}
	return true
}

// keep makes c findable. The pieces that were not used for the longest time go if there are too many bytes.
func (p *past) keep(c *piece) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pieces = append(p.pieces, c)
	p.bytes += c.cost
	c.held = true
	p.evict()
}

func (p *past) evict() {
	for len(p.pieces) > 0 && p.bytes > p.maxBytes {
		oldest := p.pieces[0]
		oldest.held = false
		p.bytes -= oldest.cost
		p.pieces = slices.Delete(p.pieces, 0, 1)
	}
}

func (p *past) clear() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.pieces {
		c.held = false
	}
	p.pieces, p.bytes = nil, 0
}

func (p *past) size() int64 {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.bytes
}

func (c *piece) charge(_ *Event, n int64) {
	c.past.mu.Lock()
	defer c.past.mu.Unlock()
	c.cost += n
	if c.held {
		c.past.bytes += n
		c.past.evict()
	}
}

// piece returns the history from revision sl.from on for the slice, as far as one piece goes, and whether it goes as far
// as there is history now.
func (s *source) piece(ctx context.Context, sl *slice) (_ *piece, newest bool, err error) {
	to := s.Revision()
	shared := len(sl.ranges) <= maxCovers
	if shared {
		if c := s.past.find(sl.from, sl.ranges); c != nil {
			return c, c.end >= to, nil
		}
	}
	c, err := s.readPiece(ctx, sl, to)
	if err != nil {
		return nil, false, err
	}
	if shared {
		s.past.keep(c)
	}
	return c, c.end >= to, nil
}

// readPiece reads a piece for the ranges of a slice, up to revision to or the end of a revision before it. What it wants is
// decided by the ranges alone, not by who still watches: it must be complete for them.
func (s *source) readPiece(ctx context.Context, sl *slice, to int64) (*piece, error) {
	o := &sl.s.h.o
	c := &piece{past: &s.past, covers: sl.ranges, from: sl.from, cost: pieceOverhead}
	start := time.Now()
	work, bytes, rev := 0, 0, int64(0)
	err := s.Changes(ctx, sl.from, to, func(e kv.Event, pair func() (kv.KeyValue, error)) error {
		if e.Revision.Main != rev {
			if work >= o.SliceEvents || bytes >= o.BatchBytes {
				return errSlice
			}
			rev = e.Revision.Main
		}
		work++
		if !sl.wants(e.KV.Key) {
			return nil
		}
		var err error
		if e.KV, err = pair(); err != nil {
			return err
		}
		kept := &Event{Event: e, holder: c}
		c.events = append(c.events, kept)
		bytes += kept.size()
		work += wantedCost - 1
		if len(c.events)%yieldEvery == 0 {
			runtime.Gosched()
		}
		return nil
	})
	switch {
	case err == nil:
		c.end = to
	case errors.Is(err, errSlice):
		c.end = rev
	default:
		return nil, err
	}
	c.cost += int64(bytes) + int64(len(c.events))*eventOverhead
	c.took = time.Since(start)
	return c, nil
}
