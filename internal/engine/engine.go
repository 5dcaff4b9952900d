package engine

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"sync"
	"sync/atomic"

	"github.com/cockroachdb/pebble/v2"
	"github.com/cockroachdb/pebble/v2/vfs"
)

// Defaults of Options: at most maxMemTables memtables and the cache, 80 MiB in all. Blocks that leave the cache are still in the
// page cache of the operating system, compressed.
const (
	DefaultMemTableBytes = 16 << 20
	DefaultCacheBytes    = 32 << 20
	maxMemTables         = 3
)

// Options say where the rows live and how much memory they may take.
type Options struct {
	FS  vfs.FS // nil: the operating system's
	Dir string
	// MemTableBytes bounds one memtable; up to three exist while a flush is behind, then writers wait. 0: the default.
	MemTableBytes int64
	// CacheBytes is what the cache of uncompressed blocks has at the least; it may also use what memtables leave of their
	// three times MemTableBytes. So the two options together bound the memory of the store. 0: the default.
	CacheBytes int64
	// ReadOnly opens the state without changing a byte of it; for inspection.
	ReadOnly bool
	// MustExist refuses to make a new store where there is none.
	MustExist bool
	Logger    *slog.Logger // nil: nothing is logged
	// OnFlush is told, after flushes, up to which raft index the state is durable. It is called from the engine's own
	// goroutine, one call at a time, never after Close; calls for flushes in quick succession may be merged. It may
	// call the Engine but must not Close it.
	OnFlush func(durableApplied uint64)
	// OnError is told when a flush failed (the disk is full, say), or when a block is found damaged. After the first the
	// engine tries again and again, at least once a second, and meanwhile memory fills up until writers wait; after the
	// second, reads of that block fail. So the owner should not go on for long. It must not block and must not call the Engine.
	OnError func(error)
	// OnJob is told +1 when a flush or a compaction begins, which computes for long, and -1 when it has ended. It is called with the
	// engine's lock held: it must not block and must not call the Engine.
	OnJob func(change int)
	// Fatal is told when the engine can neither go on nor return (its manifest cannot be written, say). It must end the
	// process; where it does not, or is nil, the engine panics.
	Fatal func(error)
}

// Engine is an open store of rows. All methods may be called from any goroutine; after Close they return ErrClosed.
type Engine struct {
	db     *pebble.DB
	fs     vfs.FS
	dir    string
	logger *slog.Logger

	gate    *gate
	sizes   sizes
	short   atomic.Bool   // the owner is short of room
	flushed chan struct{} // capacity 1: a flush has ended since it was last read
	stop    chan struct{}
	stopped sync.WaitGroup
}

// Open opens the store in o.Dir, making it if there is none. The state is that of some batch committed before, see the
// package's invariants; DurableApplied tells which.
func Open(o Options) (*Engine, error) {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	e := &Engine{fs: o.FS, dir: o.Dir, logger: o.Logger, flushed: make(chan struct{}, 1), stop: make(chan struct{})}
	e.gate = newGate(func(err error) {
		e.logger.Error("the state is damaged", "dir", e.dir, "error", err)
		if o.OnError != nil {
			o.OnError(fmt.Errorf("the state in %s is damaged: %w", e.dir, err))
		}
	})
	db, err := pebble.Open(o.Dir, e.pebbleOptions(o))
	if err != nil {
		return nil, fmt.Errorf("open state in %s: %w", o.Dir, err)
	}
	e.db = db
	e.Measure()
	if o.OnFlush != nil && !o.ReadOnly {
		e.stopped.Add(1)
		go e.tellFlushes(o.OnFlush)
	}
	return e, nil
}

// IsDamage reports whether an error of Open or of a read says that files are missing or hold something else than was
// written.
func IsDamage(err error) bool {
	return pebble.IsCorruptionError(err) || errors.Is(err, pebble.ErrDBDoesNotExist) || errors.Is(err, fs.ErrNotExist)
}

