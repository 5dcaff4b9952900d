package gateway

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/http"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	etcdgw "go.etcd.io/etcd/api/v3/etcdserverpb/gw"
	electiongw "go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb/gw"
	lockgw "go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb/gw"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/trivet-kv/trivet/internal/front"
	"github.com/trivet-kv/trivet/internal/metrics"
	"github.com/trivet-kv/trivet/internal/rpc"
)

// Options says what the front door serves, and where.
type Options struct {
	Services *rpc.Services    // required
	Backend  rpc.Backend      // required: for the health pages
	Metrics  *metrics.Metrics // required
	Logger   *slog.Logger     // required
	GRPC     rpc.ServerOptions

	// Clients are the doors of --listen-client-urls: gRPC and HTTP, or gRPC alone if there are any of
	// --listen-client-http-urls. Monitor are those of --listen-metrics-urls, which serve /metrics and the health
	// pages; the client doors serve them too. All are closed by Stop.
	Clients, HTTP, Monitor []Door

	ClientCertAuth bool // --client-cert-auth

	NoJSON bool // --enable-grpc-gateway=false
	Pprof  bool // --enable-pprof

	CORS          []string // origins that browsers may call from; empty, or with a star: all
	HostWhitelist []string // names that plain HTTP requests may carry; empty, or with a star: all

	// SilentTimeout is how long a connection may wait before it shows its protocol, and a request of HTTP/1 before its
	// header is whole. 0: 30 s.
	SilentTimeout time.Duration
	// CheckTimeout bounds one look of the health pages. 0: 7 s, etcd's request timeout at its default election timeout.
	CheckTimeout time.Duration
}

// Server serves clients from Start to Stop.
type Server struct {
	o         Options
	grpc      *front.Server // for connections that speak nothing else
	inner     *grpc.Server  // behind the HTTP servers, which end before it
	http      *http.Server
	monitor   *http.Server
	memory    *bufconn.Listener // the JSON gateway's way to the services
	conn      *grpc.ClientConn
	splitters []*splitter

	life    context.Context // ends when websockets must
	end     context.CancelFunc
	sockets atomic.Int64 // websockets

	leaving   atomic.Bool  // Stop has begun
	keptAlive atomic.Int64 // connections of HTTP/1

	loops *Loops
}

// memoryBuffer is how many bytes may be under way in each direction between the JSON gateway and the services.
const memoryBuffer = 256 << 10

// Start begins to serve. Stop ends the Services too.
func Start(o Options) (*Server, error) {
	if o.SilentTimeout == 0 {
		o.SilentTimeout = silentTimeout
	}
	if o.CheckTimeout == 0 {
		o.CheckTimeout = 7 * time.Second
	}
	s := &Server{
		o: o, grpc: rpc.NewFront(o.Services, o.GRPC), inner: rpc.NewServer(o.Services, o.GRPC, grpc.WaitForHandlers(true)),
		loops: NewLoops(),
	}
	s.life, s.end = context.WithCancel(context.Background())
	mux := http.NewServeMux()
	s.pages(mux)
	mux.HandleFunc("/version", func(w http.ResponseWriter, r *http.Request) { serveVersion(o.Backend, w, r) })
	mux.HandleFunc("/debug/vars", serveVars)
	if o.Pprof {
		RegisterPprof(mux)
	}
	if !o.NoJSON {
		h, err := s.json()
		if err != nil {
			return nil, err
		}
		mux.Handle("/v3/", s.websockets(h))
	}
	var h http.Handler = &access{origins: o.CORS, hosts: o.HostWhitelist, next: mux, refuseNames: s.refuseNames}
	if len(o.HTTP) == 0 {
		h = ByContent(s.inner, h)
	}
	s.http = NewHTTPServer(s.sendAway(h), o.SilentTimeout, o.GRPC.MaxConcurrentStreams)
	s.http.ConnState = s.countKept
	monitor := http.NewServeMux()
	s.pages(monitor)
	s.monitor = NewHTTPServer(monitor, o.SilentTimeout, o.GRPC.MaxConcurrentStreams)

	for _, d := range o.Clients {
		s.open(d, s.grpc, s.http)
	}
	for _, d := range o.HTTP {
		s.open(d, nil, s.http)
	}
	for _, d := range o.Monitor {
		s.open(d, nil, s.monitor)
	}
	return s, nil
}

