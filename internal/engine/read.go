package engine

import (
	"errors"
	"fmt"

	"github.com/cockroachdb/pebble/v2"
)

// Reader reads rows: an Engine (what is committed), a Snapshot, or a Batch (which sees its own writes).
type Reader interface {
	// Get returns the value of a row. The value is the caller's.
	Get(key []byte) (value []byte, found bool, err error)
	// NewIter returns an iterator over lower ≤ row < upper; nil is no bound. The bounds must stay unchanged until the
	// iterator is closed, which the caller must do.
	NewIter(lower, upper []byte) (*Iter, error)
	// NewLookup returns an iterator without bounds for SeekPrefix only.
	NewLookup() (*Iter, error)
}

func get(g *gate, r pebble.Reader, key []byte) ([]byte, bool, error) {
	v, closer, err := r.Get(key)
	if errors.Is(err, pebble.ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, fmt.Errorf("read row %x: %w", key, g.read(err))
	}
	value := append(make([]byte, 0, len(v)), v...)
	return value, true, g.read(closer.Close())
}

func newIter(g *gate, r pebble.Reader, o *pebble.IterOptions) (*Iter, error) {
	if err := g.enter(); err != nil {
		return nil, err
	}
	it, err := r.NewIter(o)
	if err != nil {
		g.leave()
		return nil, fmt.Errorf("open iterator: %w", err)
	}
	return &Iter{it: it, gate: g}, nil
}

// Iter walks rows in order. It sees its reader as it was when the iterator was made. One goroutine at a time may use it.
// After a move that returns false, Err tells whether the end was reached or reading failed.
type Iter struct {
	it   *pebble.Iterator
	gate *gate
}

// SetBounds makes lower ≤ row < upper the bounds, over the same moment. The iterator then stands on no row.
func (i *Iter) SetBounds(lower, upper []byte) { i.it.SetBounds(lower, upper) }

// First moves to the first row.
func (i *Iter) First() bool { return i.it.First() }

// Last moves to the last row.
func (i *Iter) Last() bool { return i.it.Last() }

// SeekGE moves to the first row ≥ key.
func (i *Iter) SeekGE(key []byte) bool { return i.it.SeekGE(key) }

// SeekLT moves to the last row < key.
func (i *Iter) SeekLT(key []byte) bool { return i.it.SeekLT(key) }

// SeekPrefix moves to the first row ≥ key that has the prefix of key (for version rows: is of the same user key), if
// there is one. Filters make it cheap where there is none. Only Next may follow, and it stays within the prefix.
func (i *Iter) SeekPrefix(key []byte) bool { return i.it.SeekPrefixGE(key) }

// Next moves to the next row.
func (i *Iter) Next() bool { return i.it.Next() }

// Prev moves to the row before.
func (i *Iter) Prev() bool { return i.it.Prev() }

// NextPrefix moves to the first row of the next prefix: for version rows, to the newest version of the next user key.
func (i *Iter) NextPrefix() bool { return i.it.NextPrefix() }

// Valid reports whether the iterator stands on a row.
func (i *Iter) Valid() bool { return i.it.Valid() }

// Key returns the row's key; valid until the next move.
func (i *Iter) Key() []byte { return i.it.Key() }

// Value returns the row's value; valid until the next move. An error in reading it is kept for Err.
func (i *Iter) Value() []byte { return i.it.Value() }

// ValueLen returns how long the row's value is. It does not read values that lie in blocks of their own.
func (i *Iter) ValueLen() int {
	v := i.it.LazyValue()
	return v.Len()
}

// Err returns the error that ended the walk, if it was not the end.
func (i *Iter) Err() error { return i.gate.read(i.it.Error()) }

// Close releases the iterator and returns Err.
func (i *Iter) Close() error {
	defer i.gate.leave()
	return i.gate.read(i.it.Close())
}

// Clone returns another iterator over the same moment, with other bounds. It must be closed.
func (i *Iter) Clone(lower, upper []byte) (*Iter, error) {
	if err := i.gate.enter(); err != nil {
		return nil, err
	}
	it, err := i.it.Clone(pebble.CloneOptions{IterOptions: &pebble.IterOptions{LowerBound: lower, UpperBound: upper}})
	if err != nil {
		i.gate.leave()
		return nil, fmt.Errorf("clone iterator: %w", err)
	}
	return &Iter{it: it, gate: i.gate}, nil
}
