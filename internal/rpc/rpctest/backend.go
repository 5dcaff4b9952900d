// Package rpctest is a member of one, in memory, for the tests of packages rpc and gateway: the real state machine,
// store, leases and watch hub behind rpc.Backend, with a log that is nothing but a mutex. It never expires a lease.
package rpctest

import (
	"bytes"
	"context"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/engine"
	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/mvcc"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// The ids of the cluster and its one member.
const (
	ClusterID = 0x8cc8b6ffd6f5a1d5
	MemberID  = 0xac7c97ef0ec193b0
	Term      = 2
)

// Backend is the member. A test may change what its fields hold at any time.
type Backend struct {
	state *fsm.State
	hub   *watch.Hub

	LeaderID  atomic.Uint64 // 0: none
	IsLearner atomic.Bool
	alarms    atomic.Pointer[[]kv.Alarm]
	// Barrier and Refuse, if set, are what ReadBarrier and Propose answer.
	Barrier, Refuse atomic.Pointer[error]
	// OnToken, if set, is told of the tokens that the log makes.
	OnToken atomic.Pointer[func(fsm.Token)]
	// Hold makes ReadBarrier wait for the end of its context.
	Hold atomic.Bool

	// SnapshotBytes is the file that Snapshot answers.
	SnapshotBytes []byte

	compacting sync.WaitGroup

	mu          sync.Mutex // the log
	index       uint64
	id          uint64
	authChanged chan struct{}
}

// New makes the member and closes it at the end of the test.
func New(t testing.TB, o watch.Options) *Backend {
	t.Helper()
	e, err := engine.Open(engine.Options{FS: vfs.NewMem(), Dir: "state"})
	if err != nil {
		t.Fatal(err)
	}
	self := member.Member{
		ID: MemberID, Name: "default",
		PeerURLs: []string{"http://127.0.0.1:2380"}, ClientURLs: []string{"http://127.0.0.1:2379"},
	}
	if err := fsm.Bootstrap(e, []member.Member{self}, []byte{1}); err != nil {
		t.Fatal(err)
	}
	s, err := fsm.Open(e, mvcc.Options{})
	if err != nil {
		t.Fatal(err)
	}
	o.History = s.Store
	b := &Backend{state: s, hub: watch.New(o), index: s.Applied.Index, authChanged: make(chan struct{})}
	b.LeaderID.Store(MemberID)
	t.Cleanup(func() {
		b.compacting.Wait()
		b.hub.Close()
		if err := e.Close(); err != nil {
			t.Error(err)
		}
	})
	return b
}

// everybody waits for every command.
type everybody struct{}

func (everybody) Wants(uint64, uint64) bool { return true }

// Propose applies the command at once.
func (b *Backend) Propose(ctx context.Context, c *command.Command) (command.Result, error) {
	if err := b.Refuse.Load(); err != nil {
		return command.Result{}, *err
	}
	if err := ctx.Err(); err != nil {
		return command.Result{}, err
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	b.id++
	c.ID = b.id
	if c.LeaseGrant != nil {
		c.LeaseGrant.TTL = max(c.LeaseGrant.TTL, 2) // one and a half of etcd's election timeouts
	}
	b.index++
	entry := command.Entry{Index: b.index, Term: Term, Data: command.AppendBatch(nil, 1, [][]byte{c.Append(nil)})}
	out, err := b.state.Apply([]command.Entry{entry}, everybody{})
	if err != nil {
		return command.Result{}, err
	}
	b.hub.Publish(out.Revision, out.Events)
	for _, t := range out.Tokens {
		if f := b.OnToken.Load(); f != nil {
			(*f)(t)
		}
	}
	if out.AuthChanged {
		close(b.authChanged)
		b.authChanged = make(chan struct{})
	}
	res := out.Results[0].Result
	if out.Compacted != 0 {
		done := make(chan struct{})
		res.Compacted = done
		b.compacting.Add(1)
		go func() {
			defer b.compacting.Done()
			defer close(done)
			for {
				if _, ended, err := b.state.Store.CompactStep(context.Background(), 100); ended || err != nil {
					return
				}
			}
		}()
	}
	return res, nil
}

// ReadBarrier has nothing to wait for, unless it is told to.
func (b *Backend) ReadBarrier(ctx context.Context) error {
	if b.Hold.Load() {
		<-ctx.Done()
		return ctx.Err()
	}
	if err := b.Barrier.Load(); err != nil {
		return *err
	}
	return ctx.Err()
}

// Store is the store.
func (b *Backend) Store() *mvcc.Store { return b.state.Store }

// Hub is the hub.
func (b *Backend) Hub() *watch.Hub { return b.hub }

// Auth is the users and roles.
func (b *Backend) Auth() *auth.Auth { return b.state.Auth }

// AuthChanged is closed at their next change.
func (b *Backend) AuthChanged() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.authChanged
}

// Applied is the index of the last entry.
func (b *Backend) Applied() uint64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.index
}

