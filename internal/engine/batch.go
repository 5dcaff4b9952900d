package engine

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"

	"github.com/trivet-kv/trivet/internal/kv"
)

// keepBatchBytes is how large a batch may be whose memory is used again. One of large values has a few MiB.
const keepBatchBytes = 4 << 20

// Batch collects changes that become visible together, or not at all. It is a Reader that sees its own writes over what
// is committed. One goroutine at a time may use it.
type Batch struct {
	b     *pebble.Batch
	db    *pebble.DB
	gate  *gate
	sizes *sizes
	// indexed: b can be read. Most batches never are, and do not pay for an index; the first read makes it.
	indexed bool
	dropped int64 // bytes of rows that DeleteSized deletes
}

// Get implements Reader.
func (b *Batch) Get(key []byte) ([]byte, bool, error) {
	if err := b.index(); err != nil {
		return nil, false, err
	}
	return get(b.gate, b.b, key)
}

// NewIter implements Reader. The iterator does not see writes made after it.
func (b *Batch) NewIter(lower, upper []byte) (*Iter, error) {
	if err := b.index(); err != nil {
		return nil, err
	}
	return newIter(b.gate, b.b, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
}

// NewLookup implements Reader.
func (b *Batch) NewLookup() (*Iter, error) {
	if err := b.index(); err != nil {
		return nil, err
	}
	return newIter(b.gate, b.b, &pebble.IterOptions{UseL6Filters: true})
}

func (b *Batch) index() error {
	if b.indexed {
		return nil
	}
	indexed := b.db.NewIndexedBatch()
	err := indexed.Apply(b.b, nil)
	if err == nil {
		b.b, indexed, b.indexed = indexed, b.b, true
	}
	if err = errors.Join(err, indexed.Close()); err != nil {
		return fmt.Errorf("index a batch: %w", err)
	}
	return nil
}

// Set writes a row. Key and value are copied.
func (b *Batch) Set(key, value []byte) error { return b.b.Set(key, value, nil) }

// SetLive writes the row of a put, with the value that AppendLiveValue makes, and returns how long that is. It is made in the
// batch, so that it is copied once.
func (b *Batch) SetLive(key []byte, p kv.KeyValue) (valueBytes int, err error) {
	n := liveValueBytes(p)
	op := b.b.SetDeferred(len(key), n)
	copy(op.Key, key)
	if got := AppendLiveValue(op.Value[:0], p); len(got) != n {
		panic(fmt.Sprintf("engine: the row of a put has %d bytes, not %d", len(got), n))
	}
	return n, op.Finish()
}

// Delete deletes a row.
func (b *Batch) Delete(key []byte) error { return b.b.Delete(key, nil) }

// DeleteSized deletes a row whose value is known to be size bytes long, so that the engine knows what it can give back. With
// another size it deletes as well and knows less.
func (b *Batch) DeleteSized(key []byte, size uint32) error {
	b.dropped += int64(len(key)) + int64(size)
	return b.b.DeleteSized(key, size, nil)
}

// DeleteRange deletes lower ≤ row < upper.
func (b *Batch) DeleteRange(lower, upper []byte) error { return b.b.DeleteRange(lower, upper, nil) }

// Len returns the size of the batch in bytes.
func (b *Batch) Len() int { return b.b.Len() }

// Count returns how many changes the batch holds.
func (b *Batch) Count() int { return int(b.b.Count()) }

// Empty reports whether the batch holds nothing.
func (b *Batch) Empty() bool { return b.b.Empty() }

// Commit makes the batch visible. It does not wait for the disk, unless memtables are full and a flush is behind. After
// an error nothing of the batch is visible and the store must not be written any more.
func (b *Batch) Commit() error {
	size := b.b.Len() // a large batch gives its bytes away when it is committed
	if err := b.b.Commit(pebble.NoSync); err != nil {
		return fmt.Errorf("commit batch of %d bytes: %w", size, err)
	}
	b.sizes.written.all.Add(int64(size))
	b.sizes.dropped.all.Add(b.dropped)
	return nil
}

// Close releases the batch, committed or not.
func (b *Batch) Close() error {
	defer b.gate.leave()
	return b.b.Close()
}
