package replica

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"time"

	"go.etcd.io/raft/v3/raftpb"

	"github.com/trivet-kv/trivet/internal/command"
)

// Position names one entry of the log.
type Position struct{ Index, Term uint64 }

// StateMachine is what committed entries are handed to. Apply, CheckConf, ApplyConf and Install are called by one goroutine, one
// at a time; Checkpoint may run beside them. An error from Apply, ApplyConf or Install is final: the replica stops and says
// so on Failed.
type StateMachine interface {
	// Apply applies entries in order, in one atomic step that also stores the position of the last one. Entries with no
	// Data move the applied position only. The slice is the caller's again when Apply returns; what Data points at is
	// never changed by anybody.
	Apply(entries []command.Entry) error

	// CheckConf is asked whether the change of the members in e is to be made, with everything before e applied. It must
	// depend on e and the state alone, so that all members decide alike. Data is what the proposer gave to ChangeMembers.
	CheckConf(e command.Entry) (bool, error)

	// ApplyConf applies the change of the members in e. ConfState is to be stored with the applied position: it comes back
	// in Config.ConfState. It is nil if the change was not made, because CheckConf refused it or because it does not fit
	// the members that raft has; then the applied position moves, and the conf state stays.
	ApplyConf(e command.Entry, confState []byte) error

	// Checkpoint makes a copy of the state as it is at some applied position, as files in a directory of its own. It may
	// take long; nothing waits for it but the member that is to get it.
	Checkpoint(ctx context.Context) (Checkpoint, error)

	// Install replaces the state by the checkpoint received into s.Dir. It must be atomic and durable when it returns:
	// after a crash at any point the old state or the new one is found, whole. Dir is removed by the caller afterwards
	// if it still exists.
	Install(ctx context.Context, s Snapshot) error
}

// Checkpoint is a copy of the state in files.
type Checkpoint struct {
	Dir       string
	Applied   Position
	ConfState []byte
	// Release removes the files; called once, when the last member that was sent the checkpoint has it. May be nil.
	Release func()
}

// Snapshot is a received checkpoint.
type Snapshot struct {
	Dir       string
	Applied   Position
	ConfState []byte
}

// Transport carries messages to the other members. transport.Transport and transport.Endpoint implement it.
type Transport interface {
	// Send queues messages for their addressees and never blocks. Messages may be lost.
	Send(ms []*raftpb.Message)
	// SendSnapshot streams the files of dir and then m. Done is called exactly once, from another goroutine: with nil
	// when the receiver has the files durably and has taken m. The files must stay until then.
	SendSnapshot(m *raftpb.Message, dir string, done func(error))
}

// Config is everything a Replica needs. Zero bounds take the defaults named at each field.
type Config struct {
	ID uint64
	// Origin is a random number drawn at each start. It marks the batches and read rounds of this start, so that
	// nothing sent by an earlier life of the member is taken for this one's.
	Origin uint64

	Log       Log
	Machine   StateMachine
	Transport Transport

	// Applied is the position of the last entry the state machine holds, and ConfState the encoded conf state after it.
	// A log that does not hold Applied is reset to begin behind it: that is how a new member starts (with the position
	// and the conf state that the state machine was bootstrapped with, the same on every member) and how the
	// installation of a snapshot is finished after a crash.
	Applied   Position
	ConfState []byte

	Tick           time.Duration // default 100 ms
	ElectionTicks  int           // default 10
	HeartbeatTicks int           // default 1

	MaxEntryBytes       int    // commands are packed into entries up to this size; default 512 KiB
	MaxQueuedProposals  int    // commands not yet committed; default 16384; beyond it ErrTooManyRequests
	MaxQueuedBytes      int64  // their bytes; default 128 MiB; beyond it ErrTooManyRequests
	MaxQueuedReads      int    // reads without an index; default 131072; beyond it ErrTooManyRequests
	MaxInflightBatches  int    // entries handed to raft and not yet committed; default 128
	MaxReadRounds       int    // rounds of reads under way at once; default 4
	MaxInboxBytes       int64  // messages of peers waiting for the loop; default 256 MiB; beyond it they are dropped
	MaxUncommittedBytes uint64 // of a leader; default 256 MiB; beyond it commands wait in the queue
	MaxApplyBytes       uint64 // entries on the way through the state machine; default 32 MiB

	// CatchupEntries are kept in the log for followers that were away, as long as they take about CatchupBytes on the
	// disk or less; defaults 5000 and 256 MiB.
	CatchupEntries uint64
	CatchupBytes   int64

	// SlowDisk is the time of a commit from which on the disk counts as slow (disk.go); zero: no disk is ever called slow.
	SlowDisk time.Duration

	// Rand spreads campaigns after a leader's death; nil: seeded from Origin. Owned by the loop.
	Rand *rand.Rand

	Logger   *slog.Logger
	Observer Observer
}

