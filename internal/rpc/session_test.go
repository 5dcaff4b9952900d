package rpc_test

import (
	"context"
	"fmt"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3election/v3electionpb"
	"go.etcd.io/etcd/server/v3/etcdserver/api/v3lock/v3lockpb"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// sessions are the callers of the lock and election services in one script.
type sessions struct {
	*script
	locks     v3lockpb.LockClient
	elections v3electionpb.ElectionClient
	kv        pb.KVClient
	leases    pb.LeaseClient
}

// done writes down a call and its answer.
func (p *sessions) done(method string, req, resp proto.Message, err error) {
	p.Helper()
	p.answer(method, req, resp, err)
}

// begin makes a call in the background; the returned function waits for the answer and writes it down.
func begin[Req, Resp proto.Message](p *sessions, ctx context.Context, method string, req Req, f func(context.Context, Req) (Resp, error)) func() {
	var resp Resp
	var err error
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		resp, err = f(ctx, req)
	}()
	return func() {
		p.Helper()
		<-ended
		p.done(method, req, resp, err)
	}
}

// waiters waits until n keys are under a prefix.
func (p *sessions) waiters(prefix string, n int64) {
	p.Helper()
	r := &pb.RangeRequest{Key: []byte(prefix), RangeEnd: []byte(clientv3.GetPrefixRangeEnd(prefix)), CountOnly: true}
	for end := time.Now().Add(20 * time.Second); ; time.Sleep(5 * time.Millisecond) {
		out, err := p.kv.Range(within(p), r)
		if err != nil {
			p.Fatal(err)
		}
		if out.Count == n {
			return
		}
		if time.Now().After(end) {
			p.Fatalf("%d keys under %s, want %d", out.Count, prefix, n)
		}
	}
}

func (p *sessions) lock(ctx context.Context, name string, lease int64) func() {
	return begin(p, ctx, "Lock", &v3lockpb.LockRequest{Name: []byte(name), Lease: lease}, func(ctx context.Context, r *v3lockpb.LockRequest) (*v3lockpb.LockResponse, error) {
		return p.locks.Lock(ctx, r)
	})
}

func (p *sessions) unlock(key string) {
	r := &v3lockpb.UnlockRequest{Key: []byte(key)}
	out, err := p.locks.Unlock(within(p), r)
	p.done("Unlock", r, out, err)
}

func (p *sessions) campaign(ctx context.Context, value string, lease int64) func() {
	return begin(p, ctx, "Campaign", &v3electionpb.CampaignRequest{Name: []byte("e"), Value: []byte(value), Lease: lease}, func(ctx context.Context, r *v3electionpb.CampaignRequest) (*v3electionpb.CampaignResponse, error) {
		return p.elections.Campaign(ctx, r)
	})
}

func (p *sessions) proclaim(l *v3electionpb.LeaderKey, value string) {
	r := &v3electionpb.ProclaimRequest{Leader: l, Value: []byte(value)}
	out, err := p.elections.Proclaim(within(p), r)
	p.done("Proclaim", r, out, err)
}

func (p *sessions) resign(l *v3electionpb.LeaderKey) {
	r := &v3electionpb.ResignRequest{Leader: l}
	out, err := p.elections.Resign(within(p), r)
	p.done("Resign", r, out, err)
}

func (p *sessions) leader(name string) {
	r := &v3electionpb.LeaderRequest{Name: []byte(name)}
	out, err := p.elections.Leader(within(p), r)
	p.done("Leader", r, out, err)
}

func newSessions(p *script) *sessions {
	s := &sessions{
		script: p, locks: v3lockpb.NewLockClient(p.conn), elections: v3electionpb.NewElectionClient(p.conn),
		kv: pb.NewKVClient(p.conn), leases: pb.NewLeaseClient(p.conn),
	}
	for id := int64(101); id <= 106; id++ {
		if _, err := s.leases.LeaseGrant(within(p), &pb.LeaseGrantRequest{ID: id, TTL: 600}); err != nil {
			p.Fatal(err)
		}
	}
	return s
}

