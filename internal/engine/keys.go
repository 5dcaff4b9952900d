package engine

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"math/bits"

	"github.com/trivet-kv/trivet/internal/kv"
)

// The first byte of a row's key says what the row is. This is the whole list; docs/data.md explains each.
const (
	PrefixAttachment byte = 'a' // lease id, user key: a key attached to a lease
	PrefixFence      byte = 'c' // user key: how many live keys lie between it and the next fence
	PrefixVersion    byte = 'k' // user key, 0x00, revision (newest first): one version of a key
	PrefixLease      byte = 'l' // lease id: one lease
	PrefixMeta       byte = 'm' // name: single facts about the whole store
	PrefixMember     byte = 'n' // member id: one member of the cluster
	PrefixRevision   byte = 'r' // revision: one change of history
	PrefixAuth       byte = 'u' // what it is (r, s, u), name: a role, the settings, or a user; package auth
	PrefixAlarm      byte = 'w' // alarm type, member id: one alarm that is raised
)

// ErrMalformed is wrapped by every decoder of this package. Rows are guarded by checksums, so meeting it means that a
// binary of another format wrote them, or a bug.
var ErrMalformed = errors.New("engine: malformed row")

func malformed(what string, b []byte) error {
	if len(b) > 64 {
		b = b[:64]
	}
	return fmt.Errorf("%w: %s %x", ErrMalformed, what, b)
}

// Meta rows.
var (
	metaApplied    = []byte("mapplied")
	metaConfState  = []byte("mconfstate")
	metaRevision   = []byte("mrevision")
	metaCompact    = []byte("mcompact")
	metaCompacting = []byte("mcompacting")
	metaFormat     = []byte("mformat")
	metaCluster    = []byte("mcluster")
)

// The keys of the meta rows. The caller must not change what they return.
func MetaApplied() []byte    { return metaApplied }    // AppendApplied
func MetaConfState() []byte  { return metaConfState }  // opaque bytes of raft
func MetaRevision() []byte   { return metaRevision }   // AppendNumber: the newest main revision
func MetaCompact() []byte    { return metaCompact }    // AppendNumber: the compact revision
func MetaCompacting() []byte { return metaCompacting } // AppendProgress: how far deleting has come
func MetaFormat() []byte     { return metaFormat }     // AppendNumber: the format of all rows
func MetaCluster() []byte    { return metaCluster }    // cluster id and token

// MetaName returns the key of the meta row of that name, for rows whose owner is another package.
func MetaName(name string) []byte { return append([]byte{PrefixMeta}, name...) }

// versionSuffix is how many bytes the revision of a version row takes: 8 of main, 4 of sub, 1 that says 13.
const versionSuffix = 13

// AppendVersionPrefix appends what all versions of a user key begin with, and what sorts before all of them.
func AppendVersionPrefix(dst, key []byte) []byte {
	dst = append(dst, PrefixVersion)
	dst = append(dst, key...)
	return append(dst, 0)
}

// AppendVersionSuffix appends the revision as version rows end with it: complemented, so that newer sorts first. sub
// lies below 1<<31.
func AppendVersionSuffix(dst []byte, rev kv.Revision) []byte {
	dst = binary.BigEndian.AppendUint64(dst, ^uint64(rev.Main))
	dst = binary.BigEndian.AppendUint32(dst, ^uint32(rev.Sub))
	return append(dst, versionSuffix)
}

// AppendVersion appends the key of the row that holds one version of a user key.
func AppendVersion(dst, key []byte, rev kv.Revision) []byte {
	return AppendVersionSuffix(AppendVersionPrefix(dst, key), rev)
}

// AppendVersionAt appends a key that sorts just before the newest version whose main revision is main or less.
func AppendVersionAt(dst, key []byte, main int64) []byte {
	return AppendVersion(dst, key, kv.Revision{Main: main, Sub: maxSub})
}

const maxSub = 1<<32 - 1

// VersionPrefixLen returns the length of the prefix of a version row.
func VersionPrefixLen(row []byte) int { return split(row) }

// DecodeVersion takes the key of a version row apart. The user key points into row.
func DecodeVersion(row []byte) (key []byte, rev kv.Revision, err error) {
	n := len(row) - versionSuffix
	if n < 2 || row[0] != PrefixVersion || row[n-1] != 0 || row[len(row)-1] != versionSuffix {
		return nil, kv.Revision{}, malformed("version key", row)
	}
	rev.Main = int64(^binary.BigEndian.Uint64(row[n:]))
	rev.Sub = int64(^binary.BigEndian.Uint32(row[n+8:]))
	return row[1 : n-1], rev, nil
}

