package compat

import (
	"context"
	"fmt"
	"maps"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"

	"github.com/trivet-kv/trivet/bench/cluster"
	"github.com/trivet-kv/trivet/test/collector"
)

// traced is a call whose spans are compared.
type traced struct {
	name string
	call func(ctx context.Context, conn *grpc.ClientConn) error
}

// inJSON begins the names of calls through the JSON gateway. They reach Trivet's services over no network, so that their
// spans have no address.
const inJSON = "JSON: "

// posted is a call of the JSON gateway, which passes metadata on that has its prefix.
func posted(path, body string) traced {
	return traced{inJSON + path, func(ctx context.Context, conn *grpc.ClientConn) error {
		r, err := http.NewRequestWithContext(ctx, "POST", "http://"+conn.Target()[len("passthrough:///"):]+path, strings.NewReader(body))
		if err != nil {
			return err
		}
		sent, _ := metadata.FromOutgoingContext(ctx)
		r.Header.Set("Grpc-Metadata-Traceparent", sent["traceparent"][0])
		a, err := http.DefaultClient.Do(r)
		if err != nil {
			return err
		}
		return a.Body.Close()
	}}
}

// made is a unary call by its path, which may fail.
func made(name, path string, req any, answer any) traced {
	return traced{name, func(ctx context.Context, conn *grpc.ClientConn) error {
		_ = conn.Invoke(ctx, path, req, answer)
		return nil
	}}
}

