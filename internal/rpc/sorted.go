package rpc

import (
	"context"
	"time"

	"google.golang.org/grpc/mem"

	"github.com/trivet-kv/trivet/internal/kv"
)

// streamSorted streams a range that names a target other than the key: ascending by that target, as Range answers it.
// Which row comes first is known when all are read, so that the answer is made whole, within the budget for long ones,
// and leaves in chunks. What it holds of the budget it gives back when the call is over.
func (s *Services) streamSorted(ctx context.Context, o kv.RangeOptions, may reading, send func(*Answer) error) error {
	b := s.newRangeBuilder(ctx, &o)
	s.m.Ranges.Inc()
	scanning := time.Now()
	res, err := s.b.Store().Scan(ctx, o, b.add)
	s.m.RangeTook(err == nil, time.Since(scanning))
	if err == nil {
		err = may.still(ctx)
	}
	if err != nil {
		b.drop()
		return toStatus(err)
	}
	// No row crosses two buffers, so that each of them may end a chunk. What belongs to the last chunk follows its rows.
	rest := b.finish(nil, false, 0).Buffers
	for {
		n := 1
		for size := rest[0].Len(); n < len(rest) && size < streamChunkBytes; n++ {
			size += rest[n].Len()
		}
		chunk := rest[:n:n]
		rest = rest[n:]
		if len(rest) == 0 {
			tail := appendHeader(nil, s.b.Header(), res.Revision)
			tail = appendVarint(appendBool(tail, rangeMore, res.More), rangeCount, uint64(res.Count))
			return send(wrapField(&Answer{Buffers: append(chunk, mem.SliceBuffer(tail))}, rangeStreamResponse))
		}
		if err := send(wrapField(&Answer{Buffers: chunk}, rangeStreamResponse)); err != nil {
			rest.Free()
			return err
		}
	}
}
