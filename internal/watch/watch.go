// Package watch tells watchers what changed: each of them gets every event of its range from its start revision on, once,
// in order of revision, and whole revisions at a time.
//
// The apply loop only calls Hub.Publish, which appends to a bounded ring and nudges; it waits for nobody. The hub's one
// goroutine, the dispatcher, walks the ring behind it and looks up who wants an event: watchers of single keys by hash,
// watchers of ranges in an interval tree, so watchers of other keys cost nothing. What it leaves with a watcher is the
// event's position in the ring, eight bytes. A watcher that has too many of them, or whose positions have left the ring,
// loses them and keeps the revision from which it must go on: it lags. Lagging watchers read the ring or, behind it, the
// history of the store, in slices, in the goroutine of the client's stream and so at the client's pace; then they join
// the others again. A watcher is therefore never more than a cursor, and a slow one costs what its cursor costs.
//
// An Event is made once and shared by everybody who gets it; its encodings for the wire and the pair it replaced are
// filled in by the first who needs them and are counted against the bound of the ring.
//
// The package never changes the state, never makes the apply loop wait (the ring's lock is held for a bounded number of
// pointer copies, never during a read of the store or a lookup), and knows nothing of gRPC.
//
// Invariants, attacked by the model test (model_test.go) and the scenarios beside it:
//
//   - a watcher gets events of its range in strictly ascending (revision, sub) order, none twice, none left out, unless
//     the stream says that it was cancelled or that its next revision is compacted;
//   - a batch holds whole revisions;
//   - a progress revision R is given out only after every event ≤ R of the watchers it speaks for;
//   - a cursor never moves back, not even when the store is replaced by a snapshot.
//
// Lock order: Hub.mu, then Stream.mu, then ring.mu.
package watch

import (
	"context"
	"errors"
	"log/slog"
	"runtime"
	"time"

	"github.com/trivet-kv/trivet/internal/kv"
)

// What a stream refuses to make. The texts are those that etcd sends as the reason.
var (
	ErrEmptyRange  = errors.New("mvcc: watcher range is empty")
	ErrDuplicateID = errors.New("mvcc: duplicate watch ID provided on the WatchStream")
	// ErrClosed is returned by the methods of a stream after Close.
	ErrClosed = errors.New("watch: stream is closed")
)

// History is the store that events come from. All methods may be called from any goroutine; after Hub.Reset has
// returned, none is called any more on the history that was replaced.
type History interface {
	// Revision is the newest revision that can be read. It never goes back.
	Revision() int64
	// CompactRevision is the oldest revision from which Events are still whole.
	CompactRevision() int64
	// Changes visits the events of the revisions from to to, both inclusive, in order, and stops with the first error
	// that visit returns, returning it as it is. kv.ErrCompacted if from is older than CompactRevision. Of KV the event
	// has key and ModRevision only, valid until visit returns; pair, which visit may call, returns all of it, and that
	// is the caller's to keep.
	Changes(ctx context.Context, from, to int64, visit func(e kv.Event, pair func() (kv.KeyValue, error)) error) error
	// Previous returns the event's key at the revision before the event's, false if there was none, if the event made the
	// key, or if that revision is compacted.
	Previous(e kv.Event) (kv.KeyValue, bool, error)
}

