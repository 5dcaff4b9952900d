package raftlog

import (
	"bytes"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/bubble"
)

func memOptions() Options {
	return Options{FS: vfs.NewMem(), Dir: "log", SegmentBytes: 16 << 10}
}

// entriesFrom makes n entries of the given size, from index first on.
func entriesFrom(first uint64, n, size int, term uint64) []*raftpb.Entry {
	var es []*raftpb.Entry
	for i := range n {
		es = append(es, newEntry(first+uint64(i), term, bytes.Repeat([]byte{byte(first) + byte(i)}, size)))
	}
	return es
}

func TestOptions(t *testing.T) {
	for _, o := range []Options{
		{}, {FS: vfs.NewMem()}, {FS: vfs.NewMem(), Dir: "log", SegmentBytes: 100}, {FS: vfs.NewMem(), Dir: "log", SegmentBytes: 2 << 30},
	} {
		if _, err := Open(o); err == nil {
			t.Errorf("%+v opened", o)
		}
	}
	l := mustOpen(t, Options{FS: vfs.NewMem(), Dir: "log"})
	if l.opt.SegmentBytes != defaultSegmentBytes || l.opt.CacheBytes != defaultCacheBytes {
		t.Errorf("defaults: %+v", l.opt)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestBounds asks for everything at and beyond the edges.
func TestBounds(t *testing.T) {
	for _, cacheBytes := range []int64{-1, 1000, 1 << 20} {
		o := memOptions()
		o.CacheBytes = cacheBytes
		l := mustOpen(t, o)
		if first, _ := l.FirstIndex(); first != 1 {
			t.Errorf("an empty log begins with %d", first)
		}
		if hs := l.HardState(); !raft.IsEmptyHardState(hs) {
			t.Errorf("an empty log has hard state %v", hs)
		}
		if term, err := l.Term(0); term != 0 || err != nil {
			t.Errorf("term of 0: %d, %v", term, err)
		}
		all := entriesFrom(11, 20, 100, 3)
		all[4].Data = nil
		all[7].Type = raftpb.EntryConfChangeV2.Enum()
		appendWait(t, l, Write{Reset: &Position{10, 2}, Entries: all, HardState: newHardState(3, 1, 12), Sync: true})

		for i, want := range map[uint64]error{9: raft.ErrCompacted, 10: nil, 11: nil, 30: nil, 31: raft.ErrUnavailable} {
			if _, err := l.Term(i); !errors.Is(err, want) {
				t.Errorf("term of %d: %v, want %v", i, err, want)
			}
		}
		if _, err := l.Entries(10, 12, 100); !errors.Is(err, raft.ErrCompacted) {
			t.Errorf("entries before the first: %v", err)
		}
		if _, err := l.Entries(30, 32, 100); !errors.Is(err, raft.ErrUnavailable) {
			t.Errorf("entries behind the last: %v", err)
		}
		for lo := uint64(11); lo <= 31; lo++ {
			for hi := lo; hi <= 31; hi++ {
				for _, limit := range []uint64{0, 110, 111, 333, 350, 1 << 60} {
					got, err := l.Entries(lo, hi, limit)
					if err != nil {
						t.Fatal(err)
					}
					if d := diffEntries(got, limited(all[lo-11:hi-11], limit)); d != "" {
						t.Fatalf("cache %d: entries [%d, %d) up to %d bytes: %s", cacheBytes, lo, hi, limit, d)
					}
				}
			}
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if _, err := l.Entries(11, 12, 1); !errors.Is(err, ErrClosed) {
			t.Errorf("entries of a closed log: %v", err)
		}
		if err := l.Close(); !errors.Is(err, ErrClosed) {
			t.Errorf("second close: %v", err)
		}
	}
}

// limited is what raft does to a slice that exceeds its limit.
func limited(es []*raftpb.Entry, limit uint64) []*raftpb.Entry {
	var size uint64
	for i, e := range es {
		if size += uint64(proto.Size(e)); size > limit && i > 0 {
			return es[:i]
		}
	}
	return es
}

// TestOldEntriesFromDisk compares entries from memory and from the file, over several segments and dead stretches.
func TestOldEntriesFromDisk(t *testing.T) {
	o := memOptions()
	o.CacheBytes = -1
	l := mustOpen(t, o)
	m := model{}
	write := func(w Write) {
		t.Helper()
		m = m.after(w)
		appendWait(t, l, w)
	}
	for i := range 50 {
		write(Write{Entries: entriesFrom(1+uint64(i)*3, 3, 700, 1), Sync: i%2 == 0})
	}
	write(Write{Entries: entriesFrom(40, 2, 60_000, 2), Sync: true}) // more than a segment
	write(Write{Entries: entriesFrom(42, 2, readChunkBytes, 2), Sync: true})
	write(Write{Entries: entriesFrom(43, 2, readChunkBytes+5, 3), Sync: true})
	write(Write{Entries: entriesFrom(41, 10, 30, 4), Sync: true}) // leaves dead records behind entry 40
	if d := diff(l, m, 0); d != "" {
		t.Fatal(d)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	l = mustOpen(t, o)
	defer l.Close()
	if d := diff(l, m, 0); d != "" {
		t.Fatal(d)
	}
	// A dead stretch of more than one read's size behind a live entry, in one segment.
	l.mu.Lock()
	s := l.index.locate(40)
	l.mu.Unlock()
	c := chunk{seg: s, first: 40, offsets: s.offsets[40-s.first : 41-s.first]}
	if es, err := c.read(); err != nil || diffEntries(es, m.entries[39:40]) != "" {
		t.Errorf("entry 40: %v", err)
	}
}

// upTo is what may be cut so that about retain bytes stay; 0 leaves the choice to others.
func upTo(l *Log, retain int64) uint64 {
	if retain == 0 {
		return math.MaxUint64
	}
	return l.Before(retain)
}

// TestCutRecycles cuts again and again: the log stays within a few files, and those are used again.
func TestCutRecycles(t *testing.T) {
	// retain is how much the cuts leave, beside what they say may go.
	for _, retain := range []int64{0, 60 << 10} {
		o := memOptions()
		l := mustOpen(t, o)
		for i := range uint64(200) {
			appendWait(t, l, Write{Entries: entriesFrom(1+i*2, 2, 1000, 1+i/7), Sync: true})
			if i%10 == 9 {
				l.Cut(min(i*2, upTo(l, retain)))
				appendWait(t, l, Write{Sync: true}) // the cut before it is done
				l.Cut(0)                            // no less
			}
		}
		appendWait(t, l, Write{})
		st := l.Stats()
		if want := 2 + int(retain/o.SegmentBytes) + 2; st.Segments > want || st.Bytes < retain-o.SegmentBytes || st.LastIndex != 400 {
			t.Errorf("retaining %d: %+v, want at most %d segments", retain, st, want)
		}
		if st.FirstIndex < 2 || st.FirstIndex > 2*199+1 {
			t.Errorf("first index is %d", st.FirstIndex)
		}
		names, _ := o.FS.List("log")
		if len(names) > st.Segments+maxFree+2 { // a spare, and newest
			t.Errorf("%d segments live in %q", st.Segments, names)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l = mustOpen(t, o)
		if again := l.Stats(); again.FirstIndex != st.FirstIndex || again.LastIndex != 400 {
			t.Errorf("reopened: %+v, was %+v", again, st)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestReaderHoldsSegment cuts a segment while a reader is at its file.
func TestReaderHoldsSegment(t *testing.T) {
	o := memOptions()
	o.CacheBytes = -1
	l := mustOpen(t, o)
	want := entriesFrom(1, 40, 1000, 1)
	for i := range want {
		appendWait(t, l, Write{Entries: want[i : i+1], Sync: true})
	}
	l.mu.Lock()
	c := l.index.chunk(1, 5, 1<<20)
	c.seg.readers++
	l.mu.Unlock()
	l.Cut(40)
	for i := range uint64(60) { // enough to reuse every file
		appendWait(t, l, Write{Entries: entriesFrom(41+i, 1, 1000, 1), Sync: true})
		l.Cut(41 + i)
	}
	got, err := c.read()
	if err != nil || diffEntries(got, want[:4]) != "" {
		t.Errorf("read of a segment that was cut meanwhile: %v", err)
	}
	l.release(c.seg)
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestDoneInOrder mixes writes that wait for the disk with writes that do not.
func TestDoneInOrder(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := memOptions()
		syncs := 0
		o.OnSync = func(time.Duration) { syncs++ }
		l := mustOpen(t, o)
		var order []int
		for i := range 200 {
			l.Append(Write{Entries: entriesFrom(uint64(i)+1, 1, 10, 1), Sync: i%5 == 0, Done: func() { order = append(order, i) }})
		}
		synctest.Wait()
		for i, n := range order {
			if i != n {
				t.Fatalf("done %d came as number %d", n, i)
			}
		}
		if len(order) != 200 {
			t.Fatalf("%d of 200 are done", len(order))
		}
		if syncs == 0 || syncs > 40 {
			t.Errorf("%d syncs", syncs)
		}
		if n, b := l.Backlog(); n != 0 || b != 0 {
			t.Errorf("backlog of %d writes, %d bytes", n, b)
		}
		syncs = 0
		l.Append(Write{HardState: newHardState(1, 1, 7)})
		l.Append(Write{})
		synctest.Wait()
		if syncs != 0 || l.HardState().GetCommit() != 7 {
			t.Errorf("%d syncs for writes that need none, hard state %v", syncs, l.HardState())
		}
		l.Append(Write{Sync: true}) // empty, but everything before it must be durable
		synctest.Wait()
		if syncs != 1 {
			t.Errorf("%d syncs for an empty write that needs one", syncs)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		l.Append(Write{Done: func() { t.Error("done after close") }})
	})
}

// TestSpareAheadOfNeed makes the filler pace itself, then be hurried, then be stopped half way.
func TestSpareAheadOfNeed(t *testing.T) {
	bubble.Test(t, func(t *testing.T) {
		o := memOptions()
		o.SegmentBytes = 6 << 20
		l := mustOpen(t, o)
		begin := time.Now()
		const small = 12
		for i := range uint64(small) {
			appendWait(t, l, Write{Entries: entriesFrom(1+i, 1, 180<<10, 1), Sync: true})
		}
		appendWait(t, l, Write{})
		synctest.Wait()
		time.Sleep(time.Second)
		if _, err := o.FS.Stat("log/" + spareName); err != nil {
			t.Errorf("no spare after %v: %v", time.Since(begin), err)
		}
		for i := range uint64(6) { // two segments at once: the second has to wait for the filler
			l.Append(Write{Entries: entriesFrom(small+1+i, 1, 2<<20, 1), Sync: true})
		}
		synctest.Wait()
		appendWait(t, l, Write{})
		if st := l.Stats(); st.Segments < 3 || st.LastIndex != small+6 {
			t.Errorf("%+v", st)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		if names, _ := o.FS.List("log"); strings.Contains(strings.Join(names, " "), tmpSuffix) {
			t.Errorf("left after close: %q", names)
		}
	})
}

// TestLargeGroupsAreWrittenOnce: behind a segment of large groups comes one that is not filled with zeros, behind one of small
// groups one that is. What is in either is there after a crash of the machine.
func TestLargeGroupsAreWrittenOnce(t *testing.T) {
	for _, size := range []int{fillBelow / 2, fillBelow * 2} {
		mem := vfs.NewCrashableMem()
		var spares atomic.Int64
		o := memOptions()
		o.SegmentBytes = 6 << 20
		o.FS = &stepFS{FS: mem, step: func(op string) error {
			var off, n int64
			var name string
			if _, err := fmt.Sscanf(op, "write %s %d+%d", &name, &off, &n); err == nil && strings.Contains(name, spareName) {
				spares.Add(n)
			}
			return nil
		}}
		l := mustOpen(t, o)
		last := uint64(0)
		for ; l.Stats().Segments < 3; last++ {
			appendWait(t, l, Write{Entries: entriesFrom(last+1, 1, size, 1), Sync: true})
		}
		// Files keep the name under which they were made: so what the two segments hold counts too.
		written := spares.Load()
		if least := 2 * o.SegmentBytes; size < fillBelow && written < least || size >= fillBelow && written > least {
			t.Errorf("groups of %d bytes: %d bytes were written to files made ahead of need", size, written)
		}
		crashed := mem.CrashClone(vfs.CrashCloneCfg{})
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
		o.FS = crashed
		l = mustOpen(t, o)
		es, err := l.Entries(1, last+1, math.MaxUint64)
		if err != nil || len(es) != int(last) {
			t.Errorf("groups of %d bytes: %d of %d entries after a crash, %v", size, len(es), last, err)
		}
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestFailureIsFinal lets each kind of operation fail once: the log reports it, acknowledges nothing more, and does not try
// again.
func TestFailureIsFinal(t *testing.T) {
	broken := errors.New("input/output error")
	for _, op := range []string{"write", "syncdata", "rename", "sync log", "create"} {
		var armed, failed bool
		mem := vfs.NewCrashableMem()
		o := memOptions()
		o.FS = &stepFS{FS: mem, step: func(got string) error {
			// A file keeps the name here under which it was made: the first segment's is bigName.
			if armed && strings.HasPrefix(got, op) && (op != "write" || strings.Contains(got, bigName)) &&
				(op != "sync log" || got == op) {
				failed = true
				return broken
			}
			if failed && op != "create" && strings.Contains(got, bigName) { // the filler's failure is not the log's yet
				t.Errorf("%s after a failed %s", got, op)
			}
			return nil
		}}
		l := mustOpen(t, o)
		appendWait(t, l, Write{Entries: entriesFrom(1, 1, 10, 1), Sync: true})
		fs := o.FS.(*stepFS)
		fs.mu.Lock()
		armed = true
		fs.mu.Unlock()
		acked := 0
		for i := range uint64(40) {
			l.Append(Write{Entries: entriesFrom(2+i, 1, 1000, 1), Sync: true, Done: func() { acked++ }})
		}
		err := <-l.Failed()
		if !errors.Is(err, broken) || !errors.Is(l.Err(), broken) {
			t.Errorf("%s: failed with %v, %v", op, err, l.Err())
		}
		fs.mu.Lock()
		armed = op == "create" // which the writer is allowed to try twice
		fs.mu.Unlock()
		before := acked
		l.Append(Write{Sync: true, Done: func() { t.Error("acknowledged after a failure") }})
		if err := l.Close(); !errors.Is(err, broken) {
			t.Errorf("%s: close gives %v", op, err)
		}
		if acked != before || acked >= 40 {
			t.Errorf("%s: %d acknowledged", op, acked)
		}
		if last, _ := l.LastIndex(); op == "syncdata" && last != uint64(1+acked) {
			t.Errorf("%d acknowledged, but readers see %d", acked, last-1)
		}
		o.FS = mem.CrashClone(vfs.CrashCloneCfg{})
		l = mustOpen(t, o)
		if last, _ := l.LastIndex(); last < uint64(1+acked) {
			t.Errorf("%s: %d acknowledged, but the log ends with %d", op, acked, last)
		}
		_ = l.Close()
	}
}

// TestFailedSyncMayLie takes a disk whose sync failed and which then believes the lost pages to be clean (fsyncgate): what
// the next start reads from the page cache must be written again before it is believed.
func TestFailedSyncMayLie(t *testing.T) {
	mem := vfs.NewCrashableMem()
	o := memOptions()
	o.FS = mem
	killed := mustOpen(t, o)
	appendWait(t, killed, Write{Entries: entriesFrom(1, 3, 100, 1), Sync: true})
	from := killed.w.synced
	appendWait(t, killed, Write{Entries: entriesFrom(4, 3, 100, 1)}) // not synced, and now the process is killed
	to := killed.w.written

	var wrote, synced bool
	o.FS = &stepFS{FS: mem, step: func(op string) error {
		wrote = wrote || op == fmt.Sprintf("write log/0000000000000001.log %d+%d", segmentHeaderBytes, to-segmentHeaderBytes) ||
			op == fmt.Sprintf("write log/0000000000000001.log %d+%d", from, to-from)
		synced = synced || wrote && op == "syncdata log/0000000000000001.log"
		return nil
	}}
	l := mustOpen(t, o)
	if last, _ := l.LastIndex(); !wrote || !synced || last != 6 {
		t.Errorf("the unsynced tail was believed (up to entry %d): written again %v, synced %v", last, wrote, synced)
	}
	for _, l := range []*Log{l, killed} {
		if err := l.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// TestInvariantsPanic feeds what raft never may.
func TestInvariantsPanic(t *testing.T) {
	for name, es := range map[string][]*raftpb.Entry{
		"gap":           entriesFrom(5, 1, 1, 1),
		"hole":          {newEntry(4, 1, nil), newEntry(6, 1, nil)},
		"before begin":  entriesFrom(1, 1, 1, 1),
		"index is zero": entriesFrom(0, 1, 1, 1),
	} {
		l := &Log{}
		l.w.terms = terms{before: Position{2, 1}, last: 3, runs: []termRun{{3, 1}}}
		l.w.active = &segment{segmentHeader: segmentHeader{size: 1 << 20}}
		func() {
			defer func() {
				if recover() == nil {
					t.Errorf("%s: no panic", name)
				}
			}()
			_ = l.stage(&Write{Entries: es})
		}()
	}
}

// TestConcurrentReaders reads while the writer appends, overwrites and cuts: every answer is a piece of one history.
func TestConcurrentReaders(t *testing.T) {
	o := memOptions()
	o.CacheBytes = 4000
	l := mustOpen(t, o)
	stop := make(chan struct{})
	ended := make(chan struct{})
	for range 3 {
		go func() {
			defer func() { ended <- struct{}{} }()
			r := rand.New(rand.NewPCG(1, 2))
			for {
				select {
				case <-stop:
					return
				default:
				}
				first, _ := l.FirstIndex()
				last, _ := l.LastIndex()
				lo := first + uint64(r.IntN(int(last-first+2)))
				es, err := l.Entries(lo, min(lo+uint64(1+r.IntN(20)), last+1), 1<<20)
				if err != nil && !errors.Is(err, raft.ErrCompacted) && !errors.Is(err, raft.ErrUnavailable) {
					t.Error(err)
				}
				for i, e := range es {
					// Every entry's data says its term; terms never fall along one history.
					if e.GetIndex() != lo+uint64(i) || uint64(len(e.Data)) != 200+e.GetTerm()%50 ||
						i > 0 && es[i-1].GetTerm() > e.GetTerm() {
						t.Errorf("entry %d of term %d with %d bytes at %d", e.GetIndex(), e.GetTerm(), len(e.Data), lo+uint64(i))
					}
				}
			}
		}()
	}
	next := uint64(1)
	for term := uint64(1); term < 400; term++ {
		appendWait(t, l, Write{Entries: entriesFrom(next, 6, int(200+term%50), term), Sync: true})
		next += 6
		if term%5 == 0 {
			next -= 8
		}
		if term%9 == 0 && next > 60 {
			l.Cut(next - 60)
		}
	}
	close(stop)
	for range 3 {
		<-ended
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestOverwrittenWhileReading overwrites the tail while a reader is between two reads of the file: it must start over.
func TestOverwrittenWhileReading(t *testing.T) {
	o := memOptions()
	o.CacheBytes, o.SegmentBytes = -1, minSegmentBytes
	fs := &stepFS{FS: o.FS, step: func(string) error { return nil }}
	o.FS = fs
	l := mustOpen(t, o)
	old := entriesFrom(1, 20, 900, 1) // several segments, so several reads
	for i := range old {
		appendWait(t, l, Write{Entries: old[i : i+1], Sync: true})
	}
	fresh := entriesFrom(3, 18, 900, 2)
	reads := 0
	fs.read = func() {
		if reads++; reads == 2 {
			appendWait(t, l, Write{Entries: fresh, Sync: true})
		}
	}
	got, err := l.Entries(1, 21, 1<<40)
	if d := diffEntries(got, append(old[:2:2], fresh...)); err != nil || d != "" {
		t.Errorf("%v: %s", err, d)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}

// TestResetBackwards resets the log to a lower position: an older Cut must not reach into what follows.
func TestResetBackwards(t *testing.T) {
	o := memOptions()
	l := mustOpen(t, o)
	l.Cut(1 << 40)
	appendWait(t, l, Write{Reset: &Position{1000, 5}})
	appendWait(t, l, Write{Reset: &Position{10, 2}})
	for i := range uint64(60) {
		appendWait(t, l, Write{Entries: entriesFrom(11+i, 1, 1000, 5), Sync: true})
	}
	if first, _ := l.FirstIndex(); first != 11 {
		t.Errorf("first index is %d", first)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
}
