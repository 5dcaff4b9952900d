// Package lease owns the leases as the state machine knows them: which there are, how long each was granted for, how much
// of that was left when it was last written down, and which keys hang on it. Deadlines are not state; they are the
// leader's (package leader), and nothing here looks at a clock.
//
// A lease is one row, and each key attached to it one more; both change in the batch of the apply loop together with the
// keys themselves. The leases are also held in memory, a few words each, and nothing else is: the keys of a lease are
// read from its rows when they are wanted. What a batch changes is seen by the apply loop at once and by everybody else
// after Publish, which the apply loop calls when the batch is committed.
//
// Invariants, attacked by the model test beside this file:
//
//   - the table in memory and the rows of the committed state name the same leases with the same values;
//   - an attachment row exists exactly for the leases that exist and the keys last attached and not detached;
//   - a lease has a TTL of at least one second and at most MaxTTL, and a remaining time from 0 to its TTL.
package lease

import (
	"encoding/binary"
	"fmt"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// MaxTTL is the longest time that a lease can be granted for, in seconds: etcd's bound.
const MaxTTL = 9_000_000_000

// Leases is the leases of one member. One goroutine, the apply loop, may call the methods that take a batch, Get, Publish
// and Discard; the others may be called from any goroutine at any time.
type Leases struct {
	// shards hold what readers see. There are many so that listing a million leases never holds up the apply loop for
	// longer than one shard takes.
	shards [256]shard
	count  atomic.Int64

	// changed is what the batch in work makes of the leases it touches; the zero Lease if it revokes one.
	changed map[kv.LeaseID]kv.Lease
	row     []byte // scratch of the apply loop
	value   []byte
}

type shard struct {
	mu     sync.RWMutex
	leases map[kv.LeaseID]terms
}

// terms is a kv.Lease without its id.
type terms struct {
	ttl, remaining int64
	granted        uint64
}

// Open reads the leases of the state in r.
func Open(r engine.Reader) (*Leases, error) {
	l := &Leases{changed: make(map[kv.LeaseID]kv.Lease)}
	for i := range l.shards {
		l.shards[i].leases = make(map[kv.LeaseID]terms)
	}
	it, err := r.NewIter(engine.PrefixBounds([]byte{engine.PrefixLease}))
	if err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		id, err := engine.DecodeLease(it.Key())
		if err != nil {
			return nil, fmt.Errorf("read leases: %w", err)
		}
		t, err := decode(it.Value())
		if err != nil {
			return nil, fmt.Errorf("read lease %x: %w", id, err)
		}
		l.shard(id).leases[id] = t
		l.count.Add(1)
	}
	if err := it.Err(); err != nil {
		return nil, fmt.Errorf("read leases: %w", err)
	}
	return l, nil
}

func (l *Leases) shard(id kv.LeaseID) *shard {
	// Ids made by etcd's rule differ in all bits; those chosen by clients mostly in the low ones.
	h := uint64(id) * 0x9e3779b97f4a7c15
	return &l.shards[h>>56]
}

// Get returns a lease as the batch in work sees it.
func (l *Leases) Get(id kv.LeaseID) (kv.Lease, bool) {
	if c, ok := l.changed[id]; ok {
		return c, c.ID != 0
	}
	return l.Lookup(id)
}

// Grant makes a lease. A TTL below one second becomes one second: a lease without time would be revoked before its answer
// is read. kv.ErrLeaseNotFound for the id 0 (etcd's answer), kv.ErrLeaseTTLTooLong above MaxTTL, kv.ErrLeaseExists.
func (l *Leases) Grant(b *engine.Batch, lease kv.Lease) error {
	switch {
	case lease.ID == 0:
		return kv.ErrLeaseNotFound
	case lease.TTL > MaxTTL:
		return kv.ErrLeaseTTLTooLong
	}
	if _, exists := l.Get(lease.ID); exists {
		return kv.ErrLeaseExists
	}
	lease.TTL, lease.Remaining = max(lease.TTL, 1), 0
	return l.write(b, lease)
}

