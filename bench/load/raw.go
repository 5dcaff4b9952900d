package load

import (
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// Raw is an answer as it came, for a generator that would otherwise spend more on unpacking than the server on sending.
type Raw struct{ Bytes []byte }

// RawCodec sends wire messages and hands answers out as they came. It goes with grpc.ForceCodecV2.
var RawCodec encoding.CodecV2 = rawCodec{}

type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) (mem.BufferSlice, error) {
	m, ok := v.(proto.Message)
	if !ok {
		return nil, fmt.Errorf("%T is not a message", v)
	}
	b, err := proto.Marshal(m)
	return mem.BufferSlice{mem.SliceBuffer(b)}, err
}

func (rawCodec) Unmarshal(data mem.BufferSlice, v any) error {
	raw, ok := v.(*Raw)
	if !ok {
		return fmt.Errorf("%T is not raw", v)
	}
	if n := data.Len(); cap(raw.Bytes) < n {
		raw.Bytes = make([]byte, n)
	} else {
		raw.Bytes = raw.Bytes[:n]
	}
	data.CopyTo(raw.Bytes)
	return nil
}

// Count counts the fields of the message with the number; of a repeated field that is its length.
func (r *Raw) Count(number protowire.Number) (int, error) {
	count := 0
	for b := r.Bytes; len(b) > 0; {
		field, kind, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, protowire.ParseError(n)
		}
		m := protowire.ConsumeFieldValue(field, kind, b[n:])
		if m < 0 {
			return 0, protowire.ParseError(m)
		}
		if field == number {
			count++
		}
		b = b[n+m:]
	}
	return count, nil
}
