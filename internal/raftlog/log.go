package raftlog

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3"
	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/proto"
)

// Options configure Open. FS and Dir are required.
type Options struct {
	FS  vfs.FS
	Dir string // made if it does not exist; its parent must exist

	// SegmentBytes is the size of a segment file; 0 means 64 MiB. At least 8 KiB, at most 1 GiB. It may change between
	// runs. The very first segment is smaller (firstSegmentBytes), so that a new member does not wait for zeros.
	SegmentBytes int64
	// CacheBytes bounds the entries kept in memory for Entries; 0 means 8 MiB, and a negative value means none.
	CacheBytes int64

	Logger *slog.Logger        // nil discards
	OnSync func(time.Duration) // called by the writer with the time that each commit's fdatasync took; may be nil
	// OnWrite is called by the writer with the size of each write to a segment and the time that it took; may be nil.
	OnWrite func(bytes int, took time.Duration)
	// OnFull is called by the writer when it begins to wait for room on the disk, with the error that says so, and with nil when
	// it no longer does; may be nil.
	OnFull func(error)
}

const (
	defaultSegmentBytes = 64 << 20
	minSegmentBytes     = 8 << 10
	maxOptionBytes      = 1 << 30
	defaultCacheBytes   = 8 << 20
	firstSegmentBytes   = 4 << 20
)

func (o *Options) validate() error {
	if o.FS == nil || o.Dir == "" {
		return fmt.Errorf("raft log: a file system and a directory are needed")
	}
	if o.SegmentBytes == 0 {
		o.SegmentBytes = defaultSegmentBytes
	}
	if o.SegmentBytes < minSegmentBytes || o.SegmentBytes > maxOptionBytes {
		return fmt.Errorf("raft log: segments of %d bytes; between %d and %d are possible", o.SegmentBytes,
			int64(minSegmentBytes), int64(maxOptionBytes))
	}
	if o.CacheBytes == 0 {
		o.CacheBytes = defaultCacheBytes
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.OnSync == nil {
		o.OnSync = func(time.Duration) {}
	}
	if o.OnFull == nil {
		o.OnFull = func(error) {}
	}
	if o.OnWrite == nil {
		o.OnWrite = func(int, time.Duration) {}
	}
	return nil
}

// Position names an entry by index and term.
type Position struct{ Index, Term uint64 }

// Write is one unit of the log: after a crash it is there as a whole or not at all. Within it Reset comes first, then the
// entries, then the hard state.
type Write struct {
	HardState *raftpb.HardState // nil: unchanged
	// Entries go on contiguously from the last one; if Entries[0].Index is not behind it, what was there from that index on
	// is overwritten. The log keeps the pointers and the data: they must not change any more.
	Entries []*raftpb.Entry
	// Reset makes the log forget everything and go on behind this position (snapshot install, bootstrap). It implies Sync.
	Reset *Position
	// Sync makes Done wait until the write is durable.
	Sync bool
	// Done is called by the writer goroutine, in the order of Append; it must not block. Never called after a failure.
	Done func()
}

// Log is an open raft log. All methods may be called from any goroutine.
type Log struct {
	opt Options
	dir string
	fs  vfs.FS
	log *slog.Logger

	// The queue from Append and Cut to the writer.
	queue struct {
		sync.Mutex
		writes  []Write
		bytes   int64
		cut     uint64 // entries up to here may go; 0: nothing to do
		closing bool
	}
	backlogWrites atomic.Int64 // queued and being written
	backlogBytes  atomic.Int64
	wake          chan struct{} // capacity 1: there is something in the queue
	done          chan struct{} // closed when the writer has ended

	// mu guards what readers see. It is never held over disk work.
	mu     sync.Mutex
	index  index
	closed bool

	failed  chan error // capacity 1
	failure atomic.Pointer[error]
	// abandoned: Close has given up on the disk. The writer does nothing more, if it comes back from it.
	abandoned atomic.Bool

	w      writer // owned by the writer goroutine
	filler *filler
	pace   pace
}

// Open opens the log in o.Dir, or makes an empty one, and recovers what is there: a torn tail is cut with a warning in the
// log; damage gives a *DamageError, a format that is too new a *VersionError, and neither changes a byte. When it returns,
// everything it found is durable.
func Open(o Options) (*Log, error) {
	if err := o.validate(); err != nil {
		return nil, err
	}
	l := &Log{
		opt: o, dir: o.Dir, fs: o.FS, log: o.Logger,
		wake:   make(chan struct{}, 1),
		done:   make(chan struct{}),
		failed: make(chan error, 1),
	}
	l.index.cache.max = o.CacheBytes
	if err := l.recover(); err != nil {
		return nil, fmt.Errorf("open raft log in %s: %w", o.Dir, err)
	}
	l.filler = startFiller(o.FS, o.Dir, o.SegmentBytes)
	go l.run()
	return l, nil
}

// Append queues a write and returns at once. The slices and values in w belong to the log from then on. A gap in the
// entries is a broken invariant and panics in the writer. After a failure or Close it does nothing.
func (l *Log) Append(w Write) {
	if l.failure.Load() != nil {
		return
	}
	n := writeBytes(&w)
	l.queue.Lock()
	if l.queue.closing {
		l.queue.Unlock()
		return
	}
	l.queue.writes = append(l.queue.writes, w)
	l.backlogWrites.Add(1)
	l.backlogBytes.Add(n)
	l.queue.Unlock()
	l.nudge()
}

// Backlog is what was given to Append and is not done: the length of the queue. The queue has no bound of its own, because
// a write cannot be refused without losing raft's order; the caller bounds it by not taking more work from raft while the
// backlog is large.
func (l *Log) Backlog() (writes, bytes int64) {
	return l.backlogWrites.Load(), l.backlogBytes.Load()
}

// Cut says that entries up to and including upTo are not needed any more, because the state that holds their effects is
// durable. Whole segments are taken away, so FirstIndex moves in large steps and later, or not at all.
func (l *Log) Cut(upTo uint64) {
	l.queue.Lock()
	l.queue.cut = max(l.queue.cut, upTo)
	l.queue.Unlock()
	l.nudge()
}

func (l *Log) nudge() {
	select {
	case l.wake <- struct{}{}:
	default: // the writer has not looked since the last nudge
	}
}

// Failed gives the first error of a write or sync, once. It is final: nothing is acknowledged after it, and only a restart
// of the member, which reads what the disk really holds, goes on from there.
func (l *Log) Failed() <-chan error { return l.failed }

// Err is the failure that Failed gave, or ErrClosed, or nil.
func (l *Log) Err() error {
	if p := l.failure.Load(); p != nil {
		return *p
	}
	return nil
}

// fail makes err final. Only the writer calls it, or Close after the writer has ended.
func (l *Log) fail(err error) {
	if !l.failure.CompareAndSwap(nil, &err) {
		return
	}
	if err != ErrClosed {
		l.log.LogAttrs(context.Background(), slog.LevelError, "raft log failed, this member stops writing",
			slog.String("dir", l.dir), slog.Any("error", err))
		l.failed <- err
	}
}

// closePatience is how long Close waits for the disk.
const closePatience = 10 * time.Second

// Close writes what is queued, leaves the mark of a clean end, stops both goroutines and closes all files. It returns the
// failure if there was one. If the disk does not answer for closePatience, the goroutine that waits for it and the files are left
// behind: it acknowledges nothing more, and touches the disk no more once it has its answer.
func (l *Log) Close() error {
	l.queue.Lock()
	if l.queue.closing {
		l.queue.Unlock()
		select {
		case <-l.done:
		case <-time.After(closePatience):
		}
		return ErrClosed
	}
	l.queue.closing = true
	l.queue.Unlock()
	l.nudge()
	ended := make(chan struct{})
	go func() { // ends when the disk has answered
		defer close(ended)
		<-l.done
		l.filler.stop()
	}()
	patience := time.NewTimer(closePatience)
	defer patience.Stop()
	select {
	case <-ended:
	case <-patience.C:
		return l.abandon()
	}
	err := l.Err()
	l.fail(ErrClosed)
	if cerr := l.closeFiles(); err == nil && cerr != nil {
		err = fmt.Errorf("close raft log in %s: %w", l.dir, cerr)
	}
	return err
}

// abandon leaves a log on a disk that does not answer as it is.
func (l *Log) abandon() error {
	l.abandoned.Store(true)
	err := fmt.Errorf("close raft log in %s: %w", l.dir, ErrHung)
	l.failure.CompareAndSwap(nil, &err)
	l.mu.Lock()
	l.closed = true
	l.mu.Unlock()
	return err
}

// HardState is the last published hard state, an empty one if there is none. The caller owns it.
func (l *Log) HardState() *raftpb.HardState {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.index.hardState == nil {
		return &raftpb.HardState{}
	}
	return proto.Clone(l.index.hardState).(*raftpb.HardState)
}

// FirstIndex is the index of the oldest entry that Entries can give; LastIndex+1 if there is none. The error is always nil
// (raft.Storage wants one).
func (l *Log) FirstIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.terms.before.Index + 1, nil
}

