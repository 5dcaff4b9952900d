package mvcc

import (
	"fmt"
	"sync"
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// formatVersion is the format of all rows of this package. It is written with the first batch.
const formatVersion = 1

// Revisions of a store without history.
const (
	firstRevision   = 1  // of an empty store
	neverCompacted  = -1 // what etcd answers before the first compaction
	defaultHeadSize = 16 << 20
)

// Options tune a Store.
type Options struct {
	// HeadCacheBytes bounds the cache of the newest versions' numbers (not values), by which a put of a known key needs
	// no read. 0: 16 MiB, for some 200,000 keys of 16 bytes.
	HeadCacheBytes int
}

// Store is an open key-value store.
type Store struct {
	e *engine.Engine

	// mu makes revision, compact and fences change together for readers. It is held for microseconds: nobody reads rows
	// or waits under it.
	mu       sync.RWMutex
	revision atomic.Int64 // newest published main revision; written under mu
	compact  atomic.Int64 // compact revision; written under mu
	fences   fences       // of the published revision
	known    knownEdges

	// The writer's own.
	heads   headCache
	durable int64   // a revision that is known to be durable
	writer  *Writer // the one that is open, if any
	fresh   bool    // no batch was ever written

	// compactMu is held through a CompactStep.
	compactMu sync.Mutex
	progress  engine.Progress // what the compacting row holds
}

// Open reads the store that e holds. It reads a row for every 512 keys or so, and no key.
func Open(e *engine.Engine, o Options) (*Store, error) {
	if o.HeadCacheBytes <= 0 {
		o.HeadCacheBytes = defaultHeadSize
	}
	s := &Store{e: e, durable: firstRevision} // also before the first flush: an empty state is at that
	format, found, err := readNumber(e, engine.MetaFormat())
	if err != nil {
		return nil, err
	}
	if found && format != formatVersion {
		return nil, fmt.Errorf("mvcc: the state in %s has format %d, this binary knows format %d", e.Dir(), format, formatVersion)
	}
	s.fresh = !found
	revision, found, err := readNumber(e, engine.MetaRevision())
	if err != nil {
		return nil, err
	}
	if !found {
		revision = firstRevision
	}
	compact, found, err := readNumber(e, engine.MetaCompact())
	if err != nil {
		return nil, err
	}
	if !found {
		compact = neverCompacted
	}
	s.heads = newHeadCache(o.HeadCacheBytes, revision)
	s.revision.Store(revision)
	s.compact.Store(compact)
	if row, found, err := e.Get(engine.MetaCompacting()); err != nil {
		return nil, err
	} else if found {
		if s.progress, err = engine.DecodeProgress(row); err != nil {
			return nil, err
		}
	}
	if s.fences, err = loadFences(e); err != nil {
		return nil, err
	}
	if compact > revision || s.progress.Target > max(compact, 0) || s.progress.Done > s.progress.Target {
		return nil, fmt.Errorf("mvcc: the state in %s contradicts itself: revision %d, compacted at %d, deleted up to %d of %d",
			e.Dir(), revision, compact, s.progress.Done, s.progress.Target)
	}
	return s, nil
}

func readNumber(r engine.Reader, key []byte) (int64, bool, error) {
	row, found, err := r.Get(key)
	if err != nil || !found {
		return 0, false, err
	}
	n, err := engine.DecodeNumber(row)
	if err != nil {
		return 0, false, fmt.Errorf("row %s: %w", key, err)
	}
	return n, true, nil
}

// Revision returns the newest published main revision; 1 for an empty store.
func (s *Store) Revision() int64 { return s.revision.Load() }

// CompactRevision returns the revision of the last compaction, the oldest that can be read; -1 before the first.
func (s *Store) CompactRevision() int64 { return s.compact.Load() }

// moment is one published state of the store: what a read begins with.
type moment struct {
	revision int64
	count    fenceCount // of the range asked for, if asked for
}

// now returns the newest moment. With counting it also takes what the fences know of r.
func (s *Store) now(r kv.Range, counting bool) moment {
	s.mu.RLock()
	defer s.mu.RUnlock()
	m := moment{revision: s.revision.Load()}
	if counting {
		m.count = s.fences.count(r)
		s.known.settle(&m.count)
	}
	return m
}

// publish shows readers a new moment. Called by the writer, after the batch that made it was committed.
func (s *Store) publish(revision, compact int64, delta map[int]int64, edits []fenceEdit) {
	if revision < s.revision.Load() || compact < s.compact.Load() {
		panic(fmt.Sprintf("mvcc: publishing revision %d after %d, compacted at %d after %d",
			revision, s.revision.Load(), compact, s.compact.Load()))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fences.apply(revision, delta, edits)
	s.compact.Store(compact)
	s.revision.Store(revision)
}