func tracedCalls() []traced {
	const kvs, leases = "/etcdserverpb.KV/", "/etcdserverpb.Lease/"
	key := []byte("k")
	put := func(k string, lease int64) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte(k), Lease: lease}}}
	}
	get := func(k string) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestRange{RequestRange: &pb.RangeRequest{Key: []byte(k)}}}
	}
	txn := func(t *pb.TxnRequest) *pb.RequestOp {
		return &pb.RequestOp{Request: &pb.RequestOp_RequestTxn{RequestTxn: t}}
	}
	del := &pb.RequestOp{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("d")}}}
	compare := &pb.Compare{Key: []byte("c"), Target: pb.Compare_VERSION, TargetUnion: &pb.Compare_Version{}}
	return []traced{
		made("put", kvs+"Put", &pb.PutRequest{Key: key, Value: []byte("v")}, new(pb.PutResponse)),
		made("put without a key", kvs+"Put", &pb.PutRequest{}, new(pb.PutResponse)),
		made("put with a lease that is not there", kvs+"Put", &pb.PutRequest{Key: key, Lease: 77}, new(pb.PutResponse)),
		made("range", kvs+"Range", &pb.RangeRequest{Key: key}, new(pb.RangeResponse)),
		made("range with options", kvs+"Range", &pb.RangeRequest{Key: key, RangeEnd: []byte{0}, Limit: 3, Revision: 2, KeysOnly: true, Serializable: true}, new(pb.RangeResponse)),
		made("count", kvs+"Range", &pb.RangeRequest{Key: key, RangeEnd: []byte("z"), CountOnly: true}, new(pb.RangeResponse)),
		made("range of the future", kvs+"Range", &pb.RangeRequest{Key: key, Revision: 1 << 40}, new(pb.RangeResponse)),
		made("delete", kvs+"DeleteRange", &pb.DeleteRangeRequest{Key: key, RangeEnd: []byte("l"), PrevKv: true}, new(pb.DeleteRangeResponse)),
		made("txn", kvs+"Txn", &pb.TxnRequest{Compare: []*pb.Compare{compare}, Success: []*pb.RequestOp{get("g"), put("p", 0)}, Failure: []*pb.RequestOp{del}}, new(pb.TxnResponse)),
		made("txn of a delete", kvs+"Txn", &pb.TxnRequest{Success: []*pb.RequestOp{del}}, new(pb.TxnResponse)),
		made("txn in a txn", kvs+"Txn", &pb.TxnRequest{Success: []*pb.RequestOp{txn(&pb.TxnRequest{Success: []*pb.RequestOp{put("q", 0)}}), put("p", 0)}}, new(pb.TxnResponse)),
		made("txn of reads", kvs+"Txn", &pb.TxnRequest{Success: []*pb.RequestOp{get("g")}}, new(pb.TxnResponse)),
		made("txn of nothing", kvs+"Txn", &pb.TxnRequest{}, new(pb.TxnResponse)),
		made("txn with a lease that is not there", kvs+"Txn", &pb.TxnRequest{Success: []*pb.RequestOp{put("q", 77)}}, new(pb.TxnResponse)),
		{"range stream", func(ctx context.Context, conn *grpc.ClientConn) error {
			s, err := pb.NewKVClient(conn).RangeStream(ctx, &pb.RangeRequest{Key: key, RangeEnd: []byte("z"), Limit: 2})
			for err == nil {
				_, err = s.Recv()
			}
			return nil
		}},
		made("compact", kvs+"Compact", &pb.CompactionRequest{Revision: 2, Physical: true}, new(pb.CompactionResponse)),
		made("compact again", kvs+"Compact", &pb.CompactionRequest{Revision: 2}, new(pb.CompactionResponse)),
		made("grant", leases+"LeaseGrant", &pb.LeaseGrantRequest{ID: 7, TTL: 100}, new(pb.LeaseGrantResponse)),
		made("grant again", leases+"LeaseGrant", &pb.LeaseGrantRequest{ID: 7, TTL: 100}, new(pb.LeaseGrantResponse)),
		{"keep alive", func(ctx context.Context, conn *grpc.ClientConn) error {
			s, err := pb.NewLeaseClient(conn).LeaseKeepAlive(ctx)
			if err != nil {
				return err
			}
			for _, id := range []int64{7, 8, 7} {
				if err := s.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
					return err
				}
				if _, err := s.Recv(); err != nil {
					return err
				}
			}
			return s.CloseSend()
		}},
		made("time to live", leases+"LeaseTimeToLive", &pb.LeaseTimeToLiveRequest{ID: 7}, new(pb.LeaseTimeToLiveResponse)),
		made("revoke", leases+"LeaseRevoke", &pb.LeaseRevokeRequest{ID: 7}, new(pb.LeaseRevokeResponse)),
		made("revoke again", leases+"LeaseRevoke", &pb.LeaseRevokeRequest{ID: 7}, new(pb.LeaseRevokeResponse)),
		{"watch", func(ctx context.Context, conn *grpc.ClientConn) error {
			ctx, cancel := context.WithCancel(ctx)
			defer cancel()
			s, err := pb.NewWatchClient(conn).Watch(ctx)
			if err != nil {
				return err
			}
			for _, r := range []*pb.WatchCreateRequest{
				{Key: key, WatchId: 5, PrevKv: true},
				{RangeEnd: []byte{0}, ProgressNotify: true, Fragment: true},
				{Key: key, RangeEnd: []byte("z"), StartRevision: 3},
				{Key: key, WatchId: 5},
				{Key: []byte("z"), RangeEnd: key},
				{Key: key, StartRevision: 1},
			} {
				if err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}); err != nil {
					return err
				}
				for {
					a, err := s.Recv()
					if err != nil {
						return err
					}
					if a.Created {
						break
					}
				}
			}
			if err := s.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 5}}}); err != nil {
				return err
			}
			for {
				a, err := s.Recv()
				if err != nil || a.Canceled && a.WatchId == 5 {
					return err
				}
			}
		}},
		posted("/v3/kv/put", `{"key":"anNvbg=="}`),
		posted("/v3/lease/grant", `{"ID":9,"TTL":100}`),
		posted("/v3/lock/lock", `{"name":"bG9jaw==","lease":"9"}`),
		posted("/v3/lock/unlock", `{"key":"bG9jay85"}`),
		posted("/v3/election/campaign", `{"name":"ZQ==","value":"MQ==","lease":"9"}`),
		posted("/v3/election/leader", `{"name":"ZQ=="}`),
		posted("/v3/election/proclaim", `{"leader":{"name":"ZQ==","key":"ZS85","rev":"1","lease":"9"},"value":"Mg=="}`),
		posted("/v3/election/resign", `{"leader":{"name":"ZQ==","key":"ZS85","rev":"1","lease":"9"}}`),
		made("members", "/etcdserverpb.Cluster/MemberList", &pb.MemberListRequest{}, new(pb.MemberListResponse)),
		made("status", "/etcdserverpb.Maintenance/Status", &pb.StatusRequest{}, new(pb.StatusResponse)),
		made("user", "/etcdserverpb.Auth/UserAdd", &pb.AuthUserAddRequest{Name: "joe", Password: "secret"}, new(pb.AuthUserAddResponse)),
		made("user again", "/etcdserverpb.Auth/UserAdd", &pb.AuthUserAddRequest{Name: "joe", Password: "secret"}, new(pb.AuthUserAddResponse)),
	}
}

