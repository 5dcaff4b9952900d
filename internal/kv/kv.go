// Package kv holds the words that every other package of Trivet shares: keys, ranges, revisions, key-value pairs,
// events, leases and the sentinel errors. It imports the standard library only and holds no behaviour beyond what the
// words themselves mean.
//
// The meanings are those of etcd's v3 API (kv.proto and rpc.proto in go.etcd.io/etcd/api/v3).
package kv

import (
	"bytes"
	"fmt"
	"strconv"
)

// Revision names one change. Main counts transactions that changed something, from 2 for the first in an empty store
// (an empty store is at revision 1); Sub counts the changes within one transaction from 0.
type Revision struct {
	Main int64
	Sub  int64 // 0 ≤ Sub < 1<<31
}

// Less reports whether r happened before o.
func (r Revision) Less(o Revision) bool {
	return r.Main < o.Main || r.Main == o.Main && r.Sub < o.Sub
}

// IsZero reports whether r names no change.
func (r Revision) IsZero() bool { return r.Main == 0 && r.Sub == 0 }

func (r Revision) String() string { return fmt.Sprintf("%d/%d", r.Main, r.Sub) }

// LeaseID names a lease; zero means no lease. Ids are positive.
type LeaseID int64

// KeyValue is one version of one key.
type KeyValue struct {
	Key            []byte
	Value          []byte
	CreateRevision int64 // main revision of the put that created the key's current life
	ModRevision    int64 // main revision of this version
	Version        int64 // puts since the key's creation, from 1
	Lease          LeaseID
}

// EventType tells a put from a delete. The numbers are those of mvccpb.Event_EventType.
type EventType uint8

// The kinds of event.
const (
	Put    EventType = 0
	Delete EventType = 1
)

// Event is one change as the apply path made it. For a delete, KV holds the key and the ModRevision only.
type Event struct {
	Type     EventType
	Revision Revision
	// Superseded is the revision of the version that this change replaced; zero if the key did not exist.
	Superseded Revision
	KV         KeyValue
}

// Creates reports whether the event made the key.
func (e *Event) Creates() bool { return e.Type == Put && e.KV.CreateRevision == e.KV.ModRevision }

// Range is a half-open range of keys in etcd's notation: an empty End means the single key Key; End = "\x00" means
// every key ≥ Key; otherwise Key ≤ k < End. Key = "\x00" and End = "\x00" is every key.
type Range struct {
	Key, End []byte
}

// Single reports whether r names exactly one key.
func (r Range) Single() bool { return len(r.End) == 0 }

// FromKey reports whether r has no upper end.
func (r Range) FromKey() bool { return len(r.End) == 1 && r.End[0] == 0 }

// Contains reports whether key lies in r.
func (r Range) Contains(key []byte) bool {
	if r.Single() {
		return bytes.Equal(key, r.Key)
	}
	return bytes.Compare(key, r.Key) >= 0 && (r.FromKey() || bytes.Compare(key, r.End) < 0)
}

// Covers reports whether every key of o lies in r.
func (r Range) Covers(o Range) bool {
	switch {
	case o.Single():
		return r.Contains(o.Key)
	case r.Single() || bytes.Compare(o.Key, r.Key) < 0:
		return false
	}
	return r.FromKey() || !o.FromKey() && bytes.Compare(o.End, r.End) <= 0
}

// Access is what a permission allows. The numbers are those of authpb.Permission_Type; others allow nothing.
type Access int32

// The kinds of access.
const (
	Read Access = iota
	Write
	ReadWrite
)

// Permission allows access to the keys of a range.
type Permission struct {
	Range
	Access Access
}

// SortTarget is what a range answer is ordered by. The numbers are those of RangeRequest_SortTarget.
type SortTarget uint8

// The sort targets.
const (
	SortByKey SortTarget = iota
	SortByVersion
	SortByCreate
	SortByMod
	SortByValue
)

// SortOrder is the direction of a range answer. The numbers are those of RangeRequest_SortOrder.
type SortOrder uint8

// The sort orders. SortNone with a target other than the key sorts ascending, as etcd does.
const (
	SortNone SortOrder = iota
	SortAscend
	SortDescend
)

// RangeOptions asks for the keys of a range as they were at a revision.
type RangeOptions struct {
	Range
	Revision  int64 // 0 or less: the newest
	Limit     int64 // 0 or less: no limit
	Target    SortTarget
	Order     SortOrder
	KeysOnly  bool
	CountOnly bool
	// Bounds on the revisions of the pairs returned; zero means no bound. They do not change Count.
	MinMod, MaxMod, MinCreate, MaxCreate int64
}

// RangeResult answers RangeOptions.
type RangeResult struct {
	KVs   []KeyValue
	More  bool  // the limit cut the answer short
	Count int64 // keys in the range at the revision, whatever the limit and the bounds on revisions
}

// Lease is one lease as the state machine knows it, without deadlines: those are the leader's.
type Lease struct {
	ID  LeaseID
	TTL int64 // seconds granted
	// Remaining is the time left in seconds when it was last checkpointed; 0 means the whole TTL.
	Remaining int64
	// Granted is the index of the log entry that made the lease. It tells two leases apart that had the same id one
	// after the other.
	Granted uint64
}

// AlarmType is the kind of an Alarm. The numbers are those of etcd's AlarmType; clients may raise others, which mean
// nothing.
type AlarmType int32

// The alarms.
const (
	AlarmNone    AlarmType = 0 // no alarm; in questions: all
	AlarmNoSpace AlarmType = 1
	AlarmCorrupt AlarmType = 2
)

// String is etcd's name of the type, a number if it has none.
func (t AlarmType) String() string {
	switch t {
	case AlarmNone:
		return "NONE"
	case AlarmNoSpace:
		return "NOSPACE"
	case AlarmCorrupt:
		return "CORRUPT"
	}
	return strconv.Itoa(int(t))
}

// Alarm is one alarm that is raised for a member.
type Alarm struct {
	Type     AlarmType
	MemberID uint64
	// Own: the member raised it about itself, sees to its end and clears it then. A CORRUPT of this kind concerns that
	// member alone and refuses nothing on the others. What was raised by hand stays until it is cleared by hand.
	Own bool
}
