package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"

	"go.etcd.io/raft/v3/raftpb"
)

// Kind says what a record is. The numbers are on disk: never reuse one.
type Kind uint8

// The kinds of records. KindSegment and KindTorn are not on disk: Read makes them up for a segment's header and for the
// place where a torn tail begins.
const (
	KindEntry     Kind = 1 // one raft entry
	KindHardState Kind = 2 // term, vote, commit
	KindTruncate  Kind = 3 // entries behind Position are dead; Position is the last that lives
	KindReset     Kind = 4 // all entries before this record are dead; the log goes on behind Position
	KindClosed    Kind = 5 // a clean Close; says nothing but its sync point

	KindSegment Kind = 254
	KindTorn    Kind = 255
)

// String gives the kind's name as `trivet inspect log` prints it.
func (k Kind) String() string {
	switch k {
	case KindEntry:
		return "entry"
	case KindHardState:
		return "hard-state"
	case KindTruncate:
		return "truncate"
	case KindReset:
		return "reset"
	case KindClosed:
		return "closed"
	case KindSegment:
		return "segment"
	case KindTorn:
		return "torn"
	}
	return fmt.Sprintf("kind-%d", uint8(k))
}

const (
	// recordHeaderBytes is the fixed part of a record:
	//
	//	 0 checksum of bytes 4..24, seeded (see seal)   uint32
	//	 4 CRC32C of the payload                        uint32
	//	 8 payload bytes                                uint32
	//	12 sync point: an offset in this segment        uint32
	//	16 low half of the segment's sequence number    uint32
	//	20 kind                                         uint8
	//	21 flags                                        uint8
	//	22 zero                                         uint16
	//
	// All numbers are little endian. The payload follows, then zeros up to a multiple of recordAlign.
	recordHeaderBytes = 24
	recordAlign       = 8

	// flagEnd marks the last record of one Append. Recovery takes a write as a whole or not at all.
	flagEnd = 1

	// maxSegmentBytes bounds a segment, because offsets are 32 bits wide on disk and in memory.
	maxSegmentBytes = 1<<32 - 4096
)

var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// errShort means that a payload ends before its fields do.
var errShort = errors.New("payload too short")

// seal ties the records of one segment to this use of the file: the salt is drawn anew whenever a file becomes a segment,
// so neither leftovers of an earlier use nor bytes that a client planted in a value can pass for a record.
type seal struct {
	salt uint64
	seq  uint64
}

// seed gives the checksum's initial value for a record at off.
func (s seal) seed(off int64) uint32 {
	// The finalizer of splitmix64: every input bit reaches every output bit.
	x := s.salt ^ s.seq*0x9e3779b97f4a7c15 ^ uint64(off)*0xd1342543de82ef95
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return uint32((x ^ x>>31) >> 16)
}

// recordHeader is the decoded fixed part of a record.
type recordHeader struct {
	payloadCRC uint32
	length     uint32
	durable    uint32
	kind       Kind
	flags      uint8
}

// bytes is what the record takes in the file, padding included.
func (h recordHeader) bytes() int64 { return recordBytes(int(h.length)) }

// recordBytes is what a record with the given payload takes in the file, padding included.
func recordBytes(payload int) int64 {
	return (int64(payload) + recordHeaderBytes + recordAlign - 1) &^ (recordAlign - 1)
}

// decodeHeader decodes the record header in b, which holds at least recordHeaderBytes from offset off of the segment. It
// reports false unless the header was written by this use of the file at this very place.
func (s seal) decodeHeader(b []byte, off int64) (recordHeader, bool) {
	b = b[:recordHeaderBytes]
	// The cheap tests come first: recovery asks this question of every aligned offset behind the end of the log.
	if b[20] == 0 || binary.LittleEndian.Uint32(b[16:]) != uint32(s.seq) || b[22]|b[23] != 0 {
		return recordHeader{}, false
	}
	if binary.LittleEndian.Uint32(b) != crc32.Update(s.seed(off), castagnoli, b[4:]) {
		return recordHeader{}, false
	}
	return recordHeader{
		payloadCRC: binary.LittleEndian.Uint32(b[4:]),
		length:     binary.LittleEndian.Uint32(b[8:]),
		durable:    binary.LittleEndian.Uint32(b[12:]),
		kind:       Kind(b[20]),
		flags:      b[21],
	}, true
}

// encoder appends records to a buffer that begins at offset base of the sealed segment.
type encoder struct {
	seal    seal
	base    int64
	durable int64 // sync point noted in every record
	buf     []byte
}