// Options are the bounds of a Hub. Zero values take the defaults.
type Options struct {
	History History
	// Writing reports whether somebody waits for a write; nil: nobody does. Reading history then leaves more of the
	// processors to others. It is called about once a millisecond while history is read, and must not block.
	Writing func() bool
	Logger  *slog.Logger

	// RingEvents and RingBytes bound the recent events held in memory, with their encodings. At a bound the oldest
	// revisions leave the ring and watchers that still want them read the store. Defaults 32,768 and 32 MiB.
	RingEvents int
	RingBytes  int64
	// BatchBytes and BatchRevisions bound one Batch; it exceeds them only by its last revision. Defaults 1 MiB and 1000.
	BatchBytes     int
	BatchRevisions int
	// WatcherPending and StreamPending bound the events waiting for one watcher and for all watchers of one stream;
	// beyond, a watcher falls behind and reads them again later. Defaults 1024 and 65,536.
	WatcherPending, StreamPending int
	// SliceEvents bounds how many events one slice of catching up looks at, at the end of a revision. Of the store's an
	// event that somebody wants counts as wantedCost. Default 4096.
	SliceEvents int
	// Reads is how many streams may read history from the store at one moment; others wait their turn. Default a quarter
	// of the processors, at least 1.
	Reads int
	// PastBytes bounds the pieces of history that are kept in memory after they were read, with their encodings, for the
	// other streams that read the same. Default 4 MiB.
	PastBytes int64
	// ControlQueue bounds the answers to control requests that wait to be sent on one stream; beyond, Create, Cancel and
	// Refuse wait. Default 64.
	ControlQueue int
	// ProgressInterval is how often watchers that asked for it are told their progress while nothing else is sent, plus
	// up to a tenth of it at random per stream. Default 10 minutes, as in etcd.
	ProgressInterval time.Duration
}

func (o *Options) fill() {
	def := func(v *int, d int) {
		if *v <= 0 {
			*v = d
		}
	}
	def(&o.RingEvents, 32768)
	def(&o.BatchBytes, 1<<20)
	def(&o.BatchRevisions, 1000)
	def(&o.WatcherPending, 1024)
	def(&o.StreamPending, 65536)
	def(&o.SliceEvents, 4096)
	def(&o.Reads, min(runtime.GOMAXPROCS(0), runtime.NumCPU())/4)
	def(&o.Reads, 1)
	def(&o.ControlQueue, 64)
	if o.RingBytes <= 0 {
		o.RingBytes = 32 << 20
	}
	if o.PastBytes <= 0 {
		o.PastBytes = 4 << 20
	}
	if o.ProgressInterval <= 0 {
		o.ProgressInterval = 10 * time.Minute
	}
	if o.Writing == nil {
		o.Writing = func() bool { return false }
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

// CreateOptions describe one watcher.
type CreateOptions struct {
	// ID is chosen by the client, or 0 to be given the next free one of the stream.
	ID int64
	kv.Range
	// StartRevision is the first revision wanted; 0 means what comes after now. It may lie in the future.
	StartRevision int64
	// NoPut and NoDelete leave out the events of that kind.
	NoPut, NoDelete bool
	// PrevKV asks for the pair that an event replaced.
	PrevKV bool
	// ProgressNotify asks to be told the progress now and then.
	ProgressNotify bool
	// Fragment allows a batch to be sent in parts. It is only carried along for whoever sends.
	Fragment bool
}

// Kind says what a Batch is.
type Kind uint8

// The kinds of batches.
const (
	// Events: events of one watcher, whole revisions.
	Events Kind = iota
	// Created answers Create. Revision is that of the store at that moment.
	Created
	// Refused answers a Create that could not be done, with Err; ID is InvalidID.
	Refused
	// Canceled answers Cancel; or, with Err, the watcher was ended by Revoke.
	Canceled
	// Compacted says that the watcher has ended because the next revision it needs is compacted.
	Compacted
	// Progress says that everything up to Revision was sent, to the watcher ID or, with InvalidID, to all of the stream.
	Progress
)

// InvalidID is the id of batches that are not about one watcher.
const InvalidID = -1

// Batch is one thing to send on a stream.
type Batch struct {
	Kind Kind
	ID   int64
	// Revision belongs into the header. Of Events it is the revision of the last event, or a newer one up to which
	// nothing else is left for the watcher. Of Compacted it is 0, as in etcd.
	Revision int64
	// Events, with PrevKV and Fragment as the watcher was made.
	Events           []*Event
	PrevKV, Fragment bool
	// CompactRevision is the oldest revision that can still be watched from.
	CompactRevision int64
	Err             error
}

// Stats are the hub's counts for metrics.
type Stats struct {
	Streams  int64
	Watchers int64
	Slow     int64 // watchers that lag behind the dispatcher and read history
	Pending  int64 // events that wait to be taken by their streams
	// Delivered counts the events handed out to streams since the start, RingEvents and RingBytes what the ring holds.
	Delivered  int64
	RingEvents int64
	RingBytes  int64
}