// SkimLease reads the engine.
func (b *Backend) SkimLease(id kv.LeaseID, visit func(key []byte) ([]byte, error)) error {
	return b.state.Leases.Skim(b.state.Engine, id, visit)
}

// Header is always the same.
func (b *Backend) Header() rpc.Header {
	return rpc.Header{ClusterID: ClusterID, MemberID: MemberID, Term: Term}
}

// Leader is LeaderID.
func (b *Backend) Leader() uint64 { return b.LeaderID.Load() }

// Learner is IsLearner.
func (b *Backend) Learner() bool { return b.IsLearner.Load() }

// Members is the one member.
func (b *Backend) Members() []rpc.Member {
	var out []rpc.Member
	for _, m := range b.state.Members.All() {
		out = append(out, rpc.Member{ID: m.ID, Name: m.Name, PeerURLs: m.PeerURLs, ClientURLs: m.ClientURLs, Learner: m.Learner})
	}
	return out
}

// AddMember and its sisters refuse: there is no raft here.
func (b *Backend) AddMember(context.Context, []string, bool) (uint64, error) {
	return 0, kv.ErrUnhealthy
}

// RemoveMember refuses.
func (b *Backend) RemoveMember(context.Context, uint64) error { return kv.ErrNotEnoughStarted }

// UpdateMember refuses.
func (b *Backend) UpdateMember(context.Context, uint64, []string) error { return kv.ErrMemberNotFound }

// PromoteMember refuses.
func (b *Backend) PromoteMember(context.Context, uint64) error { return kv.ErrMemberNotLearner }

// ClusterVersion is 3.7.0.
func (b *Backend) ClusterVersion() (string, rpc.Downgrade) {
	d := b.state.Members.Downgrade()
	return "3.7.0", rpc.Downgrade{Enabled: d.Enabled, Target: d.Target}
}

// Status is made up but for the index.
func (b *Backend) Status() rpc.Status {
	b.mu.Lock()
	defer b.mu.Unlock()
	return rpc.Status{
		Leader: b.Leader(), CommitIndex: b.index, Applied: b.index, Term: Term,
		DBSize: 20480, DBInUse: 16384, Quota: 2 << 30, Learner: b.Learner(),
	}
}

// SetAlarms says what Alarms answers, instead of what the state holds.
func (b *Backend) SetAlarms(a ...kv.Alarm) { b.alarms.Store(&a) }

// Alarms is what SetAlarms was given, and otherwise the state's.
func (b *Backend) Alarms() []kv.Alarm {
	if a := b.alarms.Load(); a != nil {
		return *a
	}
	return b.state.Alarms.All()
}

// LeaseRenew answers the lease's whole time.
func (b *Backend) LeaseRenew(_ context.Context, id kv.LeaseID) (int64, error) {
	l, ok := b.state.Leases.Lookup(id)
	if !ok {
		return 0, kv.ErrLeaseNotFound
	}
	return l.TTL, nil
}

// LeaseTimeToLive answers the lease's whole time.
func (b *Backend) LeaseTimeToLive(_ context.Context, id kv.LeaseID) (kv.Lease, int64, error) {
	l, ok := b.state.Leases.Lookup(id)
	if !ok {
		return kv.Lease{}, 0, kv.ErrLeaseNotFound
	}
	return l, l.TTL, nil
}

// LeaseKeys reads the engine.
func (b *Backend) LeaseKeys(id kv.LeaseID) ([][]byte, error) {
	return b.state.Leases.Keys(b.state.Engine, id)
}

// Leases is the list of ids.
func (b *Backend) Leases() []kv.LeaseID { return b.state.Leases.IDs() }

// MoveLeader knows nobody to move to.
func (b *Backend) MoveLeader(context.Context, uint64) error { return kv.ErrBadLeaderTransferee }

// Defragment does nothing.
func (b *Backend) Defragment() error { return nil }

// Snapshot is a file that holds what SnapshotBytes holds.
func (b *Backend) Snapshot(context.Context) (rpc.Snapshot, error) {
	return &snapshot{bytes.NewReader(b.SnapshotBytes)}, nil
}

type snapshot struct{ *bytes.Reader }

func (*snapshot) Close() error { return nil }
