package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// fill puts n keys of size bytes each, key000000 and so on.
func fill(t testing.TB, s *served, n, size int) {
	t.Helper()
	for i := range n {
		value := bytes.Repeat([]byte{byte(i)}, size)
		a, err := s.services.Put(context.Background(), &pb.PutRequest{Key: fmt.Appendf(nil, "key%06d", i), Value: value})
		if err != nil {
			t.Fatal(err)
		}
		a.Free()
	}
}

var all = &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}

// Answers of every length arrive whole, whether they lie in one buffer or in many.
func TestLongRanges(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	conn := s.dial(t)
	for _, c := range []struct{ n, size int }{{1, 1}, {3, 100}, {60, 1000}, {700, 4000}, {3, 1 << 20}} {
		fill(t, s, c.n, c.size)
		got, err := pb.NewKVClient(conn).Range(within(t), all)
		if err != nil {
			t.Fatal(err)
		}
		check := func(what string, kvs int, count int64) {
			t.Helper()
			if int64(kvs) != count || kvs < c.n {
				t.Errorf("%s of %d × %d bytes: %d pairs, count %d", what, c.n, c.size, kvs, count)
			}
		}
		check("range", len(got.Kvs), got.Count)
		for i, p := range got.Kvs[:c.n] {
			if want := fmt.Sprintf("key%06d", i); string(p.Key) != want || len(p.Value) != c.size || p.Value[0] != byte(i) {
				t.Fatalf("pair %d is %s with %d bytes", i, p.Key, len(p.Value))
			}
		}
		streamed, err := readRangeStream(conn, all)
		if err != nil {
			t.Fatal(err)
		}
		if !proto.Equal(streamed, got) {
			t.Errorf("%d × %d bytes: the stream differs from the range", c.n, c.size)
		}
		page, err := readRangeStream(conn, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 2})
		if err != nil {
			t.Fatal(err)
		}
		if page.Count != got.Count || page.More != (len(got.Kvs) > 2) || len(page.Kvs) != min(2, len(got.Kvs)) {
			t.Errorf("page of a stream: %d pairs, more %v, count %d", len(page.Kvs), page.More, page.Count)
		}
	}
}

// A stream shows one revision, whatever is written while it runs; if that is compacted away, it says so.
func TestRangeStreamIsOneRevision(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	fill(t, s, 400, 4000)
	ctx := within(t)
	before := s.Store().Revision()
	chunks, pairs := 0, 0
	err := s.services.RangeStream(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}, func(a *rpc.Answer) error {
		chunks++
		if _, err := s.services.DeleteRange(ctx, &pb.DeleteRangeRequest{Key: fmt.Appendf(nil, "key%06d", 399-chunks)}); err != nil {
			return err
		}
		var r pb.RangeStreamResponse
		if err := proto.Unmarshal(a.Bytes(), &r); err != nil {
			return err
		}
		pairs += len(r.RangeResponse.Kvs)
		if h := r.RangeResponse.Header; h != nil && (h.Revision != before || r.RangeResponse.Count != 400) {
			t.Errorf("the stream ended at revision %d with count %d", h.Revision, r.RangeResponse.Count)
		}
		return nil
	})
	if err != nil || pairs != 400 || chunks < 2 {
		t.Errorf("%d pairs in %d chunks, %v", pairs, chunks, err)
	}
	err = s.services.RangeStream(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}}, func(*rpc.Answer) error {
		_, err := s.services.Put(ctx, &pb.PutRequest{Key: []byte("a")})
		if err == nil {
			_, err = s.services.Compact(ctx, &pb.CompactionRequest{Revision: s.Store().Revision(), Physical: true})
		}
		return err
	})
	if status.Convert(err).Message() != "etcdserver: mvcc: required revision has been compacted" {
		t.Error(err)
	}
}

