package command

import (
	"encoding/binary"
	"slices"

	"github.com/trivet-kv/trivet/internal/kv"
)

// Version is the first byte of every log entry that holds a batch.
const Version = 1

// MaxTxnDepth bounds how deep transactions may nest; a deeper one is refused before it is proposed (see Depth) and makes
// a log entry undecodable. Protobuf itself stops at 10,000; nobody is known to pass three.
const MaxTxnDepth = 100

// The kinds of command as written in the log. Numbers are never used again for another kind.
const (
	kindPut             = 1
	kindDeleteRange     = 2
	kindTxn             = 3
	kindCompact         = 4
	kindLeaseGrant      = 5
	kindLeaseRevoke     = 6
	kindOldCheckpoint   = 7 // a lease checkpoint that does not name the grants; read only
	kindMemberPublish   = 8
	kindRange           = 9 // inside transactions only
	kindLeaseCheckpoint = 10

	kindMemberAdd      = 40
	kindMemberRemove   = 41
	kindMemberPromote  = 42
	kindMemberUpdate   = 43
	kindClusterVersion = 44
	kindDowngrade      = 45
	// 20 to 31 are those of AuthOp.

	kindAlarm = 50

	kindMark  = 60
	kindFence = 61
)

const (
	flagPrevKV = 1 << iota
	flagIgnoreValue
	flagIgnoreLease
)

const (
	flagKeysOnly = 1 << iota
	flagCountOnly
	flagBounds
)

const (
	flagRaise = 1 << iota
	flagOwn
	flagFound
)

// Append appends the encoding of c to dst.
func (c *Command) Append(dst []byte) []byte {
	dst = append(slices.Grow(dst, c.room()), c.kind())
	dst = binary.AppendUvarint(dst, c.ID)
	dst = binary.AppendVarint(dst, c.Time)
	dst = appendBytes(dst, []byte(c.User))
	dst = binary.AppendUvarint(dst, c.AuthRevision)
	switch {
	case c.Put != nil:
		return c.Put.append(dst)
	case c.DeleteRange != nil:
		return c.DeleteRange.append(dst)
	case c.Txn != nil:
		return c.Txn.append(dst)
	case c.Compact != nil:
		return binary.AppendVarint(dst, c.Compact.Revision)
	case c.LeaseGrant != nil:
		dst = binary.AppendVarint(dst, int64(c.LeaseGrant.ID))
		return binary.AppendVarint(dst, c.LeaseGrant.TTL)
	case c.LeaseRevoke != nil:
		dst = binary.AppendVarint(dst, int64(c.LeaseRevoke.ID))
		dst = binary.AppendUvarint(dst, c.LeaseRevoke.Term)
		return binary.AppendUvarint(dst, c.LeaseRevoke.Granted)
	case c.LeaseCheckpoint != nil:
		dst = appendLeases(dst, c.LeaseCheckpoint.Leases)
		return binary.AppendUvarint(dst, c.LeaseCheckpoint.Term)
	case c.Alarm != nil:
		return c.Alarm.append(dst)
	case c.MemberPublish != nil:
		return c.MemberPublish.append(dst)
	case c.Auth != nil:
		return c.Auth.append(dst)
	case c.Mark != nil:
		return c.Mark.append(dst)
	case c.Fence != nil:
		return binary.AppendUvarint(dst, c.Fence.Member)
	}
	return c.appendMembership(dst)
}

// fixedRoom is more than the numbers and lengths of a command, or of a part of one, take in most cases.
const fixedRoom = 48

// room is about how many bytes Append makes of what has keys and values, so that they are not copied while it grows.
func (c *Command) room() int {
	n := fixedRoom + len(c.User)
	switch {
	case c.Put != nil:
		n += len(c.Put.Key) + len(c.Put.Value)
	case c.Txn != nil:
		n += c.Txn.room()
	}
	return n
}

func (t *Txn) room() int {
	n := 0
	for i := range t.Compare {
		c := &t.Compare[i]
		n += fixedRoom/2 + len(c.Range.Key) + len(c.Range.End) + len(c.Value)
	}
	for _, branch := range [][]Op{t.Success, t.Failure} {
		for i := range branch {
			n += fixedRoom / 2
			switch o := &branch[i]; {
			case o.Put != nil:
				n += len(o.Put.Key) + len(o.Put.Value)
			case o.DeleteRange != nil:
				n += len(o.DeleteRange.Range.Key) + len(o.DeleteRange.Range.End)
			case o.Txn != nil:
				n += o.Txn.room()
			default:
				n += len(o.Range.Range.Key) + len(o.Range.Range.End)
			}
		}
	}
	return n
}

// Kind is the number of the kind, as it is in the log.
func (c *Command) Kind() byte { return c.kind() }

func (c *Command) kind() byte {
	switch {
	case c.Put != nil:
		return kindPut
	case c.DeleteRange != nil:
		return kindDeleteRange
	case c.Txn != nil:
		return kindTxn
	case c.Compact != nil:
		return kindCompact
	case c.LeaseGrant != nil:
		return kindLeaseGrant
	case c.LeaseRevoke != nil:
		return kindLeaseRevoke
	case c.LeaseCheckpoint != nil:
		return kindLeaseCheckpoint
	case c.MemberPublish != nil:
		return kindMemberPublish
	case c.Alarm != nil:
		return kindAlarm
	case c.MemberAdd != nil:
		return kindMemberAdd
	case c.MemberRemove != nil:
		return kindMemberRemove
	case c.MemberPromote != nil:
		return kindMemberPromote
	case c.MemberUpdate != nil:
		return kindMemberUpdate
	case c.ClusterVersion != nil:
		return kindClusterVersion
	case c.Downgrade != nil:
		return kindDowngrade
	case c.Auth != nil:
		return byte(c.Auth.Op)
	case c.Mark != nil:
		return kindMark
	case c.Fence != nil:
		return kindFence
	}
	panic("command: a command with no request")
}

