package command

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/trivet-kv/trivet/internal/kv"
	"github.com/trivet-kv/trivet/internal/wire"
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
	d := wire.NewReader(entry[batchHeader:])
	for d.Len() > 0 {
		c := d.Bytes()
		if d.Failed() {
			return ErrMalformed
		}
		if err := visit(origin, c); err != nil {
			return err
		}
	}
	return nil
}

// PutKeys shows to visit the keys that a command would put, on both branches of a transaction, for who wants to know them before
// commands are run. Of bytes that Decode refuses it shows those before what cannot be read. The keys point into encoded.
func PutKeys(encoded []byte, visit func(key []byte)) {
	d := decoder{wire.NewReader(encoded)}
	kind := d.Byte()
	if kind != kindPut && kind != kindTxn {
		return
	}
	d.Uvarint() // ID, Time, User, AuthRevision: as Decode
	d.Varint()
	d.Bytes()
	d.Uvarint()
	if kind == kindPut {
		d.putKey(visit)
	} else {
		d.txnKeys(1, visit)
	}
}

func (d *decoder) putKey(visit func(key []byte)) {
	p := d.put()
	if !d.Failed() {
		visit(p.Key)
	}
}

// txnKeys reads what txn reads.
func (d *decoder) txnKeys(depth int, visit func(key []byte)) {
	if depth > MaxTxnDepth {
		d.Fail()
	}
	for n := d.Count(); n > 0 && !d.Failed(); n-- {
		d.compare()
	}
	for range 2 {
		for n := d.Count(); n > 0 && !d.Failed(); n-- {
			switch d.Byte() {
			case kindPut:
				d.putKey(visit)
			case kindDeleteRange:
				d.deleteRange()
			case kindTxn:
				d.txnKeys(depth+1, visit)
			case kindRange:
				d.rangeOptions()
			default:
				d.Fail()
			}
		}
	}
}

// Decode reads the command that Append wrote. Keys and values point into b.
func (c *Command) Decode(b []byte) error {
	d := decoder{wire.NewReader(b)}
	kind := d.Byte()
	*c = Command{ID: d.Uvarint(), Time: d.Varint(), User: string(d.Bytes()), AuthRevision: d.Uvarint()}
	switch kind {
	case kindPut:
		c.Put = new(d.put())
	case kindDeleteRange:
		c.DeleteRange = d.deleteRange()
	case kindTxn:
		c.Txn = d.txn(1)
	case kindCompact:
		c.Compact = &Compact{Revision: d.Varint()}
	case kindLeaseGrant:
		c.LeaseGrant = &LeaseGrant{ID: kv.LeaseID(d.Varint()), TTL: d.Varint()}
	case kindLeaseRevoke:
		c.LeaseRevoke = &LeaseRevoke{ID: kv.LeaseID(d.Varint()), Term: d.Uvarint(), Granted: d.Uvarint()}
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
		c.Fence = &Fence{Member: d.Uvarint()}
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
	if !d.Whole() {
		return ErrMalformed
	}
	return nil
}

// decoder reads the parts that commands have in common.
type decoder struct{ wire.Reader }

func (d *decoder) keyRange() kv.Range { return kv.Range{Key: d.Bytes(), End: d.Bytes()} }

func (d *decoder) put() Put {
	f := d.Byte()
	return Put{
		PrevKV: f&flagPrevKV != 0, IgnoreValue: f&flagIgnoreValue != 0, IgnoreLease: f&flagIgnoreLease != 0,
		Key: d.Bytes(), Value: d.Bytes(), Lease: kv.LeaseID(d.Varint()),
	}
}

func (d *decoder) deleteRange() *DeleteRange {
	f := d.Byte()
	return &DeleteRange{PrevKV: f&flagPrevKV != 0, Range: d.keyRange()}
}

func (d *decoder) rangeOptions() *kv.RangeOptions {
	f := d.Byte()
	o := &kv.RangeOptions{
		KeysOnly: f&flagKeysOnly != 0, CountOnly: f&flagCountOnly != 0,
		Range: d.keyRange(), Revision: d.Varint(), Limit: d.Varint(),
		Target: kv.SortTarget(d.Byte()), Order: kv.SortOrder(d.Byte()),
	}
	if f&flagBounds != 0 {
		o.MinMod, o.MaxMod, o.MinCreate, o.MaxCreate = d.Varint(), d.Varint(), d.Varint(), d.Varint()
	}
	return o
}

func (d *decoder) txn(depth int) *Txn {
	if depth > MaxTxnDepth {
		d.Fail()
		return nil
	}
	t := &Txn{}
	if n := d.Count(); n > 0 {
		t.Compare = make([]Compare, n)
	}
	for i := range t.Compare {
		t.Compare[i] = d.compare()
		if d.Failed() {
			return nil
		}
	}
	t.Success = d.ops(depth)
	t.Failure = d.ops(depth)
	return t
}

func (d *decoder) compare() Compare {
	c := Compare{Target: CompareTarget(d.Byte()), Result: CompareResult(d.Byte()), Range: d.keyRange()}
	if c.Target == CompareValue {
		c.Value = d.Bytes()
	} else {
		c.Int = d.Varint()
	}
	return c
}

func (d *decoder) ops(depth int) []Op {
	n := d.Count()
	if n == 0 {
		return nil
	}
	ops := make([]Op, n)
	for i := range ops {
		switch kind := d.Byte(); kind {
		case kindPut:
			ops[i].Put = new(d.put())
		case kindDeleteRange:
			ops[i].DeleteRange = d.deleteRange()
		case kindTxn:
			ops[i].Txn = d.txn(depth + 1)
		case kindRange:
			ops[i].Range = d.rangeOptions()
		default:
			d.Fail()
		}
		if d.Failed() {
			return nil
		}
	}
	return ops
}

func (d *decoder) leaseCheckpoint(grants bool) *LeaseCheckpoint {
	c := &LeaseCheckpoint{}
	if n := d.Count(); n > 0 {
		c.Leases = make([]kv.Lease, n)
	}
	for i := range c.Leases {
		c.Leases[i] = kv.Lease{ID: kv.LeaseID(d.Varint()), Remaining: d.Varint()}
		if grants {
			c.Leases[i].Granted = d.Uvarint()
		}
	}
	c.Term = d.Uvarint()
	return c
}

func (d *decoder) memberPublish() *MemberPublish {
	return &MemberPublish{ID: d.Uvarint(), Name: string(d.Bytes()), ClientURLs: d.strings()}
}

func (d *decoder) alarm() *Alarm {
	f := d.Byte()
	return &Alarm{Raise: f&flagRaise != 0, Found: f&flagFound != 0, Alarm: kv.Alarm{
		Type: kv.AlarmType(d.Varint()), MemberID: d.Uvarint(), Own: f&flagOwn != 0,
	}}
}