// Ranges beside writes and compactions see one revision each: all keys of a transaction, or none.
func TestRangesBesideWriters(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	ctx, stop := context.WithTimeout(context.Background(), 300*time.Millisecond)
	defer stop()
	var done sync.WaitGroup
	done.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			var ops []*pb.RequestOp
			for j := range 20 {
				ops = append(ops, &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: fmt.Append(nil, "k", j), Value: fmt.Append(nil, i)}}})
			}
			r, err := s.services.Txn(context.Background(), &pb.TxnRequest{Success: ops})
			if err == nil && i%10 == 9 {
				_, err = s.services.Compact(context.Background(), &pb.CompactionRequest{Revision: r.Header.Revision})
			}
			if err != nil {
				t.Error(err)
				return
			}
		}
	})
	for range 2 {
		done.Go(func() {
			for ctx.Err() == nil {
				a, err := s.services.Range(context.Background(), all)
				if err != nil {
					t.Error(err)
					return
				}
				var r pb.RangeResponse
				if err := proto.Unmarshal(a.Bytes(), &r); err != nil {
					t.Error(err)
					return
				}
				a.Free()
				for _, p := range r.Kvs {
					if p.ModRevision != r.Header.Revision || !bytes.Equal(p.Value, r.Kvs[0].Value) {
						t.Errorf("%v at revision %d", p, r.Header.Revision)
						return
					}
				}
			}
		})
	}
	done.Wait()
}

// Long answers at a time are bounded by the budget; what was held comes back when the calls are over.
// With etcd long answers take what they need, until there is no memory (E#12342, E#12457).
func TestRangeBudget(t *testing.T) {
	s := serve(t, rpc.Options{RangeBudgetBytes: 1 << 20}, watch.Options{})
	fill(t, s, 8, 256<<10) // twice the budget; no more, for each waits for those before it, and not for long
	conn := s.dial(t)
	var done sync.WaitGroup
	for range 8 {
		done.Go(func() {
			for range 3 {
				r, err := pb.NewKVClient(conn).Range(within(t), all)
				if err != nil || len(r.Kvs) != 8 {
					t.Errorf("%d pairs, %v", len(r.GetKvs()), err)
				}
			}
		})
	}
	done.Wait()
	ctx, cancel := context.WithCancel(context.Background())
	a, err := s.services.Range(ctx, all)
	if err != nil {
		t.Fatal(err)
	}
	a.Free()
	cancel()
}

func TestRefusedProposals(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	kvs := pb.NewKVClient(s.dial(t))
	for sentinel, want := range map[error]string{
		kv.ErrTooManyRequests: "etcdserver: too many requests",
		kv.ErrRequestTooLarge: "etcdserver: request is too large",
		kv.ErrTimeout:         "etcdserver: request timed out",
	} {
		err := fmt.Errorf("propose: %w", sentinel)
		s.Refuse.Store(&err)
		if _, got := kvs.Put(within(t), &pb.PutRequest{Key: []byte("k")}); status.Convert(got).Message() != want {
			t.Errorf("%v: %v", err, got)
		}
	}
}

// A learner serves everything, where etcd's serves serializable reads and its status only.
func TestLearner(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	conn := s.dial(t)
	s.IsLearner.Store(true)
	if _, err := pb.NewKVClient(conn).Put(within(t), &pb.PutRequest{Key: []byte("k")}); err != nil {
		t.Error(err)
	}
	if _, err := pb.NewKVClient(conn).Range(within(t), &pb.RangeRequest{Key: []byte("k")}); err != nil {
		t.Error(err)
	}
	w, err := pb.NewWatchClient(conn).Watch(within(t))
	if err == nil {
		err = w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: &pb.WatchCreateRequest{Key: []byte("k")}}})
	}
	if err == nil {
		_, err = w.Recv()
	}
	if err != nil {
		t.Error(err)
	}
	if _, err := pb.NewKVClient(conn).Range(within(t), &pb.RangeRequest{Key: []byte("k"), Serializable: true}); err != nil {
		t.Error(err)
	}
	if r, err := pb.NewMaintenanceClient(conn).Status(within(t), &pb.StatusRequest{}); err != nil || !r.IsLearner {
		t.Errorf("%v, %v", r, err)
	}
}

