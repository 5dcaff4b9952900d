package compat

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
	reflectionpb "google.golang.org/grpc/reflection/grpc_reflection_v1"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
)

// teller writes down what a system answered, in the form in which both must be equal.
type teller struct {
	*target
	strings.Builder
}

// tell writes an answer of a member, counted from 0, or its error.
func (t *teller) tell(member int, what string, m proto.Message, err error) {
	if err != nil {
		s := status.Convert(err)
		fmt.Fprintf(t, "%s: %v %q\n", what, s.Code(), s.Message())
		return
	}
	if err := t.answer(member, nil, m); err != nil {
		fmt.Fprintf(t, "%s: %s: %v\n", t.name, what, err)
	}
	fmt.Fprintf(t, "%s: %s\n", what, oneLine(m))
}

// grant makes leases that last.
func (t *target) grant(ctx context.Context, ids ...int64) error {
	for _, id := range ids {
		if _, err := pb.NewLeaseClient(t.conns[0]).LeaseGrant(ctx, &pb.LeaseGrantRequest{ID: id, TTL: 1000}); err != nil {
			return err
		}
	}
	return nil
}

// waitKeys waits until there are n keys under a prefix that ends in a slash.
func (t *target) waitKeys(ctx context.Context, prefix string, n int64) error {
	for {
		r, err := pb.NewKVClient(t.conns[0]).Range(ctx, &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(prefix[:len(prefix)-1] + "0"), CountOnly: true})
		if err != nil || r.Count == n {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// chosen takes the id of a lease that the server chose out of a key, and says how long the lease is.
func (t *target) chosen(ctx context.Context, key []byte) (int64, string) {
	var id int64
	prefix, hex, _ := bytes.Cut(key, []byte("/"))
	if _, err := fmt.Sscanf(string(hex), "%x", &id); err != nil {
		return 0, fmt.Sprintf("%q: %v", key, err)
	}
	if t.behind = true; t.catchUp(ctx) != nil {
		return id, "the members do not catch up"
	}
	r, err := pb.NewLeaseClient(t.conns[0]).LeaseTimeToLive(ctx, &pb.LeaseTimeToLiveRequest{ID: id, Keys: true})
	if err != nil {
		return id, err.Error()
	}
	return id, fmt.Sprintf("%s/: a lease of %d s, its only key this: %v", prefix, r.GrantedTTL, len(r.Keys) == 1 && bytes.Equal(r.Keys[0], key))
}

// TestLocks takes, waits for and gives back locks, of several clients and members.
func TestLocks(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var to = teller{target: s}
		lockers := make([]v3lockpb.LockClient, memberCount)
		for i := range lockers {
			lockers[i] = v3lockpb.NewLockClient(s.conns[i])
		}
		if err := s.grant(ctx, 11, 12, 13); err != nil {
			return "", err
		}
		lock := func(ctx context.Context, member int, name string, lease int64) {
			r, err := lockers[member].Lock(ctx, &v3lockpb.LockRequest{Name: []byte(name), Lease: lease})
			to.tell(member, fmt.Sprintf("lock %q %d", name, lease), r, err)
		}
		unlock := func(member int, key string) {
			r, err := lockers[member].Unlock(ctx, &v3lockpb.UnlockRequest{Key: []byte(key)})
			to.tell(member, fmt.Sprintf("unlock %q", key), r, err)
		}
		waits := func(ctx context.Context, member int, name string, lease, keys int64) (wait func(), err error) {
			done := make(chan func(), 1)
			go func() {
				r, err := lockers[member].Lock(ctx, &v3lockpb.LockRequest{Name: []byte(name), Lease: lease})
				done <- func() { to.tell(member, fmt.Sprintf("lock %q %d at last", name, lease), r, err) }
			}()
			return func() { (<-done)() }, s.waitKeys(ctx, name+"/", keys)
		}
		lock(ctx, 0, "l", 11)
		lock(ctx, 1, "l", 11) // it has it already
		lock(ctx, 0, "l", 99)
		lock(ctx, 0, "", 11)
		lock(ctx, 0, "free", -5)
		wait, err := waits(ctx, 1, "l", 12, 2)
		if err != nil {
			return to.String(), err
		}
		unlock(2, "l/b")
		wait()
		unlock(2, "l/b")
		unlock(2, "never")
		unlock(2, "")

		short, give := context.WithCancel(ctx)
		defer give()
		if wait, err = waits(short, 2, "l", 13, 2); err != nil {
			return to.String(), err
		}
		give()
		wait()
		if err := s.waitKeys(ctx, "l/", 1); err != nil {
			return to.String() + "who stopped waiting is still in the way", err
		}

		if wait, err = waits(ctx, 2, "l", 13, 2); err != nil {
			return to.String(), err
		}
		if _, err := pb.NewLeaseClient(s.conns[1]).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 13}); err != nil {
			return to.String(), err
		}
		unlock(0, "l/c")
		wait()

		r, err := lockers[1].Lock(ctx, &v3lockpb.LockRequest{Name: []byte("mine")})
		if err != nil {
			return to.String(), err
		}
		id, what := s.chosen(ctx, r.Key)
		fmt.Fprintln(&to, what)
		unlock(0, string(r.Key[:0]))
		_, err = pb.NewLeaseClient(s.conns[1]).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id})
		return to.String(), err
	})
}

