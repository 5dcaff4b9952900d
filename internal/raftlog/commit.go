package raftlog

import (
	"context"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

const (
	// groupBytes bounds what one group commit gathers, so that the buffer stays small and the first of many that wait is
	// not held up by the last. A single larger write still goes out in one piece.
	groupBytes = 4 << 20
	// keepBufferBytes is how large a buffer the writer keeps from one group to the next.
	keepBufferBytes = 8 << 20
)

// writer is the state of the writer goroutine: the log as it will be when what is staged is durable.
type writer struct {
	terms     terms
	hardState *raftpb.HardState
	active    *segment
	written   int64  // end of what was given to the file
	synced    int64  // end of what is known durable; at most written
	tail      []byte // what was given to the file from synced to written, but for the buffer of this group
	marked    bool   // the last record is the mark of a clean end
	enc       encoder
	group     []staged
	needSync  bool
	resetSeq  uint64 // segments before this one are dead: a durable reset is in it
	cut       uint64 // the largest Cut so far
	free      []freeFile
	asked     bool // the filler was asked for a spare that was not taken yet
	// Of the active segment, since it is that: how many groups were written, and their bytes.
	groups     int64
	groupBytes int64
}

// staged is a write of the group being gathered, with what publishing it needs.
type staged struct {
	Write
	truncates bool
	truncate  Position
	offsets   []uint32 // of the entries
	bytes     int64    // as counted in the backlog
}

// run is the writer goroutine. It ends at Close, or at the first error.
func (l *Log) run() {
	defer close(l.done)
	for {
		l.queue.Lock()
		writes, cut, closing := l.queue.writes, l.queue.cut, l.queue.closing
		l.queue.writes, l.queue.cut = nil, 0
		l.queue.Unlock()

		l.w.cut = max(l.w.cut, cut)
		if err := l.commit(writes); err != nil {
			l.fail(err)
			return
		}
		if closing { // nothing can have been queued since it was set
			if err := l.markClosed(); err != nil {
				l.fail(err)
			}
			return
		}
		<-l.wake
	}
}

// commit writes all that was queued, in order, in as few groups as their size allows, then takes away what was cut.
func (l *Log) commit(writes []Write) error {
	for i := range writes {
		if err := l.stage(&writes[i]); err != nil {
			return err
		}
		writes[i] = Write{} // the group has it
	}
	if err := l.flush(); err != nil {
		return err
	}
	if err := l.cutSegments(); err != nil {
		return err
	}
	l.askForSpare()
	return nil
}

// writeBytes bounds what the write takes in a segment from above.
func writeBytes(w *Write) int64 {
	n := 3 * smallRecordBytes // reset, truncation, hard state
	for _, e := range w.Entries {
		n += entryRecordBytes(e)
	}
	return n
}

// stage encodes a write into the group's buffer. It flushes first what was there if the group is full or the segment is.
func (l *Log) stage(in *Write) error {
	w := &l.w
	n := writeBytes(in)
	// The last record of a segment's room is kept for the mark of a clean end.
	if w.enc.offset()+n+recordHeaderBytes > w.active.size {
		if err := l.flush(); err != nil {
			return err
		}
		if err := l.switchSegment(n); err != nil {
			return err
		}
	} else if len(w.group) > 0 && int64(len(w.enc.buf))+n > groupBytes {
		if err := l.flush(); err != nil {
			return err
		}
	}
	s := staged{Write: *in, bytes: n}
	w.needSync = w.needSync || s.Sync || s.Reset != nil
	if s.Reset != nil {
		w.terms.reset(*s.Reset)
		w.cut = min(w.cut, s.Reset.Index) // an older Cut speaks of the log that is gone
	}
	if len(s.Entries) > 0 && s.Entries[0].GetIndex() <= w.terms.last {
		s.truncates = true
		s.truncate = w.truncation(s.Entries[0].GetIndex())
		w.terms.truncate(s.truncate)
	}
	if s.HardState != nil && w.hardState != nil && sameHardState(s.HardState, w.hardState) {
		s.HardState = nil
	}
	w.encode(&s)
	w.group = append(w.group, s)
	return nil
}

// truncation gives the position before entry first, which will be overwritten.
func (w *writer) truncation(first uint64) Position {
	term, ok := w.terms.at(first - 1)
	if first == 0 || !ok {
		panic(fmt.Sprintf("raftlog: entry %d would overwrite the log behind %d, which begins behind %d", first, first-1,
			w.terms.before.Index))
	}
	return Position{Index: first - 1, Term: term}
}

// encode appends the records of s; the last one carries the end flag. The order matters only to readers of the file,
// because recovery takes all of them or none.
func (w *writer) encode(s *staged) {
	left := len(s.Entries)
	for _, more := range []bool{s.Reset != nil, s.truncates, s.HardState != nil} {
		if more {
			left++
		}
	}
	if left == 0 {
		return
	}
	w.marked = false
	flags := func() uint8 {
		if left--; left == 0 {
			return flagEnd
		}
		return 0
	}
	if s.Reset != nil {
		w.enc.position(*s.Reset, KindReset, flags())
	}
	if s.truncates {
		w.enc.position(s.truncate, KindTruncate, flags())
	}
	if len(s.Entries) > 0 {
		s.offsets = make([]uint32, 0, len(s.Entries))
	}
	for _, e := range s.Entries {
		w.terms.append(e.GetIndex(), e.GetTerm())
		s.offsets = append(s.offsets, uint32(w.enc.offset()))
		w.enc.entry(e, flags())
	}
	if s.HardState != nil {
		w.hardState = s.HardState
		w.enc.hardState(s.HardState, flags())
	}
}

// flush is the group commit: one write, one sync if anybody waits for it, then the readers see it, then Done.
func (l *Log) flush() error {
	w := &l.w
	if len(w.group) == 0 {
		return nil
	}
	l.pace.begin()
	if err := l.writeOut(); err != nil {
		return err
	}
	if w.needSync {
		if err := l.sync(); err != nil {
			return err
		}
	}
	w.keepTail()
	l.pace.end(w.needSync)
	l.publish()
	w.enc.base, w.enc.durable, w.enc.buf = w.written, w.synced, w.enc.buf[:0]
	if cap(w.enc.buf) > keepBufferBytes {
		w.enc.buf = nil
	}
	group := w.group
	w.group, w.needSync = w.group[:0], false
	for i := range group {
		l.backlogWrites.Add(-1)
		l.backlogBytes.Add(-group[i].bytes)
		if group[i].Reset != nil {
			w.resetSeq = w.active.seq()
		}
		done := group[i].Done
		group[i] = staged{}
		if done != nil {
			done()
		}
	}
	return nil
}

// writeOut gives the buffer to the file.
func (l *Log) writeOut() error {
	w := &l.w
	if len(w.enc.buf) == 0 {
		return nil
	}
	begin := time.Now()
	err := l.withRoom(func() error {
		_, err := w.active.file.WriteAt(w.enc.buf, w.enc.base)
		return err
	})
	if err != nil {
		return fmt.Errorf("write raft log segment %s at offset %d: %w", w.active.path, w.enc.base, err)
	}
	l.opt.OnWrite(len(w.enc.buf), time.Since(begin))
	w.written = w.enc.offset()
	w.groups++
	w.groupBytes += int64(len(w.enc.buf))
	return nil
}

// smallGroups reports whether the next segment is worth filling with zeros.
func (w *writer) smallGroups() bool { return w.groupBytes < fillBelow*max(w.groups, 1) }

// keepTail remembers the group's bytes if they are not durable. Writes that nobody waits for are small and few.
func (w *writer) keepTail() {
	if w.synced < w.written {
		w.tail = append(w.tail, w.enc.buf...)
	}
}

// sync makes all that was written durable. A failed sync is final: the kernel may have dropped the pages and call the next
// sync a success. Only on a full disk, where every sync fails until there is room, it is tried again, and before that all that
// is not known to be durable is written again.
func (l *Log) sync() error {
	w := &l.w
	if w.synced == w.written {
		return nil
	}
	begin := time.Now()
	again := false
	err := l.withRoom(func() error {
		if again {
			if _, err := w.active.file.WriteAt(slices.Concat(w.tail, w.enc.buf), w.synced); err != nil {
				return err
			}
		}
		again = true
		return w.active.file.SyncData()
	})
	if err != nil {
		return fmt.Errorf("sync raft log segment %s: %w", w.active.path, err)
	}
	w.synced, w.tail = w.written, nil
	l.opt.OnSync(time.Since(begin))
	return nil
}

// publish lets readers see the group.
func (l *Log) publish() {
	w := &l.w
	l.mu.Lock()
	defer l.mu.Unlock()
	for i := range w.group {
		s := &w.group[i]
		if s.Reset != nil {
			l.index.reset(*s.Reset)
		}
		if s.truncates {
			l.index.truncate(s.truncate)
		}
		for n, e := range s.Entries {
			l.index.appendEntry(e.GetIndex(), e.GetTerm(), int64(s.offsets[n]), e)
		}
		if s.HardState != nil {
			l.index.hardState = s.HardState
		}
	}
	w.active.end = w.written
}

// markClosed syncs what is written and leaves the mark of a clean end, a sync point for everything before it, so that the
// next Open can tell damage in the last writes from a torn tail.
func (l *Log) markClosed() error {
	w := &l.w
	if err := l.sync(); err != nil {
		return err
	}
	if w.marked || w.written+recordHeaderBytes > w.active.size {
		return nil
	}
	w.enc.durable = w.synced
	w.enc.closed()
	if err := l.writeOut(); err != nil {
		return err
	}
	return l.sync()
}

// switchSegment goes on in a new segment that has room for a write of n bytes. Nothing is staged.
func (l *Log) switchSegment(n int64) error {
	w := &l.w
	l.pace.begin()
	defer l.pace.end(false)
	// The successor's header says that this segment is durable up to its end: make it so.
	if err := l.sync(); err != nil {
		return err
	}
	size := l.opt.SegmentBytes
	var f freeFile
	var err error
	if need := segmentHeaderBytes + n + recordHeaderBytes; need > size {
		if need > maxSegmentBytes {
			return fmt.Errorf("raft log: a write of %d bytes is more than a segment can ever hold", n)
		}
		f, err = l.bigFile((need + 4095) &^ 4095)
	} else {
		f, err = l.takeFree()
	}
	if err != nil {
		return err
	}
	s, err := l.beginSegment(f, segmentHeader{
		seal: seal{seq: w.active.seq() + 1}, prevEnd: w.written, base: w.terms.lastPosition(), hardState: w.hardState,
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	l.index.segments = append(l.index.segments, s)
	l.mu.Unlock()
	w.activate(s, segmentHeaderBytes)
	l.log.LogAttrs(context.Background(), slog.LevelDebug, "raft log goes on in a new segment", slog.String("file", s.path),
		slog.Uint64("last_index", s.base.Index))
	return nil
}

// activate makes s the segment that is written to, from end on, which is durable.
func (w *writer) activate(s *segment, end int64) {
	w.active, w.written, w.synced, w.marked, w.tail = s, end, end, false, nil
	w.groups, w.groupBytes = 0, 0
	w.enc = encoder{seal: s.seal, base: end, durable: end, buf: w.enc.buf[:0]}
}

func sameHardState(a, b *raftpb.HardState) bool {
	return a.GetTerm() == b.GetTerm() && a.GetVote() == b.GetVote() && a.GetCommit() == b.GetCommit()
}