// Name is the request's name for logs and inspection, such as "put".
func (c *Command) Name() string {
	if c.Auth != nil {
		return c.Auth.Op.String()
	}
	return [...]string{
		kindPut: "put", kindDeleteRange: "delete_range", kindTxn: "txn", kindCompact: "compact",
		kindLeaseGrant: "lease_grant", kindLeaseRevoke: "lease_revoke", kindLeaseCheckpoint: "lease_checkpoint",
		kindMemberPublish: "member_publish", kindMemberAdd: "member_add", kindMemberRemove: "member_remove",
		kindMemberPromote: "member_promote", kindMemberUpdate: "member_update", kindClusterVersion: "cluster_version",
		kindDowngrade: "downgrade", kindAlarm: "alarm",
		kindMark: "mark", kindFence: "fence",
	}[c.kind()]
}

// AppendBatch appends to dst a log entry that carries the encoded commands, in order. Origin names the start of the
// member that packs the entry: a random number drawn at each start, so that no member, and no later life of the same
// member, takes the commands for its own.
func AppendBatch(dst []byte, origin uint64, commands [][]byte) []byte {
	dst = append(dst, Version)
	dst = binary.BigEndian.AppendUint64(dst, origin)
	for _, c := range commands {
		dst = appendBytes(dst, c)
	}
	return dst
}

// Depth is how deep t nests: 1 for a transaction with no transaction inside.
func (t *Txn) Depth() int {
	deepest := 0
	for _, branch := range [][]Op{t.Success, t.Failure} {
		for i := range branch {
			if branch[i].Txn != nil {
				deepest = max(deepest, branch[i].Txn.Depth())
			}
		}
	}
	return deepest + 1
}

func (p *Put) append(dst []byte) []byte {
	dst = append(dst, flags(p.PrevKV, flagPrevKV)|flags(p.IgnoreValue, flagIgnoreValue)|flags(p.IgnoreLease, flagIgnoreLease))
	dst = appendBytes(dst, p.Key)
	dst = appendBytes(dst, p.Value)
	return binary.AppendVarint(dst, int64(p.Lease))
}

func (d *DeleteRange) append(dst []byte) []byte {
	dst = append(dst, flags(d.PrevKV, flagPrevKV))
	return appendRange(dst, d.Range)
}

func (t *Txn) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(t.Compare)))
	for i := range t.Compare {
		c := &t.Compare[i]
		dst = append(dst, byte(c.Target), byte(c.Result))
		dst = appendRange(dst, c.Range)
		if c.Target == CompareValue {
			dst = appendBytes(dst, c.Value)
		} else {
			dst = binary.AppendVarint(dst, c.Int)
		}
	}
	for _, branch := range [][]Op{t.Success, t.Failure} {
		dst = binary.AppendUvarint(dst, uint64(len(branch)))
		for i := range branch {
			dst = branch[i].append(dst)
		}
	}
	return dst
}

func (o *Op) append(dst []byte) []byte {
	switch {
	case o.Put != nil:
		return o.Put.append(append(dst, kindPut))
	case o.DeleteRange != nil:
		return o.DeleteRange.append(append(dst, kindDeleteRange))
	case o.Txn != nil:
		return o.Txn.append(append(dst, kindTxn))
	default:
		return appendRangeOptions(append(dst, kindRange), o.Range)
	}
}

func (m *MemberPublish) append(dst []byte) []byte {
	dst = binary.AppendUvarint(dst, m.ID)
	dst = appendBytes(dst, []byte(m.Name))
	return appendStrings(dst, m.ClientURLs)
}

func appendStrings(dst []byte, all []string) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(all)))
	for _, s := range all {
		dst = appendBytes(dst, []byte(s))
	}
	return dst
}

func (a *Alarm) append(dst []byte) []byte {
	dst = append(dst, flags(a.Raise, flagRaise)|flags(a.Own, flagOwn)|flags(a.Found, flagFound))
	dst = binary.AppendVarint(dst, int64(a.Type))
	return binary.AppendUvarint(dst, a.MemberID)
}

func appendRangeOptions(dst []byte, o *kv.RangeOptions) []byte {
	bounded := o.MinMod != 0 || o.MaxMod != 0 || o.MinCreate != 0 || o.MaxCreate != 0
	dst = append(dst, flags(o.KeysOnly, flagKeysOnly)|flags(o.CountOnly, flagCountOnly)|flags(bounded, flagBounds))
	dst = appendRange(dst, o.Range)
	dst = binary.AppendVarint(dst, o.Revision)
	dst = binary.AppendVarint(dst, o.Limit)
	dst = append(dst, byte(o.Target), byte(o.Order))
	if bounded {
		for _, v := range [...]int64{o.MinMod, o.MaxMod, o.MinCreate, o.MaxCreate} {
			dst = binary.AppendVarint(dst, v)
		}
	}
	return dst
}

func appendLeases(dst []byte, leases []kv.Lease) []byte {
	dst = binary.AppendUvarint(dst, uint64(len(leases)))
	for _, l := range leases {
		dst = binary.AppendVarint(dst, int64(l.ID))
		dst = binary.AppendVarint(dst, l.Remaining)
		dst = binary.AppendUvarint(dst, l.Granted)
	}
	return dst
}

func appendRange(dst []byte, r kv.Range) []byte {
	return appendBytes(appendBytes(dst, r.Key), r.End)
}

func appendBytes(dst, b []byte) []byte {
	return append(binary.AppendUvarint(dst, uint64(len(b))), b...)
}

func flags(set bool, flag byte) byte {
	if set {
		return flag
	}
	return 0
}