// handLocked are the locks and elections whose answers by etcd 3.7.3 are kept in testdata/session.txt.
func (p *sessions) handLocked() {
	ctx := within(p)
	p.lock(ctx, "a", 101)()
	p.lock(ctx, "a", 101)() // holds it already
	p.lock(ctx, "", 101)()
	p.lock(ctx, "a", 999)() // no such lease
	p.lock(ctx, "a", -1)()

	second := p.lock(ctx, "a", 102)
	p.waiters("a/", 2)
	third := p.lock(ctx, "a", 103)
	p.waiters("a/", 3)
	p.unlock("a/66") // the second in the row gives up
	p.unlock("a/65")
	second()
	third()
	p.unlock("a/67")
	p.unlock("a/67")
	p.unlock("")

	// Who goes away does not wait on.
	p.lock(ctx, "a", 101)()
	gone, cancel := context.WithCancel(ctx)
	fourth := p.lock(gone, "a", 104)
	p.waiters("a/", 2)
	cancel()
	fourth()
	p.waiters("a/", 1)
	// A lease that ends gives its lock back.
	fifth := p.lock(ctx, "a", 105)
	p.waiters("a/", 2)
	if _, err := p.leases.LeaseRevoke(ctx, &pb.LeaseRevokeRequest{ID: 101}); err != nil {
		p.Fatal(err)
	}
	fifth()

	p.leader("e")
	p.leader("")
	p.proclaim(nil, "x")
	p.resign(nil)
	p.campaign(ctx, "one", 102)()
	p.campaign(ctx, "one", 102)()
	p.campaign(ctx, "uno", 102)() // another value of the leader
	p.leader("e")
	p.campaign(ctx, "x", 999)()
	key := func(lease string, rev int64, id int64) *v3electionpb.LeaderKey {
		return &v3electionpb.LeaderKey{Name: []byte("e"), Key: []byte("e/" + lease), Rev: rev, Lease: id}
	}
	now, err := p.elections.Leader(ctx, &v3electionpb.LeaderRequest{Name: []byte("e")})
	if err != nil {
		p.Fatal(err)
	}
	rev := now.Kv.CreateRevision
	p.proclaim(key("66", rev, 102), "eins")
	p.proclaim(key("66", rev+1, 102), "no")
	p.proclaim(key("66", rev, 999), "no")
	p.proclaim(&v3electionpb.LeaderKey{}, "no")
	other := p.campaign(ctx, "two", 103)
	p.waiters("e/", 2)
	gone, cancel = context.WithCancel(ctx)
	tired := p.campaign(gone, "three", 104)
	p.waiters("e/", 3)
	cancel()
	tired()
	p.waiters("e/", 2)
	p.resign(key("66", rev+1, 102)) // not ours: no error, and nothing happens
	p.resign(key("66", rev, 102))
	other()
	p.resign(&v3electionpb.LeaderKey{})
	p.leader("e")
}

func TestLocksAndElectionsAnswerAsEtcd(t *testing.T) {
	golden(t, "testdata/session.txt", func(p *script) { newSessions(p).handLocked() })
}

// observed are the answers of Observe that etcd 3.7.3 gave, in testdata/observe.txt.
func (p *sessions) observed() {
	ctx, cancel := context.WithCancel(within(p))
	defer cancel()
	stream, err := p.elections.Observe(ctx, &v3electionpb.LeaderRequest{Name: []byte("e")})
	if err != nil {
		p.Fatal(err)
	}
	next := func() {
		p.Helper()
		r, err := stream.Recv()
		if err != nil {
			p.Fatal(err)
		}
		fmt.Fprintf(&p.out, "  observed %s\n", text(p.T, r))
	}
	p.campaign(ctx, "one", 101)() // the stream began before there was a leader, or now: it says the same
	next()
	put := func(key, value string) {
		p.call("KV/Put", &pb.PutRequest{Key: []byte(key), Value: []byte(value)})
	}
	put("e/65", "uno")
	next()
	put("e/65", "eins")
	next()
	second := p.campaign(ctx, "two", 102)
	p.waiters("e/", 2)
	p.unlock("e/65")
	second()
	next()
	p.unlock("e/66")
	p.waiters("e/", 0)
	put("e/anybody", "me")
	next()
	cancel()
	_, err = stream.Recv()
	fmt.Fprintf(&p.out, "  ended %s\n", status.Code(err))
}

func TestObserveAnswersAsEtcd(t *testing.T) {
	golden(t, "testdata/observe.txt", func(p *script) { newSessions(p).observed() })
}

// A lock, a campaign and an observer that wait end with the member's stop, and take their keys back.
func TestWaitingSessionsEndWithTheServices(t *testing.T) {
	m := serve(t, rpc.Options{}, watch.Options{})
	p := newSessions(&script{T: t, conn: m.dial(t)})
	ctx := within(t)
	if _, err := p.locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("a"), Lease: 101}); err != nil {
		t.Fatal(err)
	}
	ends := make(chan error, 3)
	go func() {
		_, err := p.locks.Lock(ctx, &v3lockpb.LockRequest{Name: []byte("a"), Lease: 102})
		ends <- err
	}()
	go func() {
		_, err := p.elections.Campaign(ctx, &v3electionpb.CampaignRequest{Name: []byte("a"), Lease: 103})
		ends <- err
	}()
	p.waiters("a/", 3)
	stream, err := p.elections.Observe(ctx, &v3electionpb.LeaderRequest{Name: []byte("a")})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	go func() {
		_, err := stream.Recv()
		ends <- err
	}()
	m.services.Stop()
	for range cap(ends) {
		if err := <-ends; status.Code(err) != codes.Unavailable || status.Convert(err).Message() != "etcdserver: server stopped" {
			t.Errorf("ended with %v", err)
		}
	}
	if n, _, err := m.Store().Range(kv.RangeOptions{Range: kv.Range{Key: []byte("a/"), End: []byte("a0")}}); err != nil || len(n.KVs) != 1 {
		t.Errorf("%d keys are left, %v", len(n.KVs), err)
	}
}
