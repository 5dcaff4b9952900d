package mvcc

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"

	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Row is one pair as Scan shows it, in the bytes of the engine.
type Row struct {
	Key         []byte
	ModRevision int64
	// Tail holds create revision, version, value and lease as mvccpb.KeyValue has them on the wire. Scan cuts the value
	// off if keys only are asked for.
	Tail []byte

	// keepLease: etcd answers keys-only ranges without leases, but for those sorted by value.
	keepLease bool
}

// KeyValue returns the pair as a value of its own. It panics on bytes that are no row: the store checks them first.
func (r Row) KeyValue() kv.KeyValue {
	pair, err := r.keyValue()
	if err != nil {
		panic(err)
	}
	return pair
}

func (r Row) keyValue() (kv.KeyValue, error) {
	t, err := engine.DecodeTail(r.Tail)
	if err != nil {
		return kv.KeyValue{}, fmt.Errorf("key %q: %w", r.Key, err)
	}
	return kv.KeyValue{
		Key: bytes.Clone(r.Key), Value: bytes.Clone(t.Value), CreateRevision: t.Create, ModRevision: r.ModRevision,
		Version: t.Version, Lease: t.Lease,
	}, nil
}

// WireBytes is how long the row is on the wire as a whole.
func (r Row) WireBytes() int {
	n := len(r.Tail)
	if len(r.Key) > 0 {
		n += 1 + uvarintBytes(uint64(len(r.Key))) + len(r.Key)
	}
	if r.ModRevision != 0 {
		n += 1 + uvarintBytes(uint64(r.ModRevision))
	}
	return n
}

func uvarintBytes(n uint64) int { return (bits.Len64(n|1) + 6) / 7 }

// AppendWire appends the row as an mvccpb.KeyValue on the wire, at most 32 bytes more than Key and Tail. With keysOnly it
// leaves out what etcd leaves out of such answers: the value and, unless the scan was sorted by value, the lease.
func (r Row) AppendWire(dst []byte, keysOnly bool) []byte {
	const tagKey, tagMod = 1<<3 | 2, 3 << 3
	if len(r.Key) > 0 {
		dst = binary.AppendUvarint(append(dst, tagKey), uint64(len(r.Key)))
		dst = append(dst, r.Key...)
	}
	if r.ModRevision != 0 {
		dst = binary.AppendUvarint(append(dst, tagMod), uint64(r.ModRevision))
	}
	if !keysOnly {
		return append(dst, r.Tail...)
	}
	t, err := engine.DecodeTail(r.Tail)
	if err != nil {
		panic(err)
	}
	dst = append(dst, r.Tail[:t.Head]...)
	if r.keepLease {
		dst = append(dst, r.Tail[t.ValueEnd:]...)
	}
	return dst
}
