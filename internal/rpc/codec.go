package rpc

import (
	"fmt"

	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/metrics"
)

// Codec is the encoding of all messages of a server: answers that are in their wire form already pass through, the rest
// goes through protobuf. It counts the bytes, as etcd's codec does.
type Codec struct {
	Metrics *metrics.Metrics
}

// Name is the content subtype.
func (Codec) Name() string { return "proto" }

// Marshal returns the wire form of v, which is an *Answer or a proto.Message. An answer's buffers change hands.
func (c Codec) Marshal(v any) (mem.BufferSlice, error) {
	var out mem.BufferSlice
	switch v := v.(type) {
	case *Answer:
		out = v.Buffers
	case proto.Message:
		b, err := proto.Marshal(v)
		if err != nil {
			return nil, fmt.Errorf("rpc: encode %T: %w", v, err)
		}
		out = mem.BufferSlice{mem.SliceBuffer(b)}
	default:
		return nil, fmt.Errorf("rpc: cannot encode a %T", v)
	}
	c.Metrics.ClientSentBytes.Add(float64(out.Len()))
	return out, nil
}

// Unmarshal reads data into v, a proto.Message, which keeps nothing of data.
func (c Codec) Unmarshal(data mem.BufferSlice, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("rpc: cannot decode into a %T", v)
	}
	c.Metrics.ClientReceivedBytes.Add(float64(data.Len()))
	if len(data) == 1 {
		return proto.Unmarshal(data[0].ReadOnlyData(), m)
	}
	b := data.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	return proto.Unmarshal(b.ReadOnlyData(), m)
}
