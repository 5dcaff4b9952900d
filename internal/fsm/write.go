package fsm

import (
	"errors"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// refusals are the errors that a command may meet by its own fault. All others are the engine's and stop the member.
var refusals = []error{
	kv.ErrKeyNotFound, kv.ErrLeaseNotFound, kv.ErrLeaseExists, kv.ErrLeaseTTLTooLong, kv.ErrCompacted, kv.ErrFutureRevision,
	kv.ErrPermissionDenied, kv.ErrAuthOldRevision, kv.ErrUserEmpty, kv.ErrUserNotFound, kv.ErrUserExists, kv.ErrRoleEmpty,
	kv.ErrRoleNotFound, kv.ErrRoleExists, kv.ErrRoleNotGranted, kv.ErrPermissionNotGranted, kv.ErrRootUserNotExist,
	kv.ErrRootRoleNotExist, kv.ErrAuthFailed, kv.ErrNoPasswordUser, kv.ErrAuthNotEnabled, kv.ErrInvalidAuthMgmt,
	kv.ErrTooManyRequests, // too many alarms
}

// refusal splits an error into what refuses a command and what stops the member.
func refusal(err error) (refused, fatal error) {
	if err == nil {
		return nil, nil
	}
	for _, r := range refusals {
		if errors.Is(err, r) {
			return r, nil
		}
	}
	return nil, err
}

// write runs a put, a delete or a transaction. Everything that can refuse it is checked before the first write, so that
// it happens whole or not at all (E#18799).
func (a *applier) write(c *command.Command, r *command.Result, wanted bool) error {
	txn := a.writer.Begin()
	w := writing{applier: a, txn: txn, wanted: wanted}
	refused, err := refusal(w.run(c, r))
	if err != nil {
		return err
	}
	if r.Revision = txn.End(); refused != nil {
		r.Err = refused
	}
	return nil
}

// writing is one command that writes keys.
type writing struct {
	*applier
	txn    *mvcc.Txn
	wanted bool // results are needed; if not, what only reads is skipped
}

func (w *writing) run(c *command.Command, r *command.Result) error {
	switch {
	case c.Put != nil:
		if err := w.checkPut(c.Put); err != nil {
			return err
		}
		prev, err := w.put(c.Put)
		r.Prev = prev
		return err
	case c.DeleteRange != nil:
		d, err := w.delete(c.DeleteRange)
		r.DeleteRange = d
		return err
	default:
		p, err := decide(w, c.Txn)
		if err != nil {
			return err
		}
		checked := p
		if err := w.check(c.Txn, &checked); err != nil {
			return err
		}
		r.Txn, err = w.do(c.Txn, &p)
		return err
	}
}

// check refuses a transaction by what it would do on the branches chosen. It looks at the state before the transaction.
func (w *writing) check(t *command.Txn, p *path) error {
	ops := branch(t, p.take())
	for i := range ops {
		var err error
		switch op := &ops[i]; {
		case op.Range != nil:
			err = checkRange(w, op.Range)
		case op.Put != nil:
			err = w.checkPut(op.Put)
		case op.Txn != nil:
			err = w.check(op.Txn, p)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func (w *writing) checkPut(p *command.Put) error {
	if p.Lease != 0 {
		if _, ok := w.Leases.Get(p.Lease); !ok {
			return kv.ErrLeaseNotFound
		}
	}
	if p.IgnoreValue || p.IgnoreLease {
		_, found, err := w.txn.Head(p.Key)
		if err != nil {
			return err
		}
		if !found {
			return kv.ErrKeyNotFound
		}
	}
	return nil
}

func (w *writing) do(t *command.Txn, p *path) (*command.TxnResult, error) {
	r := &command.TxnResult{Succeeded: p.take()}
	ops := branch(t, r.Succeeded)
	r.Ops = make([]command.OpResult, len(ops))
	for i := range ops {
		if err := w.op(&ops[i], &r.Ops[i], p); err != nil {
			return nil, err
		}
	}
	return r, nil
}

func (w *writing) op(op *command.Op, r *command.OpResult, p *path) (err error) {
	switch {
	case op.Put != nil:
		r.Put = &command.PutResult{}
		r.Put.Prev, err = w.put(op.Put)
	case op.DeleteRange != nil:
		r.DeleteRange, err = w.delete(op.DeleteRange)
	case op.Txn != nil:
		r.Txn, err = w.do(op.Txn, p)
	case w.wanted:
		r.Range = &kv.RangeResult{}
		*r.Range, err = w.txn.Range(*op.Range)
	}
	r.Revision = w.txn.Revision()
	return err
}

func (w *writing) put(p *command.Put) (*kv.KeyValue, error) {
	value, lease := p.Value, p.Lease
	var prev *kv.KeyValue
	if p.IgnoreValue || p.IgnoreLease || p.PrevKV && w.wanted {
		head, found, err := w.txn.Head(p.Key)
		if err != nil {
			return nil, err
		}
		if found {
			if p.PrevKV {
				prev = &head
			}
			if p.IgnoreValue {
				value = head.Value
			}
			if p.IgnoreLease {
				lease = head.Lease
			}
		}
	}
	before, err := w.txn.Put(p.Key, value, lease)
	if err != nil {
		return nil, err
	}
	return prev, w.moveLease(p.Key, before.Lease, lease)
}

// moveLease keeps the attachments of leases equal to the leases that the newest versions name.
func (w *writing) moveLease(key []byte, from, to kv.LeaseID) error {
	if from == to {
		return nil
	}
	if from != 0 {
		if err := w.Leases.Detach(w.batch, key, from); err != nil {
			return err
		}
	}
	if to != 0 {
		return w.Leases.Attach(w.batch, key, to)
	}
	return nil
}

func (w *writing) delete(d *command.DeleteRange) (*command.DeleteResult, error) {
	r := &command.DeleteResult{}
	answer := d.PrevKV && w.wanted
	w.outcome.Deletes++
	var err error
	r.Deleted, err = w.txn.Delete(d.Range, answer, func(pair kv.KeyValue) error {
		if answer {
			r.Prev = append(r.Prev, pair)
		}
		return w.moveLease(pair.Key, pair.Lease, 0)
	})
	return r, err
}

// Range, Revision and Compacted make a writing the view that its own transaction reads.
func (w *writing) Range(o kv.RangeOptions) (kv.RangeResult, error) { return w.txn.Range(o) }

// Revision is that of the newest change seen, the transaction's own included.
func (w *writing) Revision() int64 { return w.txn.Revision() }

// Compacted is the oldest revision that can be read.
func (w *writing) Compacted() int64 { return w.writer.CompactRevision() }
