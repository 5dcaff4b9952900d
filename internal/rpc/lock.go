package rpc

import (
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// errSessionExpired is what etcd's concurrency package calls a lock whose lease ended while it was waited for.
var errSessionExpired = errors.New("mutex: session is expired")

// Lock answers v3lock's Lock: it puts a key for the caller's lease under the lock's name and waits until all keys that were
// created there before are gone. When the wait ends otherwise, the key is taken back.
func (s *Services) Lock(ctx context.Context, r *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
	ctx, cancel := s.StreamContext(ctx, Caller{})
	defer cancel()
	lease, err := s.session(ctx, r.Lease)
	if err != nil {
		return nil, toStatus(err)
	}
	prefix := string(r.Name) + "/"
	key := sessionKey(prefix, lease)
	owner := rangeOp(oldest(prefix))
	got, err := s.sessionTxn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{createdAt(key, 0)},
		Success: []*pb.RequestOp{putOp(key, nil, lease), owner},
		Failure: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: key}), owner},
	})
	if err != nil {
		return nil, toStatus(err)
	}
	rev := got.Header.Revision
	if !got.Succeeded { // the lease waits here, or holds the lock, already
		rev = got.Responses[0].GetResponseRange().Kvs[0].CreateRevision
	}
	out := &v3lockpb.LockResponse{Header: got.Header, Key: key}
	if first := got.Responses[1].GetResponseRange().Kvs; len(first) == 0 || first[0].CreateRevision == rev {
		return out, nil
	}
	err = s.waitDeletes(ctx, prefix, rev-1)
	var own *pb.RangeResponse
	if err == nil {
		own, err = s.sessionRange(ctx, &pb.RangeRequest{Key: key})
	}
	if err != nil {
		// The member bounds how long this takes. If it fails, the lease's end takes the key back.
		_, _ = s.DeleteRange(context.WithoutCancel(ctx), &pb.DeleteRangeRequest{Key: key})
		return nil, toStatus(err)
	}
	if len(own.Kvs) == 0 {
		return nil, toStatus(errSessionExpired)
	}
	out.Header = own.Header
	return out, nil
}

// Unlock answers v3lock's Unlock: it deletes the key that Lock returned. That the key is not there is no error.
func (s *Services) Unlock(ctx context.Context, r *v3lockpb.UnlockRequest) (*v3lockpb.UnlockResponse, error) {
	out, err := s.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: r.Key})
	if err != nil {
		return nil, clientError(err)
	}
	return &v3lockpb.UnlockResponse{Header: out.Header}, nil
}
