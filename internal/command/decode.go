package command

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/trivet-kv/trivet/internal/kv"
)

// ErrMalformed is returned for bytes that no Append made. An entry in the log is guarded by its checksum, so meeting
// this there means a member of an incompatible version wrote it.
var ErrMalformed = errors.New("command: malformed log entry")

// batchHeader is the version byte and the origin.
const batchHeader = 1 + 8

// Batch walks the encoded commands of one log entry in order. It stops at the first error of visit and returns it.
func Batch(entry []byte, visit func(origin uint64, encoded []byte) error) error {
	if len(entry) == 0 {
		return nil
	}
	if entry[0] != Version {
		return fmt.Errorf("%w: entry version %d, this binary knows %d", ErrMalformed, entry[0], Version)
	}
	if len(entry) < batchHeader {
		return ErrMalformed
	}
	origin := binary.BigEndian.Uint64(entry[1:])
	d := decoder{b: entry[batchHeader:]}
	for len(d.b) > 0 {
		c := d.bytes()
		if d.failed {
			return ErrMalformed
		}
		if err := visit(origin, c); err != nil {
			return err
		}
	}
	return nil
}

// PutKey returns the key of a command that puts a single one, for who wants to know keys before commands are run; false for
// any other command and for bytes that Decode refuses before it comes to the key. The key points into encoded.
func PutKey(encoded []byte) ([]byte, bool) {
	d := decoder{b: encoded}
	if d.byte() != kindPut {
		return nil, false
	}
	d.uvarint() // ID, Time, User, AuthRevision, flags: as Decode
	d.varint()
	d.bytes()
	d.uvarint()
	d.byte()
	key := d.bytes()
	return key, !d.failed
}

// Decode reads the command that Append wrote. Keys and values point into b.
func (c *Command) Decode(b []byte) error {
	d := decoder{b: b}
	kind := d.byte()
	*c = Command{ID: d.uvarint(), Time: d.varint(), User: string(d.bytes()), AuthRevision: d.uvarint()}
	switch kind {
	case kindPut:
		c.Put = d.put()
	case kindDeleteRange:
		c.DeleteRange = d.deleteRange()
	case kindTxn:
		c.Txn = d.txn(1)
	case kindCompact:
		c.Compact = &Compact{Revision: d.varint()}
	case kindLeaseGrant:
		c.LeaseGrant = &LeaseGrant{ID: kv.LeaseID(d.varint()), TTL: d.varint()}
	case kindLeaseRevoke:
		c.LeaseRevoke = &LeaseRevoke{ID: kv.LeaseID(d.varint()), Term: d.uvarint(), Granted: d.uvarint()}
	case kindLeaseCheckpoint:
		c.LeaseCheckpoint = d.leaseCheckpoint(true)
	case kindOldCheckpoint:
		c.LeaseCheckpoint = d.leaseCheckpoint(false)
	case kindMemberPublish:
		c.MemberPublish = d.memberPublish()
	case kindAlarm:
		c.Alarm = d.alarm()
	case kindMark:
		c.Mark = d.mark()
	case kindFence:
		c.Fence = &Fence{Member: d.uvarint()}
	default:
		if d.membership(kind, c) {
			break
		}
		if op := AuthOp(kind); op >= firstAuth && op <= lastAuth {
			c.Auth = d.auth(op)
			break
		}
		return fmt.Errorf("%w: command of kind %d", ErrMalformed, kind)
	}
	if d.failed || len(d.b) > 0 {
		return ErrMalformed
	}
	return nil
}

// decoder reads from the front of b. After the first failure it returns zeros; callers look at failed once, at the end.
type decoder struct {
	b      []byte
	failed bool
}

func (d *decoder) fail() { d.failed, d.b = true, nil }

func (d *decoder) byte() byte {
	if len(d.b) == 0 {
		d.fail()
		return 0
	}
	v := d.b[0]
	d.b = d.b[1:]
	return v
}

