package main

import (
	"context"
	"fmt"

	"google.golang.org/grpc"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/load"
)

// leaseTTL is longer than any run: no lease ends by itself.
const leaseTTL = 3600

func grant(ctx context.Context, conn *grpc.ClientConn, _, _ int) error {
	_, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: leaseTTL})
	return err
}

// keepAlive measures clients that each have a lease and a stream, and renew again as soon as they are answered.
func keepAlive(ctx context.Context, b *bench) ([]figure, error) {
	const clients = 64
	ids := make([]int64, clients)
	streams := make([]pb.Lease_LeaseKeepAliveClient, clients)
	r, err := b.run(ctx, load.Load{To: b.Members, Clients: clients, Op: func(ctx context.Context, conn *grpc.ClientConn, client, n int) error {
		if n == 0 { // new connections: of the warm-up, or of the measurement
			l, err := pb.NewLeaseClient(conn).LeaseGrant(ctx, &pb.LeaseGrantRequest{TTL: leaseTTL})
			if err != nil {
				return err
			}
			ids[client] = l.ID
			if streams[client], err = pb.NewLeaseClient(conn).LeaseKeepAlive(ctx); err != nil {
				return err
			}
		}
		if err := streams[client].Send(&pb.LeaseKeepAliveRequest{ID: ids[client]}); err != nil {
			return err
		}
		r, err := streams[client].Recv()
		if err == nil && (r.ID != ids[client] || r.TTL != leaseTTL) {
			err = fmt.Errorf("a renewal of lease %x for %d s was answered with %x, %d s", ids[client], leaseTTL, r.ID, r.TTL)
		}
		return err
	}})
	return figures(r), err
}
