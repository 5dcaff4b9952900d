package rpc_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// stopped reports whether a call ended because the member stops.
func stopped(err error) bool {
	return status.Code(err) == codes.Unavailable && status.Convert(err).Message() == "etcdserver: server stopped"
}

// TestDrainEndsWhatIsEndless: watches and streams of keepalives that were answered end when the services drain; what comes
// afterwards is answered, but for new watches.
func TestDrainEndsWhatIsEndless(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	conn, client := s.dial(t), s.client(t)
	lease, err := client.Grant(within(t), 60)
	if err != nil {
		t.Fatal(err)
	}
	w, err := pb.NewWatchClient(conn).Watch(within(t))
	if err == nil {
		err = w.Send(create(&pb.WatchCreateRequest{Key: []byte("k")}))
	}
	if err == nil {
		_, err = w.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	kept, err := pb.NewLeaseClient(conn).LeaseKeepAlive(within(t))
	if err == nil {
		err = kept.Send(&pb.LeaseKeepAliveRequest{ID: int64(lease.ID)})
	}
	if err == nil {
		_, err = kept.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	health, err := healthpb.NewHealthClient(conn).Watch(within(t), &healthpb.HealthCheckRequest{})
	if err == nil {
		_, err = health.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}

	s.services.Drain()
	if _, err := w.Recv(); !stopped(err) {
		t.Errorf("the watch ended with %v", err)
	}
	if _, err := kept.Recv(); !stopped(err) {
		t.Errorf("the stream of keepalives ended with %v", err)
	}
	if _, err := health.Recv(); err == nil {
		t.Error("the watch of the health goes on")
	}
	if w, err = pb.NewWatchClient(conn).Watch(within(t)); err == nil {
		_, err = w.Recv()
	}
	if !stopped(err) {
		t.Errorf("a new watch ended with %v", err)
	}
	if _, err := client.Put(within(t), "k", "v"); err != nil {
		t.Error(err)
	}
	if r, err := client.KeepAliveOnce(within(t), lease.ID); err != nil || r.TTL != 60 {
		t.Errorf("a lease that is kept once: %v, %v", r, err)
	}
}

// A stream of keepalives that has asked nothing does not hold a drain up for longer than a moment.
func TestDrainEndsSilentKeepAlives(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	kept, err := pb.NewLeaseClient(s.dial(t)).LeaseKeepAlive(within(t))
	if err != nil {
		t.Fatal(err)
	}
	s.services.Drain()
	if _, err := kept.Recv(); !stopped(err) {
		t.Errorf("the stream ended with %v", err)
	}
}

// TestDrainLetsFiniteStreamsEnd: a snapshot and a streamed range that are being read are read to their ends, until the
// services stop.
func TestDrainLetsFiniteStreamsEnd(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	client := s.client(t)
	const n = 16 // MiB, more than is under way between the two sides
	for i := range n {
		if _, err := client.Put(within(t), fmt.Sprintf("big/%02d", i), string(bytes.Repeat([]byte{byte(i)}, 1<<20))); err != nil {
			t.Fatal(err)
		}
	}
	whole := &pb.RangeRequest{Key: []byte("big/"), RangeEnd: []byte("big0")}
	first, err := pb.NewKVClient(s.dial(t)).RangeStream(within(t), whole)
	if err == nil {
		_, err = first.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.SnapshotBytes = make([]byte, n<<20)
	second, err := pb.NewMaintenanceClient(s.dial(t)).Snapshot(within(t), &pb.SnapshotRequest{})
	if err == nil {
		_, err = second.Recv()
	}
	if err != nil {
		t.Fatal(err)
	}
	s.services.Drain()
	time.Sleep(50 * time.Millisecond) // whatever would end it has its time
	keys := 1
	for {
		r, err := first.Recv()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		keys += len(r.RangeResponse.Kvs)
	}
	if keys != n {
		t.Errorf("%d keys of %d came", keys, n)
	}
	s.services.Stop()
	for err = nil; err == nil; {
		_, err = second.Recv()
	}
	if !stopped(err) {
		t.Errorf("after the stop the stream ended with %v", err)
	}
}