// VersionBounds returns the bounds within which all version rows of a range lie: lower ≤ row < upper.
func VersionBounds(r kv.Range) (lower, upper []byte) {
	lower = AppendVersionPrefix(make([]byte, 0, len(r.Key)+2), r.Key)
	switch {
	case r.Single():
		upper = append(AppendVersionPrefix(make([]byte, 0, len(r.Key)+3), r.Key), 0)
	case r.FromKey():
		upper = []byte{PrefixVersion + 1}
	default:
		upper = AppendVersionPrefix(make([]byte, 0, len(r.End)+2), r.End)
	}
	return lower, upper
}

// The flags byte that begins the value of a version row.
const (
	flagLive      byte = 0
	flagTombstone byte = 1
)

// TombstoneBytes is how long the value of a tombstone's row is. That of a live version is longer, but for one of which all
// fields are zero.
const TombstoneBytes = 1

// Tags of the fields of mvccpb.KeyValue as protobuf writes them: the field's number and how it is written.
const (
	varintField = 0
	bytesField  = 2

	tagCreate  = 2<<3 | varintField
	tagVersion = 4<<3 | varintField
	tagValue   = 5<<3 | bytesField
	tagLease   = 6<<3 | varintField
)

// AppendLiveValue appends the value of the row of a put: the flags byte, then the fields create_revision, version, value
// and lease of mvccpb.KeyValue as protobuf writes them (zero and empty ones left out), so that the rest of the row is
// the tail of a KeyValue on the wire.
func AppendLiveValue(dst []byte, p kv.KeyValue) []byte {
	dst = append(dst, flagLive)
	if p.CreateRevision != 0 {
		dst = binary.AppendUvarint(append(dst, tagCreate), uint64(p.CreateRevision))
	}
	if p.Version != 0 {
		dst = binary.AppendUvarint(append(dst, tagVersion), uint64(p.Version))
	}
	if len(p.Value) > 0 {
		dst = binary.AppendUvarint(append(dst, tagValue), uint64(len(p.Value)))
		dst = append(dst, p.Value...)
	}
	if p.Lease != 0 {
		dst = binary.AppendUvarint(append(dst, tagLease), uint64(p.Lease))
	}
	return dst
}

// liveValueBytes is how long that value is.
func liveValueBytes(p kv.KeyValue) int {
	n := 1
	for _, v := range [...]int64{p.CreateRevision, p.Version, int64(p.Lease)} {
		if v != 0 {
			n += 1 + uvarintBytes(uint64(v))
		}
	}
	if len(p.Value) > 0 {
		n += 1 + uvarintBytes(uint64(len(p.Value))) + len(p.Value)
	}
	return n
}

func uvarintBytes(n uint64) int { return (bits.Len64(n|1) + 6) / 7 }

// AppendTombstoneValue appends the value of the row of a delete.
func AppendTombstoneValue(dst []byte) []byte { return append(dst, flagTombstone) }

// DecodeVersionValue takes the value of a version row apart: a tombstone, or the tail of a KeyValue on the wire, which
// points into value.
func DecodeVersionValue(value []byte) (tail []byte, tombstone bool, err error) {
	switch {
	case len(value) > 0 && value[0] == flagLive:
		return value[1:], false, nil
	case len(value) == 1 && value[0] == flagTombstone:
		return nil, true, nil
	}
	return nil, false, malformed("version value", value)
}

// Tail is the tail of a KeyValue on the wire, taken apart. Value points into it.
type Tail struct {
	Create, Version int64
	Value           []byte
	Lease           kv.LeaseID
	// Head is how many bytes the fields before the value take, and ValueEnd where the value's field ends: with them a
	// tail is cut without being written anew.
	Head, ValueEnd int
}

// DecodeTail takes a tail apart that AppendLiveValue wrote. It refuses anything that AppendLiveValue would not write.
func DecodeTail(tail []byte) (t Tail, err error) {
	d := rowDecoder{b: tail}
	t.Create = d.field(tagCreate)
	t.Version = d.field(tagVersion)
	t.Head = len(tail) - len(d.b)
	if d.tag(tagValue) {
		n := d.uvarint()
		if n == 0 || n > uint64(len(d.b)) {
			d.failed = true
		} else {
			t.Value, d.b = d.b[:n:n], d.b[n:]
		}
	}
	t.ValueEnd = len(tail) - len(d.b)
	t.Lease = kv.LeaseID(d.field(tagLease))
	if d.failed || len(d.b) > 0 {
		return Tail{}, malformed("version tail", tail)
	}
	return t, nil
}

