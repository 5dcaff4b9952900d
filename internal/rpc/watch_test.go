package rpc_test

import (
	"context"
	"errors"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/v3rpc/rpctypes"
	clientv3 "go.etcd.io/etcd/client/v3"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/rpc/rpctest"
	"github.com/trivet-kv/trivet/internal/watch"
)

func create(r *pb.WatchCreateRequest) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: r}}
}

func cancelOf(id int64) *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_CancelRequest{CancelRequest: &pb.WatchCancelRequest{WatchId: id}}}
}

func progress() *pb.WatchRequest {
	return &pb.WatchRequest{RequestUnion: &pb.WatchRequest_ProgressRequest{ProgressRequest: &pb.WatchProgressRequest{}}}
}

// watching is one stream of a script.
type watching struct {
	*script
	stream pb.Watch_WatchClient
}

func (p *script) watch() *watching {
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	p.Cleanup(cancel)
	s, err := pb.NewWatchClient(p.conn).Watch(ctx)
	if err != nil {
		p.Fatal(err)
	}
	return &watching{p, s}
}

func (w *watching) send(r *pb.WatchRequest) {
	w.Helper()
	if err := w.stream.Send(r); err != nil {
		w.Fatal(err)
	}
	fmt.Fprintf(&w.out, "Watch %s\n", text(w.T, r))
}

// next writes down the next n answers.
func (w *watching) next(n int) {
	w.Helper()
	for range n {
		r, err := w.stream.Recv()
		if err != nil {
			w.Fatal(err)
		}
		fmt.Fprintf(&w.out, "  %s\n", shorten(text(w.T, r)))
	}
}

func (w *watching) ask(r *pb.WatchRequest, n int) {
	w.Helper()
	w.send(r)
	w.next(n)
}

// handWatched are the watches whose answers by etcd 3.7.3 are kept in testdata/watch.txt.
func (p *script) handWatched() {
	k := []byte("k")
	put := func(key, value string) { p.call("KV/Put", &pb.PutRequest{Key: []byte(key), Value: []byte(value)}) }
	del := func(key string) { p.call("KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte(key)}) }
	w := p.watch()
	w.ask(create(&pb.WatchCreateRequest{Key: k}), 1)
	w.ask(create(&pb.WatchCreateRequest{Key: k, RangeEnd: []byte("m"), WatchId: 7, PrevKv: true}), 1)
	w.ask(create(&pb.WatchCreateRequest{Key: k, WatchId: 7}), 1)
	w.ask(create(&pb.WatchCreateRequest{Key: k, RangeEnd: k}), 1)
	w.ask(create(&pb.WatchCreateRequest{Key: k, RangeEnd: []byte("a")}), 1)
	w.ask(create(&pb.WatchCreateRequest{Key: k, StartRevision: -1}), 1)
	w.ask(cancelOf(0), 1)
	put("k", "1")
	w.next(1)
	put("k", "2")
	w.next(1)
	put("lease", "")
	w.next(1) // at once, because answers may hold many revisions
	del("k")
	w.next(1)
	del("k")
	w.send(cancelOf(99)) // no such watcher: no answer
	w.ask(cancelOf(7), 1)
	w.ask(create(&pb.WatchCreateRequest{Key: k, StartRevision: 1}), 2)
	w.ask(create(&pb.WatchCreateRequest{Key: k, StartRevision: 2, PrevKv: true, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT}}), 2)
	w.ask(create(&pb.WatchCreateRequest{RangeEnd: []byte{0}, StartRevision: 2, Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NODELETE}}), 2)
	w.ask(create(&pb.WatchCreateRequest{}), 1)

	txn := p.watch()
	txn.ask(create(&pb.WatchCreateRequest{Key: []byte("t"), RangeEnd: []byte("u"), PrevKv: true}), 1)
	p.call("KV/Txn", &pb.TxnRequest{Success: []*pb.RequestOp{
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t1")}}},
		{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: []byte("t2")}}},
		{Request: &pb.RequestOp_RequestDeleteRange{RequestDeleteRange: &pb.DeleteRangeRequest{Key: []byte("k"), RangeEnd: []byte("l")}}},
	}})
	txn.next(1)
	p.call("KV/DeleteRange", &pb.DeleteRangeRequest{Key: []byte("t"), RangeEnd: []byte("u")})
	txn.next(1)
	txn.ask(progress(), 1)
	txn.ask(create(&pb.WatchCreateRequest{Key: []byte("later"), StartRevision: 1000}), 1)

	p.call("KV/Compact", &pb.CompactionRequest{Revision: 4, Physical: true})
	c := p.watch()
	c.ask(create(&pb.WatchCreateRequest{Key: k, StartRevision: 2}), 2)
	c.ask(create(&pb.WatchCreateRequest{Key: k, StartRevision: 3, WatchId: 44}), 2)
	c.ask(create(&pb.WatchCreateRequest{Key: k, StartRevision: 3, WatchId: 44}), 1)
	c.ask(cancelOf(44), 1)
	c.ask(create(&pb.WatchCreateRequest{Key: k, StartRevision: 4, PrevKv: true}), 2)

	closed := p.watch()
	closed.ask(create(&pb.WatchCreateRequest{Key: []byte("half")}), 1)
	if err := closed.stream.CloseSend(); err != nil {
		p.Fatal(err)
	}
	put("half", "closed")
	closed.next(1)
}

