package engine

import (
	"github.com/cockroachdb/pebble/v2"
)

// Snapshot is the rows of one moment, a Reader that stays as it is whatever is written beside. It must be closed: while it
// is open the engine keeps the versions of rows that it sees, and Close of the engine waits for it. It does not by itself
// hold files or memtables, its iterators do; so who reads for long makes new ones now and then.
type Snapshot struct {
	s    *pebble.Snapshot
	gate *gate
}

// NewSnapshot returns what is committed now.
func (e *Engine) NewSnapshot() (*Snapshot, error) {
	if err := e.gate.enter(); err != nil {
		return nil, err
	}
	return &Snapshot{s: e.db.NewSnapshot(), gate: e.gate}, nil
}

// Get implements Reader.
func (s *Snapshot) Get(key []byte) ([]byte, bool, error) { return get(s.gate, s.s, key) }

// NewIter implements Reader.
func (s *Snapshot) NewIter(lower, upper []byte) (*Iter, error) {
	return newIter(s.gate, s.s, &pebble.IterOptions{LowerBound: lower, UpperBound: upper})
}

// NewLookup implements Reader.
func (s *Snapshot) NewLookup() (*Iter, error) {
	return newIter(s.gate, s.s, &pebble.IterOptions{UseL6Filters: true})
}

// Close lets the engine forget the moment.
func (s *Snapshot) Close() error {
	defer s.gate.leave()
	return s.s.Close()
}