func (e *Engine) pebbleOptions(o Options) *pebble.Options {
	if o.MemTableBytes <= 0 {
		o.MemTableBytes = DefaultMemTableBytes
	}
	if o.CacheBytes <= 0 {
		o.CacheBytes = DefaultCacheBytes
	}
	if o.OnJob == nil {
		o.OnJob = func(int) {}
	}
	failures := &pauses{stop: e.stop}
	p := &pebble.Options{
		FS:               gatherFS{pauseFS{o.FS, failures}},
		ReadOnly:         o.ReadOnly,
		ErrorIfNotExists: o.MustExist || o.ReadOnly,
		Comparer:         newComparer(),
		DisableWAL:       true,
		// Pebble takes the memory of memtables out of the cache's: with less than this, full memtables would leave no cache.
		CacheSize:                   o.CacheBytes + maxMemTables*o.MemTableBytes,
		MemTableSize:                uint64(o.MemTableBytes),
		MemTableStopWritesThreshold: maxMemTables,
		// Fixed, so that a newer Pebble does not silently write what an older binary cannot read.
		FormatMajorVersion: pebble.FormatValueSeparation,
		// Two tables over the same keys in level 0 are merged into the level below together. With 2 each would be by itself,
		// which rewrites that level twice as often (docs/decisions/0016).
		L0CompactionThreshold:      3,
		L0StopWritesThreshold:      1000, // writers are never stopped for compactions; read cost is what they pay
		CompactionConcurrencyRange: func() (int, int) { return 1, 2 },
		MaxOpenFiles:               512,
		Logger:                     pebbleLogger{o.Logger, o.Fatal},
	}
	p.Experimental.FileCacheShards = 2
	e.shape(p)
	p.EventListener = e.listener(o.OnError, o.OnJob, failures)
	return p
}

// listener passes on what Pebble tells of its work in the background.
func (e *Engine) listener(onError func(error), onJob func(int), failures *pauses) *pebble.EventListener {
	// FlushEnd has an error also for a flush that had nothing to write; BackgroundError is called for real ones, but for
	// those of compactions too. What both were told is a flush that failed.
	var flushFailure atomic.Pointer[error]
	return &pebble.EventListener{
		// All are called with Pebble's lock held: they only note and nudge.
		FlushBegin: func(pebble.FlushInfo) {
			onJob(+1)
			e.sizes.written.begin()
			e.sizes.dropped.begin()
		},
		FlushEnd: func(i pebble.FlushInfo) {
			onJob(-1)
			if flushFailure.Store(&i.Err); i.Err != nil {
				return
			}
			failures.ended()
			e.sizes.written.end()
			e.sizes.dropped.end()
			select {
			case e.flushed <- struct{}{}:
			default:
			}
		},
		CompactionBegin: func(pebble.CompactionInfo) {
			onJob(+1)
			giveWay() // this is the compaction's own goroutine
		},
		CompactionEnd: func(i pebble.CompactionInfo) {
			onJob(-1)
			if i.Err == nil {
				failures.ended()
			}
		},
		BackgroundError: func(err error) {
			// Pebble tries again after each pause, and the log may be on the same disk: it is told of the first failure, the
			// second, the fourth, the eighth and so on.
			if n := failures.failed(); n&(n-1) == 0 {
				e.logger.Error("background work on the state failed", "dir", e.dir, "error", err, "failures-in-a-row", n)
			}
			_ = e.gate.read(err) // files of values are rewritten in the background
			if last := flushFailure.Load(); onError != nil && last != nil && errors.Is(err, *last) {
				onError(fmt.Errorf("write the state in %s: %w", e.dir, err))
			}
		},
		// Without this, Pebble ends the process. The read that found the damage returns it as an error.
		DataCorruption: func(i pebble.DataCorruptionInfo) {
			e.logger.Error("the state is damaged", "file", i.Path, "error", i.Details)
			if onError != nil {
				onError(fmt.Errorf("the state is damaged: %s: %w", i.Path, i.Details))
			}
		},
		WriteStallBegin: func(i pebble.WriteStallBeginInfo) {
			e.logger.Warn("writes wait for the state to be flushed", "dir", e.dir, "reason", i.Reason)
		},
	}
}

// tellFlushes runs until Close.
func (e *Engine) tellFlushes(onFlush func(uint64)) {
	defer e.stopped.Done()
	for {
		select {
		case <-e.stop:
			return
		case <-e.flushed:
		}
		e.Measure()
		index, err := e.DurableApplied()
		if errors.Is(err, ErrClosed) {
			return // Close waits for readers
		}
		if err != nil {
			e.logger.Error("reading the durable applied index", "dir", e.dir, "error", err)
			continue
		}
		onFlush(index)
	}
}

// InUse is how many iterators, batches and calls are under way.
func (e *Engine) InUse() int { return int(e.gate.inside.Load()) }

// Dir returns the directory the store lives in.
func (e *Engine) Dir() string { return e.dir }

// Get returns the value of a row. The value is the caller's.
func (e *Engine) Get(key []byte) (value []byte, found bool, err error) {
	if err := e.gate.enter(); err != nil {
		return nil, false, err
	}
	defer e.gate.leave()
	return get(e.gate, e.db, key)
}

