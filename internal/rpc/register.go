package rpc

import (
	"context"
	"math"
	"strings"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/stats"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/metrics"
)

// This file joins the services to grpc-go, and nothing else does. Handlers are made here rather than taken from the
// generated descriptors, because answers are wire bytes and because counting and admission then need no interceptor.

// ServerOptions is how a grpc server behaves to its clients. Zero values leave grpc-go's defaults.
type ServerOptions struct {
	MaxConcurrentStreams uint32        // on one connection; 0: no bound
	KeepaliveMinTime     time.Duration // a client that pings more often is sent away
	KeepaliveInterval    time.Duration // of the server's own pings
	KeepaliveTimeout     time.Duration
	// Trace makes a span of each call, over those of Options.Tracer. nil: none, at no cost.
	Trace stats.Handler
}

// streamWorkers is how many goroutines wait for calls, for each server. A call that finds none free gets a new one, whose
// stack must grow several times before it has reached the store.
const streamWorkers = 64

// NewServer makes a grpc server of the services, with health and reflection beside them.
func NewServer(s *Services, o ServerOptions, more ...grpc.ServerOption) *grpc.Server {
	if o.MaxConcurrentStreams == 0 {
		o.MaxConcurrentStreams = math.MaxUint32
	}
	var known map[string]grpc.ServiceInfo // set before the server serves
	opts := []grpc.ServerOption{
		grpc.ForceServerCodecV2(Codec{Metrics: s.m}),
		grpc.MaxRecvMsgSize(s.o.MaxRequestBytes + grpcOverheadBytes),
		grpc.MaxSendMsgSize(math.MaxInt32),
		grpc.Creds(doorCredentials{}),
		grpc.MaxConcurrentStreams(o.MaxConcurrentStreams),
		grpc.NumStreamWorkers(streamWorkers),
		grpc.UnknownServiceHandler(func(_ any, stream grpc.ServerStream) error { return unknown(known, stream) }),
	}
	if o.KeepaliveMinTime > 0 {
		opts = append(opts, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: o.KeepaliveMinTime}))
	}
	if o.KeepaliveInterval > 0 && o.KeepaliveTimeout > 0 {
		opts = append(opts, grpc.KeepaliveParams(keepalive.ServerParameters{Time: o.KeepaliveInterval, Timeout: o.KeepaliveTimeout}))
	}
	if o.Trace != nil {
		opts = append(opts, grpc.StatsHandler(o.Trace))
	}
	gs := grpc.NewServer(append(opts, more...)...)
	s.registerAll(gs)
	known = gs.GetServiceInfo()
	return gs
}

// registerAll adds all that a server for clients serves.
func (s *Services) registerAll(gs reflection.GRPCServer) {
	Register(gs, s)
	s.registerHealth(gs)
	registerReflection(gs)
}

// registerHealth adds grpc.health.v1, counted and admitted like the others.
func (s *Services) registerHealth(gs grpc.ServiceRegistrar) {
	h := health.NewServer()
	h.SetServingStatus("", healthpb.HealthCheckResponse_SERVING)
	s.add(gs, healthpb.Health_ServiceDesc, map[string]unaryMethod{
		"Check": unary(h.Check),
		"List":  unary(h.List),
	}, map[string]streamMethod{
		"Watch": func(ctx context.Context, stream grpc.ServerStream, call *metrics.Call) error {
			r := new(healthpb.HealthCheckRequest)
			if err := stream.RecvMsg(r); err != nil {
				return err
			}
			call.Received.Inc()
			ctx, over := s.untilDrain(ctx)
			defer over()
			return h.Watch(r, &grpc.GenericServerStream[healthpb.HealthCheckRequest, healthpb.HealthCheckResponse]{ServerStream: healthStream{stream, ctx, call}})
		},
	})
}

// healthStream ends with the services, so that who watches the health of a member does not hold up its stop.
type healthStream struct {
	grpc.ServerStream
	ctx  context.Context
	call *metrics.Call
}

