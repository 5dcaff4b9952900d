package rpc_test

import (
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"log/slog"
	"runtime"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/trivet-kv/trivet/internal/metrics"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/rpc/rpctest"
	"github.com/trivet-kv/trivet/internal/token"
	"github.com/trivet-kv/trivet/internal/watch"
)

// direct is every call of a member's services without a grpc server between: what panics does so where the call is made.
type direct struct {
	t        testing.TB
	services *rpc.Services
	calls    []directCall
	token    string // that Authenticate gave last
}

type directCall struct {
	name   string
	in     protoreflect.MessageDescriptor
	out    protoreflect.MessageDescriptor
	unary  func(ctx context.Context, decode func(any) error) (any, error)
	stream grpc.StreamHandler
}

// newDirect is a fresh member. What it serves is what Register registers.
func newDirect(t testing.TB) *direct {
	b := rpctest.New(t, watch.Options{})
	s := rpc.New(rpc.Options{
		Backend: b, Logger: slog.New(slog.DiscardHandler), Passwords: token.NewPasswords(4),
		Metrics: metrics.New(metrics.Identity{Version: "3.7.3", Product: "test"}),
	})
	t.Cleanup(s.Stop)
	d := &direct{t: t, services: s}
	rpc.Register(d, s)
	return d
}

// RegisterService is of grpc.ServiceRegistrar.
func (d *direct) RegisterService(desc *grpc.ServiceDesc, srv any) {
	for _, m := range desc.Methods {
		c := d.describe(desc.ServiceName, m.MethodName)
		c.unary = func(ctx context.Context, decode func(any) error) (any, error) {
			return m.Handler(srv, ctx, decode, nil)
		}
		d.calls = append(d.calls, c)
	}
	for _, m := range desc.Streams {
		c := d.describe(desc.ServiceName, m.StreamName)
		c.stream = func(_ any, s grpc.ServerStream) error { return m.Handler(srv, s) }
		d.calls = append(d.calls, c)
	}
}

func (d *direct) describe(service, method string) directCall {
	found, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName(service + "." + method))
	if err != nil {
		d.t.Fatal(err)
	}
	m := found.(protoreflect.MethodDescriptor)
	return directCall{name: service + "/" + method, in: m.Input(), out: m.Output()}
}

// hang is how long a call may take once its caller has gone; wait, how long a caller stays that may wait for others.
const (
	hang = 30 * time.Second
	wait = 5 * time.Millisecond
)

