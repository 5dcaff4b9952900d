package rpc

import (
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/mvcc"
)

// Answer is an answer that is already in its wire form (the protobuf of the method's response message), so that it is
// encoded once. The bytes belong to the answer; whoever sends it frees it once.
type Answer struct {
	Buffers mem.BufferSlice
	share   *share // of the member's budget, if it was asked
}

// Free gives the answer's buffers back, and what it holds of the budget for long answers.
func (a *Answer) Free() {
	a.Buffers.Free()
	if a.share != nil {
		a.share.release()
	}
}

// Bytes copies the answer into one slice.
func (a *Answer) Bytes() []byte { return a.Buffers.Materialize() }

// Field numbers of etcdserverpb and mvccpb (rpc.proto, kv.proto in go.etcd.io/etcd/api/v3).
const (
	fieldHeader = 1 // of every response

	headerCluster, headerMember, headerRevision, headerTerm = 1, 2, 3, 4

	rangeKVs, rangeMore, rangeCount = 2, 3, 4
	rangeStreamResponse             = 1

	putPrev = 2

	kvKey, kvCreate, kvMod, kvVersion, kvValue, kvLease = 1, 2, 3, 4, 5, 6

	eventType, eventKV, eventPrev = 1, 2, 3

	watchID, watchCreated, watchCanceled, watchCompact, watchReason, watchFragment, watchEvents = 2, 3, 4, 5, 6, 7, 11
)

// maxHeaderBytes bounds an encoded header field: a tag, a length byte and four varints of at most ten bytes and a tag.
const maxHeaderBytes = 2 + 4*11

func appendVarint(b []byte, field protowire.Number, v uint64) []byte {
	if v == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.VarintType)
	return protowire.AppendVarint(b, v)
}

func sizeVarint(field protowire.Number, v uint64) int {
	if v == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeVarint(v)
}

func appendBool(b []byte, field protowire.Number, v bool) []byte {
	if !v {
		return b
	}
	return appendVarint(b, field, 1)
}

// appendBytes leaves an empty value out, as proto3 does for a singular field.
func appendBytes(b []byte, field protowire.Number, v []byte) []byte {
	if len(v) == 0 {
		return b
	}
	b = protowire.AppendTag(b, field, protowire.BytesType)
	return protowire.AppendBytes(b, v)
}

func sizeBytes(field protowire.Number, n int) int {
	if n == 0 {
		return 0
	}
	return protowire.SizeTag(field) + protowire.SizeBytes(n)
}

// appendHeader appends the header field of a response.
func appendHeader(b []byte, h Header, revision int64) []byte {
	b = append(b, fieldHeader<<3|byte(protowire.BytesType), 0) // never more than 44 bytes, so that one length byte will do
	at := len(b)
	b = appendVarint(b, headerCluster, h.ClusterID)
	b = appendVarint(b, headerMember, h.MemberID)
	b = appendVarint(b, headerRevision, uint64(revision))
	b = appendVarint(b, headerTerm, h.Term)
	b[at-1] = byte(len(b) - at)
	return b
}

func sizeKeyValue(p *kv.KeyValue) int {
	return sizeBytes(kvKey, len(p.Key)) + sizeVarint(kvCreate, uint64(p.CreateRevision)) +
		sizeVarint(kvMod, uint64(p.ModRevision)) + sizeVarint(kvVersion, uint64(p.Version)) +
		sizeBytes(kvValue, len(p.Value)) + sizeVarint(kvLease, uint64(p.Lease))
}

// appendKeyValue appends p as the given field.
func appendKeyValue(b []byte, field protowire.Number, p *kv.KeyValue) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	b = protowire.AppendVarint(b, uint64(sizeKeyValue(p)))
	b = appendBytes(b, kvKey, p.Key)
	b = appendVarint(b, kvCreate, uint64(p.CreateRevision))
	b = appendVarint(b, kvMod, uint64(p.ModRevision))
	b = appendVarint(b, kvVersion, uint64(p.Version))
	b = appendBytes(b, kvValue, p.Value)
	return appendVarint(b, kvLease, uint64(p.Lease))
}

// rowBound is at least the bytes that appendRow adds for r.
func rowBound(r mvcc.Row) int { return len(r.Key) + len(r.Tail) + 32 }

// appendRow appends a row of the store as the given field, without decoding it.
func appendRow(b []byte, field protowire.Number, r mvcc.Row, keysOnly bool) []byte {
	b = protowire.AppendTag(b, field, protowire.BytesType)
	if !keysOnly {
		b = protowire.AppendVarint(b, uint64(r.WireBytes()))
		return r.AppendWire(b, false)
	}
	guess := protowire.SizeVarint(uint64(rowBound(r)))
	at := len(b)
	b = append(b, make([]byte, guess)...)
	b = r.AppendWire(b, keysOnly)
	n := len(b) - at - guess
	if w := protowire.SizeVarint(uint64(n)); w != guess {
		copy(b[at+w:], b[at+guess:])
		b = b[:at+w+n]
	}
	protowire.AppendVarint(b[:at], uint64(n))
	return b
}