func (h healthStream) Context() context.Context { return h.ctx }

func (h healthStream) SendMsg(m any) error {
	h.call.Sent.Inc()
	return h.ServerStream.SendMsg(m)
}

// add registers one service, all of its methods.
func (s *Services) add(gs grpc.ServiceRegistrar, desc grpc.ServiceDesc, unaries map[string]unaryMethod, streams map[string]streamMethod) {
	out := grpc.ServiceDesc{ServiceName: desc.ServiceName, HandlerType: (*any)(nil), Metadata: desc.Metadata}
	for _, m := range desc.Methods {
		f := unaries[m.MethodName]
		if f == nil {
			panic("rpc: nobody answers " + m.MethodName)
		}
		call := s.m.Call("unary", desc.ServiceName, m.MethodName)
		h := s.unaryHandler("/"+desc.ServiceName+"/"+m.MethodName, call, gateOf(desc.ServiceName, m.MethodName), f)
		out.Methods = append(out.Methods, grpc.MethodDesc{MethodName: m.MethodName, Handler: h})
	}
	for _, m := range desc.Streams {
		f := streams[m.StreamName]
		if f == nil {
			panic("rpc: nobody answers " + m.StreamName)
		}
		kind := "server_stream"
		if m.ClientStreams {
			kind = "bidi_stream"
		}
		call := s.m.Call(kind, desc.ServiceName, m.StreamName)
		m.Handler = s.streamHandler(call, gateOf(desc.ServiceName, m.StreamName), f)
		out.Streams = append(out.Streams, m)
	}
	gs.RegisterService(&out, s)
}

// gateOf panics for a method that nobody has decided about, which the start of every server does then.
func gateOf(service, method string) gate {
	name := service[strings.LastIndexByte(service, '.')+1:] + "." + method
	g, ok := gates[name]
	if !ok {
		panic("rpc: who may call " + name + "? It needs a line in gates")
	}
	return g
}

// Register adds etcd's services to a grpc server whose codec is Codec.
func Register(gs grpc.ServiceRegistrar, s *Services) {
	add := func(desc grpc.ServiceDesc, unaries map[string]unaryMethod, streams map[string]streamMethod) {
		s.add(gs, desc, unaries, streams)
	}
	add(pb.KV_ServiceDesc, map[string]unaryMethod{
		"Range":       unary(s.Range),
		"Put":         unary(s.Put),
		"DeleteRange": unary(s.DeleteRange),
		"Txn":         unary(s.Txn),
		"Compact":     unary(s.Compact),
	}, map[string]streamMethod{"RangeStream": s.serveRangeStream})
	add(pb.Watch_ServiceDesc, nil, map[string]streamMethod{"Watch": s.serveWatch})
	add(pb.Lease_ServiceDesc, map[string]unaryMethod{
		"LeaseGrant":      unary(s.LeaseGrant),
		"LeaseRevoke":     unary(s.LeaseRevoke),
		"LeaseTimeToLive": unary(s.LeaseTimeToLive),
		"LeaseLeases":     unary(s.LeaseLeases),
	}, map[string]streamMethod{"LeaseKeepAlive": s.serveKeepAlive})
	add(pb.Cluster_ServiceDesc, map[string]unaryMethod{
		"MemberList":    unary(s.MemberList),
		"MemberAdd":     unary(s.MemberAdd),
		"MemberRemove":  unary(s.MemberRemove),
		"MemberUpdate":  unary(s.MemberUpdate),
		"MemberPromote": unary(s.MemberPromote),
	}, nil)
	add(pb.Maintenance_ServiceDesc, map[string]unaryMethod{
		"Alarm":      unary(s.Alarm),
		"Status":     unary(s.Status),
		"Defragment": unary(s.Defragment),
		"Hash":       unary(s.Hash),
		"HashKV":     unary(s.HashKV),
		"MoveLeader": unary(s.MoveLeader),
		"Downgrade":  unary(s.Downgrade),
	}, map[string]streamMethod{"Snapshot": s.serveSnapshot})
	add(pb.Auth_ServiceDesc, map[string]unaryMethod{
		"AuthEnable": unary(s.AuthEnable), "AuthDisable": unary(s.AuthDisable),
		"AuthStatus": unary(s.AuthStatus), "Authenticate": unary(s.Authenticate),
		"UserAdd": unary(s.UserAdd), "UserGet": unary(s.UserGet), "UserList": unary(s.UserList), "UserDelete": unary(s.UserDelete),
		"UserChangePassword": unary(s.UserChangePassword), "UserGrantRole": unary(s.UserGrantRole),
		"UserRevokeRole": unary(s.UserRevokeRole),
		"RoleAdd":        unary(s.RoleAdd), "RoleGet": unary(s.RoleGet), "RoleList": unary(s.RoleList), "RoleDelete": unary(s.RoleDelete),
		"RoleGrantPermission": unary(s.RoleGrantPermission), "RoleRevokePermission": unary(s.RoleRevokePermission),
	}, nil)
	add(v3lockpb.Lock_ServiceDesc, map[string]unaryMethod{"Lock": unary(s.Lock), "Unlock": unary(s.Unlock)}, nil)
	add(v3electionpb.Election_ServiceDesc, map[string]unaryMethod{
		"Campaign": unary(s.Campaign),
		"Proclaim": unary(s.Proclaim),
		"Leader":   unary(s.Leader),
		"Resign":   unary(s.Resign),
	}, map[string]streamMethod{"Observe": s.serveObserve})
}

