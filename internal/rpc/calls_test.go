package rpc_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protojson"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/reflect/protoregistry"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// script makes calls of one server and writes down what it answered.
type script struct {
	*testing.T
	conn *grpc.ClientConn
	out  strings.Builder
}

// golden runs a script against a member of our own and wants to read what is in the file. With TRIVET_ETCD naming a fresh
// etcd and TRIVET_UPDATE set, the file is written anew from that etcd first.
func golden(t *testing.T, file string, run func(*script)) {
	if addr := os.Getenv("TRIVET_ETCD"); addr != "" && os.Getenv("TRIVET_UPDATE") != "" {
		conn, err := grpc.NewClient(addr, grpc.WithTransportCredentials(insecure.NewCredentials()))
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		etcd := &script{T: t, conn: conn}
		run(etcd)
		if err := os.WriteFile(file, []byte(etcd.out.String()), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	ours := &script{T: t, conn: serve(t, rpc.Options{}, watch.Options{}).dial(t)}
	run(ours)
	a, b := strings.Split(ours.out.String(), "\n"), strings.Split(string(want), "\n")
	for i := range min(len(a), len(b)) {
		if a[i] != b[i] {
			asked := ""
			for j := i; j >= 0 && asked == ""; j-- {
				if !strings.HasPrefix(b[j], "  ") {
					asked = b[j]
				}
			}
			t.Fatalf("%s:%d: %s\nours: %s\netcd: %s", file, i+1, asked, a[i], b[i])
		}
	}
	if len(a) != len(b) {
		t.Fatalf("%s: %d lines of ours, %d of etcd's", file, len(a), len(b))
	}
}

// text is one message as one line of JSON, without what differs between two servers by right.
func text(t *testing.T, m proto.Message) string {
	m = proto.Clone(m)
	plain(m.ProtoReflect())
	b, err := protojson.MarshalOptions{UseProtoNames: true}.Marshal(m)
	if err != nil {
		t.Fatal(err)
	}
	var v any // protojson sets blanks at random
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	if err := d.Decode(&v); err != nil {
		t.Fatal(err)
	}
	if b, err = json.Marshal(v); err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// shorten keeps long requests out of the file.
func shorten(s string) string {
	if len(s) > 400 {
		return s[:400] + fmt.Sprintf("... (%d)", len(s))
	}
	return s
}

func (p *script) call(method string, req proto.Message) {
	p.Helper()
	service, name, _ := strings.Cut(method, "/")
	desc, err := protoregistry.GlobalFiles.FindDescriptorByName(protoreflect.FullName("etcdserverpb." + service))
	if err != nil {
		p.Fatal(err)
	}
	out, err := protoregistry.GlobalTypes.FindMessageByName(desc.(protoreflect.ServiceDescriptor).Methods().ByName(protoreflect.Name(name)).Output().FullName())
	if err != nil {
		p.Fatal(err)
	}
	resp := out.New().Interface()
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err = p.conn.Invoke(ctx, "/etcdserverpb."+method, req, resp)
	p.answer(method, req, resp, err)
}

func (p *script) answer(method string, req, resp proto.Message, err error) {
	fmt.Fprintf(&p.out, "%s %s\n", method, shorten(text(p.T, req)))
	if err != nil {
		fmt.Fprintf(&p.out, "  %s: %s\n", status.Code(err), status.Convert(err).Message())
		return
	}
	fmt.Fprintf(&p.out, "  %s\n", text(p.T, resp))
}

// rangeStream writes down the chunks put together, since where they are cut is not part of the API.
func (p *script) rangeStream(req *pb.RangeRequest) {
	out, err := readRangeStream(p.conn, req)
	p.answer("KV/RangeStream", req, out, err)
}

func readRangeStream(conn *grpc.ClientConn, req *pb.RangeRequest) (*pb.RangeResponse, error) {
	s, err := pb.NewKVClient(conn).RangeStream(context.Background(), req)
	if err != nil {
		return nil, err
	}
	out := &pb.RangeResponse{}
	for {
		r, err := s.Recv()
		if errors.Is(err, io.EOF) {
			return out, nil
		}
		if err != nil {
			return nil, err
		}
		if out.Header != nil {
			return nil, errors.New("a chunk after the one with the header")
		}
		c := r.RangeResponse
		out.Header, out.More, out.Count, out.Kvs = c.Header, c.More, c.Count, append(out.Kvs, c.Kvs...)
	}
}

func TestCallsAnswerAsEtcd(t *testing.T) { golden(t, "testdata/calls.txt", (*script).handWritten) }

// handWritten are the calls whose answers by etcd 3.7.3 are kept in testdata/calls.txt.
func (p *script) handWritten() {
	k, v := []byte("k"), []byte("v")
	op := func(r any) *pb.RequestOp {
		switch r := r.(type) {
		case *pb.PutRequest:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: r}}
		case *pb.DeleteRangeRequest:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: r}}
		case *pb.RangeRequest:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: r}}
		case *pb.TxnRequest:
			return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: r}}
		}
		return &pb.RequestOp{}
	}
	put := func(key string) *pb.RequestOp { return op(&pb.PutRequest{Key: []byte(key), Value: v}) }
	del := func(key, end string) *pb.RequestOp {
		return op(&pb.DeleteRangeRequest{Key: []byte(key), RangeEnd: []byte(end)})
	}
	inner := func(ops ...*pb.RequestOp) *pb.RequestOp { return op(&pb.TxnRequest{Success: ops}) }
	either := func(a, b *pb.RequestOp) *pb.RequestOp {
		return op(&pb.TxnRequest{Success: []*pb.RequestOp{a}, Failure: []*pb.RequestOp{b}})
	}

	p.call("Maintenance/Status", &pb.StatusRequest{})
	p.call("Maintenance/HashKV", &pb.HashKVRequest{})
	p.call("Maintenance/HashKV", &pb.HashKVRequest{Revision: 9})
	p.call("Maintenance/Alarm", &pb.AlarmRequest{})
	p.call("Maintenance/Defragment", &pb.DefragmentRequest{})
	p.call("Maintenance/MoveLeader", &pb.MoveLeaderRequest{TargetID: 7})
	p.call("Auth/AuthStatus", &pb.AuthStatusRequest{})
	p.call("Auth/Authenticate", &pb.AuthenticateRequest{Name: "a"})

	for _, r := range []*pb.RangeRequest{
		{}, {Key: k, SortOrder: 7}, {Key: k, SortTarget: 9}, {Key: k, Revision: 99}, {Key: k, Revision: -4}, {Key: k, Limit: -1},
		{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true},
	} {
		p.call("KV/Range", r)
		p.rangeStream(r)
		p.call("KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{op(r)}})
	}
	p.rangeStream(&pb.RangeRequest{Key: k, SortOrder: pb.RangeRequest_DESCEND})
	p.rangeStream(&pb.RangeRequest{Key: k, MinModRevision: 1})
	for _, r := range []*pb.PutRequest{
		{}, {Key: k, Value: v, IgnoreValue: true}, {Key: k, Lease: 1, IgnoreLease: true}, {Key: k, IgnoreValue: true},
		{Key: k, IgnoreLease: true}, {Key: k, Lease: 77}, {Key: k, Value: v, PrevKv: true}, {Key: k, PrevKv: true},
		{Key: k, IgnoreValue: true, IgnoreLease: true, PrevKv: true}, {Key: []byte("empty")},
		{Key: k, Value: make([]byte, 3<<20)}, // longer than a message may be
	} {
		p.call("KV/Put", r)
	}
	p.call("KV/DeleteRange", &pb.DeleteRangeRequest{})
	p.call("KV/DeleteRange", &pb.DeleteRangeRequest{Key: k, PrevKv: true})
	p.call("KV/DeleteRange", &pb.DeleteRangeRequest{Key: k, PrevKv: true})

	many := make([]*pb.RequestOp, 129)
	for i := range many {
		many[i] = put(fmt.Sprint(i))
	}
	for _, ops := range [][]*pb.RequestOp{
		nil, {{}}, many, many[:128],
		{put("a"), put("a")}, {put("a"), del("a", "")}, {del("a", ""), put("a")}, {del("a", "c"), put("b")},
		{del("a", "\x00"), put("b")}, {del("a", "a"), put("a")}, {del("c", "a"), put("b")},
		{put("a"), inner(put("a"))}, {inner(put("a")), inner(put("a"))}, {inner(put("a")), put("a")},
		{inner(put("a")), inner(del("a", ""))}, {inner(del("a", "")), inner(put("a"))}, {inner(del("a", "")), put("a")},
		{either(put("a"), put("a"))}, {either(put("a"), del("a", ""))}, {either(put("a"), put("a")), either(put("b"), put("a"))},
		{inner(inner(inner(put("deep"))))}, {inner(many[:64]...), inner(many[64:]...)}, {inner(many...)},
		{op(&pb.RangeRequest{Key: []byte("a")}), put("a"), op(&pb.RangeRequest{Key: []byte("a")}), inner(op(&pb.RangeRequest{Key: []byte("a"), KeysOnly: true}))},
		{del("nothing", ""), op(&pb.RangeRequest{Key: []byte("a")}), put("b"), del("nothing", "")},
		{op(&pb.PutRequest{Key: []byte("new"), IgnoreValue: true})}, {put("a"), op(&pb.PutRequest{Key: []byte("b"), Lease: 5})},
		{put("a"), op(&pb.RangeRequest{Key: []byte("a"), Revision: 1000})}, {put("a"), op(&pb.RangeRequest{Key: []byte("a"), Revision: 2})},
		{inner()}, {op(&pb.PutRequest{})}, {op(&pb.RangeRequest{})}, {op(&pb.DeleteRangeRequest{})},
	} {
		p.call("KV/Txn", &pb.TxnRequest{Success: ops})
		p.call("KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{Key: []byte("none"), Result: pb.Compare_GREATER}}, Failure: ops})
	}
	p.call("KV/Txn", &pb.TxnRequest{Compare: []*pb.Compare{{}}})

	for _, r := range []*pb.LeaseGrantRequest{{TTL: 60, ID: 5}, {TTL: 60, ID: 5}, {TTL: -3, ID: 6}, {TTL: 9000000001, ID: 7}, {TTL: 9000000000, ID: 8}, {TTL: 60, ID: -9}} {
		p.call("Lease/LeaseGrant", r)
	}
	p.call("KV/Put", &pb.PutRequest{Key: []byte("l1"), Lease: 5})
	p.call("KV/Put", &pb.PutRequest{Key: []byte("l2"), Lease: 5})
	p.call("KV/Range", &pb.RangeRequest{Key: []byte("l"), RangeEnd: []byte("m"), KeysOnly: true})
	p.call("KV/Range", &pb.RangeRequest{Key: []byte("l"), RangeEnd: []byte("m"), KeysOnly: true, SortTarget: pb.RangeRequest_VALUE})
	p.call("Lease/LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 1234, Keys: true})
	p.call("Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 5})
	p.call("Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 5})
	p.call("Lease/LeaseRevoke", &pb.LeaseRevokeRequest{ID: 6})
	p.call("KV/Compact", &pb.CompactionRequest{Revision: 1 << 40})
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
