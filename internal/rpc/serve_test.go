package rpc_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/test/bufconn"

	"github.com/trivet-kv/trivet/internal/metrics"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/rpc/rpctest"
	"github.com/trivet-kv/trivet/internal/watch"
)

// served is a member of one whose services are reached through memory.
type served struct {
	*rpctest.Backend
	services *rpc.Services
	metrics  *metrics.Metrics
	listener *bufconn.Listener
}

func serve(t testing.TB, o rpc.Options, w watch.Options) *served {
	t.Helper()
	b := rpctest.New(t, w)
	m := metrics.New(metrics.Identity{Version: "3.7.3", Product: "test"})
	o.Backend, o.Metrics = b, m
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	s := rpc.New(o)
	gs := rpc.NewFront(s, rpc.ServerOptions{})
	l := bufconn.Listen(1 << 20)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := gs.Serve(l); err != nil && !errors.Is(err, grpc.ErrServerStopped) { // a short test may stop it before it serves
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		s.Stop()
		gs.Stop()
		<-ended
	})
	return &served{Backend: b, services: s, metrics: m, listener: l}
}

func (s *served) dial(t testing.TB) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:///member",
		grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }),
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(1<<30)),
	)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func (s *served) client(t testing.TB) *clientv3.Client {
	t.Helper()
	c, err := clientv3.New(clientv3.Config{
		Endpoints: []string{"http://member"}, Logger: zap.NewNop(),
		DialOptions: []grpc.DialOption{
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn, error) { return s.listener.DialContext(ctx) }),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c
}

// within is the context of a call that must not take long.
func within(t testing.TB) context.Context {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	t.Cleanup(cancel)
	return ctx
}