// refuseNames: as in etcd, while clients must have certificates and authentication is on.
func (s *Server) refuseNames() bool {
	return s.o.ClientCertAuth && !s.o.NoJSON && s.o.Backend.Auth().Published().Enabled()
}

// open serves gRPC, HTTP or both on a door.
func (s *Server) open(d Door, grpc *front.Server, http *http.Server) {
	if grpc != nil && http == s.http && len(s.o.HTTP) > 0 {
		http = nil
	}
	sp := newSplitter(d, grpc != nil, http != nil, s.o.SilentTimeout, s.o.Logger)
	s.splitters = append(s.splitters, sp)
	if grpc != nil {
		s.loops.Go(func() error { return grpc.Serve(sp.grpc) })
	}
	if http != nil {
		s.loops.Go(func() error { return http.Serve(sp.http) })
	}
}

// Failed tells that a listener has broken. It holds at most one error.
func (s *Server) Failed() <-chan error { return s.loops.Failed() }

// pages are those that every HTTP listener has.
func (s *Server) pages(mux *http.ServeMux) {
	m := s.o.Metrics
	mux.Handle("/metrics", m.Handler())
	(&healthPages{
		b: s.o.Backend, timeout: s.o.CheckTimeout, record: m.HealthResult,
		success: m.HealthSuccess.Inc, failure: m.HealthFailures.Inc, leaderless: s.o.Services.Leaderless,
	}).register(mux)
}

// json is the JSON gateway: grpc-gateway with etcd's options, whose calls go to a grpc server through memory.
func (s *Server) json() (http.Handler, error) {
	s.memory = bufconn.Listen(memoryBuffer)
	s.loops.Go(func() error { return s.inner.Serve(s.memory) })
	conn, err := grpc.NewClient("passthrough:///gateway",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.memory.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(math.MaxInt32), grpc.MaxCallSendMsgSize(math.MaxInt32)),
	)
	if err != nil {
		return nil, fmt.Errorf("gateway: connect to the services: %w", err)
	}
	s.conn = conn
	// Grpc-Metadata-* headers reach the services, as in etcd: hasleader and token travel so. The services trust no metadata
	// to be the gateway's.
	mux := runtime.NewServeMux(runtime.WithLegacyHeaderMatching(), runtime.WithMarshalerOption(runtime.MIMEWildcard, &runtime.HTTPBodyMarshaler{
		Marshaler: drainer{&runtime.JSONPb{
			MarshalOptions:   protojson.MarshalOptions{UseProtoNames: true},
			UnmarshalOptions: protojson.UnmarshalOptions{DiscardUnknown: true},
		}},
	}))
	for _, register := range []func(context.Context, *runtime.ServeMux, *grpc.ClientConn) error{
		etcdgw.RegisterKVHandler, etcdgw.RegisterWatchHandler, etcdgw.RegisterLeaseHandler,
		etcdgw.RegisterClusterHandler, etcdgw.RegisterMaintenanceHandler, etcdgw.RegisterAuthHandler,
		lockgw.RegisterLockHandler, electiongw.RegisterElectionHandler,
	} {
		if err := register(context.Background(), mux, conn); err != nil {
			return nil, fmt.Errorf("gateway: join the JSON gateway: %w", err)
		}
	}
	return mux, nil
}

// drainer goes on reading a body that does not decode. As in etcd the stream lives on then, and without a reader
// net/http would not notice that its client has gone: the stream would never end.
type drainer struct{ runtime.Marshaler }

// NewDecoder decodes from r. The goroutine that drains ends with the body, at the latest when its handler returns.
func (d drainer) NewDecoder(r io.Reader) runtime.Decoder {
	dec := d.Marshaler.NewDecoder(r)
	return runtime.DecoderFunc(func(v any) error {
		err := dec.Decode(v)
		if err != nil && !errors.Is(err, io.EOF) {
			go func() { _, _ = io.Copy(io.Discard, r) }()
		}
		return err
	})
}