func (d *decoder) uvarint() uint64 {
	v, n := binary.Uvarint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

func (d *decoder) varint() int64 {
	v, n := binary.Varint(d.b)
	if n <= 0 {
		d.fail()
		return 0
	}
	d.b = d.b[n:]
	return v
}

// bytes returns nil for an empty string, so that what was left out stays left out.
func (d *decoder) bytes() []byte {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return nil
	}
	if n == 0 {
		return nil
	}
	v := d.b[:n:n]
	d.b = d.b[n:]
	return v
}

// count reads the length of a list whose elements take at least one byte each, so that a short input cannot ask for a
// huge allocation.
func (d *decoder) count() int {
	n := d.uvarint()
	if n > uint64(len(d.b)) {
		d.fail()
		return 0
	}
	return int(n)
}

func (d *decoder) keyRange() kv.Range { return kv.Range{Key: d.bytes(), End: d.bytes()} }

func (d *decoder) put() *Put {
	f := d.byte()
	return &Put{
		PrevKV: f&flagPrevKV != 0, IgnoreValue: f&flagIgnoreValue != 0, IgnoreLease: f&flagIgnoreLease != 0,
		Key: d.bytes(), Value: d.bytes(), Lease: kv.LeaseID(d.varint()),
	}
}

func (d *decoder) deleteRange() *DeleteRange {
	f := d.byte()
	return &DeleteRange{PrevKV: f&flagPrevKV != 0, Range: d.keyRange()}
}

func (d *decoder) rangeOptions() *kv.RangeOptions {
	f := d.byte()
	o := &kv.RangeOptions{
		KeysOnly: f&flagKeysOnly != 0, CountOnly: f&flagCountOnly != 0,
		Range: d.keyRange(), Revision: d.varint(), Limit: d.varint(),
		Target: kv.SortTarget(d.byte()), Order: kv.SortOrder(d.byte()),
	}
	if f&flagBounds != 0 {
		o.MinMod, o.MaxMod, o.MinCreate, o.MaxCreate = d.varint(), d.varint(), d.varint(), d.varint()
	}
	return o
}

func (d *decoder) txn(depth int) *Txn {
	if depth > MaxTxnDepth {
		d.fail()
		return nil
	}
	t := &Txn{}
	if n := d.count(); n > 0 {
		t.Compare = make([]Compare, n)
	}
	for i := range t.Compare {
		c := &t.Compare[i]
		c.Target, c.Result, c.Range = CompareTarget(d.byte()), CompareResult(d.byte()), d.keyRange()
		if c.Target == CompareValue {
			c.Value = d.bytes()
		} else {
			c.Int = d.varint()
		}
		if d.failed {
			return nil
		}
	}
	t.Success = d.ops(depth)
	t.Failure = d.ops(depth)
	return t
}

func (d *decoder) ops(depth int) []Op {
	n := d.count()
	if n == 0 {
		return nil
	}
	ops := make([]Op, n)
	for i := range ops {
		switch kind := d.byte(); kind {
		case kindPut:
			ops[i].Put = d.put()
		case kindDeleteRange:
			ops[i].DeleteRange = d.deleteRange()
		case kindTxn:
			ops[i].Txn = d.txn(depth + 1)
		case kindRange:
			ops[i].Range = d.rangeOptions()
		default:
			d.fail()
		}
		if d.failed {
			return nil
		}
	}
	return ops
}

func (d *decoder) leaseCheckpoint(grants bool) *LeaseCheckpoint {
	c := &LeaseCheckpoint{}
	if n := d.count(); n > 0 {
		c.Leases = make([]kv.Lease, n)
	}
	for i := range c.Leases {
		c.Leases[i] = kv.Lease{ID: kv.LeaseID(d.varint()), Remaining: d.varint()}
		if grants {
			c.Leases[i].Granted = d.uvarint()
		}
	}
	c.Term = d.uvarint()
	return c
}

func (d *decoder) memberPublish() *MemberPublish {
	return &MemberPublish{ID: d.uvarint(), Name: string(d.bytes()), ClientURLs: d.strings()}
}

func (d *decoder) alarm() *Alarm {
	f := d.byte()
	return &Alarm{Raise: f&flagRaise != 0, Found: f&flagFound != 0, Alarm: kv.Alarm{
		Type: kv.AlarmType(d.varint()), MemberID: d.uvarint(), Own: f&flagOwn != 0,
	}}
}
