package raftlog

import (
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
)

// readChunkBytes bounds one read of older entries from a segment, unless a single entry is larger.
const readChunkBytes = 1 << 20

// Entries gives the entries in [lo, hi): as many as fit in maxSize bytes (as protobuf messages, as raft counts), but at
// least one. Entries of the cached tail need no disk; older ones are read from their segments and checked. It never waits
// for a write. The caller owns the slice, nobody may change the entries. Errors: raft.ErrCompacted, raft.ErrUnavailable, a
// *DamageError, or the disk's.
func (l *Log) Entries(lo, hi, maxSize uint64) ([]*raftpb.Entry, error) {
	for {
		entries, retry, err := l.entries(lo, hi, maxSize)
		if !retry {
			return entries, err
		}
	}
}

// entries tries once. retry means that the tail was overwritten while older entries were being read, so that what was
// gathered may mix two histories.
func (l *Log) entries(lo, hi, maxSize uint64) (entries []*raftpb.Entry, retry bool, err error) {
	l.mu.Lock()
	generation := l.index.generation
	l.mu.Unlock()
	size := uint64(0)
	for next := lo; next < hi; {
		l.mu.Lock()
		switch {
		case l.closed:
			l.mu.Unlock()
			return nil, false, ErrClosed
		case l.index.generation != generation:
			l.mu.Unlock()
			return nil, true, nil
		case next <= l.index.terms.before.Index:
			l.mu.Unlock()
			if next > lo { // cut behind us; what is gathered is right and enough
				return entries, false, nil
			}
			return nil, false, raft.ErrCompacted
		case hi > l.index.terms.last+1:
			l.mu.Unlock()
			return nil, false, raft.ErrUnavailable
		}
		got := l.index.cache.from(next, hi)
		if got != nil {
			if entries == nil {
				entries = make([]*raftpb.Entry, 0, len(got))
			}
			entries, _ = appendUpTo(entries, got, &size, maxSize)
			l.mu.Unlock()
			return entries, false, nil
		}
		chunk := l.index.chunk(next, hi, maxSize-min(size, maxSize))
		chunk.seg.readers++
		l.mu.Unlock()

		got, err = chunk.read()
		l.release(chunk.seg)
		if err != nil {
			return nil, false, err
		}
		var full bool
		if entries, full = appendUpTo(entries, got, &size, maxSize); full || size >= maxSize {
			break
		}
		next += uint64(len(got))
	}
	l.mu.Lock()
	retry = l.index.generation != generation
	l.mu.Unlock()
	return entries, retry, nil
}

// appendUpTo appends more to entries while their size stays within limit; the very first always fits.
func appendUpTo(entries, more []*raftpb.Entry, size *uint64, limit uint64) ([]*raftpb.Entry, bool) {
	for _, e := range more {
		n := entrySize(e)
		if len(entries) > 0 && *size+n > limit {
			return entries, true
		}
		*size += n
		entries = append(entries, e)
	}
	return entries, false
}

// chunk is a row of entries in one segment to be read at once.
type chunk struct {
	seg     *segment
	first   uint64
	offsets []uint32
	end     int64 // where the last one ends at the latest; 0: ask its header
}

// chunk picks the entries from lo on that lie in one segment and within the limits, at least one.
func (x *index) chunk(lo, hi, maxSize uint64) chunk {
	s := x.locate(lo)
	from := lo - s.first
	to := min(hi-s.first, uint64(len(s.offsets)))
	limit := int64(min(maxSize, readChunkBytes))
	begin := int64(s.offsets[from])
	endOf := func(n uint64) int64 {
		if n+1 < uint64(len(s.offsets)) {
			return int64(s.offsets[n+1])
		}
		return s.end
	}
	n := from + 1
	for n < to && endOf(n)-begin <= limit {
		n++
	}
	c := chunk{seg: s, first: lo, offsets: append([]uint32(nil), s.offsets[from:n]...)}
	// Between one live entry and the next there may be dead records, as much as was ever overwritten.
	if end := endOf(n - 1); end-int64(s.offsets[n-1]) <= readChunkBytes {
		c.end = end
	}
	return c
}

// read reads the chunk's entries.
func (c *chunk) read() ([]*raftpb.Entry, error) {
	if c.end == 0 {
		end, err := c.seg.recordEnd(int64(c.offsets[len(c.offsets)-1]))
		if err != nil {
			return nil, err
		}
		c.end = end
	}
	return c.seg.readEntries(c.first, c.offsets, c.end)
}

// release ends a reader's use of a segment's file; the last one closes the file of a segment that was cut meanwhile.
func (l *Log) release(s *segment) {
	l.mu.Lock()
	s.readers--
	last := s.retired && s.readers == 0
	l.mu.Unlock()
	if last {
		_ = s.file.Close() // nothing was written since its last sync
	}
}
