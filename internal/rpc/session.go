package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
)

// What the lock and election services share: they are clients of the member's other services, called as plain methods
// with the context of their caller, so that rights and limits are those of the caller. Keys, values and the order of the
// calls are those of etcd's concurrency package, so that its users and the users of these services meet at the same keys.

// sessionTTL is the time in seconds of a lease that a caller did not bring. Nobody renews it.
const sessionTTL = 60

// session returns the lease of a call: its own, or a new one.
func (s *Services) session(ctx context.Context, lease int64) (int64, error) {
	if lease != 0 {
		return lease, nil
	}
	r, err := s.LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: sessionTTL})
	if err != nil {
		return 0, clientError(err)
	}
	return r.ID, nil
}

// clientError is err as etcd's lock and election services pass it on: they see it through a client, which keeps the text
// of etcd's errors and loses their codes.
func clientError(err error) error {
	var known rpctypes.EtcdError
	if errors.As(rpctypes.Error(err), &known) {
		return status.Error(codes.Unknown, known.Error())
	}
	return err
}

// sessionKey is where a lease waits under a prefix.
func sessionKey(prefix string, lease int64) []byte { return fmt.Appendf(nil, "%s%x", prefix, lease) }

// createdAt is the condition that a key was created at rev; at 0, that it does not exist.
func createdAt(key []byte, rev int64) *pb.Compare {
	return &pb.Compare{
		Target: pb.Compare_CREATE, Result: pb.Compare_EQUAL, Key: key,
		TargetUnion: &pb.Compare_CreateRevision{CreateRevision: rev},
	}
}

func putOp(key, value []byte, lease int64) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: key, Value: value, Lease: lease}}}
}

func rangeOp(r *pb.RangeRequest) *pb.RequestOp {
	return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
}

// prefixEnd is the end of the range of all keys that begin with prefix, which ends in a slash.
func prefixEnd(prefix string) []byte {
	end := []byte(prefix)
	end[len(end)-1]++
	return end
}

// oldest asks for the key under a prefix that was created first.
func oldest(prefix string) *pb.RangeRequest {
	return &pb.RangeRequest{
		Key: []byte(prefix), RangeEnd: prefixEnd(prefix), Limit: 1,
		SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_ASCEND,
	}
}

func (s *Services) sessionTxn(ctx context.Context, r *pb.TxnRequest) (*pb.TxnResponse, error) {
	out, err := s.Txn(ctx, r)
	return out, clientError(err)
}

func (s *Services) sessionRange(ctx context.Context, r *pb.RangeRequest) (*pb.RangeResponse, error) {
	a, err := s.Range(ctx, r)
	if err != nil {
		return nil, clientError(err)
	}
	out := new(pb.RangeResponse)
	return out, decodeAnswer(a, out)
}

// decodeAnswer reads an answer back into its message and frees it.
func decodeAnswer(a *Answer, m proto.Message) error {
	b := a.Buffers.MaterializeToBuffer(mem.DefaultBufferPool())
	defer b.Free()
	a.Free()
	if err := proto.Unmarshal(b.ReadOnlyData(), m); err != nil {
		return fmt.Errorf("rpc: decode a %T of our own: %w", m, err)
	}
	return nil
}

// errWatchLost is etcd's text for a watch that ended without a reason.
var errWatchLost = errors.New("lost watcher waiting for delete")

// waitDeletes returns when no key under prefix is left that was created at maxCreate or before, waiting for the newest of
// them each time. ctx is of StreamContext.
func (s *Services) waitDeletes(ctx context.Context, prefix string, maxCreate int64) error {
	for {
		before, err := s.sessionRange(ctx, &pb.RangeRequest{
			Key: []byte(prefix), RangeEnd: prefixEnd(prefix), Limit: 1, MaxCreateRevision: maxCreate,
			SortTarget: pb.RangeRequest_CREATE, SortOrder: pb.RangeRequest_DESCEND,
		})
		if ctx.Err() != nil {
			return context.Cause(ctx)
		}
		if err != nil {
			return err
		}
		if len(before.Kvs) == 0 {
			return nil
		}
		w := &pb.WatchCreateRequest{Key: before.Kvs[0].Key, StartRevision: before.Header.Revision}
		gone := false
		err = s.follow(ctx, w, func(r *pb.WatchResponse) (bool, error) {
			for _, e := range r.Events {
				if e.Type == mvccpb.Event_DELETE {
					gone = true
				}
			}
			return !gone, nil
		})
		if err != nil {
			return err
		}
		if !gone {
			return errWatchLost
		}
	}
}

// follow watches and gives each answer to f, until f says that it has seen enough. A watch that the member refuses or ends
// is an error. ctx is of StreamContext.
func (s *Services) follow(ctx context.Context, w *pb.WatchCreateRequest, f func(*pb.WatchResponse) (more bool, err error)) error {
	inner, stop := context.WithCancel(ctx)
	defer stop()
	t := &tap{create: w, f: f, stop: stop}
	err := s.Watch(inner, t)
	switch {
	case t.ended:
		return t.err
	case ctx.Err() != nil:
		return context.Cause(ctx)
	case errors.Is(err, rpctypes.ErrGRPCStopped):
		return err
	}
	return clientError(err)
}

// tap is a watch stream inside of the member.
type tap struct {
	create *pb.WatchCreateRequest // taken by Recv, which one goroutine calls
	f      func(*pb.WatchResponse) (more bool, err error)
	stop   func() // ends the stream
	ended  bool   // by f, or by the member's refusal
	err    error  // why
}

func (t *tap) Recv() (*pb.WatchRequest, error) {
	if t.create == nil {
		return nil, io.EOF
	}
	r := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: t.create}}
	t.create = nil
	return r, nil
}

// Send never fails: that enough was seen is no failure of a stream, and is not to be counted as one.
func (t *tap) Send(answers []Answer) error {
	for i := range answers {
		if t.ended {
			break
		}
		t.take(&answers[i])
	}
	return nil
}

func (t *tap) take(a *Answer) {
	r := new(pb.WatchResponse)
	more, err := false, decodeAnswer(a, r)
	if err == nil {
		err = refused(r)
	}
	if err == nil {
		more, err = t.f(r)
	}
	if err != nil || !more {
		t.ended, t.err = true, err
		t.stop()
	}
}

// refused is why a watch was not made or has ended, in the words in which etcd's client says it.
func refused(r *pb.WatchResponse) error {
	switch {
	case r.CompactRevision != 0:
		return clientError(rpctypes.ErrGRPCCompacted)
	case !r.Canceled:
		return nil
	case r.CancelReason != "":
		return clientError(status.Error(codes.FailedPrecondition, r.CancelReason))
	}
	return clientError(rpctypes.ErrGRPCFutureRev)
}
