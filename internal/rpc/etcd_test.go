package rpc_test

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/prototext"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// TestSameAsEtcd makes the same calls of a member of our own and of a fresh etcd, whose client address TRIVET_ETCD names,
// and wants every field of every answer equal but the ids of cluster and member, the term, and sizes.
func TestSameAsEtcd(t *testing.T) {
	addr := os.Getenv("TRIVET_ETCD")
	if addr == "" {
		t.Skip("TRIVET_ETCD names no etcd to compare with")
	}
	theirs, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		t.Fatal(err)
	}
	defer theirs.Close()
	ours := serve(t, rpc.Options{}, watch.Options{}).dial(t)
	p := &pair{T: t, ours: ours, theirs: theirs, compacted: make(map[int64]bool)}
	if r := p.call("KV/Range", &pb.RangeRequest{Key: []byte("x")}, &pb.RangeResponse{}).(*pb.RangeResponse); r.Header.Revision != 1 {
		t.Fatalf("the etcd to compare with is at revision %d, not fresh", r.Header.Revision)
	}
	seed := rand.Uint64()
	t.Logf("seed %d", seed)
	r := rand.New(rand.NewPCG(seed, 1))
	for range 3000 {
		p.random(r)
	}
}

type pair struct {
	*testing.T
	ours, theirs *grpc.ClientConn
	revision     int64
	compacted    map[int64]bool // revisions that a compaction named
}

// plain takes out of a message what differs by right.
func plain(m protoreflect.Message) {
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch f.Name() {
		case "cluster_id", "member_id", "raft_term", "raftTerm", "leader", "raftIndex", "raftAppliedIndex", "dbSize", "dbSizeInUse":
			m.Clear(f)
			return true
		}
		switch {
		case f.IsList() && f.Message() != nil:
			for i := range v.List().Len() {
				plain(v.List().Get(i).Message())
			}
		case f.Message() != nil && !f.IsMap():
			plain(v.Message())
		}
		return true
	})
}

func (p *pair) call(method string, req, resp proto.Message) proto.Message {
	p.Helper()
	theirs := resp.ProtoReflect().New().Interface()
	oursErr := p.ours.Invoke(context.Background(), "/etcdserverpb."+method, req, resp)
	theirsErr := p.theirs.Invoke(context.Background(), "/etcdserverpb."+method, req, theirs)
	p.compare(fmt.Sprintf("%s{%s}", method, prototext.MarshalOptions{}.Format(req)), resp, oursErr, theirs, theirsErr)
	return resp
}

func (p *pair) compare(what string, ours proto.Message, oursErr error, theirs proto.Message, theirsErr error) {
	p.Helper()
	a, b := status.Convert(oursErr), status.Convert(theirsErr)
	if a.Code() != b.Code() || a.Message() != b.Message() {
		p.Fatalf("%s\nours:  %v %q\netcd: %v %q", what, a.Code(), a.Message(), b.Code(), b.Message())
	}
	if oursErr != nil {
		return
	}
	plain(ours.ProtoReflect())
	plain(theirs.ProtoReflect())
	if !proto.Equal(ours, theirs) {
		p.Fatalf("%s\nours: %s\netcd: %s", what, prototext.Format(ours), prototext.Format(theirs))
	}
	if h, ok := ours.(interface{ GetHeader() *pb.ResponseHeader }); ok && h.GetHeader() != nil {
		p.revision = max(p.revision, h.GetHeader().Revision)
	}
}

func (p *pair) rangeStream(req *pb.RangeRequest) {
	p.Helper()
	a, aErr := readRangeStream(p.ours, req)
	b, bErr := readRangeStream(p.theirs, req)
	p.compare("RangeStream{"+prototext.MarshalOptions{}.Format(req)+"}", a, aErr, b, bErr)
}

var alphabet = []string{"a", "b", "c", "d", "aa", "ab", "b\x00", "\x00", "\xff", "zz"}