func TestUnknownCalls(t *testing.T) {
	conn := serve(t, rpc.Options{}, watch.Options{}).dial(t)
	for path, want := range map[string]string{
		"/no.Such/Call": "unknown service no.Such", "/etcdserverpb.KV/Such": "unknown method Such for service etcdserverpb.KV",
	} {
		if err := conn.Invoke(within(t), path, &pb.StatusRequest{}, &pb.StatusResponse{}); status.Convert(err).Message() != want {
			t.Errorf("%s: %v, want %q", path, err, want)
		}
	}
	if err := conn.Invoke(within(t), "/etcdserverpb.KV/Nope", &pb.StatusRequest{}, &pb.StatusResponse{}); status.Convert(err).Message() != "unknown method Nope for service etcdserverpb.KV" {
		t.Error(err)
	}
	if r, err := healthpb.NewHealthClient(conn).Check(within(t), &healthpb.HealthCheckRequest{}); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
}

// etcd's client, end to end.
func TestClient(t *testing.T) {
	c := serve(t, rpc.Options{}, watch.Options{}).client(t)
	ctx := within(t)
	lease, err := c.Grant(ctx, 60)
	if err != nil || lease.ID <= 0 || lease.TTL != 60 {
		t.Fatalf("%+v, %v", lease, err)
	}
	if short, err := c.Grant(ctx, 1); err != nil || short.TTL != 2 {
		t.Errorf("the least time to live: %+v, %v", short, err)
	}
	if _, err := c.Put(ctx, "leased", "v", clientv3.WithLease(lease.ID)); err != nil {
		t.Fatal(err)
	}
	if ttl, err := c.TimeToLive(ctx, lease.ID, clientv3.WithAttachedKeys()); err != nil || ttl.GrantedTTL != 60 || len(ttl.Keys) != 1 || string(ttl.Keys[0]) != "leased" {
		t.Errorf("%+v, %v", ttl, err)
	}
	if all, err := c.Leases(ctx); err != nil || len(all.Leases) != 2 {
		t.Errorf("%+v, %v", all, err)
	}
	kept, err := c.KeepAliveOnce(ctx, lease.ID)
	if err != nil || kept.TTL != 60 {
		t.Errorf("%+v, %v", kept, err)
	}
	if _, err := c.KeepAliveOnce(ctx, 12345); !errors.Is(err, errors.Unwrap(err)) && err.Error() != "etcdserver: requested lease not found" {
		t.Error(err)
	}
	txn, err := c.Txn(ctx).If(clientv3.Compare(clientv3.CreateRevision("leased"), ">", 0), clientv3.Compare(clientv3.LeaseValue("leased"), "=", lease.ID)).
		Then(clientv3.OpGet("leased"), clientv3.OpPut("x", "1")).Commit()
	if err != nil || !txn.Succeeded || string(txn.Responses[0].GetResponseRange().Kvs[0].Value) != "v" {
		t.Errorf("%+v, %v", txn, err)
	}
	if _, err := c.Revoke(ctx, lease.ID); err != nil {
		t.Error(err)
	}
	if got, err := c.Get(ctx, "leased"); err != nil || got.Count != 0 {
		t.Errorf("%+v, %v", got, err)
	}
	if members, err := c.MemberList(ctx); err != nil || len(members.Members) != 1 || members.Members[0].Name != "default" || members.Header.Revision != 0 {
		t.Errorf("%+v, %v", members, err)
	}
	if _, err := c.Compact(ctx, 2, clientv3.WithCompactPhysical()); err != nil {
		t.Error(err)
	}
	if _, err := c.Get(ctx, "x", clientv3.WithRev(1)); err == nil || err.Error() != "etcdserver: mvcc: required revision has been compacted" {
		t.Error(err)
	}
}

func BenchmarkRange(b *testing.B) {
	s := serve(b, rpc.Options{}, watch.Options{})
	fill(b, s, 5000, 1000)
	for _, n := range []int64{1, 500, 5000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			b.ReportAllocs()
			r := &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, Limit: n, Serializable: true}
			for b.Loop() {
				a, err := s.services.Range(context.Background(), r)
				if err != nil {
					b.Fatal(err)
				}
				a.Free()
			}
		})
	}
}

