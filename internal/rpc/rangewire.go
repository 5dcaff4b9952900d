package rpc

import (
	"context"
	"sync"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"github.com/trivet-kv/trivet/internal/mvcc"
)

const (
	// segmentBytes is the size of the pooled buffers that a long answer is made of; a longer row gets its own.
	segmentBytes = 32 << 10
	// firstBytes is what the first buffer of an answer with more than one row has room for.
	firstBytes = 2 << 10
	// tailBytes bounds what follows the rows: more and count.
	tailBytes = 16
)

// segments are buffers of segmentBytes. What a segment held before is not cleared: it is written before it is read.
type segments struct{ free sync.Pool }

// Get implements mem.BufferPool.
func (s *segments) Get(n int) *[]byte {
	if n <= segmentBytes {
		if b, ok := s.free.Get().(*[]byte); ok {
			*b = (*b)[:n]
			return b
		}
	}
	b := make([]byte, n, max(n, segmentBytes))
	return &b
}

// Put implements mem.BufferPool.
func (s *segments) Put(b *[]byte) {
	if cap(*b) == segmentBytes {
		s.free.Put(b)
	}
}

// rangeBuilder makes a RangeResponse out of rows, in buffers of bounded size, so that a long answer is never copied to
// grow. Memory beyond freeBytes is asked of the member's budget.
type rangeBuilder struct {
	ctx      context.Context
	pool     mem.BufferPool
	share    share
	keysOnly bool
	single   bool // at most one row: size the first buffer exactly

	bufs  mem.BufferSlice
	slab  *[]byte // the pooled buffer behind cur; nil for the first, which is not pooled
	cur   []byte  // where rows go now; the first begins with a gap for the header
	size  int64   // bytes allocated
	rows  int64
	asked int64 // bytes asked of the budget
}

func (b *rangeBuilder) add(r mvcc.Row) error {
	b.rows++
	need := rowBound(r) + 2 + tailBytes
	if b.cur == nil {
		room := maxHeaderBytes + need
		if !b.single {
			room += firstBytes
		}
		b.cur = make([]byte, maxHeaderBytes, room)
		b.size = int64(room)
	}
	if cap(b.cur)-len(b.cur) < need {
		if err := b.segment(max(need, segmentBytes)); err != nil {
			return err
		}
	}
	b.cur = appendRow(b.cur, rangeKVs, r, b.keysOnly)
	return nil
}

// segment closes the current buffer and begins one of n bytes.
func (b *rangeBuilder) segment(n int) error {
	b.size += int64(n)
	if over := b.size - freeBytes - b.asked; over > 0 {
		if err := b.share.take(b.ctx, over); err != nil {
			return err
		}
		b.asked += over
	}
	b.flush()
	b.slab = b.pool.Get(n)
	b.cur = (*b.slab)[:0]
	return nil
}

func (b *rangeBuilder) flush() {
	if b.slab == nil {
		b.bufs = append(b.bufs, mem.SliceBuffer(b.cur))
		return
	}
	*b.slab = b.cur
	b.bufs = append(b.bufs, mem.NewBuffer(b.slab, b.pool))
}

// finish appends what follows the rows and puts the header before them. header may be empty, as in the chunks of a
// stream that are not the last.
func (b *rangeBuilder) finish(header []byte, more bool, count int64) *Answer {
	if b.cur == nil {
		b.cur = make([]byte, maxHeaderBytes, maxHeaderBytes+tailBytes)
	}
	b.cur = appendBool(b.cur, rangeMore, more)
	b.cur = appendVarint(b.cur, rangeCount, uint64(count))
	b.flush()
	first := b.bufs[0].(mem.SliceBuffer)
	at := maxHeaderBytes - len(header)
	copy(first[at:maxHeaderBytes], header)
	b.bufs[0] = first[at:]
	a := &Answer{Buffers: b.bufs}
	if b.asked > 0 {
		// Whoever sends the answer may only free its buffers. The bytes have left memory at the latest when the call is
		// over: its context ends after the last of them is written, or the stream is reset.
		a.share = &b.share
		context.AfterFunc(b.ctx, a.share.release)
	}
	return a
}

// drop gives back what was built when no answer comes of it.
func (b *rangeBuilder) drop() {
	b.bufs.Free()
	if b.slab != nil {
		b.pool.Put(b.slab)
	}
	if b.asked > 0 {
		b.share.release()
	}
	b.bufs, b.slab, b.cur, b.asked = nil, nil, nil, 0
}

// wrapField puts an answer inside a field of an outer message.
func wrapField(a *Answer, field protowire.Number) *Answer {
	head := protowire.AppendTag(nil, field, protowire.BytesType)
	head = protowire.AppendVarint(head, uint64(a.Buffers.Len()))
	return &Answer{Buffers: append(mem.BufferSlice{mem.SliceBuffer(head)}, a.Buffers...), share: a.share}
}