// trace is the id of the trace in which call i is made, and what a caller sends for it.
func trace(i int, sampled bool) (id, parent string) {
	id = fmt.Sprintf("%032x", i+1)
	flags := "00"
	if sampled {
		flags = "01"
	}
	return id, "00-" + id + "-00000000000000aa-" + flags
}

// spansOf makes all calls of a member and returns what its spans are, by call.
func spansOf(t *testing.T, s *target, calls []traced) map[string]string {
	c := collector.Start(t)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	extra := append([]string{
		"--enable-distributed-tracing", "--distributed-tracing-address=" + c.Address, "--distributed-tracing-instance-id=one",
	}, s.extra...)
	members, err := cluster.Start(ctx, filepath.Join(t.TempDir(), s.name), 1, s.command, extra...)
	if err != nil {
		t.Fatal(err)
	}
	defer members.Close()
	conn, err := members.Members[0].Dial()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	for i, x := range calls {
		_, parent := trace(i, true)
		if err := x.call(metadata.AppendToOutgoingContext(ctx, "traceparent", parent), conn); err != nil {
			t.Fatalf("%s: %s: %v", s.name, x.name, err)
		}
		_, unsampled := trace(1000+i, false)
		if i == 0 { // by a caller who does not want it traced, and by one who does not say
			_ = x.call(metadata.AppendToOutgoingContext(ctx, "traceparent", unsampled), conn)
			_ = x.call(ctx, conn)
		}
	}
	names := map[string]string{}
	for i, x := range calls {
		id, _ := trace(i, true)
		names[id] = x.name
	}
	spans, err := c.Wait(time.Minute, func(spans []collector.Span) bool {
		served := map[string]bool{}
		for _, s := range spans {
			if s.Parent == "00000000000000aa" {
				served[s.Trace] = true
			}
		}
		return len(served) == len(names)
	})
	if err != nil {
		t.Errorf("%s: %v", s.name, err)
	}
	return describeSpans(spans, names)
}

func describeSpans(spans []collector.Span, names map[string]string) map[string]string {
	nameOf := map[string]string{"00000000000000aa": "the caller's"}
	for _, s := range spans {
		nameOf[s.ID] = s.Name
	}
	of := map[string][]string{}
	for _, s := range spans {
		call, ok := names[s.Trace]
		if !ok {
			call = "nobody wanted this"
		}
		var b strings.Builder
		fmt.Fprintf(&b, "%s of %s, under %s, scope %s, status %s, events %q, resource %v\n", s.Name, s.Kind, nameOf[s.Parent], s.Scope, s.Status, s.Events, s.Resource)
		for _, k := range slices.Sorted(maps.Keys(s.Attributes)) {
			v := s.Attributes[k]
			switch k {
			case "server.address":
				if strings.HasPrefix(call, inJSON) {
					continue
				}
			case "server.port":
				if strings.HasPrefix(call, inJSON) {
					continue
				}
				v = "a port"
			}
			fmt.Fprintf(&b, "    %s=%q\n", k, v)
		}
		of[call] = append(of[call], b.String())
	}
	out := map[string]string{}
	for call, of := range of {
		slices.Sort(of)
		out[call] = strings.Join(of, "")
	}
	return out
}

// TestTracing: the same calls make the same spans, in name, parent, attributes, events and status.
func TestTracing(t *testing.T) {
	t.Setenv("OTEL_BSP_SCHEDULE_DELAY", "100") // of both members: how long spans wait for others
	calls := tracedCalls()
	etcd, trivet := spansOf(t, systems.etcd, calls), spansOf(t, systems.trivet, calls)
	for call, want := range etcd {
		if got := trivet[call]; got != want {
			t.Errorf("%s:\netcd:\n%sTrivet:\n%s", call, want, got)
		}
		delete(trivet, call)
	}
	for call, got := range trivet {
		t.Errorf("%s: Trivet alone:\n%s", call, got)
	}
}
