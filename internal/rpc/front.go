package rpc

import (
	"fmt"
	"math"

	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/front"
)

// NewFront makes the server of clients that speak gRPC alone: the same services as NewServer's, health and reflection too.
func NewFront(s *Services, o ServerOptions) *front.Server {
	if o.MaxConcurrentStreams == math.MaxUint32 {
		o.MaxConcurrentStreams = 0
	}
	if o.KeepaliveInterval <= 0 || o.KeepaliveTimeout <= 0 {
		o.KeepaliveInterval, o.KeepaliveTimeout = 0, 0
	}
	fs := front.New(front.Options{
		Codec:        frontCodec{Codec{Metrics: s.m}},
		AuthInfo:     authInfo,
		MaxRecvBytes: s.o.MaxRequestBytes + grpcOverheadBytes,
		MaxStreams:   o.MaxConcurrentStreams,
		PingMinTime:  o.KeepaliveMinTime,
		PingInterval: o.KeepaliveInterval,
		PingTimeout:  o.KeepaliveTimeout,
		Trace:        o.Trace,
	})
	s.registerAll(fs)
	return fs
}

// frontCodec is Codec for requests that are in one piece.
type frontCodec struct{ Codec }

// Unmarshal reads data into v, a proto.Message, which keeps nothing of data.
func (c frontCodec) Unmarshal(data []byte, v any) error {
	m, ok := v.(proto.Message)
	if !ok {
		return fmt.Errorf("rpc: cannot decode into a %T", v)
	}
	c.Metrics.ClientReceivedBytes.Add(float64(len(data)))
	return proto.Unmarshal(data, m)
}
