package replica

import (
	"time"

	"go.etcd.io/raft/v3/raftpb"
)

// Log is what the replica needs of the durable log.
type Log interface {
	HardState() *raftpb.HardState
	// FirstIndex, LastIndex, Term and Entries are the reading half of raft.Storage. They never wait for a write.
	FirstIndex() (uint64, error)
	LastIndex() (uint64, error)
	Term(index uint64) (uint64, error)
	Entries(lo, hi, max uint64) ([]*raftpb.Entry, error)

	// Append queues a write and never waits for the disk. Done is called when this write and all before it are as
	// durable as they asked for, in order.
	Append(w Write)
	// Failed gives the error after which nothing more will be written.
	Failed() <-chan error
	// Cut says that entries up to and including upTo are not needed any more. Before gives the index to cut at so that
	// the log takes about the given bytes on the disk.
	Cut(upTo uint64)
	Before(bytes int64) uint64
	// Pace tells the median time of the last commits, zero if there were too few lately, and for how long the log has been
	// waiting for its disk now, zero if it is not.
	Pace() (median, busy time.Duration)
	// StoodStill says that the process did nothing between two moments, which Pace then leaves out.
	StoodStill(from, to time.Time)
}

// Write is one write to the log. Reset comes first: it makes the log forget everything and begin behind a position.
type Write struct {
	HardState *raftpb.HardState
	Entries   []*raftpb.Entry
	Reset     *Position
	Sync      bool
	Done      func()
}
