package proxy

import (
	"context"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net/http"
	"time"

	grpcmetrics "github.com/grpc-ecosystem/go-grpc-middleware/providers/prometheus"
	"github.com/prometheus/client_golang/prometheus"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/naming/endpoints"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/keepalive"

	"github.com/trivet-kv/trivet/internal/gateway"
)

// Options says whom a proxy serves, where, and on whose behalf.
type Options struct {
	// Clients is where clients connect, for gRPC and for the pages. Monitor, unless its listener is nil, serves the pages
	// only. Both are the proxy's from Start on, also if Start fails.
	Clients, Monitor gateway.Door

	Endpoints    []string      // the members; at least one
	AutoSync     time.Duration // how often to ask the members for their addresses; 0: never
	DialTLS      *tls.Config   // nil: without, but to https endpoints
	MaxSendBytes int           // of a message to a member; 0: the client's default
	MaxRecvBytes int           // of a message from a member; 0: the client's default
	DialPing     Ping          // of connections to members

	MinPingTime          time.Duration // a client that pings more often is sent away; 0: grpc-go's bound
	ServePing            Ping          // of connections of clients
	MaxConcurrentStreams uint32        // on one connection; 0: no bound

	Namespace     string // put before every key
	LeasingPrefix string // where leases on keys are noted that let this proxy answer reads by itself; empty: it does not
	Ordering      bool   // answers never go back to an older revision than this proxy has seen

	AdvertiseURL   string // what MemberList says, and where /proxy/health looks; empty: MemberList is the members'
	ResolverPrefix string // where this proxy registers itself; empty: nowhere
	ResolverTTL    int    // of the registration, in seconds
	SelfTLS        *tls.Config

	Pprof      bool
	LogContent bool // every request and answer goes to the log

	Logger *slog.Logger // required
	Zap    *zap.Logger  // required: for etcd's own packages
}

// Ping is how a connection is looked after.
type Ping struct {
	Time, Timeout time.Duration
	Idle          bool // also while there is no call
}

// Server is a running proxy.
type Server struct {
	o       Options
	client  *clientv3.Client // of the members
	self    *clientv3.Client // of this proxy; nil without an advertised URL
	grpc    *grpc.Server
	http    *http.Server
	monitor *http.Server
	closers []func()

	calls      calls
	registered <-chan struct{}   // closed when registering has ended; nil: nothing is registered
	ended      []<-chan struct{} // closed when what serves watches and leases has ended
	leasing    func()            // ends the leasing session; nil without
	unleased   clientv3.KV       // the client's, as it was before leasing
	loops      *gateway.Loops
}

// Bounds on stopping.
const (
	deregisterTimeout = 2 * time.Second
	drainTimeout      = 5 * time.Second // for calls under way; streams are ended at once
)

// silentTimeout is how long a client may take for a request's header.
const silentTimeout = 30 * time.Second

// requestOverhead is what a message may be longer than what is in it.
const requestOverhead = 512 << 10

