package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// MemberList answers Cluster.MemberList. As in etcd the header carries no revision.
func (s *Services) MemberList(ctx context.Context, r *pb.MemberListRequest) (*pb.MemberListResponse, error) {
	if r.Linearizable {
		if err := s.b.ReadBarrier(ctx); err != nil {
			return nil, toStatus(err)
		}
	}
	members := s.b.Members()
	out := &pb.MemberListResponse{Header: headerPB(s.b.Header(), 0), Members: make([]*pb.Member, len(members))}
	for i, m := range members {
		out.Members[i] = &pb.Member{
			ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, IsLearner: m.Learner,
		}
	}
	return out, nil
}