// offset is where the next record will begin.
func (e *encoder) offset() int64 { return e.base + int64(len(e.buf)) }

// begin reserves a header; the payload is appended to e.buf next, then finish is called with what begin gave.
func (e *encoder) begin() int {
	start := len(e.buf)
	var zero [recordHeaderBytes]byte
	e.buf = append(e.buf, zero[:]...)
	return start
}

// finish fills in the header of the record that begins at start and pads it.
func (e *encoder) finish(start int, kind Kind, flags uint8) {
	payload := e.buf[start+recordHeaderBytes:]
	length := len(payload)
	h := e.buf[start : start+recordHeaderBytes]
	binary.LittleEndian.PutUint32(h[4:], crc32.Checksum(payload, castagnoli))
	binary.LittleEndian.PutUint32(h[8:], uint32(length))
	binary.LittleEndian.PutUint32(h[12:], uint32(e.durable))
	binary.LittleEndian.PutUint32(h[16:], uint32(e.seal.seq))
	h[20], h[21] = byte(kind), flags
	binary.LittleEndian.PutUint32(h, crc32.Update(e.seal.seed(e.base+int64(start)), castagnoli, h[4:]))
	var zero [recordAlign]byte
	e.buf = append(e.buf, zero[:recordBytes(length)-recordHeaderBytes-int64(length)]...)
}

func (e *encoder) entry(ent *raftpb.Entry, flags uint8) {
	start := e.begin()
	e.buf = append(e.buf, byte(ent.GetType()))
	e.buf = binary.AppendUvarint(e.buf, ent.GetTerm())
	e.buf = binary.AppendUvarint(e.buf, ent.GetIndex())
	e.buf = append(e.buf, ent.GetData()...)
	e.finish(start, KindEntry, flags)
}

func (e *encoder) hardState(hs *raftpb.HardState, flags uint8) {
	start := e.begin()
	e.buf = binary.AppendUvarint(e.buf, hs.GetTerm())
	e.buf = binary.AppendUvarint(e.buf, hs.GetVote())
	e.buf = binary.AppendUvarint(e.buf, hs.GetCommit())
	e.finish(start, KindHardState, flags)
}

func (e *encoder) position(p Position, kind Kind, flags uint8) {
	start := e.begin()
	e.buf = binary.AppendUvarint(e.buf, p.Index)
	e.buf = binary.AppendUvarint(e.buf, p.Term)
	e.finish(start, kind, flags)
}

func (e *encoder) closed() {
	e.finish(e.begin(), KindClosed, flagEnd)
}

// entryRecordBytes is what an entry takes in the file at most by a few bytes of padding: an upper bound.
func entryRecordBytes(ent *raftpb.Entry) int64 {
	return recordBytes(1 + 2*binary.MaxVarintLen64 + len(ent.GetData()))
}

// smallRecordBytes bounds every other record.
var smallRecordBytes = recordBytes(3 * binary.MaxVarintLen64)

// uvarints reads len(into) numbers from b and gives the rest.
func uvarints(b []byte, into ...*uint64) ([]byte, error) {
	for _, v := range into {
		x, n := binary.Uvarint(b)
		if n <= 0 {
			return nil, errShort
		}
		*v, b = x, b[n:]
	}
	return b, nil
}

// decodePayload fills the fields of r that its kind has. r.Data aliases payload.
func decodePayload(r *Record, payload []byte) error {
	var rest []byte
	var err error
	switch r.Kind {
	case KindEntry:
		if len(payload) == 0 {
			return errShort
		}
		r.Type = raftpb.EntryType(payload[0])
		if rest, err = uvarints(payload[1:], &r.Term, &r.Index); err != nil {
			return err
		}
		if len(rest) > 0 {
			r.Data = rest
		}
		return nil
	case KindHardState:
		var term, vote, commit uint64
		rest, err = uvarints(payload, &term, &vote, &commit)
		r.HardState = &raftpb.HardState{Term: &term, Vote: &vote, Commit: &commit}
	case KindTruncate, KindReset:
		rest, err = uvarints(payload, &r.Position.Index, &r.Position.Term)
	case KindClosed:
		rest = payload
	default:
		return fmt.Errorf("record kind %d is not known to this version", uint8(r.Kind))
	}
	if err == nil && len(rest) != 0 {
		err = fmt.Errorf("%d bytes too many", len(rest))
	}
	return err
}