// LastIndex is the index of the last published entry, or of the position that the log begins behind. The error is always
// nil (raft.Storage wants one).
func (l *Log) LastIndex() (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.index.terms.last, nil
}

// Term is the term of entry i for FirstIndex-1 <= i <= LastIndex. It never reads the disk. Outside it gives
// raft.ErrCompacted or raft.ErrUnavailable.
func (l *Log) Term(i uint64) (uint64, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if term, ok := l.index.terms.at(i); ok {
		return term, nil
	}
	if i < l.index.terms.before.Index {
		return 0, raft.ErrCompacted
	}
	return 0, raft.ErrUnavailable
}

// Stats is a cheap picture of the log for metrics and for deciding what to cut.
type Stats struct {
	FirstIndex, LastIndex uint64
	Segments              int
	Bytes                 int64 // of the live segments' files
	CachedEntries         int
	CachedBytes           int64
}

// Before gives the last entry before the newest segments that together take at most the given bytes: cut up to there, and
// the log takes about so much. It is never before the first retained entry's predecessor.
func (l *Log) Before(bytes int64) uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	segs := l.index.segments
	n := len(segs) - 1
	for rest := bytes - segs[n].size; n > 0 && rest >= segs[n-1].size; n-- {
		rest -= segs[n-1].size
	}
	return max(segs[n].base.Index, l.index.terms.before.Index)
}

// Stats gives the current figures.
func (l *Log) Stats() Stats {
	l.mu.Lock()
	defer l.mu.Unlock()
	st := Stats{
		FirstIndex: l.index.terms.before.Index + 1, LastIndex: l.index.terms.last, Segments: len(l.index.segments),
		CachedEntries: len(l.index.cache.entries), CachedBytes: l.index.cache.bytes,
	}
	for _, s := range l.index.segments {
		st.Bytes += s.size
	}
	return st
}