// make makes a call with any bytes as its request, in the name of whoever authenticated last or of nobody.
func (d *direct) make(c directCall, named bool, request []byte) {
	alive := time.AfterFunc(hang, func() {
		stacks := make([]byte, 1<<20)
		panic(fmt.Sprintf("%s hangs\n%s", c.name, stacks[:runtime.Stack(stacks, true)]))
	})
	defer alive.Stop()
	ctx := metadata.NewIncomingContext(context.Background(), metadata.MD{})
	if named && d.token != "" {
		ctx = metadata.NewIncomingContext(ctx, metadata.Pairs("token", d.token))
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	codec := rpc.Codec{Metrics: metrics.New(metrics.Identity{Version: "3.7.3", Product: "test"})}
	decode := func(m any) error {
		if err := codec.Unmarshal(mem.BufferSlice{mem.SliceBuffer(request)}, m); err != nil {
			return status.Error(codes.Internal, err.Error()) // as a grpc server has it
		}
		return nil
	}
	var err error
	if c.unary != nil {
		defer time.AfterFunc(wait, cancelIf(c.name == "v3lockpb.Lock/Lock" || c.name == "v3electionpb.Election/Campaign", cancel)).Stop()
		var answer any
		if answer, err = c.unary(ctx, decode); err == nil {
			d.check(c, codec, answer)
		}
	} else {
		err = c.stream(nil, &directStream{ctx: ctx, cancel: cancel, decode: decode, send: func(m any) { d.check(c, codec, m) }})
	}
	if _, ok := status.FromError(err); !ok {
		d.t.Errorf("%s: an error that has no code: %v", c.name, err)
	}
}

func cancelIf(really bool, cancel func()) func() {
	if really {
		return cancel
	}
	return func() {}
}

// check wants an answer to be a message of the right kind.
func (d *direct) check(c directCall, codec rpc.Codec, answer any) {
	d.t.Helper()
	b, err := codec.Marshal(answer)
	if err != nil {
		d.t.Fatalf("%s: %v", c.name, err)
	}
	defer b.Free()
	kind, err := protoregistry.GlobalTypes.FindMessageByName(c.out.FullName())
	if err != nil {
		d.t.Fatal(err)
	}
	m := kind.New().Interface()
	if err := proto.Unmarshal(b.Materialize(), m); err != nil {
		d.t.Fatalf("%s: %v", c.name, err)
	}
	if a, ok := m.(*pb.AuthenticateResponse); ok {
		d.token = a.Token
	}
}

// directStream gives one request, and ends some time after the next was asked for: a watch goes on without one.
type directStream struct {
	ctx    context.Context
	cancel func()
	decode func(any) error
	send   func(any)
	asked  int
}

func (s *directStream) SetHeader(metadata.MD) error  { return nil }
func (s *directStream) SendHeader(metadata.MD) error { return nil }
func (s *directStream) SetTrailer(metadata.MD)       {}
func (s *directStream) Context() context.Context     { return s.ctx }

func (s *directStream) RecvMsg(m any) error {
	if s.asked++; s.asked == 1 {
		// Observe asks once and goes on until its caller leaves.
		time.AfterFunc(wait, s.cancel)
		return s.decode(m)
	}
	return io.EOF
}

func (s *directStream) SendMsg(m any) error {
	if s.ctx.Err() != nil {
		return status.FromContextError(s.ctx.Err()).Err()
	}
	s.send(m)
	return nil
}

// maxFuzzCalls bounds what one input does.
const maxFuzzCalls = 12

// FuzzCalls makes calls of every service with any bytes as requests, one after the other of a fresh member. Nothing may panic
// or hang, and every answer is a message of the right kind. An input is a list: the number of the call and whether it has a
// name, two bytes of length, the request.
func FuzzCalls(f *testing.F) {
	all := newDirect(f).calls
	var typical []byte
	for i, c := range all {
		for _, depth := range []int{0, 1, 4} {
			f.Add(appendCall(nil, i, sample(c.in, depth)))
		}
		typical = appendCall(typical, i, sample(c.in, 3))
		if i%maxFuzzCalls == maxFuzzCalls-1 || i == len(all)-1 {
			f.Add(typical)
			typical = nil
		}
	}
	put := appendCall(nil, number(all, "etcdserverpb.KV/Put"), &pb.PutRequest{Key: []byte("k"), Value: []byte("v")})
	for _, c := range []struct {
		name    string
		request proto.Message
	}{
		{"etcdserverpb.KV/Range", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 1, SortOrder: 2, SortTarget: 4}},
		{"etcdserverpb.KV/RangeStream", &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}},
		{"etcdserverpb.KV/Compact", &pb.CompactionRequest{Revision: 2, Physical: true}},
		{"etcdserverpb.Watch/Watch", &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{
			Key: []byte("k"), StartRevision: 1, PrevKv: true, Fragment: true}}}},
		{"etcdserverpb.Maintenance/HashKV", &pb.HashKVRequest{Revision: 2}},
	} {
		f.Add(appendCall(put, number(all, c.name), c.request))
	}
	f.Fuzz(func(t *testing.T, input []byte) {
		d := newDirect(t)
		for range maxFuzzCalls {
			if len(input) < 3 {
				return
			}
			which, n := input[0], int(binary.LittleEndian.Uint16(input[1:]))
			input = input[3:]
			n = min(n, len(input))
			d.make(d.calls[int(which&127)%len(d.calls)], which >= 128, input[:n])
			input = input[n:]
		}
	})
}

func number(all []directCall, name string) int {
	for i, c := range all {
		if c.name == name {
			return i
		}
	}
	panic(name)
}

func appendCall(b []byte, which int, request proto.Message) []byte {
	encoded, err := proto.Marshal(request)
	if err != nil {
		panic(err)
	}
	b = append(b[:len(b):len(b)], byte(which))
	b = binary.LittleEndian.AppendUint16(b, uint16(len(encoded)))
	return append(b, encoded...)
}

// sample is a message with every field set, down to a depth.
func sample(d protoreflect.MessageDescriptor, depth int) proto.Message {
	kind, err := protoregistry.GlobalTypes.FindMessageByName(d.FullName())
	if err != nil {
		panic(err)
	}
	m := kind.New()
	if depth == 0 {
		return m.Interface()
	}
	for i := range d.Fields().Len() {
		f := d.Fields().Get(i)
		v := sampleValue(f, depth)
		if !v.IsValid() {
			continue
		}
		if f.IsList() {
			l := m.Mutable(f).List()
			l.Append(v)
			continue
		}
		m.Set(f, v)
	}
	return m.Interface()
}

func sampleValue(f protoreflect.FieldDescriptor, depth int) protoreflect.Value {
	switch f.Kind() {
	case protoreflect.BytesKind:
		return protoreflect.ValueOfBytes([]byte("k"))
	case protoreflect.StringKind:
		return protoreflect.ValueOfString("root")
	case protoreflect.BoolKind:
		return protoreflect.ValueOfBool(f.Name() != "ignore_value" && f.Name() != "ignore_lease")
	case protoreflect.Int64Kind:
		return protoreflect.ValueOfInt64(1)
	case protoreflect.Uint64Kind:
		return protoreflect.ValueOfUint64(1)
	case protoreflect.Int32Kind:
		return protoreflect.ValueOfInt32(1)
	case protoreflect.Uint32Kind:
		return protoreflect.ValueOfUint32(1)
	case protoreflect.EnumKind:
		return protoreflect.ValueOfEnum(1)
	case protoreflect.MessageKind:
		return protoreflect.ValueOfMessage(sample(f.Message(), depth-1).ProtoReflect())
	}
	return protoreflect.Value{}
}