// unaryMethod decodes a request and answers it. It returns the request too, or nil.
type unaryMethod func(ctx context.Context, admit func() error, decode func(any) error) (request, answer any, err error)

func unary[Req, Resp any](f func(context.Context, *Req) (*Resp, error)) unaryMethod {
	return func(ctx context.Context, admit func() error, decode func(any) error) (any, any, error) {
		r := new(Req)
		if err := decode(r); err != nil {
			return nil, nil, err
		}
		if err := admit(); err != nil {
			return r, nil, err
		}
		out, err := f(ctx, r)
		if err != nil {
			return r, nil, err // not out, which would be a typed nil
		}
		return r, out, nil
	}
}

func (s *Services) unaryHandler(method string, call *metrics.Call, g gate, f unaryMethod) grpc.MethodHandler {
	return func(_ any, ctx context.Context, decode func(any) error, _ grpc.UnaryServerInterceptor) (any, error) {
		begin := time.Now()
		call.Started.Inc()
		req, out, err := f(ctx, func() error {
			call.Received.Inc()
			call.Sent.Inc() // as etcd counts: an error is an answer too
			if err := s.Admit(Unary, callerOf(ctx)); err != nil {
				return err
			}
			return s.pass(ctx, g)
		}, decode)
		took := time.Since(begin)
		call.Handled(status.Code(err), took)
		if took > s.o.WarnSlow || s.debug {
			s.logCall(ctx, method, begin, took, req, out)
		}
		return out, err
	}
}

// streamMethod serves one stream. ctx is of StreamContext.
type streamMethod func(ctx context.Context, stream grpc.ServerStream, call *metrics.Call) error

func (s *Services) streamHandler(call *metrics.Call, g gate, f streamMethod) grpc.StreamHandler {
	return func(_ any, stream grpc.ServerStream) error {
		begin := time.Now()
		call.Started.Inc()
		caller := callerOf(stream.Context())
		err := s.Admit(Stream, caller)
		if err == nil {
			err = s.pass(stream.Context(), g)
		}
		if err == nil {
			ctx, cancel := s.StreamContext(stream.Context(), caller)
			err = f(ctx, stream, call)
			cancel()
		}
		call.Handled(status.Code(err), time.Since(begin))
		return err
	}
}