// TestElections leads, follows and resigns.
func TestElections(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var to = teller{target: s}
		clients := make([]v3electionpb.ElectionClient, memberCount)
		for i := range clients {
			clients[i] = v3electionpb.NewElectionClient(s.conns[i])
		}
		if err := s.grant(ctx, 11, 12, 13); err != nil {
			return "", err
		}
		name := []byte("e")
		campaign := func(ctx context.Context, member int, value string, lease int64) *v3electionpb.LeaderKey {
			r, err := clients[member].Campaign(ctx, &v3electionpb.CampaignRequest{Name: name, Value: []byte(value), Lease: lease})
			to.tell(member, fmt.Sprintf("campaign %q %d", value, lease), r, err)
			return r.GetLeader()
		}
		leader := func(member int, name string) {
			r, err := clients[member].Leader(ctx, &v3electionpb.LeaderRequest{Name: []byte(name)})
			to.tell(member, "leader of "+name, r, err)
		}
		proclaim := func(member int, l *v3electionpb.LeaderKey, value string) {
			r, err := clients[member].Proclaim(ctx, &v3electionpb.ProclaimRequest{Leader: l, Value: []byte(value)})
			to.tell(member, fmt.Sprintf("proclaim %q", value), r, err)
		}
		resign := func(member int, l *v3electionpb.LeaderKey) {
			r, err := clients[member].Resign(ctx, &v3electionpb.ResignRequest{Leader: l})
			to.tell(member, "resign", r, err)
		}
		observed, err := clients[2].Observe(ctx, &v3electionpb.LeaderRequest{Name: name})
		if err != nil {
			return "", err
		}
		see := func() {
			r, err := observed.Recv()
			if err != nil {
				fmt.Fprintln(&to, "observe:", err)
				return
			}
			fmt.Fprintf(&to, "seen: %s, header as new: %v\n", oneLine(r.Kv), r.Header.Revision >= r.Kv.ModRevision)
		}
		leader(0, "e")
		leader(0, "")
		first := campaign(ctx, 0, "v1", 11)
		if first == nil {
			return to.String(), errors.New("no leader")
		}
		see()
		leader(1, "e")
		campaign(ctx, 1, "v1", 11) // leads already
		campaign(ctx, 1, "v2", 11)
		see()
		campaign(ctx, 1, "v2", 99)
		proclaim(2, first, "v3")
		see()
		proclaim(2, nil, "v4")
		proclaim(2, &v3electionpb.LeaderKey{}, "v4")
		proclaim(2, &v3electionpb.LeaderKey{Name: name, Key: first.Key, Rev: first.Rev + 1, Lease: 11}, "v4")
		proclaim(2, &v3electionpb.LeaderKey{Name: name, Key: []byte("e/none"), Rev: first.Rev, Lease: 11}, "v4")
		proclaim(2, &v3electionpb.LeaderKey{Name: name, Key: first.Key, Rev: first.Rev, Lease: 98}, "v4")
		proclaim(2, &v3electionpb.LeaderKey{Key: first.Key, Rev: first.Rev, Lease: 12}, "v5") // another lease
		see()
		resign(0, nil)
		resign(0, &v3electionpb.LeaderKey{})
		resign(0, &v3electionpb.LeaderKey{Name: name, Key: first.Key, Rev: first.Rev + 1, Lease: 11})

		waits := func(ctx context.Context, member int, value string, lease int64) (wait func() *v3electionpb.LeaderKey, err error) {
			done := make(chan func() *v3electionpb.LeaderKey, 1)
			go func() {
				r, err := clients[member].Campaign(ctx, &v3electionpb.CampaignRequest{Name: name, Value: []byte(value), Lease: lease})
				done <- func() *v3electionpb.LeaderKey {
					to.tell(member, fmt.Sprintf("campaign %q %d at last", value, lease), r, err)
					return r.GetLeader()
				}
			}()
			return func() *v3electionpb.LeaderKey { return (<-done)() }, s.waitKeys(ctx, "e/", 2)
		}
		wait, err := waits(ctx, 1, "w1", 12)
		if err != nil {
			return to.String(), err
		}
		leader(2, "e")
		resign(2, first)
		second := wait()
		see()
		resign(2, first)
		leader(2, "e")
		short, give := context.WithCancel(ctx)
		defer give()
		if wait, err = waits(short, 0, "x1", 13); err != nil {
			return to.String(), err
		}
		give()
		wait()
		if err := s.waitKeys(ctx, "e/", 1); err != nil {
			return to.String() + "who stopped waiting is still in the way", err
		}
		if wait, err = waits(ctx, 0, "x2", 13); err != nil {
			return to.String(), err
		}
		if _, err := pb.NewLeaseClient(s.conns[1]).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 13}); err != nil {
			return to.String(), err
		}
		resign(0, second)
		wait()
		leader(1, "e")
		r, err := clients[1].Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("f"), Value: []byte("y")})
		if err != nil {
			return to.String(), err
		}
		id, what := s.chosen(ctx, r.Leader.Key)
		fmt.Fprintln(&to, what, r.Leader.Lease == id, string(r.Leader.Name), r.Leader.Rev)
		_, err = pb.NewLeaseClient(s.conns[1]).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: id})
		return to.String(), err
	})
}

