package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	"go.etcd.io/etcd/client/pkg/v3/types"
)

// As in etcd the headers of these answers carry no revision. The members that an answer lists are those after the change.

// MemberList answers Cluster.MemberList.
func (s *Services) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := s.b.ReadBarrier(ctx); err != nil {
			return nil, toStatus(err)
		}
	}
	return &pb.MemberListResponse{Header: headerPB(s.b.Header(), 0), Members: s.membersPB()}, nil
}

// MemberAdd answers Cluster.MemberAdd.
func (s *Services) MemberAdd(ctx context.Context, r *pb.MemberAddRequest) (*pb.MemberAddResponse, error) {
	urls, err := types.NewURLs(r.PeerURLs)
	if err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	id, err := s.b.AddMember(ctx, urls.StringSlice(), r.IsLearner)
	if err != nil {
		return nil, toStatus(err)
	}
	return &pb.MemberAddResponse{
		Header:  headerPB(s.b.Header(), 0),
		Member:  &pb.Member{ID: id, PeerURLs: urls.StringSlice(), IsLearner: r.IsLearner},
		Members: s.membersPB(),
	}, nil
}

// MemberRemove answers Cluster.MemberRemove.
func (s *Services) MemberRemove(ctx context.Context, r *pb.MemberRemoveRequest) (*pb.MemberRemoveResponse, error) {
	if err := s.b.RemoveMember(ctx, r.ID); err != nil {
		return nil, toStatus(err)
	}
	return &pb.MemberRemoveResponse{Header: headerPB(s.b.Header(), 0), Members: s.membersPB()}, nil
}

// MemberUpdate answers Cluster.MemberUpdate. Peer URLs that are none, on which etcd's members panic, are refused.
func (s *Services) MemberUpdate(ctx context.Context, r *pb.MemberUpdateRequest) (*pb.MemberUpdateResponse, error) {
	if _, err := types.NewURLs(r.PeerURLs); err != nil {
		return nil, rpctypes.ErrGRPCMemberBadURLs
	}
	if err := s.b.UpdateMember(ctx, r.ID, r.PeerURLs); err != nil {
		return nil, toStatus(err)
	}
	return &pb.MemberUpdateResponse{Header: headerPB(s.b.Header(), 0), Members: s.membersPB()}, nil
}

// MemberPromote answers Cluster.MemberPromote.
func (s *Services) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	if err := s.b.PromoteMember(ctx, r.ID); err != nil {
		s.m.LearnerPromoteFailed.WithLabelValues(Text(err)).Inc()
		return nil, toStatus(err)
	}
	s.m.LearnerPromoteOK.Inc()
	return &pb.MemberPromoteResponse{Header: headerPB(s.b.Header(), 0), Members: s.membersPB()}, nil
}

func (s *Services) membersPB() []*pb.Member {
	members := s.b.Members()
	out := make([]*pb.Member, len(members))
	for i, m := range members {
		out[i] = &pb.Member{
			ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner,
		}
	}
	return out
}
