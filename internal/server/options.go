package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"

	"github.com/cockroachdb/pebble/v2/vfs"

	"github.com/trivet-kv/trivet/internal/fsm"
	"github.com/trivet-kv/trivet/internal/leader"
	"github.com/trivet-kv/trivet/internal/member"
	"github.com/trivet-kv/trivet/internal/replica"
	"github.com/trivet-kv/trivet/internal/transport"
)

// Options is everything a Member needs. It is checked by Start, before anything is touched.
type Options struct {
	FS      vfs.FS // nil: the operating system's
	DataDir string
	LogDir  string // a directory of its own for the log, absolute; empty: in DataDir
	NoFsync bool   // wait for no disk: a crash of the machine loses what was acknowledged

	Name       string
	PeerURLs   []string // where the other members reach this one
	ClientURLs []string // where clients reach it
	// Founders are the members that a new cluster begins with, this one among them. A directory that was founded
	// already does not look at them but to notice that it belongs to somebody else.
	Founders []Founder
	// Join, if set, finds the running cluster that a member without data is to join; Founders then do not matter to it.
	Join func(ctx context.Context) (Joined, error)
	// Answers, if set, tells who answers where Join would ask, of a member that has data already, and closes the channel
	// when all have or ctx has ended. It must not hold up what sends.
	Answers func(ctx context.Context) <-chan Joined
	// Promote lets the member ask for its vote as soon as it has caught up, if it is a learner.
	Promote bool
	// ForceNewCluster makes a new cluster of this member alone out of the data it has.
	ForceNewCluster bool
	// StrictReconfig refuses changes of the members that would leave the cluster without a majority that runs.
	StrictReconfig bool
	MaxLearners    uint64 // that the cluster may have
	APIVersion     string // of the API that this binary serves, X.Y.Z; empty: the cluster's version is not looked after
	// DowngradeCheck is how often a leader looks whether a downgrade is done; 0: never.
	DowngradeCheck time.Duration

	Token string // told apart from other clusters with the same members by it

	// Transport joins the member to its peers. It is called once the member knows who it is.
	Transport func(TransportConfig) (Transport, error)

	Tick           time.Duration // of the raft clock, the heartbeat interval; default 100 ms
	ElectionTicks  int           // ticks without a leader before an election; default 10
	CatchupEntries uint64        // log entries kept for followers that were away, up to 256 MiB; default 5000

	// SlowDisk is the time of a commit of the log from which on a leader hands over; 0: whatever the disk does.
	SlowDisk time.Duration

	MaxRequestBytes int // of one encoded command; default 1.5 MiB
	// QuotaBytes is the size of the state from which on nothing is written that would make it grow; 0: etcd's default of
	// 2 GiB, negative: none. QuotaManualDisarm leaves clearing the alarm to somebody.
	QuotaBytes        int64
	QuotaManualDisarm bool
	// IntegrityInterval is how often a leader has the rolling hashes of the members compared, if anything was applied; 0: each
	// second, negative: never. Until then a member that has diverged may answer what is wrong.
	IntegrityInterval time.Duration
	// Retention is the history that the leader keeps when it compacts by itself; zero: it does not.
	Retention leader.Retention
	// etcd's checks that the members hold the same: before serving; of the newest revision, and of what the last compaction
	// left, by the leader at these intervals (0: never).
	InitialCorruptCheck  bool
	CorruptCheckTime     time.Duration
	CompactHashCheckTime time.Duration
	MemTableBytes        int64 // of the state engine; 0: its default
	CacheBytes           int64 // of the state engine; 0: its default
	LogSegmentBytes      int64 // of the raft log; 0: its default
	// OnStateJob is told +1 when a flush or compaction of the state begins, and -1 when it has ended (engine.Options.OnJob); nil: nobody.
	OnStateJob func(change int)

	// WatchProgress is how often a watcher that asked for it hears of the revision while nothing happens; 0: 10 minutes.
	WatchProgress time.Duration

	// OnToken is told of each simple token that the log makes; nil: nobody is. It must return at once.
	OnToken func(fsm.Token)

	// Origin is a random number, another one at each start.
	Origin uint64

	Logger *slog.Logger
	// Fatal ends the process when the state engine can neither go on nor return; nil: it panics.
	Fatal    func(error)
	Observer Observer
}

