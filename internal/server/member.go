package server

import (
	"context"
	"sync"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/leader"
	"github.com/trivet-kv/trivet/internal/mvcc"
	"github.com/trivet-kv/trivet/internal/rpc"
	"github.com/trivet-kv/trivet/internal/watch"
)

var _ rpc.Backend = (*Member)(nil)

// Store is the key-value store. A checkpoint of another member may put a newer one in its place at any time; reads that
// began on the old one go on there.
func (m *Member) Store() *mvcc.Store { return m.machine.state.Load().Store }

// Hub is where clients watch.
func (m *Member) Hub() *watch.Hub { return m.hub }

// Auth is the users and roles. Like the store others may take their place.
func (m *Member) Auth() *auth.Auth { return m.machine.state.Load().Auth }

// AuthChanged is closed when users or roles change, or others take their place.
func (m *Member) AuthChanged() <-chan struct{} { return m.authChanged.wait() }

// broadcast wakes everybody who waits.
type broadcast struct {
	mu sync.Mutex
	c  chan struct{} // nil: nobody waits
}

func (b *broadcast) wait() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c == nil {
		b.c = make(chan struct{})
	}
	return b.c
}

func (b *broadcast) tell() {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.c != nil {
		close(b.c)
		b.c = nil
	}
}

// Applied is the index of the last log entry that was applied.
func (m *Member) Applied() uint64 { return m.replica.Status().Applied }

// Header says who answers.
func (m *Member) Header() rpc.Header {
	return rpc.Header{ClusterID: m.identity.ClusterID, MemberID: m.identity.MemberID, Term: m.replica.Status().Term}
}

// Leader is the id of the leader, 0 if this member knows of none.
func (m *Member) Leader() uint64 { return m.replica.Status().Leader }

// Learner reports whether this member has no vote yet.
func (m *Member) Learner() bool { return m.replica.Status().Learner }

// Members lists the members in the order of their ids.
func (m *Member) Members() []rpc.Member {
	var out []rpc.Member
	for _, p := range m.machine.state.Load().Members.All() {
		out = append(out, rpc.Member{
			ID: p.ID, Name: p.Name, PeerURLs: p.PeerURLs, ClientURLs: p.ClientURLs, Learner: p.Learner,
		})
	}
	return out
}

// Status is what Maintenance.Status tells.
func (m *Member) Status() rpc.Status {
	s := m.replica.Status()
	size, inUse := m.diskUsage()
	return rpc.Status{
		Leader: s.Leader, CommitIndex: s.Commit, Applied: s.Applied, Term: s.Term, Learner: s.Learner,
		DBSize: size, DBInUse: inUse, Quota: m.options.QuotaBytes,
	}
}

// Alarms lists the alarms that are raised, by type and member.
func (m *Member) Alarms() []kv.Alarm { return m.machine.state.Load().Alarms.All() }

// MoveLeader hands leadership over to another voter.
func (m *Member) MoveLeader(ctx context.Context, to uint64) error {
	ctx, cancel := context.WithTimeoutCause(ctx, m.options.requestTimeout(), kv.ErrLeaderTransferTimeout)
	defer cancel()
	if err := m.replica.TransferLeadership(ctx, to); err != nil {
		if context.Cause(ctx) == kv.ErrLeaderTransferTimeout {
			return kv.ErrLeaderTransferTimeout
		}
		return err
	}
	return nil
}

// Defragment has nothing to do: space that is free is given back by the engine as it works.
func (m *Member) Defragment() error { return nil }

// Pending is how many commands of this member's clients are not yet agreed on.
func (m *Member) Pending() int { return m.replica.Pending() }

// OpenReads is what is under way in the engine, for metrics.
func (m *Member) OpenReads() int { return m.machine.state.Load().Engine.InUse() }

// LeaseStats counts what the leases' clock did while this member led.
func (m *Member) LeaseStats() leader.Stats { return m.jobs.Stats() }

// description is the command that publishes this member.
func (m *Member) description() *command.Command {
	return &command.Command{MemberPublish: &command.MemberPublish{
		ID: m.identity.MemberID, Name: m.options.Name, ClientURLs: m.options.ClientURLs,
	}}
}
