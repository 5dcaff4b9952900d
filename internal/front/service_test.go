package front_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	_ "google.golang.org/grpc/encoding/gzip" // what clients may send compressed
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/peer"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/front"
)

// maxRecv bounds the messages of these tests.
const maxRecv = 256 << 10

// bytesCodec sends *[]byte as they are. A message that begins with "undecodable" is.
type bytesCodec struct{}

func (bytesCodec) Name() string { return "proto" }

func (bytesCodec) Marshal(v any) (mem.BufferSlice, error) {
	b := *v.(*[]byte)
	if bytes.Equal(b, []byte("unencodable")) {
		return nil, errors.New("no such word")
	}
	out := mem.BufferSlice{}
	for len(b) > 100_000 { // in pieces, as large answers are
		out = append(out, mem.SliceBuffer(b[:100_000]))
		b = b[100_000:]
	}
	return append(out, mem.SliceBuffer(b)), nil
}

func (bytesCodec) Unmarshal(data []byte, v any) error {
	if bytes.HasPrefix(data, []byte("undecodable")) {
		return errors.New("no such form")
	}
	*v.(*[]byte) = bytes.Clone(data)
	return nil
}

// grpcCodec is bytesCodec as grpc-go wants it.
type grpcCodec struct{ bytesCodec }

func (grpcCodec) Unmarshal(data mem.BufferSlice, v any) error {
	return bytesCodec{}.Unmarshal(data.Materialize(), v)
}

// service is what both servers serve.
type service struct {
	mu      sync.Mutex
	ended   map[string]error // contexts of calls of Wait that ended, by the call's message
	changed chan struct{}
	open    chan struct{} // Hold ends when it is closed
	held    atomic.Int64  // calls of Hold that have begun
	given   []byte        // by Give, last
}

func newService() *service {
	return &service{ended: make(map[string]error), changed: make(chan struct{}, 1), open: make(chan struct{})}
}

func unary(f func(ctx context.Context, in []byte) ([]byte, error)) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		var in []byte
		if err := decode(&in); err != nil {
			return nil, err
		}
		out, err := f(ctx, in)
		if err != nil {
			return nil, err
		}
		return &out, nil
	}
}

func (s *service) desc() *grpc.ServiceDesc {
	return &grpc.ServiceDesc{
		ServiceName: "test.Test", HandlerType: (*any)(nil),
		Methods: []grpc.MethodDesc{
			{MethodName: "Echo", Handler: unary(func(_ context.Context, in []byte) ([]byte, error) { return in, nil })},
			{MethodName: "Size", Handler: unary(func(_ context.Context, in []byte) ([]byte, error) { return []byte(strconv.Itoa(len(in))), nil })},
			{MethodName: "Give", Handler: unary(func(_ context.Context, in []byte) ([]byte, error) {
				n, err := strconv.Atoi(string(in))
				s.mu.Lock()
				defer s.mu.Unlock()
				if len(s.given) != n {
					s.given = pattern(n)
				}
				return s.given, err
			})},
			{MethodName: "Fail", Handler: unary(fail)},
			{MethodName: "Meta", Handler: unary(meta)},
			{MethodName: "Wait", Handler: unary(s.wait)},
			{MethodName: "Begun", Handler: unary(func(ctx context.Context, in []byte) ([]byte, error) {
				if err := grpc.SendHeader(ctx, nil); err != nil { // so that the client knows
					return nil, err
				}
				return s.wait(ctx, in)
			})},
			{MethodName: "Hold", Handler: unary(s.hold)},
			{MethodName: "Seen", Handler: unary(seen)},
		},
		Streams: []grpc.StreamDesc{
			{StreamName: "Bidi", Handler: bidi, ServerStreams: true, ClientStreams: true},
			{StreamName: "Early", Handler: early, ServerStreams: true, ClientStreams: true},
			{StreamName: "Deaf", Handler: func(any, grpc.ServerStream) error {
				<-s.open
				return nil
			}, ClientStreams: true},
			{StreamName: "Many", Handler: many, ServerStreams: true},
			{StreamName: "Growing", Handler: growing, ServerStreams: true},
			{StreamName: "Collect", Handler: collect, ClientStreams: true},
		},
	}
}