// Founder is one member of a new cluster.
type Founder struct {
	Name     string
	PeerURLs []string
}

// Transport is what the member needs of the network between members; transport.Transport and transport.Endpoint have it.
type Transport interface {
	replica.Transport
	Serve(transport.Handler)
	Call(ctx context.Context, to uint64, kind byte, body []byte) ([]byte, error)
	// SetPeer makes a member known by its peer URLs, or changes them; RemovePeer forgets it and tells it, whenever it comes
	// again, that it was removed. Neither blocks.
	SetPeer(id uint64, peerURLs []string)
	RemovePeer(id uint64)
	Close() error
}

// TransportConfig says who joins the network.
type TransportConfig struct {
	ClusterID, MemberID uint64
	Peers               map[uint64][]string // the peer URLs of the other members
	FS                  vfs.FS
	Incoming            string // folder for checkpoints being received
}

// Observer is told what happens, for metrics. Every field may be nil; they must return at once.
type Observer struct {
	Replica  replica.Observer
	LogSync  func(d time.Duration)            // one fsync of the log
	LogWrite func(bytes int, d time.Duration) // one write to the log
	Flushed  func(applied uint64)             // the state is durable up to here
	DiskFull func(full bool)                  // the disk has no room for something, or has again
	// ReadFailed: a read waited for the cluster in vain until the request timeout.
	ReadFailed func()
	// Applied is told what a run of entries did and how long it took. It must not keep the outcome.
	Applied func(out *fsm.Outcome, took time.Duration)
	// CompactStep is how many versions one step of deleting compacted history deleted and how long it took, Compacted how
	// long a whole compaction did.
	CompactStep func(deleted int, took time.Duration)
	Compacted   func(revision int64, took time.Duration)
}

func (o *Options) setDefaults() {
	if o.FS == nil {
		o.FS = vfs.Default
	}
	if o.NoFsync {
		o.FS = noFsync{o.FS}
	}
	if o.Tick == 0 {
		o.Tick = 100 * time.Millisecond
	}
	if o.ElectionTicks == 0 {
		o.ElectionTicks = 10
	}
	if o.MaxRequestBytes == 0 {
		o.MaxRequestBytes = 3 << 19
	}
	if o.IntegrityInterval == 0 {
		o.IntegrityInterval = time.Second
	}
	if o.QuotaBytes == 0 {
		o.QuotaBytes = 2 << 30
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
}

func (o *Options) validate() error {
	if o.Transport == nil || o.Origin == 0 {
		return errors.New("server: a transport and an origin are needed")
	}
	if o.Join == nil && !slices.ContainsFunc(o.Founders, func(f Founder) bool { return f.Name == o.Name }) {
		return fmt.Errorf("the member %q is not among those of --initial-cluster: give it there with its peer URLs, or give this member as --name one of the names there", o.Name)
	}
	return nil
}

// electionTimeout is how long a member waits for its leader before it looks for another.
func (o *Options) electionTimeout() time.Duration { return time.Duration(o.ElectionTicks) * o.Tick }

// requestTimeout bounds what a client waits for: as in etcd, time for a disk and two elections.
func (o *Options) requestTimeout() time.Duration { return 5*time.Second + 2*o.electionTimeout() }

// founders computes the ids of the founding members and of their cluster, as etcd does, under the token they have or had.
func (o *Options) founders(token string) (members []member.Member, self member.Member, clusterID uint64) {
	var ids []uint64
	for _, f := range o.Founders {
		m := member.Member{ID: member.ID(f.PeerURLs, token), Name: f.Name, PeerURLs: f.PeerURLs}
		if f.Name == o.Name {
			self = m
		}
		members, ids = append(members, m), append(ids, m.ID)
	}
	return members, self, member.ClusterID(ids)
}