// rowDecoder reads numbers from a row; after a failure everything is zero.
type rowDecoder struct {
	b      []byte
	failed bool
}

func (d *rowDecoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	// The last byte of a longer number is never zero: every number has one encoding.
	if n <= 0 || n > 1 && d.b[n-1] == 0 {
		d.b, d.failed = nil, true
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *rowDecoder) tag(tag byte) bool {
	if len(d.b) == 0 || d.b[0] != tag {
		return false
	}
	d.b = d.b[1:]
	return true
}

func (d *rowDecoder) field(tag byte) int64 {
	if !d.tag(tag) {
		return 0
	}
	v := d.uvarint()
	if v == 0 {
		d.failed = true
	}
	return int64(v)
}

// AppendRevision appends the key of the row that holds one change of history. Older sorts first.
func AppendRevision(dst []byte, rev kv.Revision) []byte {
	dst = append(dst, PrefixRevision)
	dst = binary.BigEndian.AppendUint64(dst, uint64(rev.Main))
	return binary.BigEndian.AppendUint32(dst, uint32(rev.Sub))
}

// DecodeRevision takes the key of a revision row apart.
func DecodeRevision(row []byte) (kv.Revision, error) {
	if len(row) != 13 || row[0] != PrefixRevision {
		return kv.Revision{}, malformed("revision key", row)
	}
	return kv.Revision{
		Main: int64(binary.BigEndian.Uint64(row[1:])),
		Sub:  int64(binary.BigEndian.Uint32(row[9:])),
	}, nil
}

// Change is what a revision row says of one change of history.
type Change struct {
	Type kv.EventType
	// Superseded is the version that the change replaced; zero if the key did not exist.
	Superseded kv.Revision
	// Frees is how long the value of the superseded version's row is: what goes with it. 0: none, or not known, as in rows
	// of before it was kept.
	Frees uint32
	Key   []byte
}

// flagFrees in the operation of a revision row says that Frees follows the superseded revision.
const flagFrees byte = 2

// AppendChange appends the value of a revision row: the operation, the superseded revision, what it frees, the user key.
func AppendChange(dst []byte, c Change) []byte {
	op := byte(c.Type)
	if c.Frees > 0 {
		op |= flagFrees
	}
	dst = append(dst, op)
	dst = binary.AppendUvarint(dst, uint64(c.Superseded.Main))
	dst = binary.AppendUvarint(dst, uint64(c.Superseded.Sub))
	if c.Frees > 0 {
		dst = binary.AppendUvarint(dst, uint64(c.Frees))
	}
	return append(dst, c.Key...)
}

// DecodeChange takes the value of a revision row apart. Key points into value.
func DecodeChange(value []byte) (Change, error) {
	if len(value) < 1 || value[0]&^flagFrees > byte(kv.Delete) {
		return Change{}, malformed("revision value", value)
	}
	d := rowDecoder{b: value[1:]}
	c := Change{Type: kv.EventType(value[0] &^ flagFrees)}
	c.Superseded.Main = int64(d.uvarint())
	c.Superseded.Sub = int64(d.uvarint())
	if value[0]&flagFrees != 0 {
		n := d.uvarint()
		d.failed = d.failed || n == 0 || n > math.MaxUint32
		c.Frees = uint32(n)
	}
	c.Key = d.b
	if d.failed || len(c.Key) == 0 || c.Superseded.Sub > maxSub || c.Superseded.Sub < 0 || c.Superseded.Main < 0 {
		return Change{}, malformed("revision value", value)
	}
	return c, nil
}

// AppendFence appends the key of a fence row. The first fence has the empty user key.
func AppendFence(dst, key []byte) []byte { return append(append(dst, PrefixFence), key...) }

// DecodeFence returns the user key of a fence row; it points into row.
func DecodeFence(row []byte) (key []byte, err error) {
	if len(row) < 1 || row[0] != PrefixFence {
		return nil, malformed("fence key", row)
	}
	return row[1:], nil
}

// AppendLease appends the key of a lease's row.
func AppendLease(dst []byte, id kv.LeaseID) []byte {
	return binary.BigEndian.AppendUint64(append(dst, PrefixLease), uint64(id))
}

// DecodeLease takes the key of a lease's row apart.
func DecodeLease(row []byte) (kv.LeaseID, error) {
	if len(row) != 9 || row[0] != PrefixLease {
		return 0, malformed("lease key", row)
	}
	return kv.LeaseID(binary.BigEndian.Uint64(row[1:])), nil
}

// AppendAttachment appends the key of the row that attaches a user key to a lease. With a nil key it appends what all
// attachments of the lease begin with.
func AppendAttachment(dst []byte, id kv.LeaseID, key []byte) []byte {
	dst = binary.BigEndian.AppendUint64(append(dst, PrefixAttachment), uint64(id))
	return append(dst, key...)
}

// DecodeAttachment takes the key of an attachment row apart. The user key points into row.
func DecodeAttachment(row []byte) (kv.LeaseID, []byte, error) {
	if len(row) < 10 || row[0] != PrefixAttachment {
		return 0, nil, malformed("attachment key", row)
	}
	return kv.LeaseID(binary.BigEndian.Uint64(row[1:])), row[9:], nil
}

// AppendMember appends the key of a member's row.
func AppendMember(dst []byte, id uint64) []byte {
	return binary.BigEndian.AppendUint64(append(dst, PrefixMember), id)
}

// DecodeMember takes the key of a member's row apart.
func DecodeMember(row []byte) (uint64, error) {
	if len(row) != 9 || row[0] != PrefixMember {
		return 0, malformed("member key", row)
	}
	return binary.BigEndian.Uint64(row[1:]), nil
}

// AppendAlarm appends the key of an alarm's row.
func AppendAlarm(dst []byte, alarm int32, member uint64) []byte {
	dst = binary.BigEndian.AppendUint32(append(dst, PrefixAlarm), uint32(alarm))
	return binary.BigEndian.AppendUint64(dst, member)
}

// DecodeAlarm takes the key of an alarm's row apart.
func DecodeAlarm(row []byte) (alarm int32, member uint64, err error) {
	if len(row) != 13 || row[0] != PrefixAlarm {
		return 0, 0, malformed("alarm key", row)
	}
	return int32(binary.BigEndian.Uint32(row[1:])), binary.BigEndian.Uint64(row[5:]), nil
}

// PrefixBounds returns the bounds of all rows that begin with prefix, which must not be a version row's, be empty, or
// consist of 0xff alone.
func PrefixBounds(prefix []byte) (lower, upper []byte) {
	upper = append([]byte(nil), prefix...)
	for i := len(upper) - 1; i >= 0; i-- {
		if upper[i] != 0xff {
			upper[i]++
			return prefix, upper[:i+1]
		}
	}
	panic(fmt.Sprintf("engine: prefix %x has no upper bound", prefix))
}

// AppendNumber appends the value of a meta row that holds one number.
func AppendNumber(dst []byte, n int64) []byte { return binary.BigEndian.AppendUint64(dst, uint64(n)) }

// DecodeNumber is the inverse of AppendNumber.
func DecodeNumber(value []byte) (int64, error) {
	if len(value) != 8 {
		return 0, malformed("number", value)
	}
	return int64(binary.BigEndian.Uint64(value)), nil
}

// AppendApplied appends the value of the applied row: the index and the term of the last raft entry whose effects the
// batch holds.
func AppendApplied(dst []byte, index, term uint64) []byte {
	return binary.BigEndian.AppendUint64(binary.BigEndian.AppendUint64(dst, index), term)
}

// DecodeApplied is the inverse of AppendApplied.
func DecodeApplied(value []byte) (index, term uint64, err error) {
	if len(value) != 16 {
		return 0, 0, malformed("applied", value)
	}
	return binary.BigEndian.Uint64(value), binary.BigEndian.Uint64(value[8:]), nil
}

// Progress is how far the deletion of compacted history has come.
type Progress struct {
	// Done: all garbage of a compaction at this revision is gone; 0 before the first.
	Done int64
	// Target is the compaction under way; equal to Done when there is none.
	Target int64
	// Next is the first revision that the compaction under way has yet to look at.
	Next kv.Revision
}

// AppendProgress appends the value of the compacting row.
func AppendProgress(dst []byte, p Progress) []byte {
	dst = AppendNumber(AppendNumber(dst, p.Done), p.Target)
	return AppendNumber(AppendNumber(dst, p.Next.Main), p.Next.Sub)
}

// DecodeProgress is the inverse of AppendProgress.
func DecodeProgress(value []byte) (p Progress, err error) {
	if len(value) != 32 {
		return Progress{}, malformed("progress", value)
	}
	for i, n := range []*int64{&p.Done, &p.Target, &p.Next.Main, &p.Next.Sub} {
		*n = int64(binary.BigEndian.Uint64(value[8*i:]))
	}
	return p, nil
}
