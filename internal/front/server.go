package front

import (
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/stats"
)

// Codec is the encoding of all messages, whatever content subtype a client names.
type Codec interface {
	// Marshal returns the wire form of v. Its buffers are the caller's, who frees them.
	Marshal(v any) (mem.BufferSlice, error)
	// Unmarshal reads data into v and keeps nothing of data.
	Unmarshal(data []byte, v any) error
}

// Options says how a server behaves to its clients.
type Options struct {
	Codec Codec // required
	// AuthInfo is what the services are told about a connection's security. nil: nothing.
	AuthInfo func(net.Conn) credentials.AuthInfo
	// MaxRecvBytes bounds a message of a client. Required.
	MaxRecvBytes int
	// MaxStreams bounds the calls under way on one connection. 0: no bound.
	MaxStreams uint32
	// PingMinTime is how often a client may ping while it has calls; one that pings more often is sent away. 0: 5 min.
	PingMinTime time.Duration
	// A connection on which nothing came for PingInterval is asked for a sign of life, and closed if none comes within
	// PingTimeout. 0: 2 h and 20 s.
	PingInterval, PingTimeout time.Duration
	// Trace is told of every connection and call. nil: nobody is.
	Trace stats.Handler
}

// method is one entry of the table of methods, fixed before the server serves.
type method struct {
	impl   any
	unary  grpc.MethodHandler // one of the two
	stream grpc.StreamHandler
	// which side may send more than one message
	clientStreams, serverStreams bool
}

// Server serves gRPC on connections of HTTP/2.
type Server struct {
	o        Options
	methods  map[string]*method // by path; fixed before Serve
	services map[string]grpc.ServiceInfo

	workers  workers
	handlers sync.WaitGroup // calls that were dispatched
	slabs    slabs

	mu        sync.Mutex
	changed   *sync.Cond // conns and serves became fewer
	conns     map[*conn]struct{}
	serves    int // accept loops
	listeners map[net.Listener]struct{}
	draining  bool
	stopped   bool
}

// New makes a server without services.
func New(o Options) *Server {
	if o.PingMinTime == 0 {
		o.PingMinTime = 5 * time.Minute
	}
	if o.PingInterval == 0 {
		o.PingInterval = 2 * time.Hour
	}
	if o.PingTimeout == 0 {
		o.PingTimeout = 20 * time.Second
	}
	s := &Server{
		o: o, methods: make(map[string]*method), services: make(map[string]grpc.ServiceInfo),
		conns: make(map[*conn]struct{}), listeners: make(map[net.Listener]struct{}),
	}
	s.changed = sync.NewCond(&s.mu)
	s.workers.run = s.run
	return s
}

// RegisterService implements grpc.ServiceRegistrar. It must not be called once the server serves.
func (s *Server) RegisterService(desc *grpc.ServiceDesc, impl any) {
	if _, twice := s.services[desc.ServiceName]; twice {
		panic("front: service " + desc.ServiceName + " is registered twice")
	}
	info := grpc.ServiceInfo{Metadata: desc.Metadata}
	add := func(name string, m *method) {
		s.methods["/"+desc.ServiceName+"/"+name] = m
		info.Methods = append(info.Methods, grpc.MethodInfo{Name: name, IsClientStream: m.clientStreams, IsServerStream: m.serverStreams})
	}
	for _, m := range desc.Methods {
		add(m.MethodName, &method{impl: impl, unary: m.Handler})
	}
	for _, m := range desc.Streams {
		add(m.StreamName, &method{impl: impl, stream: m.Handler, clientStreams: m.ClientStreams, serverStreams: m.ServerStreams})
	}
	s.services[desc.ServiceName] = info
}

// GetServiceInfo tells what is registered, by the name of the service.
func (s *Server) GetServiceInfo() map[string]grpc.ServiceInfo { return s.services }

// unknown is what a call gets whose path is not in the table, in grpc-go's texts.
func (s *Server) unknown(path string) string {
	name, ok := strings.CutPrefix(path, "/")
	at := strings.LastIndexByte(name, '/')
	if !ok || at < 0 {
		return fmt.Sprintf("malformed method name: %q", path)
	}
	if _, ok := s.services[name[:at]]; ok {
		return fmt.Sprintf("unknown method %v for service %v", name[at+1:], name[:at])
	}
	return fmt.Sprintf("unknown service %v", name[:at])
}

// Serve serves the connections of l, which is closed at the stop. It returns nil then.
func (s *Server) Serve(l net.Listener) error {
	s.mu.Lock()
	if s.draining {
		s.mu.Unlock()
		_ = l.Close()
		return grpc.ErrServerStopped
	}
	s.listeners[l] = struct{}{}
	s.serves++
	s.mu.Unlock()
	defer func() {
		_ = l.Close()
		s.mu.Lock()
		delete(s.listeners, l)
		s.serves--
		s.changed.Broadcast()
		s.mu.Unlock()
	}()
	for {
		nc, err := l.Accept()
		if err != nil {
			s.mu.Lock()
			defer s.mu.Unlock()
			if s.draining {
				return nil
			}
			return err
		}
		s.add(nc)
	}
}

// add begins to serve a connection.
func (s *Server) add(nc net.Conn) {
	c := newConn(s, nc)
	s.mu.Lock()
	if s.stopped {
		s.mu.Unlock()
		_ = nc.Close()
		return
	}
	s.conns[c] = struct{}{}
	draining := s.draining
	s.mu.Unlock()
	go func() {
		c.serve()
		s.mu.Lock()
		delete(s.conns, c)
		s.changed.Broadcast()
		s.mu.Unlock()
	}()
	if draining {
		c.drain()
	}
}

// GracefulStop takes no more connections, tells clients to make their next calls elsewhere, and returns when the calls under
// way have ended, those too that clients sent before they heard it.
func (s *Server) GracefulStop() { s.stop(false) }

// Stop closes all connections, which ends the contexts of their calls, and returns when all handlers have ended.
func (s *Server) Stop() { s.stop(true) }

func (s *Server) stop(now bool) {
	s.mu.Lock()
	for l := range s.listeners {
		_ = l.Close()
	}
	s.draining = true
	for s.serves > 0 {
		s.changed.Wait()
	}
	s.stopped = s.stopped || now
	for c := range s.conns {
		if now {
			c.close()
		} else {
			c.drain()
		}
	}
	for len(s.conns) > 0 {
		s.changed.Wait()
	}
	s.mu.Unlock()
	// No connection is left, so nobody dispatches any more.
	s.handlers.Wait()
	s.workers.end()
}

// dispatch has a call's handler run.
func (s *Server) dispatch(k *call) {
	s.handlers.Add(1)
	s.workers.do(k)
}

// connContext is what the contexts of a connection's calls are made of. It never ends: calls end by themselves.
func (s *Server) connContext(c *conn) context.Context {
	ctx := context.Background()
	if t := s.o.Trace; t != nil {
		ctx = context.WithoutCancel(t.TagConn(ctx, &stats.ConnTagInfo{RemoteAddr: c.peer.Addr, LocalAddr: c.peer.LocalAddr}))
		t.HandleConn(ctx, &stats.ConnBegin{})
	}
	return ctx
}
