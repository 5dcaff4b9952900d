package rpc_test

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"io"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// TestSnapshot: the file in pieces that say how much is left, then its hash, as etcd's clients put it together.
func TestSnapshot(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	s.SnapshotBytes = bytes.Repeat([]byte("0123456789abcdef"), 10000)
	stream, err := pb.NewMaintenanceClient(s.dial(t)).Snapshot(within(t), &pb.SnapshotRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []byte
	for {
		r, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, r.Blob...)
		if left := max(0, len(s.SnapshotBytes)-len(got)); r.RemainingBytes != uint64(left) || r.Version != "3.7.0" {
			t.Fatalf("after %d bytes: %d left, version %q", len(got), r.RemainingBytes, r.Version)
		}
	}
	sum := sha256.Sum256(s.SnapshotBytes)
	if !bytes.Equal(got, append(bytes.Clone(s.SnapshotBytes), sum[:]...)) {
		t.Errorf("the pieces make %d bytes, want %d and their hash", len(got), len(s.SnapshotBytes))
	}
}
