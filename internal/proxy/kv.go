package proxy

import (
	"context"
	"errors"
	"fmt"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/client/v3/leasing"
	"go.etcd.io/etcd/client/v3/namespace"
	"go.etcd.io/etcd/client/v3/ordering"
	"go.etcd.io/etcd/server/v3/proxy/grpcproxy"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

// kvService is etcd's, but for calls with a token, empty operations, and streams of ranges.
type kvService struct {
	pb.KVServer
	kv     clientv3.KV // without leasing, whose cache knows no owners either
	leased bool        // the library's services have leasing
	remote pb.KVClient // nil if keys or answers are changed on the way: streams cannot pass then
}

// token is what a client has shown, or empty.
func token(ctx context.Context) string {
	md, _ := metadata.FromIncomingContext(ctx)
	if t := md.Get(rpctypes.TokenFieldNameGRPC); len(t) > 0 {
		return t[0]
	}
	return ""
}

// Range answers from the cache if it may: what was read with a token is for its owner, and the cache knows no owners.
func (s *kvService) Range(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	if token(ctx) == "" {
		return s.KVServer.Range(ctx, r)
	}
	a, err := s.kv.Do(ctx, grpcproxy.RangeRequestToOp(r))
	if err != nil {
		return nil, err
	}
	return (*pb.RangeResponse)(a.Get()), nil
}

// Txn refuses what etcd's services cannot hand on, with the error of a member, and does not meet the caches for users.
func (s *kvService) Txn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	if emptyOperation(r) {
		return nil, rpctypes.ErrGRPCKeyNotFound
	}
	switch {
	case token(ctx) == "":
		return s.KVServer.Txn(ctx, r)
	case s.leased: // it might be answered from what others have read, and around leasing it may not write
		return nil, status.Error(codes.FailedPrecondition, "a gRPC proxy with --experimental-leasing-prefix takes no transactions of users; ask a member, or a proxy without leasing")
	}
	a, err := s.kv.Do(ctx, grpcproxy.TxnRequestToOp(r))
	if err != nil {
		return nil, err
	}
	return (*pb.TxnResponse)(a.Txn()), nil
}

func emptyOperation(r *pb.TxnRequest) bool {
	for _, ops := range [][]*pb.RequestOp{r.Success, r.Failure} {
		for _, op := range ops {
			switch o := op.Request.(type) {
			case nil:
				return true
			case *pb.RequestOp_RequestTxn:
				if o.RequestTxn != nil && emptyOperation(o.RequestTxn) {
					return true
				}
			}
		}
	}
	return false
}

// RangeStream passes the chunks on.
func (s *kvService) RangeStream(r *pb.RangeRequest, to pb.KV_RangeStreamServer) error {
	if s.remote == nil {
		return status.Error(codes.Unimplemented, "RangeStream is not supported by a gRPC proxy with a namespace, leasing or ordering; use Range")
	}
	from, err := s.remote.RangeStream(to.Context(), r)
	if err != nil {
		return err
	}
	return pass(from.Recv, to.Send)
}

// wrapKV puts ordering, namespace and leasing in front of the client's services, in etcd's order.
func (s *Server) wrapKV(ctx context.Context) error {
	c, o := s.client, s.o
	if o.Ordering {
		c.KV = ordering.NewKV(c.KV, anotherMember)
		err := s.untilAnswered(ctx, "the newest revision, which answers may not fall behind", func(ctx context.Context) error {
			_, err := c.KV.Get(ctx, "_", clientv3.WithKeysOnly())
			return err
		})
		switch {
		case ctx.Err() != nil:
			return err
		case err != nil: // who may not read learns the newest revision from the first client who may
			o.Logger.Warn("the members do not tell this proxy the newest revision; answers are ordered from the first on", "error", err)
		}
	}
	if o.Namespace != "" {
		c.KV = namespace.NewKV(c.KV, o.Namespace)
		c.Watcher = namespace.NewWatcher(c.Watcher, o.Namespace)
		c.Lease = namespace.NewLease(c.Lease, o.Namespace)
	}
	s.unleased = c.KV
	if o.LeasingPrefix == "" {
		return nil
	}
	// Asked for first, because the session below asks again and again without a pause, and never gives up.
	err := s.untilAnswered(ctx, "a lease", func(ctx context.Context) error {
		l, err := c.Grant(ctx, 60)
		if err == nil {
			_, err = c.Revoke(ctx, l.ID)
		}
		return err
	})
	if err != nil {
		return fmt.Errorf("the members give this proxy no lease, which --experimental-leasing-prefix needs: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { _ = c.Close() }) // it has no context
	defer stop()
	kv, end, err := leasing.NewKV(c, o.LeasingPrefix)
	if err != nil {
		return fmt.Errorf("begin a leasing session under %q: %w", o.LeasingPrefix, err)
	}
	c.KV, s.leasing = kv, end
	return nil
}

// stalePause is between an answer that was too old and asking the next member. etcd's own function counts such answers
// and after some refuses every later one for good, however long ago they were.
const stalePause = 10 * time.Millisecond

// anotherMember lets a call be made again, on another member, until an answer is new enough or the client gives up.
func anotherMember(clientv3.Op, clientv3.OpResponse, int64) error {
	time.Sleep(stalePause)
	return nil
}

// Bounds on asking until the members answer.
const (
	askTimeout  = 5 * time.Second
	askPause    = time.Second
	complainAll = 10 // every how many tries in vain the log hears of it
)

// untilAnswered asks until there is an answer, which may be an error of the members, or ctx ends. It has no other bound: a
// proxy may be started before its cluster.
func (s *Server) untilAnswered(ctx context.Context, what string, ask func(context.Context) error) error {
	for try := 0; ; try++ {
		one, cancel := context.WithTimeout(ctx, askTimeout)
		err := ask(one)
		cancel()
		var answer rpctypes.EtcdError
		if err == nil || errors.As(err, &answer) && answer.Code() != codes.Unavailable {
			return err
		}
		if try%complainAll == 0 {
			s.o.Logger.Warn("waiting until the members answer; asking for "+what, "endpoints", s.client.Endpoints(), "error", err)
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(askPause):
		}
	}
}