// TestObserve looks at elections that somebody already leads, that nobody leads, and at histories that are compacted.
func TestObserve(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var to = teller{target: s}
		if err := s.grant(ctx, 11); err != nil {
			return "", err
		}
		c := v3electionpb.NewElectionClient(s.conns[0])
		if _, err := c.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("e"), Value: []byte("1"), Lease: 11}); err != nil {
			return "", err
		}
		for member := range memberCount {
			inner, stop := context.WithCancel(ctx)
			o, err := v3electionpb.NewElectionClient(s.conns[member]).Observe(inner, &v3electionpb.LeaderRequest{Name: []byte("e")})
			if err != nil {
				stop()
				return to.String(), err
			}
			r, err := o.Recv()
			to.tell(member, "observe", r, err)
			stop()
			_, err = o.Recv()
			fmt.Fprintln(&to, "then", status.Code(err))
		}
		inner, stop := context.WithTimeout(ctx, 200*time.Millisecond)
		defer stop()
		o, err := c.Observe(inner, &v3electionpb.LeaderRequest{Name: []byte("nobody")})
		if err != nil {
			return to.String(), err
		}
		_, err = o.Recv()
		fmt.Fprintln(&to, "nobody leads:", status.Code(err))
		return to.String(), nil
	})
}

// TestHealthService asks the service of package health of gRPC.
func TestHealthService(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var to = teller{target: s}
		h := healthpb.NewHealthClient(s.conns[1])
		for _, service := range []string{"", "etcdserverpb.KV", "nothing", "grpc.health.v1.Health"} {
			r, err := h.Check(ctx, &healthpb.HealthCheckRequest{Service: service})
			to.tell(1, "check "+service, r, err)
			w, err := h.Watch(ctx, &healthpb.HealthCheckRequest{Service: service})
			if err != nil {
				return to.String(), err
			}
			r, err = w.Recv()
			to.tell(1, "watch "+service, r, err)
		}
		l, err := h.List(ctx, &healthpb.HealthListRequest{})
		to.tell(1, "list", l, err)
		return to.String(), nil
	})
}

// TestReflection finds all of etcd's services and their descriptions with Trivet, and none with etcd (docs/compat.md).
func TestReflection(t *testing.T) {
	if err := systems.begin(false); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	ask := func(s *target, r *reflectionpb.ServerReflectionRequest) (*reflectionpb.ServerReflectionResponse, error) {
		stream, err := reflectionpb.NewServerReflectionClient(s.conns[0]).ServerReflectionInfo(ctx)
		if err == nil {
			err = stream.Send(r)
		}
		if err != nil && !errors.Is(err, io.EOF) {
			return nil, err
		}
		return stream.Recv()
	}
	list := &reflectionpb.ServerReflectionRequest{MessageRequest: &reflectionpb.ServerReflectionRequest_ListServices{}}
	if _, err := ask(systems.etcd, list); status.Code(err) != codes.Unimplemented {
		t.Errorf("etcd: %v; then docs/compat.md is wrong", err)
	}
	got, err := ask(systems.trivet, list)
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	for _, s := range got.GetListServicesResponse().GetService() {
		names = append(names, s.Name)
	}
	for _, name := range []string{
		"etcdserverpb.KV", "etcdserverpb.Watch", "etcdserverpb.Lease", "etcdserverpb.Cluster", "etcdserverpb.Maintenance",
		"etcdserverpb.Auth", "v3lockpb.Lock", "v3electionpb.Election", "grpc.health.v1.Health",
	} {
		if !slices.Contains(names, name) {
			t.Errorf("%s is not in %v", name, names)
		}
		one, err := ask(systems.trivet, &reflectionpb.ServerReflectionRequest{
			MessageRequest: &reflectionpb.ServerReflectionRequest_FileContainingSymbol{FileContainingSymbol: name},
		})
		if err != nil || len(one.GetFileDescriptorResponse().GetFileDescriptorProto()) == 0 {
			t.Errorf("%s has no description: %v, %v", name, one, err)
		}
	}
}