// Revoke forgets a lease and its attachments. The caller deletes the keys, which Keys tells before, in the same batch.
// kv.ErrLeaseNotFound if there is no such lease.
func (l *Leases) Revoke(b *engine.Batch, id kv.LeaseID) error {
	if _, exists := l.Get(id); !exists {
		return kv.ErrLeaseNotFound
	}
	// Row by row: a range deletion for each of a million leases would cost every later reader more.
	err := l.attached(b, id, func(row []byte) error { return b.Delete(row) })
	if err != nil {
		return fmt.Errorf("revoke lease %x: %w", id, err)
	}
	l.row = engine.AppendLease(l.row[:0], id)
	if err := b.Delete(l.row); err != nil {
		return fmt.Errorf("revoke lease %x: %w", id, err)
	}
	l.changed[id] = kv.Lease{}
	return nil
}

// Checkpoint writes down how many seconds a lease has left; 0 gives it its whole time back. What is out of bounds is
// brought within them. kv.ErrLeaseNotFound if there is no such lease.
func (l *Leases) Checkpoint(b *engine.Batch, id kv.LeaseID, remaining int64) error {
	lease, exists := l.Get(id)
	if !exists {
		return kv.ErrLeaseNotFound
	}
	remaining = min(max(remaining, 0), lease.TTL)
	if remaining == lease.Remaining {
		return nil
	}
	lease.Remaining = remaining
	return l.write(b, lease)
}

// Attach hangs a key on a lease. kv.ErrLeaseNotFound if there is no such lease.
func (l *Leases) Attach(b *engine.Batch, key []byte, id kv.LeaseID) error {
	if _, exists := l.Get(id); !exists {
		return kv.ErrLeaseNotFound
	}
	l.row = engine.AppendAttachment(l.row[:0], id, key)
	return b.Set(l.row, nil)
}

// Detach takes a key off a lease, if it hangs there.
func (l *Leases) Detach(b *engine.Batch, key []byte, id kv.LeaseID) error {
	l.row = engine.AppendAttachment(l.row[:0], id, key)
	return b.Delete(l.row)
}

func (l *Leases) write(b *engine.Batch, lease kv.Lease) error {
	l.row = engine.AppendLease(l.row[:0], lease.ID)
	l.value = encode(l.value[:0], lease)
	if err := b.Set(l.row, l.value); err != nil {
		return fmt.Errorf("write lease %x: %w", lease.ID, err)
	}
	l.changed[lease.ID] = lease
	return nil
}

// Publish shows readers what the committed batch made.
func (l *Leases) Publish() {
	for id, c := range l.changed {
		s := l.shard(id)
		s.mu.Lock()
		_, had := s.leases[id]
		if c.ID == 0 {
			delete(s.leases, id)
		} else {
			s.leases[id] = terms{c.TTL, c.Remaining, c.Granted}
		}
		s.mu.Unlock()
		if has := c.ID != 0; has != had {
			if has {
				l.count.Add(1)
			} else {
				l.count.Add(-1)
			}
		}
	}
	l.forget()
}

// Discard forgets what the batch in work made, because it will not be committed.
func (l *Leases) Discard() { l.forget() }

func (l *Leases) forget() {
	// A map never shrinks; one that a batch of many leases has blown up must not be walked for ever after.
	if len(l.changed) > 1024 {
		l.changed = make(map[kv.LeaseID]kv.Lease)
		return
	}
	clear(l.changed)
}

// Lookup returns a lease as last published.
func (l *Leases) Lookup(id kv.LeaseID) (kv.Lease, bool) {
	s := l.shard(id)
	s.mu.RLock()
	t, ok := s.leases[id]
	s.mu.RUnlock()
	if !ok {
		return kv.Lease{}, false
	}
	return kv.Lease{ID: id, TTL: t.ttl, Remaining: t.remaining, Granted: t.granted}, true
}

// Len returns how many leases there are.
func (l *Leases) Len() int { return int(l.count.Load()) }