// NewIter returns an iterator over lower ≤ row < upper of what is committed now. It must be closed; while it is open the
// files it reads are kept.
func (e *Engine) NewIter(lower, upper []byte) (*Iter, error) {
	return newIter(e.gate, e.db, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
}

// NewLookup returns an iterator for SeekPrefix only: it consults the filters of all files.
func (e *Engine) NewLookup() (*Iter, error) {
	return newIter(e.gate, e.db, &pebble.IterOptions{UseL6Filters: true})
}

// NewDurableLookup returns an iterator for SeekPrefix only, over the durable state. It finds nothing that is in memtables
// only, and need not search them.
func (e *Engine) NewDurableLookup() (*Iter, error) {
	return newIter(e.gate, e.db, &pebble.IterOptions{UseL6Filters: true, OnlyReadGuaranteedDurable: true})
}

// NewBatch returns an empty batch. It must be closed. Writers end before the engine is closed; one that does not panics.
func (e *Engine) NewBatch() *Batch {
	if err := e.gate.enter(); err != nil {
		panic("engine: a batch was begun on the state in " + e.dir + " after it was closed")
	}
	return &Batch{b: e.db.NewBatch(pebble.WithMaxRetainedSizeBytes(keepBatchBytes)), db: e.db, gate: e.gate, sizes: &e.sizes}
}

// Flush makes everything committed before the call durable.
func (e *Engine) Flush() error {
	if err := e.gate.enter(); err != nil {
		return err
	}
	defer e.gate.leave()
	if err := e.db.Flush(); err != nil {
		return fmt.Errorf("flush state in %s: %w", e.dir, err)
	}
	return nil
}

// DurableApplied returns the index in the applied row of the durable state; 0 if there is none yet.
func (e *Engine) DurableApplied() (uint64, error) {
	if err := e.gate.enter(); err != nil {
		return 0, err
	}
	defer e.gate.leave()
	it, err := e.db.NewIter(&pebble.IterOptions{
		LowerBound:                metaApplied,
		UpperBound:                append(metaApplied[:len(metaApplied):len(metaApplied)], 0),
		OnlyReadGuaranteedDurable: true,
	})
	if err != nil {
		return 0, fmt.Errorf("read durable state in %s: %w", e.dir, err)
	}
	var index uint64
	if it.First() {
		index, _, err = DecodeApplied(it.Value())
	}
	if err = errors.Join(err, it.Close()); err != nil {
		return 0, fmt.Errorf("read durable state in %s: %w", e.dir, err)
	}
	return index, nil
}

// Checkpoint makes a copy of the state in dir, which must not exist: everything committed before the call, perhaps more,
// all of it durable when the call returns. Files are shared by hard links, so it costs no space at first. Dir must be on
// the file system of the store.
func (e *Engine) Checkpoint(dir string) error {
	if err := e.gate.enter(); err != nil {
		return err
	}
	defer e.gate.leave()
	if err := e.Flush(); err != nil {
		return err
	}
	if err := e.db.Checkpoint(dir); err != nil {
		return fmt.Errorf("checkpoint of %s to %s: %w", e.dir, dir, err)
	}
	return nil
}

// DiskUsage returns the bytes of all files of the state, and of those that hold current rows.
func (e *Engine) DiskUsage() (total, inUse int64) {
	if e.gate.enter() != nil {
		return 0, 0
	}
	defer e.gate.leave()
	m := e.db.Metrics()
	total = int64(m.DiskSpaceUsage())
	inUse = total - int64(m.Table.ObsoleteSize+m.Table.ZombieSize)
	return total, max(inUse, 0)
}

// Close waits for the reads that are under way, which may be as slow as the clients that they are for, and closes the
// files. What begins meanwhile gets ErrClosed. It does not flush: what was not durable is lost, as in a crash.
func (e *Engine) Close() error {
	if !e.gate.close() {
		return ErrClosed
	}
	close(e.stop)
	e.stopped.Wait()
	if err := e.db.Close(); err != nil {
		return fmt.Errorf("close state in %s: %w", e.dir, err)
	}
	return nil
}

// pebbleLogger keeps Pebble's errors and leaves its chatter to debug level.
type pebbleLogger struct {
	l     *slog.Logger
	fatal func(error)
}

func (p pebbleLogger) Infof(format string, args ...any) {
	if p.l.Enabled(context.Background(), slog.LevelDebug) {
		p.l.Debug(fmt.Sprintf(format, args...))
	}
}

func (p pebbleLogger) Errorf(format string, args ...any) { p.l.Error(fmt.Sprintf(format, args...)) }

// Fatalf is for states from which Pebble cannot go on (a manifest that cannot be written): the process must end, and the
// next start recovers.
func (p pebbleLogger) Fatalf(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	p.l.Error(text)
	if p.fatal != nil {
		p.fatal(errors.New(text))
	}
	panic("engine: " + text)
}
