package compat

import (
	"context"
	"errors"
	"fmt"
	"io"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/encoding/protowire"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	mvccpb "go.etcd.io/etcd/api/v3/mvccpb"
)

// ask runs f for both systems at once, on emptied stores, and wants the same from both. What f returns is text.
func ask(t *testing.T, f func(ctx context.Context, s *target) (string, error)) {
	t.Helper()
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	got := make(map[*target]string)
	results := make(chan func(), 2)
	_ = systems.both(func(s *target) error {
		text, err := f(ctx, s)
		if err != nil {
			text += "ended: " + err.Error()
		}
		results <- func() { got[s] = text }
		return nil
	})
	for range 2 {
		(<-results)()
	}
	if a, b := got[systems.etcd], got[systems.trivet]; a != b {
		t.Errorf("etcd:\n%s\nTrivet:\n%s", a, b)
	} else if a == "" {
		t.Error("both say nothing")
	} else if strings.Contains(a, context.DeadlineExceeded.Error()) {
		t.Errorf("neither comes to an end: %s", a)
	}
}

// TestLeaseEnds waits for a lease to end: its keys go, and a watcher is told.
func TestLeaseEnds(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var told strings.Builder
		leases, kvs := pb.NewLeaseClient(s.conns[0]), pb.NewKVClient(s.conns[1])
		for i, ttl := range []int64{1, 0, -3, 4, 6} {
			id := int64(100 + i)
			granted, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: ttl})
			if err != nil {
				return told.String(), err
			}
			fmt.Fprintf(&told, "asked for %d s, got %d\n", ttl, granted.TTL)
			for _, key := range []string{"b", "a"} {
				if _, err := kvs.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "%s%d", key, i), Lease: id}); err != nil {
					return told.String(), err
				}
			}
		}
		w, err := pb.NewWatchClient(s.conns[2]).Watch(ctx)
		if err != nil {
			return told.String(), err
		}
		create := &pb.WatchCreateRequest{
			Key: []byte{0}, RangeEnd: []byte{0}, StartRevision: s.base + 1, PrevKv: true,
			Filters: []pb.WatchCreateRequest_FilterType{pb.WatchCreateRequest_NOPUT},
		}
		if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
			return told.String(), err
		}
		// Which of those that end in the same second ends first is a matter of luck: they are told apart by their keys.
		gone := make(map[string][]string)
		for n := 0; n < 10; {
			r, err := w.Recv()
			if err != nil {
				return told.String(), err
			}
			for _, e := range r.Events {
				n++
				key := string(e.Kv.Key)
				gone[key[1:]] = append(gone[key[1:]], fmt.Sprintf("%v %s, which was of lease %d", e.Type, key, e.PrevKv.GetLease()))
			}
		}
		for i := range 5 {
			fmt.Fprintln(&told, gone[fmt.Sprint(i)])
		}
		left, err := leases.LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: 100, Keys: true})
		if err != nil {
			return told.String(), err
		}
		fmt.Fprintf(&told, "left: %d of %d, keys %q\n", left.TTL, left.GrantedTTL, left.Keys)
		return told.String(), nil
	})
}

// TestKeepAliveStream sends several requests on one stream.
func TestKeepAliveStream(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var told strings.Builder
		leases := pb.NewLeaseClient(s.conns[0])
		for id := range int64(3) {
			if _, err := leases.LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id + 1, TTL: 1000 + id}); err != nil {
				return "", err
			}
		}
		for member := range memberCount {
			stream, err := pb.NewLeaseClient(s.conns[member]).LeaseKeepAlive(ctx)
			if err != nil {
				return told.String(), err
			}
			for _, id := range []int64{1, 3, 9, 2, 0, 1} {
				if err := stream.Send(&pb.LeaseKeepAliveRequest{ID: id}); err != nil {
					return told.String(), err
				}
				r, err := stream.Recv()
				if err != nil {
					return told.String(), err
				}
				fmt.Fprintf(&told, "member %d: %d for %d s, revision %d\n", member, r.ID, r.TTL, r.Header.Revision-s.base)
			}
			if err := stream.CloseSend(); err != nil {
				return told.String(), err
			}
			if _, err := stream.Recv(); !errors.Is(err, io.EOF) {
				fmt.Fprintf(&told, "then %v\n", err)
			}
		}
		return told.String(), nil
	})
}

