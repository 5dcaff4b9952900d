package raftlog

import (
	"fmt"
	"math/bits"
	"sort"

	"go.etcd.io/raft/v3/raftpb"
)

// terms knows the term of every retained index without the disk: runs of equal terms. Terms only grow along a log, so
// there are as many runs as there were leaders, not entries.
type terms struct {
	before Position // the entry before the first retained one
	last   uint64   // last index; before.Index if the log is empty
	runs   []termRun
}

// termRun says that entries from first up to the next run (or last) have this term.
type termRun struct{ first, term uint64 }

// at gives the term of index i, and false outside [before.Index, last].
func (t *terms) at(i uint64) (uint64, bool) {
	if i == t.before.Index {
		return t.before.Term, true
	}
	if i < t.before.Index || i > t.last {
		return 0, false
	}
	n := sort.Search(len(t.runs), func(n int) bool { return t.runs[n].first > i })
	return t.runs[n-1].term, true
}

func (t *terms) append(index, term uint64) {
	if index != t.last+1 {
		panic(fmt.Sprintf("raftlog: entry %d appended behind entry %d", index, t.last))
	}
	if n := len(t.runs); n == 0 || t.runs[n-1].term != term {
		t.runs = append(t.runs, termRun{index, term})
	}
	t.last = index
}

// truncate makes p the last position. One before the first retained entry empties the log.
func (t *terms) truncate(p Position) {
	if p.Index <= t.before.Index {
		t.reset(p)
		return
	}
	n := len(t.runs)
	for n > 0 && t.runs[n-1].first > p.Index {
		n--
	}
	t.runs, t.last = t.runs[:n], min(t.last, p.Index)
}

func (t *terms) reset(p Position) {
	t.before, t.last, t.runs = p, p.Index, t.runs[:0]
}

// drop forgets the entries up to index i, which is retained or the one before.
func (t *terms) drop(i uint64) {
	term, ok := t.at(i)
	if !ok {
		panic(fmt.Sprintf("raftlog: drop up to %d of a log that has (%d, %d]", i, t.before.Index, t.last))
	}
	n := 0
	for n+1 < len(t.runs) && t.runs[n+1].first <= i+1 {
		n++
	}
	t.runs = append([]termRun(nil), t.runs[n:]...)
	if len(t.runs) > 0 {
		if i >= t.last {
			t.runs = t.runs[:0]
		} else {
			t.runs[0].first = max(t.runs[0].first, i+1)
		}
	}
	t.before = Position{Index: i, Term: term}
}

// lastPosition is the position of the last entry.
func (t *terms) lastPosition() Position {
	term, _ := t.at(t.last)
	return Position{Index: t.last, Term: term}
}

// cache holds the tail of the log's entries as they were given, up to a bound in bytes.
type cache struct {
	entries []*raftpb.Entry
	first   uint64 // index of entries[0]; meaningless while there are none
	bytes   int64
	max     int64
}

// entryOverhead is about what an entry costs in memory beside its data.
const entryOverhead = 128

func (c *cache) append(e *raftpb.Entry) {
	if len(c.entries) == 0 {
		c.first = e.GetIndex()
	}
	c.entries = append(c.entries, e)
	c.bytes += int64(len(e.Data)) + entryOverhead
	for c.bytes > c.max && len(c.entries) > 0 {
		c.popFront()
	}
}

func (c *cache) popFront() {
	c.bytes -= int64(len(c.entries[0].Data)) + entryOverhead
	c.entries[0] = nil // the array lives on until append moves away from it
	c.entries = c.entries[1:]
	c.first++
}

// truncate drops the entries behind index i.
func (c *cache) truncate(i uint64) {
	for n := len(c.entries); n > 0 && c.first+uint64(n)-1 > i; n-- {
		c.bytes -= int64(len(c.entries[n-1].Data)) + entryOverhead
		c.entries[n-1] = nil
		c.entries = c.entries[:n-1]
	}
}

// drop drops the entries up to index i.
func (c *cache) drop(i uint64) {
	for len(c.entries) > 0 && c.first <= i {
		c.popFront()
	}
}

// from gives the cached entries in [i, hi), nil if i is not cached.
func (c *cache) from(i, hi uint64) []*raftpb.Entry {
	if len(c.entries) == 0 || i < c.first || i >= c.first+uint64(len(c.entries)) {
		return nil
	}
	return c.entries[i-c.first : min(hi-c.first, uint64(len(c.entries)))]
}

// index is the reading half of the log: everything published by the writer. Log.mu guards it.
type index struct {
	terms     terms
	cache     cache
	segments  []*segment // oldest first; the last one is being written
	hardState *raftpb.HardState
	// generation counts truncations and resets, so that a reader who was at the disk meanwhile knows that what it read may
	// be of two histories.
	generation uint64
}

// appendEntry adds an entry found or written at off of the newest segment. e is nil if only its place is known.
func (x *index) appendEntry(i, term uint64, off int64, e *raftpb.Entry) {
	x.terms.append(i, term)
	s := x.segments[len(x.segments)-1]
	if len(s.offsets) == 0 {
		s.first = i
	}
	s.offsets = append(s.offsets, uint32(off))
	if e != nil {
		x.cache.append(e)
	}
}

// truncate makes p the last position.
func (x *index) truncate(p Position) {
	x.terms.truncate(p)
	x.cache.truncate(p.Index)
	x.trim(p.Index)
	x.generation++
}

// reset empties the log; it goes on behind p.
func (x *index) reset(p Position) {
	x.terms.reset(p)
	x.cache.truncate(0)
	x.trim(0)
	x.generation++
}

// trim forgets where entries behind index i are.
func (x *index) trim(i uint64) {
	for n := len(x.segments) - 1; n >= 0; n-- {
		s := x.segments[n]
		if len(s.offsets) == 0 {
			continue
		}
		if s.first+uint64(len(s.offsets))-1 <= i {
			return
		}
		s.offsets = s.offsets[:max(i+1, s.first)-s.first]
	}
}

// dropOldest takes the oldest segment away, and with it the entries that only it holds.
func (x *index) dropOldest() *segment {
	s := x.segments[0]
	x.segments = append([]*segment(nil), x.segments[1:]...)
	if n := uint64(len(s.offsets)); n > 0 {
		upTo := s.first + n - 1
		x.terms.drop(upTo)
		x.cache.drop(upTo)
	}
	return s
}

// locate gives the segment that holds entry i, which must be retained.
func (x *index) locate(i uint64) *segment {
	for n := len(x.segments) - 1; n >= 0; n-- {
		if s := x.segments[n]; len(s.offsets) > 0 && s.first <= i {
			return s
		}
	}
	panic(fmt.Sprintf("raftlog: entry %d of (%d, %d] is in no segment", i, x.terms.before.Index, x.terms.last))
}

// entrySize is the size in bytes of e as a protobuf message, as raft counts it against its limits.
func entrySize(e *raftpb.Entry) uint64 {
	n := 0
	if e.Type != nil {
		n += 1 + uvarintLen(uint64(*e.Type))
	}
	if e.Term != nil {
		n += 1 + uvarintLen(*e.Term)
	}
	if e.Index != nil {
		n += 1 + uvarintLen(*e.Index)
	}
	if e.Data != nil {
		n += 1 + uvarintLen(uint64(len(e.Data))) + len(e.Data)
	}
	return uint64(n)
}

func uvarintLen(v uint64) int { return (bits.Len64(v|1) + 6) / 7 }
