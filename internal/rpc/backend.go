package rpc

import (
	"context"
	"io"

	"github.com/trivet-kv/trivet/internal/auth"
	"github.com/trivet-kv/trivet/internal/command"
	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/mvcc"
	"github.com/trivet-kv/trivet/internal/watch"
)

// Backend is one member as the services see it: what proposes, what reads, and what the member knows about itself and
// its cluster. All methods may be called from any goroutine at any time between the start and the stop of the services;
// those with a context return soon after it ends, the others do not block.
//
// Errors are the sentinels of package kv, perhaps wrapped, or the context's own; status.go maps them to the wire.
type Backend interface {
	// Propose puts the command through the log and waits until this member has applied it. It fills ID and Time, and
	// raises a lease's time to live to the least that the member allows. The member bounds the wait by its own request timeout (kv.ErrTimeout and its two variants), the size of the encoded
	// command by --max-request-bytes (kv.ErrRequestTooLarge) and the backlog (kv.ErrTooManyRequests). A nil error with
	// Result.Err set means that the command was applied, refused, and changed nothing.
	Propose(ctx context.Context, c *command.Command) (command.Result, error)

	// ReadBarrier returns once this member has applied everything that was committed when it was called.
	ReadBarrier(ctx context.Context) error

	// Store and Hub are asked for again by each request, never kept: installing a snapshot may put others in place.
	Store() *mvcc.Store
	Hub() *watch.Hub

	// Auth is the users and roles, asked for again by each request like the store. AuthChanged is closed at their next
	// change, or when others take their place.
	Auth() *auth.Auth
	AuthChanged() <-chan struct{}

	Header() Header
	// Applied is the index of the last log entry that this member has applied.
	Applied() uint64

	// Leader is the id of the leader as this member knows it, 0 if there is none; Learner tells whether this member is
	// a learner. Both are cheap: they are asked on each request.
	Leader() uint64
	Learner() bool

	// Members lists the members of the cluster as this member has applied it, in the order of their ids.
	Members() []Member
	// AddMember, RemoveMember, UpdateMember and PromoteMember change the members and wait until this member has applied
	// it. Their errors are those of package kv about members, kv.ErrUnhealthy, and Propose's.
	AddMember(ctx context.Context, peerURLs []string, learner bool) (id uint64, err error)
	RemoveMember(ctx context.Context, id uint64) error
	UpdateMember(ctx context.Context, id uint64, peerURLs []string) error
	PromoteMember(ctx context.Context, id uint64) error
	// ClusterVersion is the version that the whole cluster serves, as X.Y.0, empty while it is not decided, and whether it
	// is to go back.
	ClusterVersion() (string, Downgrade)
	Status() Status

	// Alarms lists the alarms that are raised, in the cluster's state as this member has applied it.
	Alarms() []kv.Alarm

	// LeaseRenew gives the lease its whole time again and returns it in seconds. Any member takes it; one that does not
	// lead asks the leader. kv.ErrLeaseNotFound if the lease is gone.
	LeaseRenew(ctx context.Context, id kv.LeaseID) (ttl int64, err error)
	// LeaseTimeToLive returns the lease and the seconds it has left, asked of the leader as LeaseRenew does.
	LeaseTimeToLive(ctx context.Context, id kv.LeaseID) (lease kv.Lease, remaining int64, err error)
	// SkimLease visits keys of a lease as lease.Leases.Skim does.
	SkimLease(id kv.LeaseID, visit func(key []byte) (next []byte, err error)) error
	// LeaseKeys returns the keys attached to a lease, in key order; Leases the leases in the order of their ids.
	LeaseKeys(id kv.LeaseID) ([][]byte, error)
	Leases() []kv.LeaseID

	// MoveLeader hands leadership over to another voting member and waits until it leads. Only called on the leader.
	// kv.ErrBadLeaderTransferee, kv.ErrLeaderTransferTimeout, kv.ErrNotLeader.
	MoveLeader(ctx context.Context, to uint64) error

	// Snapshot makes a snapshot of the whole state in etcd's file format, without its hash. kv.ErrTooManyRequests if others
	// are being made or sent. The caller closes it.
	Snapshot(ctx context.Context) (Snapshot, error)

	// Defragment is etcd's call of this name. There is nothing to do here; it may nudge the engine and return.
	Defragment() error
}

// Snapshot is a file to be sent to a client.
type Snapshot interface {
	io.ReadCloser
	Size() int64
}

// Header is what every answer says about the member that gave it. The revision comes from the answer itself.
type Header struct {
	ClusterID, MemberID, Term uint64
}

// Member is one member of the cluster.
type Member struct {
	ID         uint64
	Name       string // empty until the member has published itself
	PeerURLs   []string
	ClientURLs []string
	Learner    bool
}

// Status is what Maintenance.Status tells, beside the header, the version and the alarms.
type Status struct {
	Leader      uint64 // 0: none
	CommitIndex uint64
	Applied     uint64
	Term        uint64
	DBSize      int64 // bytes on disk
	DBInUse     int64 // bytes of live tables
	Quota       int64 // bytes; etcd's default when no quota is set
	Learner     bool
}

// Downgrade says whether the cluster is being taken to an earlier version, X.Y.0.
type Downgrade struct {
	Enabled bool
	Target  string
}
