package rpc

import (
	"bytes"
	"context"
	"errors"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
)

// The texts of etcd's election service.
var (
	errLeaderMissing = errors.New(`"leader" field must be provided`)
	errNotLeader     = errors.New("election: not leader")
	errNoLeader      = errors.New("election: no leader")
)

// Campaign answers v3election's Campaign: it puts the value for the caller's lease under the election's name and waits
// until all keys that were created there before are gone. When the caller goes away meanwhile, the key is taken back.
func (s *Services) Campaign(ctx context.Context, r *v3electionpb.CampaignRequest) (*v3electionpb.CampaignResponse, error) {
	ctx, cancel := s.StreamContext(ctx, Caller{})
	defer cancel()
	lease, err := s.session(ctx, r.Lease)
	if err != nil {
		return nil, toStatus(err)
	}
	prefix := string(r.Name) + "/"
	key := sessionKey(prefix, lease)
	got, err := s.sessionTxn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{createdAt(key, 0)},
		Success: []*pb.RequestOp{putOp(key, r.Value, lease)},
		Failure: []*pb.RequestOp{rangeOp(&pb.RangeRequest{Key: key})},
	})
	if err != nil {
		return nil, toStatus(err)
	}
	mine := &v3electionpb.LeaderKey{Name: r.Name, Key: key, Rev: got.Header.Revision, Lease: lease}
	if !got.Succeeded { // the lease stands already
		was := got.Responses[0].GetResponseRange().Kvs[0]
		mine.Rev = was.CreateRevision
		if !bytes.Equal(was.Value, r.Value) {
			if _, err := s.proclaim(ctx, mine, r.Value, lease); err != nil {
				if !errors.Is(err, errNotLeader) {
					_, _ = s.resign(context.WithoutCancel(ctx), mine)
				}
				return nil, toStatus(err)
			}
		}
	}
	if err := s.waitDeletes(ctx, prefix, mine.Rev-1); err != nil {
		if ctx.Err() != nil || errors.Is(err, rpctypes.ErrGRPCStopped) {
			// The member bounds how long this takes. If it fails, the lease's end takes the key back.
			_, _ = s.resign(context.WithoutCancel(ctx), mine)
		}
		return nil, toStatus(err)
	}
	return &v3electionpb.CampaignResponse{Header: got.Header, Leader: mine}, nil
}

// Proclaim answers v3election's Proclaim: a new value of the leader.
func (s *Services) Proclaim(ctx context.Context, r *v3electionpb.ProclaimRequest) (*v3electionpb.ProclaimResponse, error) {
	if r.Leader == nil {
		return nil, toStatus(errLeaderMissing)
	}
	lease, err := s.session(ctx, r.Leader.Lease)
	if err != nil {
		return nil, toStatus(err)
	}
	h, err := s.proclaim(ctx, r.Leader, r.Value, lease)
	if err != nil {
		return nil, toStatus(err)
	}
	return &v3electionpb.ProclaimResponse{Header: h}, nil
}

func (s *Services) proclaim(ctx context.Context, l *v3electionpb.LeaderKey, value []byte, lease int64) (*pb.ResponseHeader, error) {
	out, err := s.sessionTxn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{createdAt(l.Key, l.Rev)},
		Success: []*pb.RequestOp{putOp(l.Key, value, lease)},
	})
	if err != nil {
		return nil, err
	}
	if !out.Succeeded {
		return nil, errNotLeader
	}
	return out.Header, nil
}

// Resign answers v3election's Resign. That the caller does not lead is no error.
func (s *Services) Resign(ctx context.Context, r *v3electionpb.ResignRequest) (*v3electionpb.ResignResponse, error) {
	if r.Leader == nil {
		return nil, toStatus(errLeaderMissing)
	}
	if _, err := s.session(ctx, r.Leader.Lease); err != nil { // as in etcd, although the lease is not looked at
		return nil, toStatus(err)
	}
	h, err := s.resign(ctx, r.Leader)
	if err != nil {
		return nil, toStatus(err)
	}
	return &v3electionpb.ResignResponse{Header: h}, nil
}

func (s *Services) resign(ctx context.Context, l *v3electionpb.LeaderKey) (*pb.ResponseHeader, error) {
	out, err := s.sessionTxn(ctx, &pb.TxnRequest{
		Compare: []*pb.Compare{createdAt(l.Key, l.Rev)},
		Success: []*pb.RequestOp{{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: l.Key}}}},
	})
	return out.GetHeader(), err
}

// Leader answers v3election's Leader: the key that was created first.
func (s *Services) Leader(ctx context.Context, r *v3electionpb.LeaderRequest) (*v3electionpb.LeaderResponse, error) {
	out, err := s.sessionRange(ctx, oldest(string(r.Name)+"/"))
	if err != nil {
		return nil, toStatus(err)
	}
	if len(out.Kvs) == 0 {
		return nil, toStatus(errNoLeader)
	}
	return &v3electionpb.LeaderResponse{Header: out.Header, Kv: out.Kvs[0]}, nil
}

// Observe answers v3election's Observe: each value of each leader, from the one that leads now. As in etcd the stream ends
// without an error when the store refuses to be read or watched. ctx is of StreamContext.
func (s *Services) Observe(ctx context.Context, r *v3electionpb.LeaderRequest, send func(*v3electionpb.LeaderResponse) error) error {
	ctx, over := s.untilDrain(ctx)
	defer over()
	prefix := string(r.Name) + "/"
	for {
		now, err := s.sessionRange(ctx, oldest(prefix))
		if err != nil {
			return observeEnd(ctx)
		}
		leader := &v3electionpb.LeaderResponse{Header: now.Header}
		if len(now.Kvs) > 0 {
			leader.Kv = now.Kvs[0]
		} else if leader, err = s.firstLeader(ctx, prefix, now.Header.Revision); err != nil {
			return observeEnd(ctx)
		}
		if err := send(leader); err != nil {
			return err
		}
		var broken error
		err = s.follow(ctx, &pb.WatchCreateRequest{Key: leader.Kv.Key, StartRevision: leader.Header.Revision + 1}, func(w *pb.WatchResponse) (bool, error) {
			for _, e := range w.Events {
				if e.Type == mvccpb.Event_DELETE {
					return false, nil
				}
				if broken = send(&v3electionpb.LeaderResponse{Header: w.Header, Kv: e.Kv}); broken != nil {
					return false, broken
				}
			}
			return true, nil
		})
		if broken != nil {
			return broken
		}
		if err != nil {
			return observeEnd(ctx)
		}
	}
}

// firstLeader waits for a key under prefix.
func (s *Services) firstLeader(ctx context.Context, prefix string, rev int64) (*v3electionpb.LeaderResponse, error) {
	var leader *v3electionpb.LeaderResponse
	err := s.follow(ctx, &pb.WatchCreateRequest{Key: []byte(prefix), RangeEnd: prefixEnd(prefix), StartRevision: rev}, func(w *pb.WatchResponse) (bool, error) {
		for _, e := range w.Events {
			if e.Type == mvccpb.Event_PUT {
				w.Header.Revision = e.Kv.ModRevision // the answer may hold later revisions
				leader = &v3electionpb.LeaderResponse{Header: w.Header, Kv: e.Kv}
				return false, nil
			}
		}
		return true, nil
	})
	return leader, err
}

func observeEnd(ctx context.Context) error {
	if ctx.Err() != nil {
		return streamError(ctx)
	}
	return nil
}