// Start connects to the members and begins to serve. With ordering, or with leasing, it waits until the members answer,
// or ctx ends.
func Start(ctx context.Context, o Options) (_ *Server, err error) {
	s := &Server{o: o, loops: gateway.NewLoops()}
	defer func() {
		if err != nil {
			s.Stop()
			_ = o.Clients.Close()
			if o.Monitor.Listener != nil {
				_ = o.Monitor.Close()
			}
		}
	}()
	if s.client, err = dial(o); err != nil {
		return nil, err
	}
	remote := s.client.KV
	if err := s.wrapKV(ctx); err != nil {
		return nil, err
	}
	served := grpcmetrics.NewServerMetrics()
	own := prometheus.NewRegistry()
	if err := own.Register(served); err != nil {
		return nil, fmt.Errorf("proxy: register metrics: %w", err)
	}
	s.grpc = grpc.NewServer(s.serverOptions(served)...)
	s.register(remote)

	// gRPC is served before this proxy's own client dials it.
	clients, pages, end := gateway.Split(o.Clients, o.Logger)
	s.closers = append(s.closers, end)
	s.loops.Go(func() error { return s.grpc.Serve(clients) })
	if o.AdvertiseURL != "" {
		if s.self, err = clientv3.New(clientv3.Config{Endpoints: []string{o.AdvertiseURL}, TLS: o.SelfTLS, Logger: quiet(o.Zap).Named("self")}); err != nil {
			return nil, fmt.Errorf("connect to the advertised URL %q: %w", o.AdvertiseURL, err)
		}
	}
	mux := s.pages(own)
	if o.Pprof {
		gateway.RegisterPprof(mux)
	}
	s.http = gateway.NewHTTPServer(gateway.ByContent(s.grpc, mux), silentTimeout, o.MaxConcurrentStreams)
	s.loops.Go(func() error { return s.http.Serve(pages) })
	if o.Monitor.Listener != nil {
		none, pages, end := gateway.Split(o.Monitor, o.Logger)
		_ = none.Close()
		s.closers = append(s.closers, end)
		s.monitor = gateway.NewHTTPServer(s.pages(own), silentTimeout, o.MaxConcurrentStreams)
		s.loops.Go(func() error { return s.monitor.Serve(pages) })
	}
	return s, nil
}

// dial makes the client of the members. It is connected when it is first used.
func dial(o Options) (*clientv3.Client, error) {
	c, err := clientv3.New(clientv3.Config{
		Endpoints: o.Endpoints, AutoSyncInterval: o.AutoSync, TLS: o.DialTLS, Logger: quiet(o.Zap).Named("client"),
		MaxCallSendMsgSize: o.MaxSendBytes, MaxCallRecvMsgSize: o.MaxRecvBytes,
		DialKeepAliveTime: o.DialPing.Time, DialKeepAliveTimeout: o.DialPing.Timeout, PermitWithoutStream: o.DialPing.Idle,
		DialOptions: []grpc.DialOption{
			// Chained, so that the client's own interceptors stay: they try another member when one is gone.
			grpc.WithChainUnaryInterceptor(grpcproxy.AuthUnaryClientInterceptor),
			grpc.WithChainStreamInterceptor(passToken),
		},
	})
	if err != nil {
		return nil, fmt.Errorf("connect to the members %q: %w", o.Endpoints, err)
	}
	return c, nil
}

// quiet is a logger for etcd's client, which warns of every call that is refused, unless all is to be logged.
func quiet(l *zap.Logger) *zap.Logger {
	if l.Core().Enabled(zap.DebugLevel) {
		return l
	}
	return l.WithOptions(zap.IncreaseLevel(zap.ErrorLevel))
}

func (s *Server) serverOptions(m *grpcmetrics.ServerMetrics) []grpc.ServerOption {
	unary := []grpc.UnaryServerInterceptor{s.calls.unary, m.UnaryServerInterceptor(), codedUnary}
	stream := []grpc.StreamServerInterceptor{m.StreamServerInterceptor(), codedStream}
	if s.o.LogContent {
		unary = append(unary, contentLog{s.o.Logger}.unary)
		stream = append(stream, contentLog{s.o.Logger}.stream)
	}
	opts := []grpc.ServerOption{
		grpc.ChainUnaryInterceptor(unary...), grpc.ChainStreamInterceptor(stream...),
		grpc.MaxConcurrentStreams(s.o.MaxConcurrentStreams),
		// What may be sent on may come in.
		grpc.MaxRecvMsgSize(max(4<<20, s.o.MaxSendBytes+requestOverhead)),
	}
	if s.o.MinPingTime > 0 {
		opts = append(opts, grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: s.o.MinPingTime}))
	}
	if p := s.o.ServePing; p.Time > 0 || p.Timeout > 0 {
		opts = append(opts, grpc.KeepaliveParams(keepalive.ServerParameters{Time: p.Time, Timeout: p.Timeout}))
	}
	return opts
}

