package rpc

import (
	"context"
	"crypto/sha256"
	"io"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
)

// snapshotChunkBytes is how much of a snapshot one answer holds: below what clients of any language take by default.
const snapshotChunkBytes = 64 << 10

// Snapshot answers Maintenance.Snapshot: etcd's own file in pieces, then its SHA-256. Any member serves it from what it has
// applied, as in etcd. The file is whole before the first piece is sent, so a slow client holds nothing of the state, and an
// error in making it is the answer.
func (s *Services) Snapshot(ctx context.Context, _ *pb.SnapshotRequest, send func(*pb.SnapshotResponse) error) error {
	begin := time.Now()
	cluster, _ := s.b.ClusterVersion()
	format := StorageVersion(cluster)
	f, err := s.b.Snapshot(ctx)
	if err != nil {
		return toStatus(err)
	}
	defer f.Close()
	sum := sha256.New()
	buf := make([]byte, snapshotChunkBytes)
	for left := f.Size(); left > 0; {
		if ctx.Err() != nil {
			return streamError(ctx)
		}
		n, err := io.ReadFull(f, buf[:min(left, snapshotChunkBytes)])
		if err != nil {
			return toStatus(err)
		}
		left -= int64(n)
		sum.Write(buf[:n])
		if err := send(&pb.SnapshotResponse{RemainingBytes: uint64(left), Blob: buf[:n], Version: format}); err != nil {
			return err
		}
	}
	if err := send(&pb.SnapshotResponse{Blob: sum.Sum(nil), Version: format}); err != nil {
		return err
	}
	s.m.SnapshotSeconds.Observe(time.Since(begin).Seconds())
	return nil
}