func TestWatchAnswersAsEtcd(t *testing.T) { golden(t, "testdata/watch.txt", (*script).handWatched) }

// A watcher that allows fragments gets a long answer in parts, whole again when put together; one that does not gets it
// in one piece.
func TestFragments(t *testing.T) {
	s := serve(t, rpc.Options{MaxRequestBytes: 1 << 10}, watch.Options{}) // the bound is half a MiB more
	conn := s.dial(t)
	value := make([]byte, 300<<10)
	ops := make([]*pb.RequestOp, 4)
	for i := range ops {
		ops[i] = &pb.RequestOp{Request: &pb.RequestOp_RequestPut{RequestPut: &pb.PutRequest{Key: fmt.Append(nil, "f", i), Value: value}}}
	}
	for _, fragment := range []bool{true, false} {
		stream, err := pb.NewWatchClient(conn).Watch(within(t))
		if err != nil {
			t.Fatal(err)
		}
		if err := stream.Send(create(&pb.WatchCreateRequest{Key: []byte("f"), RangeEnd: []byte("g"), Fragment: fragment})); err != nil {
			t.Fatal(err)
		}
		if _, err := stream.Recv(); err != nil {
			t.Fatal(err)
		}
		if _, err := s.services.Txn(within(t), &pb.TxnRequest{Success: ops}); err != nil {
			t.Fatal(err)
		}
		answers, events := 0, 0
		for more := true; more; answers++ {
			r, err := stream.Recv()
			if err != nil {
				t.Fatal(err)
			}
			for i, e := range r.Events {
				if want := fmt.Sprint("f", events+i); string(e.Kv.Key) != want {
					t.Fatalf("event %d is of %q", events+i, e.Kv.Key)
				}
			}
			events += len(r.Events)
			more = r.Fragment
		}
		want := 1
		if fragment {
			want = 4
		}
		if answers != want || events != len(ops) {
			t.Errorf("fragment=%v: %d events in %d answers, want %d in %d", fragment, events, answers, len(ops), want)
		}
	}
}

