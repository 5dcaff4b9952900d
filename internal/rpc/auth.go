package rpc

import (
	"context"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
)

// AuthStatus answers Auth.AuthStatus: authentication is off.
func (s *Services) AuthStatus(context.Context, *pb.AuthStatusRequest) (*pb.AuthStatusResponse, error) {
	return &pb.AuthStatusResponse{Header: headerPB(s.b.Header(), s.b.Store().Revision()), AuthRevision: 1}, nil
}

// Authenticate answers Auth.Authenticate as etcd does while authentication is off; etcd's client goes on without a token.
func (s *Services) Authenticate(context.Context, *pb.AuthenticateRequest) (*pb.AuthenticateResponse, error) {
	return nil, rpctypes.ErrGRPCAuthNotEnabled
}