// TestProgress waits until watchers are told of progress that they did not ask for.
func TestProgress(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		w, err := pb.NewWatchClient(s.conns[1]).Watch(ctx)
		if err != nil {
			return "", err
		}
		for _, notify := range []bool{false, true} {
			create := &pb.WatchCreateRequest{Key: []byte("k"), ProgressNotify: notify}
			if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
				return "", err
			}
		}
		if _, err := pb.NewKVClient(s.conns[1]).Put(ctx, &pb.PutRequest{Key: []byte("other")}); err != nil {
			return "", err
		}
		var told strings.Builder
		for range 4 { // two creations, two notifications
			r, err := w.Recv()
			if err != nil {
				return told.String(), err
			}
			if !r.Created {
				fmt.Fprintf(&told, "watch id %d is at %d: %d events\n", r.WatchId, r.Header.Revision-s.base, len(r.Events))
			}
		}
		return told.String(), nil
	})
}

// TestFragments replays more than one message holds.
func TestFragments(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var told strings.Builder
		kvs := pb.NewKVClient(s.conns[0])
		for i := range 6 {
			value := strings.Repeat(fmt.Sprint(i), 900<<10)
			if _, err := kvs.Put(ctx, &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Value: []byte(value)}); err != nil {
				return "", err
			}
		}
		w, err := pb.NewWatchClient(s.conns[0]).Watch(ctx)
		if err != nil {
			return "", err
		}
		create := &pb.WatchCreateRequest{Key: []byte("k"), RangeEnd: []byte("l"), StartRevision: s.base + 1, Fragment: true}
		if err := w.Send(&pb.WatchRequest{RequestUnion: &pb.WatchRequest_CreateRequest{CreateRequest: create}}); err != nil {
			return "", err
		}
		var events []*mvccpb.Event
		var last *pb.WatchResponse
		for len(events) < 6 {
			if last, err = w.Recv(); err != nil {
				return told.String(), err
			}
			events = append(events, last.Events...)
		}
		for _, e := range events {
			fmt.Fprintf(&told, "%v %s = %d x %.1s at %d\n", e.Type, e.Kv.Key, len(e.Kv.Value), e.Kv.Value, e.Kv.ModRevision-s.base)
		}
		// Where the history is cut is the server's affair, but the last piece must say that it is the last.
		fmt.Fprintf(&told, "more to come: %v\n", last.Fragment)
		return told.String(), nil
	})
}

// rawCodec sends bytes as they are.
type rawCodec struct{}

func (rawCodec) Name() string { return "proto" }

func (rawCodec) Marshal(v any) ([]byte, error) { return *v.(*[]byte), nil }

func (rawCodec) Unmarshal(data []byte, v any) error {
	*v.(*[]byte) = append([]byte(nil), data...)
	return nil
}

// libraryWords takes out of a text what comes from the libraries: protobuf writes one of two kinds of space, by the binary
// it is in, and gRPC has other words for a message that it cannot read since the version that etcd is built with.
var libraryWords = strings.NewReplacer("\u00a0", " ", "grpc: error unmarshalling request: ", "grpc: failed to unmarshal the received message: ")

