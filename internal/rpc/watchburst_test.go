package rpc_test

import (
	"bytes"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// Many watchers on one stream, with and without previous pairs, fragments and filters, each get every event in order, short ones and
// long, while watchers come and go.
func TestManyWatchersOnOneStream(t *testing.T) {
	s := serve(t, rpc.Options{MaxRequestBytes: 1 << 20}, watch.Options{})
	stream, err := pb.NewWatchClient(s.dial(t)).Watch(within(t))
	if err != nil {
		t.Fatal(err)
	}
	const watchers, puts = 200, 60
	for id := range watchers {
		c := &pb.WatchCreateRequest{Key: []byte("b"), RangeEnd: []byte("c"), WatchId: int64(id + 1), PrevKv: id%3 == 0, Fragment: id%5 == 0}
		if id%7 == 0 {
			c.Filters = []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}
		}
		if err := stream.Send(create(c)); err != nil {
			t.Fatal(err)
		}
		if r, err := stream.Recv(); err != nil || !r.Created {
			t.Fatal(r, err)
		}
	}
	value := func(n int) []byte { return bytes.Repeat([]byte{byte('0' + n%10)}, n*n*3) } // up to 10 KB: some are sent from where they lie
	go func() {
		for n := range puts {
			if _, err := s.services.Put(within(t), &pb.PutRequest{Key: []byte("b"), Value: value(n)}); err != nil {
				t.Error(err)
			}
			if n%10 == 5 {
				extra := int64(1000 + n)
				_ = stream.Send(create(&pb.WatchCreateRequest{Key: []byte("other"), WatchId: extra}))
				_ = stream.Send(cancelOf(extra))
			}
		}
	}()
	seen := make([]int, watchers+1)
	for left := watchers * puts; left > 0; {
		r, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		if r.WatchId >= 1000 {
			continue
		}
		for _, e := range r.Events {
			n := seen[r.WatchId]
			if !bytes.Equal(e.Kv.Value, value(n)) || e.Kv.Version != int64(n+1) {
				t.Fatalf("event %d of watcher %d has version %d and %d bytes", n, r.WatchId, e.Kv.Version, len(e.Kv.Value))
			}
			if want := (r.WatchId-1)%3 == 0 && n > 0; want != (e.PrevKv != nil) || want && !bytes.Equal(e.PrevKv.Value, value(n-1)) {
				t.Fatalf("event %d of watcher %d has a previous pair: %v", n, r.WatchId, e.PrevKv != nil)
			}
			seen[r.WatchId]++
			left--
		}
	}
}