// pattern is n bytes that show if some are missing or changed places.
func pattern(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i>>16) ^ byte(i>>8)*3 ^ byte(i)*7
	}
	return b
}

func fail(_ context.Context, in []byte) ([]byte, error) {
	switch string(in) {
	case "plain":
		return nil, errors.New("an error of the handler's own")
	case "deadline":
		return nil, context.DeadlineExceeded
	case "wrapped":
		return nil, fmt.Errorf("outer: %w", status.Error(codes.NotFound, "inner"))
	case "details":
		st, err := status.New(codes.ResourceExhausted, "with details").WithDetails(&errdetails.RequestInfo{RequestId: "7"})
		return nil, errors.Join(err, st.Err())
	}
	return nil, status.Error(codes.FailedPrecondition, string(in))
}

// meta sends metadata before and behind its answer; asked for an error it has no answer.
func meta(ctx context.Context, in []byte) ([]byte, error) {
	_ = grpc.SetHeader(ctx, metadata.Pairs("first", "1", "data-bin", "\x00\xff"))
	_ = grpc.SetHeader(ctx, metadata.Pairs("first", "2", "grpc-status", "3", "te", "x"))
	_ = grpc.SetTrailer(ctx, metadata.Pairs("last", "z", "more-bin", "abc"))
	switch string(in) {
	case "send":
		if err := grpc.SendHeader(ctx, metadata.Pairs("sent", "y")); err != nil {
			return nil, err
		}
		if err := grpc.SendHeader(ctx, nil); err == nil {
			return nil, errors.New("headers were sent twice")
		}
	case "error":
		return nil, status.Error(codes.Aborted, "with metadata")
	case "bad":
		return nil, grpc.SetHeader(ctx, metadata.MD{"Bad": {"x"}})
	}
	return in, nil
}

// seen answers what the context says of the call.
func seen(ctx context.Context, _ []byte) ([]byte, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	p, _ := peer.FromContext(ctx)
	path, _ := grpc.Method(ctx)
	_, timed := ctx.Deadline()
	return fmt.Appendf(nil, "%v %v %v %v %v", path, md, p.Addr.Network(), p.AuthInfo, timed), nil
}

func (s *service) wait(ctx context.Context, in []byte) ([]byte, error) {
	<-ctx.Done()
	s.mu.Lock()
	s.ended[string(in)] = ctx.Err()
	s.mu.Unlock()
	select {
	case s.changed <- struct{}{}:
	default:
	}
	return nil, ctx.Err()
}

// waited returns why the call of Wait with that message ended.
func (s *service) waited(t testing.TB, name string) error {
	t.Helper()
	for deadline := time.After(20 * time.Second); ; {
		s.mu.Lock()
		err := s.ended[name]
		s.mu.Unlock()
		if err != nil {
			return err
		}
		select {
		case <-s.changed:
		case <-deadline:
			t.Fatal("the call " + name + " did not end")
		}
	}
}

// hold ends when the test lets it, whatever becomes of its client.
func (s *service) hold(context.Context, []byte) ([]byte, error) {
	s.held.Add(1)
	<-s.open
	return nil, nil
}

func bidi(_ any, stream grpc.ServerStream) error {
	for {
		var in []byte
		if err := stream.RecvMsg(&in); errors.Is(err, io.EOF) {
			stream.SetTrailer(metadata.Pairs("end", "reached"))
			return nil
		} else if err != nil {
			return err
		}
		if err := stream.SendMsg(&in); err != nil {
			return err
		}
	}
}

// early ends after the first message.
func early(_ any, stream grpc.ServerStream) error {
	var in []byte
	if err := stream.RecvMsg(&in); err != nil {
		return err
	}
	return status.Error(codes.OutOfRange, string(in))
}