// TestBadMessages sends what is no request, and asks for what is no call.
func TestBadMessages(t *testing.T) {
	unknownField := protowire.AppendString(protowire.AppendTag(protowire.AppendString(protowire.AppendTag(nil, 1, protowire.BytesType), "a"), 99, protowire.BytesType), "x")
	for _, c := range []struct {
		name, method string
		body         []byte
	}{
		{"cut off", "/etcdserverpb.KV/Put", []byte{0x0a, 5, 'a'}},
		{"wrong wire type", "/etcdserverpb.KV/Put", []byte{0x09, 5}},
		{"field number 0", "/etcdserverpb.KV/Range", []byte{0x02, 1, 'a'}},
		{"group", "/etcdserverpb.KV/Range", []byte{0x0a, 1, 'a', 0x9b, 0x06}},
		{"varint too long", "/etcdserverpb.KV/Range", []byte{0x18, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1}},
		{"unknown field", "/etcdserverpb.KV/Range", unknownField},
		{"unknown field of a put", "/etcdserverpb.KV/Put", unknownField},
		{"lease cut off", "/etcdserverpb.Lease/LeaseGrant", []byte{0x08}},
		{"no such call", "/etcdserverpb.KV/Nothing", nil},
		{"no such service", "/etcdserverpb.Nothing/Range", nil},
		{"no path", "/x", nil},
	} {
		t.Run(c.name, func(t *testing.T) {
			ask(t, func(ctx context.Context, s *target) (string, error) {
				var answer []byte
				err := s.conns[0].Invoke(ctx, c.method, &c.body, &answer, grpc.ForceCodec(rawCodec{}))
				st := status.Convert(err)
				return fmt.Sprintf("%v %q", st.Code(), libraryWords.Replace(st.Message())), nil
			})
		})
	}
}

// TestSizes sends requests around the bound on their size.
func TestSizes(t *testing.T) {
	for _, size := range []int{1<<20 + 1<<18, 3<<19 - 60, 3<<19 + 1, 2 << 20, 2<<20 + 1<<17} {
		t.Run(fmt.Sprint(size), func(t *testing.T) {
			ask(t, func(ctx context.Context, s *target) (string, error) {
				_, err := pb.NewKVClient(s.conns[1]).Put(ctx, &pb.PutRequest{Key: []byte("k"), Value: make([]byte, size)})
				st := status.Convert(err)
				return fmt.Sprintf("%v %q", st.Code(), st.Message()), nil
			})
		})
	}
}

// TestMetadata asks with what clients send beside the request.
func TestMetadata(t *testing.T) {
	for _, pairs := range [][]string{
		{"hasleader", "true"}, {"client-api-version", "3.7"}, {"token", "nonsense"}, {"authorization", "Bearer nonsense"},
	} {
		t.Run(pairs[0], func(t *testing.T) {
			ask(t, func(ctx context.Context, s *target) (string, error) {
				ctx = metadata.AppendToOutgoingContext(ctx, pairs...)
				r, err := pb.NewKVClient(s.conns[1]).Put(ctx, &pb.PutRequest{Key: []byte("k")})
				if err != nil {
					return "", err
				}
				return fmt.Sprint(r.Header.Revision - s.base), nil
			})
		})
	}
}

// TestMoveLeader asks for another leader: of a member that does not lead, in favour of a member that does not exist, and of
// one that does.
func TestMoveLeader(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		first, err := pb.NewMaintenanceClient(s.conns[0]).Status(ctx, &pb.StatusRequest{})
		if err != nil {
			return "", err
		}
		var told strings.Builder
		leader := s.members[first.Leader] // counts from 1
		next := leader%memberCount + 1
		var id uint64
		for one, n := range s.members {
			if n == next {
				id = one
			}
		}
		for _, to := range []struct{ asked, target uint64 }{{next, id}, {next, 12345}, {leader, 12345}, {leader, 0}, {leader, first.Leader}, {leader, id}} {
			r, err := pb.NewMaintenanceClient(s.conns[to.asked-1]).MoveLeader(ctx, &pb.MoveLeaderRequest{TargetID: to.target})
			fmt.Fprintf(&told, "%v, header %v\n", status.Convert(err).Message(), r.GetHeader() != nil)
		}
		for {
			now, err := pb.NewMaintenanceClient(s.conns[0]).Status(ctx, &pb.StatusRequest{})
			if err != nil {
				return told.String(), err
			}
			if now.Leader == id {
				return told.String(), nil
			}
			time.Sleep(10 * time.Millisecond)
		}
	})
}
