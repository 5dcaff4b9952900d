// Package command holds what enters the log: a Command is one request as every member applies it, with the id by which
// the member that took it finds its waiter, the wall time that its proposer stamped on it, and the user it was made for.
//
// One raft entry carries a Batch of commands. A command is encoded once: the bytes made here are the bytes that peers
// are sent and that the log file holds. Decoding does not copy: keys and values point into the entry, which nobody
// changes after it was made. The encoding is versioned (docs/data.md) and attacked by the fuzz tests beside it.
package command

import "github.com/trivet-kv/trivet/internal/kv"

// Entry is one committed log entry as the state machine sees it. An entry with no Data (a new leader's first) moves the
// applied index only.
type Entry struct {
	Index, Term uint64
	Data        []byte // a batch of encoded commands
}

// Command is one request in the log. Exactly one of the pointers is set.
type Command struct {
	ID   uint64 // unique among the commands of one origin (see AppendBatch); zero: nobody waits
	Time int64  // the proposer's wall clock, nanoseconds since 1970

	// User and AuthRevision say in whose name, and under which state of users and roles, the request was allowed.
	// An empty User means that authentication was off or that the member itself proposes.
	User         string
	AuthRevision uint64

	Put             *Put
	DeleteRange     *DeleteRange
	Txn             *Txn
	Compact         *Compact
	LeaseGrant      *LeaseGrant
	LeaseRevoke     *LeaseRevoke
	LeaseCheckpoint *LeaseCheckpoint
	MemberPublish   *MemberPublish
	Alarm           *Alarm

	// The first three change with whom raft counts. They stand in an entry of raft's kind for that, alone (fsm.CheckConf).
	MemberAdd      *MemberAdd
	MemberRemove   *MemberRemove
	MemberPromote  *MemberPromote
	MemberUpdate   *MemberUpdate
	ClusterVersion *ClusterVersion
	Downgrade      *Downgrade
	Mark           *Mark
	Fence          *Fence
	Auth           *Auth
}

// Put sets one key.
type Put struct {
	Key, Value  []byte
	Lease       kv.LeaseID
	PrevKV      bool // answer the pair that was replaced
	IgnoreValue bool // keep the key's value; kv.ErrKeyNotFound if there is none
	IgnoreLease bool // keep the key's lease; kv.ErrKeyNotFound if there is no key
}

// DeleteRange deletes keys.
type DeleteRange struct {
	kv.Range
	PrevKV bool
}

// CompareTarget is what a Compare looks at. The numbers are those of etcd's Compare_CompareTarget.
type CompareTarget uint8

// The compare targets.
const (
	CompareVersion CompareTarget = iota
	CompareCreate
	CompareMod
	CompareValue
	CompareLease
)

// CompareResult is the relation that must hold. The numbers are those of etcd's Compare_CompareResult.
type CompareResult uint8

// The relations.
const (
	Equal CompareResult = iota
	Greater
	Less
	NotEqual
)

// Compare is one condition of a transaction: it holds if it holds for every key of the range.
type Compare struct {
	kv.Range
	Target CompareTarget
	Result CompareResult
	Int    int64  // version, create or mod revision, or lease
	Value  []byte // for CompareValue
}

// Op is one operation of a transaction. Exactly one of the pointers is set.
type Op struct {
	Range       *kv.RangeOptions
	Put         *Put
	DeleteRange *DeleteRange
	Txn         *Txn
}

// Txn runs Success if all of Compare hold and Failure otherwise. Nested transactions decide by the state before the
// outermost one, as etcd's do.
type Txn struct {
	Compare          []Compare
	Success, Failure []Op
}

// Compact forgets history up to Revision.
type Compact struct {
	Revision int64
}

// LeaseGrant makes a lease. ID is never zero: the member that takes the request chooses one.
type LeaseGrant struct {
	ID  kv.LeaseID
	TTL int64 // seconds
}

// LeaseRevoke ends a lease and deletes the keys attached to it, in one revision.
type LeaseRevoke struct {
	ID kv.LeaseID
	// Term is set when a leader revokes a lease whose time ran out: the revoke then applies only from an entry of that
	// very term, so that what a deposed leader proposed can end no lease that its successor renewed. Otherwise 0.
	Term uint64
	// Granted, if set, revokes only the lease that was granted by the entry of this index, not a later one of the same id.
	Granted uint64
}

// LeaseCheckpoint records how much time leases have left, so that the next leader goes on from there.
type LeaseCheckpoint struct {
	// Leases have ID and Remaining in seconds, 0 being the whole TTL again, and Granted, which if set names the only grant
	// of that id that is meant, as in LeaseRevoke.
	Leases []kv.Lease
	// Term, if set, is the only term in which the command applies, as in LeaseRevoke.
	Term uint64
}

// MemberPublish records what a member says of itself when it starts.
type MemberPublish struct {
	ID         uint64
	Name       string
	ClientURLs []string
}

// Alarm raises or clears an alarm.
type Alarm struct {
	kv.Alarm
	Raise bool // otherwise the alarm is cleared
	// Found: a member asks for what it found itself, and not for a client, so there is no user to ask about. An alarm of
	// a member's own is found too.
	Found bool
}

// Result is what applying a Command gave. Only the member where somebody waits needs the whole of it.
type Result struct {
	Err      error // a sentinel of package kv, perhaps wrapped; the command changed nothing
	Revision int64 // the store's main revision after the command
	Index    uint64
	Term     uint64

	Prev        *kv.KeyValue // of a put that asked for it
	DeleteRange *DeleteResult
	Txn         *TxnResult
	Lease       *kv.Lease       // of a grant
	Alarms      []kv.Alarm      // of an alarm: what is raised now, or was cleared; none if nothing was there to clear
	Token       string          // of an authentication; a secret
	Compacted   <-chan struct{} // of a compaction: closed when the rows are gone from this member
}

// DeleteResult is what a DeleteRange gave.
type DeleteResult struct {
	Deleted int64
	Prev    []kv.KeyValue // if asked for, in key order
}

// OpResult answers one Op; the pointer that is set tells which.
type OpResult struct {
	Revision    int64 // the store's main revision as this operation saw or made it
	Range       *kv.RangeResult
	Put         *PutResult
	DeleteRange *DeleteResult
	Txn         *TxnResult
}

// PutResult is what a put inside a transaction gave.
type PutResult struct {
	Prev *kv.KeyValue
}

// TxnResult answers a Txn.
type TxnResult struct {
	Succeeded bool
	Ops       []OpResult
}