// The health service is admitted and counted like the others, and a watch of it ends with the services.
func TestHealthService(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	c := healthpb.NewHealthClient(s.dial(t))
	if r, err := c.List(within(t), &healthpb.HealthListRequest{}); err != nil || r.Statuses[""].GetStatus() != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
	if _, err := c.Check(within(t), &healthpb.HealthCheckRequest{Service: "nothing"}); status.Code(err) != codes.NotFound {
		t.Error(err)
	}
	w, err := c.Watch(within(t), &healthpb.HealthCheckRequest{})
	if err != nil {
		t.Fatal(err)
	}
	if r, err := w.Recv(); err != nil || r.Status != healthpb.HealthCheckResponse_SERVING {
		t.Errorf("%v, %v", r, err)
	}
	s.services.Stop()
	if _, err := w.Recv(); status.Code(err) != codes.Canceled {
		t.Errorf("the watch ended with %v", err)
	}
	families, err := s.metrics.Gatherer().Gather()
	if err != nil {
		t.Fatal(err)
	}
	counted := 0.0
	for _, f := range families {
		if f.GetName() != "grpc_server_msg_sent_total" {
			continue
		}
		for _, m := range f.Metric {
			for _, l := range m.Label {
				if l.GetValue() == "grpc.health.v1.Health" {
					counted += m.GetCounter().GetValue()
				}
			}
		}
	}
	if counted != 3 {
		t.Errorf("%v answers of the health service were counted", counted)
	}
}

// A stream that names a target other than the key is what Range answers, in chunks that clients with usual limits can take.
func TestRangeStreamSorted(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	conn := s.dial(t)
	ctx := within(t)
	for i, size := range []int{10, 700 << 10, 0} { // beside others: a row longer than a chunk
		value := fmt.Appendf(nil, "%d%s", 9-i, bytes.Repeat([]byte{'v'}, size))
		if _, err := s.services.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "a%d", i), Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	for i := range 300 {
		value := fmt.Appendf(nil, "%03d%s", (i*7)%300, bytes.Repeat([]byte{'w'}, 4000))
		if _, err := s.services.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "key%03d", i), Value: value}); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range []*pb.RangeRequest{
		{Key: []byte{0}, RangeEnd: []byte{0}},
		{Key: []byte("a"), RangeEnd: []byte("b")},
		{Key: []byte("a0")},
		{Key: []byte("nothing"), RangeEnd: []byte("o")},
		{Key: []byte{0}, RangeEnd: []byte{0}, KeysOnly: true},
		{Key: []byte{0}, RangeEnd: []byte{0}, CountOnly: true},
		{Key: []byte{0}, RangeEnd: []byte{0}, Limit: 200},
		{Key: []byte{0}, RangeEnd: []byte{0}, Revision: 150},
	} {
		for target := range pb.RangeRequest_SortTarget_name {
			r.SortTarget = pb.RangeRequest_SortTarget(target)
			want, err := s.services.Range(ctx, r)
			if err != nil {
				t.Fatal(err)
			}
			var pairs pb.RangeResponse
			if err := proto.Unmarshal(want.Bytes(), &pairs); err != nil {
				t.Fatal(err)
			}
			got, err := readRangeStream(conn, r)
			if err != nil || !proto.Equal(got, &pairs) {
				t.Errorf("%v: the stream has %d pairs, more %v, count %d; the range %d, %v, %d (%v)", r, len(got.GetKvs()), got.GetMore(), got.GetCount(), len(pairs.Kvs), pairs.More, pairs.Count, err)
			}
		}
	}
	chunks := 0
	err := s.services.RangeStream(ctx, &pb.RangeRequest{Key: []byte{0}, RangeEnd: []byte{0}, SortTarget: pb.RangeRequest_VALUE}, func(a *rpc.Answer) error {
		defer a.Free()
		if chunks++; len(a.Bytes()) > 2<<20 {
			t.Errorf("a chunk of %d bytes", len(a.Bytes()))
		}
		return nil
	})
	if err != nil || chunks < 3 {
		t.Errorf("%d chunks, %v", chunks, err)
	}
}
