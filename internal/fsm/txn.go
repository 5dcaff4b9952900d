package fsm

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// view is what a transaction reads: a store at one revision, or the batch being built.
type view interface {
	Range(o kv.RangeOptions) (kv.RangeResult, error)
	// Revision is the main revision of the newest change the view sees; Compacted the oldest that can be asked for.
	Revision() int64
	Compacted() int64
}

// path says for each transaction, in the order in which decide meets them, whether its success branch was chosen. Nested
// transactions decide by the state before the outermost one wrote anything.
type path []bool

// decide evaluates the conditions of t and of every transaction nested in the branches chosen.
func decide(v view, t *command.Txn) (path, error) {
	holds, err := compareAll(v, t.Compare)
	if err != nil {
		return nil, err
	}
	p := path{holds}
	for _, op := range branch(t, holds) {
		if op.Txn == nil {
			continue
		}
		nested, err := decide(v, op.Txn)
		if err != nil {
			return nil, err
		}
		p = append(p, nested...)
	}
	return p, nil
}

// take returns the first decision and moves on to the next.
func (p *path) take() bool {
	first := (*p)[0]
	*p = (*p)[1:]
	return first
}

func branch(t *command.Txn, success bool) []command.Op {
	if success {
		return t.Success
	}
	return t.Failure
}

func compareAll(v view, compares []command.Compare) (bool, error) {
	for i := range compares {
		holds, err := compare(v, &compares[i])
		if err != nil || !holds {
			return false, err
		}
	}
	return true, nil
}

// compare reports whether c holds for every key of its range. A range without keys is compared as one key that was never
// written, except by value, where it never holds: that is etcd's rule, since the wire cannot tell an empty value from none.
func compare(v view, c *command.Compare) (bool, error) {
	got, err := v.Range(kv.RangeOptions{Range: c.Range, KeysOnly: c.Target != command.CompareValue})
	if err != nil {
		return false, err
	}
	if len(got.KVs) == 0 {
		return c.Target != command.CompareValue && holds(c, &kv.KeyValue{}), nil
	}
	for i := range got.KVs {
		if !holds(c, &got.KVs[i]) {
			return false, nil
		}
	}
	return true, nil
}

func holds(c *command.Compare, pair *kv.KeyValue) bool {
	var order int
	switch c.Target {
	case command.CompareVersion:
		order = cmp.Compare(pair.Version, c.Int)
	case command.CompareCreate:
		order = cmp.Compare(pair.CreateRevision, c.Int)
	case command.CompareMod:
		order = cmp.Compare(pair.ModRevision, c.Int)
	case command.CompareValue:
		order = bytes.Compare(pair.Value, c.Value)
	case command.CompareLease:
		order = cmp.Compare(int64(pair.Lease), c.Int)
	}
	switch c.Result {
	case command.Equal:
		return order == 0
	case command.NotEqual:
		return order != 0
	case command.Greater:
		return order > 0
	case command.Less:
		return order < 0
	}
	return true
}

// checkRange refuses a range at a revision that is gone or has not come, before anything is written.
func checkRange(v view, o *kv.RangeOptions) error {
	switch {
	case o.Revision == 0:
		return nil
	case o.Revision > v.Revision():
		return kv.ErrFutureRevision
	case o.Revision < v.Compacted():
		return kv.ErrCompacted
	}
	return nil
}

// ReadOnly reports whether t can be answered without the log: it holds nothing but ranges. A nested transaction goes
// through the log whatever it holds, as in etcd.
func ReadOnly(t *command.Txn) bool {
	for _, ops := range [][]command.Op{t.Success, t.Failure} {
		for i := range ops {
			if ops[i].Range == nil {
				return false
			}
		}
	}
	return true
}

// Reader is the reading half of the key-value store.
type Reader interface {
	Range(o kv.RangeOptions) (kv.RangeResult, int64, error)
	Revision() int64
	CompactRevision() int64
}

// ReadTxn answers a transaction for which ReadOnly holds, from one revision of the store.
func ReadTxn(store Reader, t *command.Txn) (command.Result, error) {
	for {
		v := storeView{store: store, revision: store.Revision()}
		r, err := readTxn(v, t)
		// A compaction may pass the revision between two reads; the transaction then starts again at a newer one.
		if errors.Is(err, kv.ErrCompacted) && v.revision < store.CompactRevision() {
			continue
		}
		return r, err
	}
}

func readTxn(v storeView, t *command.Txn) (command.Result, error) {
	p, err := decide(v, t)
	if err != nil {
		return command.Result{}, err
	}
	r := &command.TxnResult{Succeeded: p.take()}
	ops := branch(t, r.Succeeded)
	for i := range ops {
		if err := checkRange(v, ops[i].Range); err != nil {
			return command.Result{}, err
		}
	}
	for i := range ops {
		got, err := v.Range(*ops[i].Range)
		if err != nil {
			return command.Result{}, fmt.Errorf("range in a read-only transaction: %w", err)
		}
		r.Ops = append(r.Ops, command.OpResult{Revision: v.revision, Range: &got})
	}
	return command.Result{Revision: v.revision, Txn: r}, nil
}

// storeView reads the store as it was at one revision.
type storeView struct {
	store    Reader
	revision int64
}

func (v storeView) Range(o kv.RangeOptions) (kv.RangeResult, error) {
	if o.Revision <= 0 {
		o.Revision = v.revision
	}
	r, _, err := v.store.Range(o)
	return r, err
}

func (v storeView) Revision() int64  { return v.revision }
func (v storeView) Compacted() int64 { return v.store.CompactRevision() }
