package rpc_test

import (
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.opentelemetry.io/otel/attribute"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	"go.opentelemetry.io/otel/sdk/trace/tracetest"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// recorded is a tracer and what it has recorded.
func recorded() (*tracetest.SpanRecorder, rpc.Options) {
	r := tracetest.NewSpanRecorder()
	return r, rpc.Options{Tracer: sdk.NewTracerProvider(sdk.WithSpanProcessor(r)).Tracer("test")}
}

func valueOf(s sdk.ReadOnlySpan, key string) attribute.Value {
	for _, a := range s.Attributes() {
		if string(a.Key) == key {
			return a.Value
		}
	}
	return attribute.Value{}
}

// What test/compat compares with etcd's spans is not compared here again: keys that etcd does not send, and bounds.
func TestSpansOfOddKeys(t *testing.T) {
	r, o := recorded()
	s := serve(t, o, watch.Options{})
	kvs := pb.NewKVClient(s.dial(t))
	for _, key := range []string{"a\xff\xfeb", strings.Repeat("x", 100_000)} {
		if _, err := kvs.Put(within(t), &pb.PutRequest{Key: []byte(key)}); err != nil {
			t.Fatal(err)
		}
	}
	ended := r.Ended()
	if len(ended) != 2 || ended[0].Name() != "put" {
		t.Fatalf("%v", ended)
	}
	if v := valueOf(ended[0], "key").AsString(); v != "a\uFFFDb" {
		t.Errorf("a key that is no UTF-8 is shown as %q", v)
	}
	if v := valueOf(ended[1], "key").AsString(); len(v) != 4<<10 {
		t.Errorf("of a long key, %d bytes are shown", len(v))
	}
}

// A request that was not even tried has no span; one that failed says why.
func TestSpansOfFailures(t *testing.T) {
	r, o := recorded()
	s := serve(t, o, watch.Options{})
	kvs := pb.NewKVClient(s.dial(t))
	if _, err := kvs.Put(within(t), &pb.PutRequest{}); err == nil {
		t.Error("put without a key")
	}
	refuse := error(kv.ErrNoSpace)
	s.Refuse.Store(&refuse)
	if _, err := kvs.Put(within(t), &pb.PutRequest{Key: []byte("a")}); err == nil {
		t.Error("put at quota")
	}
	if _, err := kvs.DeleteRange(within(t), &pb.DeleteRangeRequest{}); err == nil {
		t.Error("delete without a key")
	}
	ended := r.Ended()
	if len(ended) != 1 {
		t.Fatalf("%d spans", len(ended))
	}
	var names []string
	for _, e := range ended[0].Events() {
		names = append(names, e.Name)
	}
	if !slices.Equal(names, []string{"Send raft proposal", "exception"}) {
		t.Errorf("%q", names)
	}
}

// The span of a watcher ends with the watcher, however that ends.
func TestSpansOfWatchers(t *testing.T) {
	r, o := recorded()
	s := serve(t, o, watch.Options{})
	c := s.client(t)
	if _, err := c.Put(within(t), "a", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Put(within(t), "a", ""); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Compact(within(t), 3); err != nil {
		t.Fatal(err)
	}
	w, err := pb.NewWatchClient(s.dial(t)).Watch(within(t))
	if err != nil {
		t.Fatal(err)
	}
	ask := func(r *pb.WatchRequest, until func(*pb.WatchResponse) bool) {
		t.Helper()
		if err := w.Send(r); err != nil {
			t.Fatal(err)
		}
		for {
			a, err := w.Recv()
			if err != nil {
				t.Fatal(err)
			}
			if until(a) {
				return
			}
		}
	}
	create := func(id, start int64) *pb.WatchRequest {
		return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{
			CreateRequest: &pb.WatchCreateRequest{Key: []byte("a"), WatchId: id, StartRevision: start},
		}}
	}
	created := func(a *pb.WatchResponse) bool { return a.Created }
	canceled := func(a *pb.WatchResponse) bool { return a.Canceled }
	watchers := func() (ended int) {
		for _, s := range r.Ended() {
			if s.Name() == "watch" {
				ended++
			}
		}
		return ended
	}
	ask(create(1, 0), created)
	ask(create(1, 0), created) // taken: no span, as in etcd
	ask(create(2, 0), created)
	if n := watchers(); n != 0 {
		t.Errorf("%d spans have ended, of 2 watchers that live", n)
	}
	cancel := &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: 1}}}
	ask(cancel, canceled)
	if n := watchers(); n != 1 {
		t.Errorf("%d spans have ended, of 1 watcher that was cancelled", n)
	}
	ask(create(4, 1), canceled) // compacted
	s.services.Stop()
	for {
		if _, err := w.Recv(); err != nil {
			break
		}
	}
	// The client hears of the end from the connection, perhaps before the server has ended the stream.
	for end := time.Now().Add(20 * time.Second); watchers() != 3; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d spans have ended, of 3 watchers of a stream that is over", watchers())
		}
	}
}

// Without a tracer nothing is made of what a span would say.
func TestNoTracerNoCost(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	if _, err := s.client(t).Put(within(t), "a", "b"); err != nil {
		t.Fatal(err)
	}
	ctx, req := t.Context(), &pb.RangeRequest{Key: []byte("a"), Serializable: true}
	var failed atomic.Int32
	read := func(s *rpc.Services) float64 {
		return testing.AllocsPerRun(1000, func() {
			a, err := s.Range(ctx, req)
			if err != nil {
				failed.Add(1)
				return
			}
			a.Free()
		})
	}
	_, o := recorded()
	off, on := read(s.services), read(serve(t, o, watch.Options{}).services)
	if off >= on || failed.Load() > 0 {
		t.Errorf("%v allocations without a tracer, %v with one; %d failed", off, on, failed.Load())
	}
}