// register joins the services. remote is the client's KV before anything was put in front of it.
func (s *Server) register(remote clientv3.KV) {
	c, o := s.client, s.o
	cached, _ := grpcproxy.NewKvProxy(c)
	kv := &kvService{KVServer: cached, kv: s.unleased, leased: s.leasing != nil}
	if c.KV == remote {
		kv.remote = pb.NewKVClient(c.ActiveConnection())
	}
	watch, watchEnded := grpcproxy.NewWatchProxy(c.Ctx(), o.Zap, c)
	lease, leaseEnded := grpcproxy.NewLeaseProxy(c.Ctx(), c)
	if o.ResolverPrefix != "" {
		s.registered = grpcproxy.Register(o.Zap, c, o.ResolverPrefix, o.AdvertiseURL, o.ResolverTTL)
	}
	cluster, clusterEnded := grpcproxy.NewClusterProxy(o.Zap, c, o.AdvertiseURL, o.ResolverPrefix)
	s.ended = append(s.ended, watchEnded, leaseEnded, clusterEnded)
	pb.RegisterKVServer(s.grpc, kv)
	pb.RegisterWatchServer(s.grpc, watch)
	pb.RegisterLeaseServer(s.grpc, &leaseService{LeaseServer: lease, remote: pb.NewLeaseClient(c.ActiveConnection())})
	pb.RegisterClusterServer(s.grpc, &clusterService{ClusterServer: cluster, remote: pb.NewClusterClient(c.ActiveConnection())})
	pb.RegisterMaintenanceServer(s.grpc, grpcproxy.NewMaintenanceProxy(c))
	pb.RegisterAuthServer(s.grpc, grpcproxy.NewAuthProxy(c))
	v3electionpb.RegisterElectionServer(s.grpc, grpcproxy.NewElectionProxy(c))
	v3lockpb.RegisterLockServer(s.grpc, grpcproxy.NewLockProxy(c))
}

// Failed tells that a listener has broken. It holds at most one error.
func (s *Server) Failed() <-chan error { return s.loops.Failed() }

// Stop takes no more connections, takes the registration back, lets the calls under way end and ends the streams, so that
// clients go to another proxy at once.
func (s *Server) Stop() {
	for _, end := range s.closers {
		end()
	}
	s.deregister()
	drained := make(chan struct{})
	if s.grpc != nil {
		go func() {
			defer close(drained)
			s.shutdownPages()
			s.grpc.GracefulStop()
		}()
		s.calls.drain(drainTimeout)
	}
	if s.leasing != nil {
		s.leasing()
	}
	if s.client != nil {
		_ = s.client.Close() // ends watches and keepalives
	}
	if s.grpc != nil {
		select {
		case <-drained:
		case <-time.After(drainTimeout):
			s.grpc.Stop()
			<-drained
		}
	}
	if s.self != nil {
		_ = s.self.Close()
	}
	s.loops.Wait()
	timeout := time.After(drainTimeout)
	for _, e := range s.ended {
		select {
		case <-e:
		case <-timeout:
			s.o.Logger.Warn("streams to the members have not ended; leaving them")
			return
		}
	}
}

// shutdownPages ends the HTTP servers; their calls get as long as those of gRPC.
func (s *Server) shutdownPages() {
	ctx, cancel := context.WithTimeout(context.Background(), drainTimeout)
	defer cancel()
	for _, h := range []*http.Server{s.http, s.monitor} {
		if h != nil {
			_ = h.Shutdown(ctx)
			_ = h.Close()
		}
	}
}

// deregister removes the registration, which would otherwise stay for its time to live.
func (s *Server) deregister() {
	if s.registered == nil {
		return
	}
	ctx, cancel := context.WithTimeout(s.client.Ctx(), deregisterTimeout)
	defer cancel()
	m, err := endpoints.NewManager(s.client, s.o.ResolverPrefix)
	if err == nil {
		err = m.DeleteEndpoint(ctx, s.o.ResolverPrefix+"/"+s.o.AdvertiseURL)
	}
	if err != nil {
		s.o.Logger.Warn("the registration stays until its time is over", "prefix", s.o.ResolverPrefix, "error", err)
	}
}