func many(_ any, stream grpc.ServerStream) error {
	var in []byte
	if err := stream.RecvMsg(&in); err != nil {
		return err
	}
	n, _ := strconv.Atoi(string(in))
	messages := make([]any, n)
	for i := range messages {
		messages[i] = ptr(strconv.Itoa(i))
	}
	if t, ok := stream.(interface{ SendAll([]any) error }); ok {
		return t.SendAll(messages)
	}
	for _, m := range messages {
		if err := stream.SendMsg(m); err != nil {
			return err
		}
	}
	return nil
}

// growing answers with so many messages as pattern makes, each longer than the last, and several at once; all from one memory.
func growing(_ any, stream grpc.ServerStream) error {
	var in []byte
	if err := stream.RecvMsg(&in); err != nil {
		return err
	}
	n, _ := strconv.Atoi(string(in))
	memory := make([]byte, 0, n*n*growth)
	for i := 0; i < n; {
		var some []any
		memory = memory[:0]
		for range min(1+i%7, n-i) {
			from := len(memory)
			memory = append(memory, pattern(i*growth)...)
			m := memory[from:]
			some = append(some, &m)
			i++
		}
		if err := stream.(interface{ SendAll([]any) error }).SendAll(some); err != nil {
			return err
		}
		clear(memory)
	}
	return nil
}

// growth is how much longer each message of growing is.
const growth = 997

func collect(_ any, stream grpc.ServerStream) error {
	n := 0
	for {
		var in []byte
		if err := stream.RecvMsg(&in); errors.Is(err, io.EOF) {
			out := []byte(strconv.Itoa(n))
			return stream.SendMsg(&out)
		} else if err != nil {
			return err
		}
		n += len(in)
	}
}

// options are those that a test may change, for both servers.
type options struct {
	maxStreams uint32
	minTime    time.Duration
	interval   time.Duration
	timeout    time.Duration
	trace      stats.Handler
	wrap       bool // connections do not show that they are of TCP, as those of TLS
}

// wrapped is a listener of connections that take one piece of memory at a time.
type wrapped struct{ net.Listener }

func (w wrapped) Accept() (net.Conn, error) {
	c, err := w.Listener.Accept()
	return struct{ net.Conn }{c}, err
}

// server is either of the two.
type server interface {
	Serve(net.Listener) error
	GracefulStop()
	Stop()
}

// start serves the service on loopback, by front or by grpc-go.
func start(t testing.TB, ours bool, o options) (*service, server, string) {
	t.Helper()
	s := newService()
	var srv server
	if ours {
		fs := front.New(front.Options{
			Codec: bytesCodec{}, MaxRecvBytes: maxRecv, MaxStreams: o.maxStreams, PingMinTime: o.minTime,
			PingInterval: o.interval, PingTimeout: o.timeout, Trace: o.trace,
		})
		fs.RegisterService(s.desc(), s)
		srv = fs
	} else {
		opts := []grpc.ServerOption{
			grpc.ForceServerCodecV2(grpcCodec{}), grpc.MaxRecvMsgSize(maxRecv), grpc.MaxSendMsgSize(1 << 30),
			grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: o.minTime}),
			grpc.KeepaliveParams(keepalive.ServerParameters{Time: o.interval, Timeout: o.timeout}),
		}
		if o.trace != nil { // as a member's server has it
			opts = append(opts, grpc.UnknownServiceHandler(func(any, grpc.ServerStream) error {
				return status.Error(codes.Unimplemented, "unknown method None for service test.Test")
			}))
		}
		if o.maxStreams > 0 {
			opts = append(opts, grpc.MaxConcurrentStreams(o.maxStreams))
		}
		if o.trace != nil {
			opts = append(opts, grpc.StatsHandler(o.trace))
		}
		gs := grpc.NewServer(opts...)
		gs.RegisterService(s.desc(), s)
		srv = gs
	}
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	if o.wrap {
		l = wrapped{l}
	}
	ended := make(chan error, 1)
	go func() { ended <- srv.Serve(l) }()
	t.Cleanup(func() {
		select {
		case <-s.open:
		default:
			close(s.open)
		}
		srv.Stop()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	return s, srv, l.Addr().String()
}