// TestSnapshotStream looks at the form of the stream that a snapshot comes in: the database, then its hash.
func TestSnapshotStream(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var to = teller{target: s}
		for i := range 20 {
			put := &pb.PutRequest{Key: fmt.Appendf(nil, "k%d", i), Value: make([]byte, 100_000)}
			if _, err := pb.NewKVClient(s.conns[0]).Put(ctx, put); err != nil {
				return "", err
			}
		}
		for member := range memberCount {
			stream, err := pb.NewMaintenanceClient(s.conns[member]).Snapshot(ctx, &pb.SnapshotRequest{})
			if err != nil {
				return to.String(), err
			}
			var whole []byte
			var all []*pb.SnapshotResponse
			for {
				r, err := stream.Recv()
				if errors.Is(err, io.EOF) {
					break
				}
				if err != nil {
					return to.String(), err
				}
				all = append(all, r)
				whole = append(whole, r.Blob...)
			}
			last, size := all[len(all)-1], uint64(len(whole))
			sum := sha256.Sum256(whole[:len(whole)-sha256.Size])
			fmt.Fprintf(&to, "%d pieces or more, hash of %d bytes, right: %v; whole pages: %v; the keys' size at least: %v\n",
				min(len(all), 10), len(last.Blob), bytes.Equal(sum[:], last.Blob), (size-sha256.Size)%4096 == 0, size > 2_000_000)
			left, header, version, odd := size-sha256.Size, 0, map[string]bool{}, 0
			for _, r := range all[:len(all)-1] {
				left -= uint64(len(r.Blob))
				if r.RemainingBytes != left || len(r.Blob) == 0 {
					odd++
				}
				if r.Header != nil {
					header++
				}
				version[r.Version] = true
			}
			fmt.Fprintf(&to, "%d with a wrong number of bytes left, %d with a header; versions %v; the last has %d bytes left, header %v, version %q\n",
				odd, header, version, last.RemainingBytes, last.Header, last.Version)
		}
		return to.String(), nil
	})
}

// TestHash asks for the hash of everything, which differs by right.
func TestHash(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var to = teller{target: s}
		for member := range memberCount {
			if err := s.caughtUp(); err != nil {
				return "", err
			}
			m := pb.NewMaintenanceClient(s.conns[member])
			r, err := m.Hash(ctx, &pb.HashRequest{})
			if err == nil {
				again, err := m.Hash(ctx, &pb.HashRequest{})
				if err != nil {
					return to.String(), err
				}
				fmt.Fprintln(&to, "the same once more:", again.Hash == r.Hash)
				if _, err := pb.NewKVClient(s.conns[member]).Put(ctx, &pb.PutRequest{Key: []byte("a")}); err != nil {
					return to.String(), err
				}
				if again, err = m.Hash(ctx, &pb.HashRequest{}); err != nil {
					return to.String(), err
				}
				fmt.Fprintln(&to, "another after a put:", again.Hash != r.Hash)
				r.Hash = 0
			}
			to.tell(member, "hash", r, err)
			s.behind = true
		}
		return to.String(), nil
	})
}

// TestCampaigns has several wait for one election: each leads after the one before it.
func TestCampaigns(t *testing.T) {
	ask(t, func(ctx context.Context, s *target) (string, error) {
		var to = teller{target: s}
		const waiting = 5
		led := make(chan *v3electionpb.LeaderKey)
		for i := range int64(waiting) {
			if err := s.grant(ctx, 20+i); err != nil {
				return "", err
			}
			go func() {
				r, err := v3electionpb.NewElectionClient(s.conns[i%memberCount]).Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("q"), Value: fmt.Append(nil, i), Lease: 20 + i})
				if err != nil {
					r = &v3electionpb.CampaignResponse{Leader: &v3electionpb.LeaderKey{Name: []byte(err.Error())}}
				}
				led <- r.GetLeader()
			}()
			if err := s.waitKeys(ctx, "q/", 1+i); err != nil {
				return "", err
			}
		}
		for range waiting {
			l := <-led
			fmt.Fprintln(&to, oneLine(l))
			if _, err := pb.NewLeaseClient(s.conns[0]).LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: l.GetLease()}); err != nil {
				return to.String(), err
			}
		}
		return to.String(), nil
	})
}
