package proxy

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/gateway"
)

// options are of a proxy in front of nobody: the address is one where nothing listens.
func options(t *testing.T) Options {
	t.Helper()
	listen := func() net.Listener {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	nobody := listen()
	nobody.Close()
	return Options{
		Clients: gateway.Door{Listener: listen()}, Monitor: gateway.Door{Listener: listen()}, Endpoints: []string{nobody.Addr().String()},
		MaxConcurrentStreams: 10, Logger: slog.New(slog.DiscardHandler), Zap: zap.NewNop(),
	}
}

func within(t *testing.T, what string, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(time.Minute):
		t.Fatalf("%s does not end", what)
	}
}

// A proxy may be started before its members: it serves its own pages, says that nobody answers, and stops when told to. One
// that needs the members to begin waits for them, until it is told not to.
func TestWithoutMembers(t *testing.T) {
	o := options(t)
	s, err := Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	for url, want := range map[string]int{
		"http://" + o.Clients.Addr().String() + "/proxy/metrics": http.StatusOK,
		"http://" + o.Monitor.Addr().String() + "/proxy/metrics": http.StatusOK,
		"http://" + o.Monitor.Addr().String() + "/metrics":       http.StatusBadGateway,
		"http://" + o.Monitor.Addr().String() + "/health":        http.StatusServiceUnavailable,
		"http://" + o.Monitor.Addr().String() + "/proxy/health":  http.StatusServiceUnavailable,
		"http://" + o.Clients.Addr().String() + "/nothing":       http.StatusNotFound,
	} {
		a, err := http.Get(url)
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.Copy(io.Discard, a.Body)
		a.Body.Close()
		if a.StatusCode != want {
			t.Errorf("%s: %s, want %d", url, a.Status, want)
		}
	}
	within(t, "Stop", s.Stop)
	if _, err := net.Dial("tcp", o.Clients.Addr().String()); err == nil {
		t.Error("a proxy that has stopped takes connections")
	}
	for _, change := range []func(*Options){func(o *Options) { o.Ordering = true }, func(o *Options) { o.LeasingPrefix = "l/" }} {
		o := options(t)
		change(&o)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		within(t, "Start", func() {
			if _, err := Start(ctx, o); err == nil {
				t.Error("it began without members")
			}
		})
		if _, err := net.Dial("tcp", o.Clients.Addr().String()); err == nil {
			t.Error("a proxy that has not begun takes connections")
		}
	}
}

// etcd's services end the process at an operation that is none.
func TestEmptyOperation(t *testing.T) {
	put := &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("k")}}}
	none := &pb.RequestOp{}
	inner := func(r *pb.TxnRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
	}
	for _, r := range []*pb.TxnRequest{
		{Success: []*pb.RequestOp{put, none}}, {Failure: []*pb.RequestOp{none}},
		{Success: []*pb.RequestOp{inner(&pb.TxnRequest{Failure: []*pb.RequestOp{none}})}},
	} {
		if _, err := (&kvService{}).Txn(t.Context(), r); !errors.Is(err, rpctypes.ErrGRPCKeyNotFound) {
			t.Errorf("%v: %v", r, err)
		}
	}
	if emptyOperation(&pb.TxnRequest{Success: []*pb.RequestOp{put, inner(&pb.TxnRequest{})}}) {
		t.Error("a good transaction is refused")
	}
}

// Leasing answers from what anybody has read: users get no transactions there, and their reads go to the members.
func TestLeasingIsNotForUsers(t *testing.T) {
	ctx := metadata.NewIncomingContext(t.Context(), metadata.Pairs("token", "x"))
	s := &kvService{kv: refusing{}, leased: true}
	if _, err := s.Txn(ctx, &pb.TxnRequest{}); status.Code(err) != codes.FailedPrecondition {
		t.Error(err)
	}
	if _, err := s.Range(ctx, &pb.RangeRequest{Key: []byte("k")}); !errors.Is(err, rpctypes.ErrPermissionDenied) {
		t.Error(err)
	}
}

// refusing is members that refuse.
type refusing struct{ clientv3.KV }

func (refusing) Do(context.Context, clientv3.Op) (clientv3.OpResponse, error) {
	return clientv3.OpResponse{}, rpctypes.ErrPermissionDenied
}

func TestErrorsKeepTheirCodes(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
		text string
	}{
		{rpctypes.ErrPermissionDenied, codes.PermissionDenied, "etcdserver: permission denied"},
		{fmt.Errorf("more: %w", rpctypes.ErrCompacted), codes.OutOfRange, "etcdserver: mvcc: required revision has been compacted"},
		{context.DeadlineExceeded, codes.DeadlineExceeded, "context deadline exceeded"},
		{status.Error(codes.Unimplemented, "no"), codes.Unimplemented, "no"},
	} {
		s, ok := status.FromError(coded(c.err))
		if !ok || s.Code() != c.code || s.Message() != c.text {
			t.Errorf("%v became %v", c.err, s)
		}
	}
	if coded(nil) != nil {
		t.Error("nothing became an error")
	}
}

func TestLogOfCalls(t *testing.T) {
	var b bytes.Buffer
	l := contentLog{slog.New(slog.NewTextHandler(&b, nil))}
	call := func(method string, r, a any) {
		_, _ = l.unary(t.Context(), r, &grpc.UnaryServerInfo{FullMethod: method}, func(context.Context, any) (any, error) { return a, nil })
	}
	call("/etcdserverpb.Auth/Authenticate", &pb.AuthenticateRequest{Name: "n", Password: "hunter2"}, &pb.AuthenticateResponse{Token: "hunter2"})
	call("/etcdserverpb.Auth/UserChangePassword", &pb.AuthUserChangePasswordRequest{Name: "n", Password: "hunter2"}, &pb.AuthUserChangePasswordResponse{})
	if b.Len() == 0 || strings.Contains(b.String(), "hunter2") {
		t.Errorf("the log: %s", b.String())
	}
	b.Reset()
	call("/etcdserverpb.KV/Range", &pb.RangeRequest{Key: []byte("k")}, &pb.RangeResponse{Count: 77})
	if !strings.Contains(b.String(), `\"aw==\"`) || !strings.Contains(b.String(), "77") {
		t.Errorf("the log: %s", b.String())
	}
	b.Reset()
	call("/etcdserverpb.KV/Put", &pb.PutRequest{Value: make([]byte, 1<<20)}, &pb.PutResponse{})
	if b.Len() > 3*maxContent {
		t.Errorf("%d bytes for one call", b.Len())
	}
}