func callerOf(ctx context.Context) Caller {
	var c Caller
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataClientAPIVersionKey); len(v) > 0 {
		c.APIVersion = v[0]
	}
	if v := metadata.ValueFromIncomingContext(ctx, rpctypes.MetadataRequireLeaderKey); len(v) > 0 {
		c.RequireLeader = v[0] == rpctypes.MetadataHasLeader
	}
	return c
}

func (s *Services) serveRangeStream(ctx context.Context, stream grpc.ServerStream, call *metrics.Call) error {
	r := new(pb.RangeRequest)
	if err := stream.RecvMsg(r); err != nil {
		return err
	}
	call.Received.Inc()
	return s.RangeStream(ctx, r, func(a *Answer) error {
		call.Sent.Inc()
		return stream.SendMsg(a)
	})
}

func (s *Services) serveSnapshot(ctx context.Context, stream grpc.ServerStream, call *metrics.Call) error {
	r := new(pb.SnapshotRequest)
	if err := stream.RecvMsg(r); err != nil {
		return err
	}
	call.Received.Inc()
	return s.Snapshot(ctx, r, func(a *pb.SnapshotResponse) error {
		call.Sent.Inc()
		return stream.SendMsg(a)
	})
}

func (s *Services) serveObserve(ctx context.Context, stream grpc.ServerStream, call *metrics.Call) error {
	r := new(v3electionpb.LeaderRequest)
	if err := stream.RecvMsg(r); err != nil {
		return err
	}
	call.Received.Inc()
	return s.Observe(ctx, r, func(l *v3electionpb.LeaderResponse) error {
		call.Sent.Inc()
		return stream.SendMsg(l)
	})
}

func (s *Services) serveKeepAlive(ctx context.Context, stream grpc.ServerStream, call *metrics.Call) error {
	return s.LeaseKeepAlive(ctx, keepAliveStream{stream, call})
}

type keepAliveStream struct {
	stream grpc.ServerStream
	call   *metrics.Call
}

func (k keepAliveStream) Recv() (*pb.LeaseKeepAliveRequest, error) {
	r := new(pb.LeaseKeepAliveRequest)
	if err := k.stream.RecvMsg(r); err != nil {
		return nil, err
	}
	k.call.Received.Inc()
	return r, nil
}

func (k keepAliveStream) Send(r *pb.LeaseKeepAliveResponse) error {
	k.call.Sent.Inc()
	return k.stream.SendMsg(r)
}

func (s *Services) serveWatch(ctx context.Context, stream grpc.ServerStream, call *metrics.Call) error {
	return s.Watch(ctx, watchStream{stream, call})
}

type watchStream struct {
	stream grpc.ServerStream
	call   *metrics.Call
}

func (w watchStream) Recv() (*pb.WatchRequest, error) {
	r := new(pb.WatchRequest)
	if err := w.stream.RecvMsg(r); err != nil {
		return nil, err
	}
	w.call.Received.Inc()
	return r, nil
}

// together is a server's stream that sends several messages in one go, and keeps nothing of them.
type together interface {
	SendAll(messages []any) error
}

func (w watchStream) Send(answers []Answer) error {
	w.call.Sent.Add(float64(len(answers)))
	if t, ok := w.stream.(together); ok {
		messages := make([]any, len(answers))
		for i := range answers {
			messages[i] = &answers[i]
		}
		return t.SendAll(messages)
	}
	for i := range answers {
		if err := w.stream.SendMsg(&Answer{Buffers: mem.BufferSlice{mem.SliceBuffer(answers[i].Bytes())}}); err != nil {
			return err
		}
	}
	return nil
}

// unknown answers calls of services and methods that are not registered, in grpc-go's own texts.
func unknown(known map[string]grpc.ServiceInfo, stream grpc.ServerStream) error {
	full, _ := grpc.MethodFromServerStream(stream)
	service, method, _ := strings.Cut(strings.TrimPrefix(full, "/"), "/")
	if _, ok := known[service]; ok {
		return status.Errorf(codes.Unimplemented, "unknown method %v for service %v", method, service)
	}
	return status.Errorf(codes.Unimplemented, "unknown service %v", service)
}