// IDs returns the ids of the leases in ascending order. Leases that come or go meanwhile may be in it or not.
func (l *Leases) IDs() []kv.LeaseID {
	ids := make([]kv.LeaseID, 0, l.Len())
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.RLock()
		for id := range s.leases {
			ids = append(ids, id)
		}
		s.mu.RUnlock()
	}
	slices.Sort(ids)
	return ids
}

// Each calls visit for the leases, in no order, outside of any lock. Leases that come or go meanwhile may be visited or
// not; those that neither come nor go are.
func (l *Leases) Each(visit func(kv.Lease)) {
	var leases []kv.Lease
	for i := range l.shards {
		s := &l.shards[i]
		leases = leases[:0]
		s.mu.RLock()
		for id, t := range s.leases {
			leases = append(leases, kv.Lease{ID: id, TTL: t.ttl, Remaining: t.remaining, Granted: t.granted})
		}
		s.mu.RUnlock()
		for _, lease := range leases {
			visit(lease)
		}
	}
}

// Keys returns the keys attached to a lease as r sees them, in order; none if there is no such lease.
func (l *Leases) Keys(r engine.Reader, id kv.LeaseID) ([][]byte, error) {
	var keys [][]byte
	err := l.attached(r, id, func(row []byte) error {
		_, key, err := engine.DecodeAttachment(row)
		keys = append(keys, slices.Clone(key))
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the keys of lease %x: %w", id, err)
	}
	return keys, nil
}

// Skim visits keys of a lease in order, beginning with the first. visit returns the key from which to go on (nil: there
// is nothing to look at behind it), or an error, which ends the walk and is returned. So whoever can tell that whole spans
// of keys are of no interest passes over them without reading them.
func (l *Leases) Skim(r engine.Reader, id kv.LeaseID, visit func(key []byte) (next []byte, err error)) error {
	prefix := engine.AppendAttachment(nil, id, nil)
	it, err := r.NewIter(engine.PrefixBounds(prefix))
	if err != nil {
		return fmt.Errorf("skim the keys of lease %x: %w", id, err)
	}
	defer it.Close()
	for ok := it.First(); ok; {
		_, key, err := engine.DecodeAttachment(it.Key())
		if err != nil {
			return err
		}
		next, err := visit(key)
		if err != nil {
			return err
		}
		if next == nil {
			return nil
		}
		ok = it.SeekGE(append(prefix[:len(prefix):len(prefix)], next...))
	}
	return it.Err()
}

func (l *Leases) attached(r engine.Reader, id kv.LeaseID, visit func(row []byte) error) error {
	it, err := r.NewIter(engine.PrefixBounds(engine.AppendAttachment(nil, id, nil)))
	if err != nil {
		return err
	}
	defer it.Close()
	for ok := it.First(); ok; ok = it.Next() {
		if err := visit(it.Key()); err != nil {
			return err
		}
	}
	return it.Err()
}

// rowVersion begins the value of a lease's row.
const rowVersion = 1

// encode appends the value of a lease's row: the version, the TTL, the remaining time and the index of the entry that
// granted it, as varints.
func encode(dst []byte, l kv.Lease) []byte {
	dst = binary.AppendUvarint(append(dst, rowVersion), uint64(l.TTL))
	dst = binary.AppendUvarint(dst, uint64(l.Remaining))
	return binary.AppendUvarint(dst, l.Granted)
}

func decode(b []byte) (terms, error) {
	whole := b
	var n [3]uint64
	ok := len(b) > 0 && b[0] == rowVersion
	if ok {
		b = b[1:]
	}
	for i := range n {
		v, size := binary.Uvarint(b)
		if ok = ok && size > 0; !ok {
			break
		}
		n[i], b = v, b[size:]
	}
	if !ok || len(b) > 0 || n[0] == 0 || n[0] > MaxTTL || n[1] > n[0] {
		return terms{}, fmt.Errorf("%w: lease value %x", engine.ErrMalformed, whole)
	}
	return terms{int64(n[0]), int64(n[1]), n[2]}, nil
}
