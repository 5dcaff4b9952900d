package rpc

import (
	"context"

	"github.com/coreos/go-semver/semver"
	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/version"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
)

// Downgrade answers Maintenance.Downgrade: whether the cluster can go back one minor version, that it shall, and that it
// shall not after all. What follows is the leader's to do (package leader).
func (s *Services) Downgrade(ctx context.Context, r *pb.DowngradeRequest) (*pb.DowngradeResponse, error) {
	var err error
	switch r.Action {
	case pb.DowngradeRequest_VALIDATE, pb.DowngradeRequest_ENABLE:
		var target string
		target, err = s.downgradeTarget(ctx, r.Version)
		if err == nil && r.Action == pb.DowngradeRequest_ENABLE {
			err = s.proposeDowngrade(ctx, command.Downgrade{Enabled: true, Target: target})
		}
	case pb.DowngradeRequest_CANCEL:
		// etcd logs what went wrong here and answers as if nothing had.
		if err := s.cancelDowngrade(ctx); err != nil {
			s.log.Warn("cancelling the downgrade failed", "error", err)
		}
	default:
		err = status.Error(codes.Unknown, "etcdserver: unknown method")
	}
	if err != nil {
		return nil, toStatus(err)
	}
	v, _ := s.b.ClusterVersion()
	return &pb.DowngradeResponse{Header: headerPB(s.b.Header(), s.b.Store().Revision()), Version: version.Cluster(v)}, nil
}

// downgradeTarget checks that the cluster can be taken to that version.
func (s *Services) downgradeTarget(ctx context.Context, text string) (string, error) {
	target, err := parseMinor(text)
	if err != nil {
		return "", kv.ErrBadVersion
	}
	if v, _ := s.b.ClusterVersion(); v == "" {
		return "", kv.ErrNoClusterVersion
	}
	if err := s.b.ReadBarrier(ctx); err != nil {
		return "", err
	}
	v, now := s.b.ClusterVersion()
	cluster, err := semver.NewVersion(v)
	switch {
	case err != nil:
		return "", err
	case target.Major != cluster.Major || target.Minor != cluster.Minor-1:
		return "", kv.ErrBadDowngradeTarget
	case now.Enabled:
		return "", kv.ErrDowngrading
	}
	return target.String(), nil
}

// parseMinor reads X.Y or X.Y.Z and leaves Z out.
func parseMinor(text string) (*semver.Version, error) {
	v, err := semver.NewVersion(text)
	if err != nil {
		if v, err = semver.NewVersion(text + ".0"); err != nil {
			return nil, err
		}
	}
	return &semver.Version{Major: v.Major, Minor: v.Minor}, nil
}

func (s *Services) cancelDowngrade(ctx context.Context) error {
	if err := s.b.ReadBarrier(ctx); err != nil {
		return err
	}
	if _, now := s.b.ClusterVersion(); !now.Enabled {
		return kv.ErrNoDowngrade
	}
	return s.proposeDowngrade(ctx, command.Downgrade{})
}

func (s *Services) proposeDowngrade(ctx context.Context, d command.Downgrade) error {
	r, err := s.b.Propose(ctx, &command.Command{Downgrade: &d})
	if err == nil {
		err = r.Err
	}
	return err
}

// StorageVersion is what Status and /version tell of the format of the data, for tools that look at it: as in etcd, the
// cluster's version. It says nothing of the files here. Empty while it is not decided.
func StorageVersion(cluster string) string {
	if cluster == version.MinClusterVersion {
		return ""
	}
	return cluster
}
