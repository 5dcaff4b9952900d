package proxy

import (
	"context"
	"errors"
	"io"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// pass hands messages on until one side ends.
func pass[M any](from func() (M, error), to func(M) error) error {
	for {
		m, err := from()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if err := to(m); err != nil {
			return err
		}
	}
}

// clusterService is etcd's with the call that it lacks.
type clusterService struct {
	pb.ClusterServer
	remote pb.ClusterClient
}

// MemberPromote passes the call on.
func (s *clusterService) MemberPromote(ctx context.Context, r *pb.MemberPromoteRequest) (*pb.MemberPromoteResponse, error) {
	return s.remote.MemberPromote(ctx, r)
}

// leaseService is etcd's, but for the renewals of clients with a token: etcd's service renews the leases of all clients in
// one stream of its own, without a token, and when a member refuses that, it answers with the time left as if the lease
// had been renewed.
type leaseService struct {
	pb.LeaseServer
	remote pb.LeaseClient
}

// LeaseKeepAlive gives a client with a token a stream of its own to a member.
func (s *leaseService) LeaseKeepAlive(client pb.Lease_LeaseKeepAliveServer) error {
	if token(client.Context()) == "" {
		return s.LeaseServer.LeaseKeepAlive(client)
	}
	ctx, cancel := context.WithCancel(client.Context())
	defer cancel()
	member, err := s.remote.LeaseKeepAlive(ctx)
	if err != nil {
		return err
	}
	go func() { // ends with the client's stream, which ends when this call returns
		if pass(client.Recv, member.Send) == nil {
			_ = member.CloseSend()
		}
	}()
	return pass(member.Recv, client.Send)
}