// Observer is told what happens, for metrics. Every field may be nil. They are called from the replica's goroutines and
// must return at once.
type Observer struct {
	Committed      func(index uint64)        // the commit index moved
	Applied        func(index uint64)        // the applied index moved
	LeaderChanged  func(leader, term uint64) // zero leader: none known
	Pending        func(commands int)        // commands not yet committed
	ReadRetried    func(after time.Duration) // a round of reads got no answer for so long
	ProposalLost   func(commands int)        // dropped because nobody waits for them any more, or at a bound
	MessageDropped func(from uint64)         // of a peer, at MaxInboxBytes
	SnapshotSent   func(to uint64, d time.Duration, err error)
	SnapshotMade   func(d time.Duration, err error)
	Installing     func()                              // a received snapshot is being installed
	Installed      func(index uint64, d time.Duration) // and is now; if it fails, the replica does too
	HeartbeatLate  func(d time.Duration)               // a leader's heartbeats came so long after they were due
	DiskSlow       func(slow bool)                     // the disk has become slow, or keeps up again
	HandedOver     func(to uint64)                     // leadership is being handed over because the disk is slow
}

func (c *Config) setDefaults() {
	def(&c.Tick, 100*time.Millisecond)
	def(&c.ElectionTicks, 10)
	def(&c.HeartbeatTicks, 1)
	def(&c.MaxEntryBytes, 512<<10)
	def(&c.MaxQueuedProposals, 16384)
	def(&c.MaxQueuedBytes, 128<<20)
	def(&c.MaxQueuedReads, 131072)
	def(&c.MaxInflightBatches, 128)
	def(&c.MaxReadRounds, 4)
	def(&c.MaxInboxBytes, 256<<20)
	def(&c.MaxUncommittedBytes, 256<<20)
	def(&c.MaxApplyBytes, 32<<20)
	def(&c.CatchupEntries, 5000)
	def(&c.CatchupBytes, 256<<20)
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Observer.setDefaults()
	if c.Rand == nil {
		c.Rand = rand.New(rand.NewPCG(c.Origin, c.ID))
	}
}

func (o *Observer) setDefaults() {
	if o.Committed == nil {
		o.Committed = func(uint64) {}
	}
	if o.Applied == nil {
		o.Applied = func(uint64) {}
	}
	if o.LeaderChanged == nil {
		o.LeaderChanged = func(_, _ uint64) {}
	}
	if o.Pending == nil {
		o.Pending = func(int) {}
	}
	if o.ReadRetried == nil {
		o.ReadRetried = func(time.Duration) {}
	}
	if o.ProposalLost == nil {
		o.ProposalLost = func(int) {}
	}
	if o.MessageDropped == nil {
		o.MessageDropped = func(uint64) {}
	}
	if o.SnapshotSent == nil {
		o.SnapshotSent = func(uint64, time.Duration, error) {}
	}
	if o.SnapshotMade == nil {
		o.SnapshotMade = func(time.Duration, error) {}
	}
	if o.Installing == nil {
		o.Installing = func() {}
	}
	if o.HeartbeatLate == nil {
		o.HeartbeatLate = func(time.Duration) {}
	}
	if o.DiskSlow == nil {
		o.DiskSlow = func(bool) {}
	}
	if o.HandedOver == nil {
		o.HandedOver = func(uint64) {}
	}
	if o.Installed == nil {
		o.Installed = func(uint64, time.Duration) {}
	}
}

func def[T comparable](p *T, value T) {
	var zero T
	if *p == zero {
		*p = value
	}
}

func (c *Config) validate() error {
	switch {
	case c.ID == 0:
		return errors.New("replica: the member id must not be zero")
	case c.Log == nil || c.Machine == nil || c.Transport == nil:
		return errors.New("replica: log, state machine and transport are needed")
	case c.ElectionTicks <= c.HeartbeatTicks:
		return fmt.Errorf("replica: an election timeout of %d ticks must be longer than the heartbeat of %d", c.ElectionTicks, c.HeartbeatTicks)
	case c.MaxEntryBytes < 1024:
		return fmt.Errorf("replica: entries of %d bytes are too small to pack commands into", c.MaxEntryBytes)
	}
	return nil
}