// Who comes to a member that has just lost its leader is served: etcd's client gives up a watch for good that is refused then.
func TestRequireLeaderJustLost(t *testing.T) {
	s := serve(t, rpc.Options{ElectionTimeout: time.Hour}, watch.Options{})
	strict := metadata.AppendToOutgoingContext(within(t), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	kvs := pb.NewKVClient(s.dial(t))
	read := func() error {
		_, err := kvs.Range(strict, &pb.RangeRequest{Key: []byte("k"), Serializable: true})
		return err
	}
	s.LeaderID.Store(0)
	if err := read(); status.Code(err) != codes.Unavailable || errors.Is(rpctypes.Error(err), rpctypes.ErrNoLeader) {
		t.Errorf("before there ever was a leader: %v", err)
	}
	time.AfterFunc(100*time.Millisecond, func() { s.LeaderID.Store(rpctest.MemberID) })
	if r := <-s.client(t).Watch(clientv3.WithRequireLeader(within(t)), "k", clientv3.WithCreatedNotify()); !r.Created { // it is tried again
		t.Errorf("a watch from before there ever was a leader: %v", r.Err())
	}
	if err := read(); err != nil {
		t.Fatal(err)
	}
	s.LeaderID.Store(0)
	if err := read(); err != nil {
		t.Errorf("when the leader was just lost: %v", err)
	}
	if r := <-s.client(t).Watch(clientv3.WithRequireLeader(within(t)), "k", clientv3.WithCreatedNotify()); !r.Created {
		t.Errorf("a watch, when the leader was just lost: %v", r.Err())
	}
}

// A stream that requires a leader ends when there is none for four looks; another lives on.
func TestRequireLeader(t *testing.T) {
	s := serve(t, rpc.Options{ElectionTimeout: 20 * time.Millisecond}, watch.Options{})
	conn := s.dial(t)
	strict := metadata.AppendToOutgoingContext(within(t), rpctypes.MetadataRequireLeaderKey, rpctypes.MetadataHasLeader)
	open := func(ctx context.Context) pb.Watch_WatchClient {
		w, err := pb.NewWatchClient(conn).Watch(ctx)
		if err != nil {
			t.Fatal(err)
		}
		if err := w.Send(create(&pb.WatchCreateRequest{Key: []byte("k")})); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Recv(); err != nil {
			t.Fatal(err)
		}
		return w
	}
	a, b := open(strict), open(within(t))
	keep, err := pb.NewLeaseClient(conn).LeaseKeepAlive(strict)
	if err != nil {
		t.Fatal(err)
	}
	s.LeaderID.Store(0)
	noLeader := func(what string, err error) {
		t.Helper()
		if st := status.Convert(err); st.Code() != codes.Unavailable || st.Message() != "etcdserver: no leader" {
			t.Errorf("%s: %v", what, err)
		}
	}
	_, err = a.Recv()
	noLeader("watch", err)
	_, err = keep.Recv()
	noLeader("keepalive", err)
	_, err = pb.NewKVClient(conn).Range(strict, &pb.RangeRequest{Key: []byte("k"), Serializable: true})
	noLeader("range", err)
	if _, err := pb.NewKVClient(conn).Put(within(t), &pb.PutRequest{Key: []byte("k")}); err != nil {
		t.Fatal(err)
	}
	if r, err := b.Recv(); err != nil || len(r.Events) != 1 {
		t.Errorf("the other watch: %v, %v", r, err)
	}
}

// etcd's client, with its own watch multiplexing, sees every event once.
func TestClientWatches(t *testing.T) {
	c := serve(t, rpc.Options{}, watch.Options{}).client(t)
	ctx := within(t)
	ch := c.Watch(ctx, "w", clientv3.WithPrefix(), clientv3.WithPrevKV(), clientv3.WithCreatedNotify())
	if r := <-ch; !r.Created {
		t.Fatalf("first answer: %+v", r)
	}
	for i := range 500 {
		if _, err := c.Put(ctx, "w", fmt.Sprint(i)); err != nil {
			t.Fatal(err)
		}
	}
	for i := 0; i < 500; {
		r := <-ch
		if r.Err() != nil {
			t.Fatal(r.Err())
		}
		for _, e := range r.Events {
			if string(e.Kv.Value) != fmt.Sprint(i) || (i > 0) != (e.PrevKv != nil) {
				t.Fatalf("event %d: %v", i, e)
			}
			i++
		}
	}
	if err := c.RequestProgress(ctx); err != nil {
		t.Fatal(err)
	}
	if r := <-ch; !r.IsProgressNotify() || r.Header.Revision != 501 {
		t.Errorf("progress: %+v", r)
	}
}

// A client that goes away while the member stops gets a clear end.
func TestStopEndsStreams(t *testing.T) {
	s := serve(t, rpc.Options{}, watch.Options{})
	w, err := pb.NewWatchClient(s.dial(t)).Watch(within(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Send(create(&pb.WatchCreateRequest{Key: []byte("k")})); err != nil {
		t.Fatal(err)
	}
	if _, err := w.Recv(); err != nil {
		t.Fatal(err)
	}
	s.services.Stop()
	if _, err := w.Recv(); !errors.Is(err, rpctypes.ErrGRPCStopped) && status.Convert(err).Message() != "etcdserver: server stopped" {
		t.Errorf("the stream ended with %v", err)
	}
}
