package rpc

import (
	"math"
	"math/rand/v2"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/watch"
)

func TestHeaderOnTheWire(t *testing.T) {
	for _, h := range []Header{{}, {1, 2, 3}, {math.MaxUint64, math.MaxUint64, math.MaxUint64}} {
		for _, rev := range []int64{0, 1, -1, math.MaxInt64} {
			b := appendHeader(nil, h, rev)
			if len(b) > maxHeaderBytes {
				t.Fatalf("%d bytes", len(b))
			}
			var got pb.PutResponse
			if err := proto.Unmarshal(b, &got); err != nil {
				t.Fatal(err)
			}
			if !proto.Equal(&got, &pb.PutResponse{Header: headerPB(h, rev)}) {
				t.Errorf("%v %d became %v", h, rev, &got)
			}
		}
	}
}

func TestEventOnTheWire(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	bytes := func(max int) []byte {
		b := make([]byte, r.IntN(max))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return b
	}
	pair := func() kv.KeyValue {
		return kv.KeyValue{
			Key: bytes(20), Value: bytes(300), CreateRevision: r.Int64N(1 << (1 + r.IntN(60))), ModRevision: r.Int64(),
			Version: r.Int64N(3), Lease: kv.LeaseID(r.Int64() - r.Int64()),
		}
	}
	for range 500 {
		e := &watch.Event{Event: kv.Event{Type: kv.EventType(r.IntN(2)), KV: pair()}}
		want := &mvccpb.Event{Type: mvccpb.Event_EventType(e.Type), Kv: keyValue(&e.KV)}
		var prev *kv.KeyValue
		if r.IntN(2) == 0 {
			p := pair()
			prev, want.PrevKv = &p, keyValue(&p)
		}
		var got pb.WatchResponse
		if err := proto.Unmarshal(encodeEvent(nil, e, prev), &got); err != nil {
			t.Fatal(err)
		}
		if len(got.Events) != 1 || !proto.Equal(got.Events[0], want) {
			t.Fatalf("%v became %v", want, &got)
		}
	}
}

// Ids are positive, never twice, and hold member and time where etcd's hold them.
func TestLeaseIDs(t *testing.T) {
	now := time.UnixMilli(0x1234567890)
	g := newLeaseIDs(0xabcd_0000_0000_8123, now)
	seen := make(map[int64]bool)
	for range 1000 {
		id := g.next()
		if id <= 0 || seen[id] || id>>48 != 0x0123 || id>>8&(1<<40-1) < 0x1234567890 || id>>8&(1<<40-1) > 0x1234567890+5 {
			t.Fatalf("%x", id)
		}
		seen[id] = true
	}
}