func (p *pair) random(r *rand.Rand) {
	key := func() []byte { return []byte(alphabet[r.IntN(len(alphabet))]) }
	end := func() []byte {
		switch r.IntN(4) {
		case 0:
			return []byte{0}
		case 1:
			return key()
		}
		return nil
	}
	coin := func() bool { return r.IntN(2) == 0 }
	rev := func() int64 {
		switch r.IntN(4) {
		case 0:
			return p.revision - int64(r.IntN(20))
		case 1:
			return p.revision + int64(r.IntN(3)) - 1
		}
		return 0
	}
	bound := func() int64 {
		if r.IntN(6) == 0 {
			return p.revision - int64(r.IntN(30))
		}
		return 0
	}
	newRange := func() *pb.RangeRequest {
		return &pb.RangeRequest{
			Key: key(), RangeEnd: end(), Limit: int64(r.IntN(5)), Revision: rev(),
			SortOrder: pb.RangeRequest_SortOrder(r.IntN(3)), SortTarget: pb.RangeRequest_SortTarget(r.IntN(5)),
			Serializable: coin(), KeysOnly: coin(), CountOnly: r.IntN(5) == 0,
			MinModRevision: bound(), MaxModRevision: bound(), MinCreateRevision: bound(), MaxCreateRevision: bound(),
		}
	}
	newPut := func() *pb.PutRequest {
		out := &pb.PutRequest{Key: key(), PrevKv: coin(), IgnoreValue: r.IntN(5) == 0, IgnoreLease: r.IntN(5) == 0}
		if !out.IgnoreValue || r.IntN(9) == 0 {
			out.Value = bytes.Repeat([]byte{byte('a' + r.IntN(3))}, r.IntN(3))
		}
		if !out.IgnoreLease && r.IntN(6) == 0 {
			out.Lease = int64(5 + r.IntN(4))
		}
		return out
	}
	newDelete := func() *pb.DeleteRangeRequest {
		return &pb.DeleteRangeRequest{Key: key(), RangeEnd: end(), PrevKv: coin()}
	}
	var newTxn func(depth int) *pb.TxnRequest
	newTxn = func(depth int) *pb.TxnRequest {
		list := func() []*pb.RequestOp {
			var out []*pb.RequestOp
			for range r.IntN(4) {
				switch r.IntN(4) {
				case 0:
					out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: newRange()}})
				case 1:
					out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: newPut()}})
				case 2:
					d := newDelete()
					if len(d.RangeEnd) == 1 && d.RangeEnd[0] == 0 {
						d.RangeEnd = nil // etcd panics if such a delete takes the key of a later put with ignore_value
					}
					out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: d}})
				case 3:
					if depth < 3 {
						out = append(out, &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: newTxn(depth + 1)}})
					}
				}
			}
			return out
		}
		t := &pb.TxnRequest{Success: list(), Failure: list()}
		for range r.IntN(3) {
			c := &pb.Compare{
				Key: key(), RangeEnd: end(),
				Result: pb.Compare_CompareResult(r.IntN(5)), Target: pb.Compare_CompareTarget(r.IntN(6)),
			}
			switch r.IntN(5) {
			case 0:
				c.TargetUnion = &pb.Compare_Version{Version: int64(r.IntN(3))}
			case 1:
				c.TargetUnion = &pb.Compare_CreateRevision{CreateRevision: bound()}
			case 2:
				c.TargetUnion = &pb.Compare_ModRevision{ModRevision: bound()}
			case 3:
				c.TargetUnion = &pb.Compare_Value{Value: []byte("a")}
			case 4:
				c.TargetUnion = &pb.Compare_Lease{Lease: int64(5 + r.IntN(3))}
			}
			t.Compare = append(t.Compare, c)
		}
		return t
	}
	switch n := r.IntN(100); {
	case n < 30:
		p.call("KV/Range", newRange(), &pb.RangeResponse{})
	case n < 35:
		q := newRange()
		if q.SortOrder == pb.RangeRequest_NONE {
			q.SortTarget = pb.RangeRequest_KEY // etcd sorts each chunk for itself then, and counts wrong
		}
		p.rangeStream(q)
	case n < 55:
		p.call("KV/Put", newPut(), &pb.PutResponse{})
	case n < 65:
		p.call("KV/DeleteRange", newDelete(), &pb.DeleteRangeResponse{})
	case n < 92:
		p.call("KV/Txn", newTxn(0), &pb.TxnResponse{})
	case n < 93:
		at := p.revision - int64(r.IntN(30))
		p.compacted[at] = true
		p.call("KV/Compact", &pb.CompactionRequest{Revision: at, Physical: true}, &pb.CompactionResponse{})
	case n < 96:
		if at := rev(); !p.compacted[at] { // etcd may still know the hash that it made when it compacted there
			p.call("Maintenance/HashKV", &pb.HashKVRequest{Revision: at}, &pb.HashKVResponse{})
		}
	case n < 98:
		p.call("Lease/LeaseGrant", &pb.LeaseGrantRequest{ID: int64(5 + r.IntN(4)), TTL: 600}, &pb.LeaseGrantResponse{})
	default:
		p.call("Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: int64(5 + r.IntN(4))}, &pb.LeaseRevokeResponse{})
	}
}
