// Package wal reads the log of a stopped etcd, 3.4 to 3.7. It never writes, needs no more of a directory than its files,
// and takes nothing for granted: what cannot be read as etcd wrote it is ErrDamaged with file and offset, but for the torn
// end that a crash leaves, which is cut as etcd cuts it.
//
// The format: files NNNNNNNNNNNNNNNN-IIIIIIIIIIIIIIII.wal (sequence number, first index; hexadecimal) of frames. A frame is
// 8 bytes, little endian: the length of the record in the low 56 bits, and, if the highest bit is set, in bits 56 to 58 how
// many bytes of padding follow it. A record is a protobuf message: type (1), CRC (2), data (3). The CRC is a CRC-32C over the
// data of all records so far, over all files; each file begins with a record that repeats it.
package wal

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"go.etcd.io/raft/v3/raftpb"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

// ErrDamaged is wrapped with the place.
var ErrDamaged = errors.New("the log is damaged")

// maxRecord bounds a record; etcd's are bounded by its largest request.
const maxRecord = 512 << 20

// sector is what a disk writes whole: of a record that was torn by a crash, some sectors are zero.
const sector = 512

// The kinds of records.
const (
	kindMetadata = 1
	kindEntry    = 2
	kindState    = 3
	kindCRC      = 4
	kindSnapshot = 5
)

// Entry is one entry of the log.
type Entry struct {
	Index, Term uint64
	Conf        bool // a change of the members
	Data        []byte
}

// Log is what a log holds behind an index.
type Log struct {
	Entries []Entry // without a gap
	Commit  uint64  // the highest index that this member wrote down as committed
	// Snapshot is the highest index that a snapshot was recorded at.
	Snapshot uint64
	// Last is the index of the last entry, kept or not; 0: there is none.
	Last uint64
}

// Read reads the log in dir and keeps the entries after an index.
func Read(dir string, after uint64) (Log, error) {
	names, err := files(dir)
	if err != nil {
		return Log{}, err
	}
	r := reader{after: after}
	for i, name := range names {
		if err := r.file(filepath.Join(dir, name), i == len(names)-1); err != nil {
			return Log{}, err
		}
	}
	if n := len(r.log.Entries); n > 0 && r.log.Entries[0].Index != after+1 {
		return Log{}, fmt.Errorf("the log in %s begins at entry %d, and the state ends at entry %d: what lies between is missing", dir, r.log.Entries[0].Index, after)
	}
	return r.log, nil
}

// files returns the names of the files in order, which must be without a gap.
func files(dir string) ([]string, error) {
	all, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range all {
		if strings.HasSuffix(e.Name(), ".wal") {
			names = append(names, e.Name())
		}
	}
	slices.Sort(names)
	if len(names) == 0 {
		return nil, fmt.Errorf("%s holds no log of etcd", dir)
	}
	var first uint64
	for i, name := range names {
		var seq, index uint64
		if _, err := fmt.Sscanf(name, "%016x-%016x.wal", &seq, &index); err != nil {
			return nil, fmt.Errorf("%w: %s is not the name of a file of it", ErrDamaged, filepath.Join(dir, name))
		}
		if i == 0 {
			first = seq
		}
		if seq != first+uint64(i) {
			return nil, fmt.Errorf("%w: a file before %s is missing", ErrDamaged, filepath.Join(dir, name))
		}
	}
	return names, nil
}

type reader struct {
	after uint64
	crc   uint32
	begun bool // crc is known
	log   Log
	buf   []byte
}

func (r *reader) file(path string, last bool) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return err
	}
	in := bufio.NewReaderSize(f, 256<<10)
	for at := int64(0); ; {
		n, err := r.frame(in, at, info.Size()-at, last)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("%w: %s at byte %d", err, path, at)
		}
		at += n
	}
}

// frame reads one frame and returns its length. io.EOF ends the file: there is nothing more, zeros, or in the last file
// what a crash tore.
func (r *reader) frame(in *bufio.Reader, at, left int64, last bool) (int64, error) {
	var head [8]byte
	if _, err := io.ReadFull(in, head[:]); err != nil {
		return 0, io.EOF
	}
	length := binary.LittleEndian.Uint64(head[:])
	if length == 0 {
		return 0, io.EOF
	}
	size, padding := int64(length&(1<<56-1)), int64(0)
	if length>>63 == 1 {
		padding = int64(length >> 56 & 7)
	}
	if size > maxRecord || size+padding > left-8 {
		if last && size <= maxRecord && runsOut(in, size) {
			return 0, io.EOF
		}
		return 0, fmt.Errorf("%w: a record of %d bytes, and %d are left", ErrDamaged, size, left-8)
	}
	r.buf = slices.Grow(r.buf[:0], int(size+padding))[:size+padding]
	if _, err := io.ReadFull(in, r.buf); err != nil {
		return 0, err
	}
	if err := r.record(r.buf[:size]); err != nil {
		if errors.Is(err, ErrDamaged) && last && torn(r.buf, at+8) {
			return 0, io.EOF
		}
		return 0, err
	}
	return 8 + size + padding, nil
}

// runsOut tells a record that a crash cut short from one whose length was changed: the record says itself how long its data
// are. One of which too little is there to say so was cut.
func runsOut(in *bufio.Reader, size int64) bool {
	head, _ := in.Peek(32)
	for at := 0; ; {
		number, typ, n := protowire.ConsumeTag(head[at:])
		if n < 0 || number == 0 {
			return len(head) < 32 || torn(head, 0)
		}
		at += n
		if number == 3 && typ == protowire.BytesType {
			length, n := protowire.ConsumeVarint(head[at:])
			return n < 0 || uint64(at+n)+length == uint64(size)
		}
		if n = protowire.ConsumeFieldValue(number, typ, head[at:]); n < 0 {
			return len(head) < 32
		}
		at += n
	}
}

// torn reports whether a sector's part of a record is all zero.
func torn(record []byte, at int64) bool {
	for len(record) > 0 {
		n := min(int(sector-at%sector), len(record))
		if !slices.ContainsFunc(record[:n], func(b byte) bool { return b != 0 }) {
			return true
		}
		record, at = record[n:], at+int64(n)
	}
	return false
}

func (r *reader) record(b []byte) error {
	kind, sum, data, err := decode(b)
	if err != nil {
		return err
	}
	if kind == kindCRC {
		if r.begun && r.crc != 0 && sum != r.crc {
			return fmt.Errorf("%w: the checksum does not go on from the file before", ErrDamaged)
		}
		r.crc, r.begun = sum, true
		return nil
	}
	if crc := crc32.Update(r.crc, crc32.MakeTable(crc32.Castagnoli), data); crc != sum {
		return fmt.Errorf("%w: wrong checksum", ErrDamaged)
	}
	r.crc, r.begun = sum, true
	switch kind {
	case kindEntry:
		return r.entry(data)
	case kindState:
		var s raftpb.HardState
		if err := proto.Unmarshal(data, &s); err != nil {
			return fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		r.log.Commit = max(r.log.Commit, s.GetCommit())
	case kindSnapshot:
		index, err := firstVarint(data)
		if err != nil {
			return err
		}
		r.log.Snapshot = max(r.log.Snapshot, index)
	case kindMetadata:
	default:
		return fmt.Errorf("%w: a record of the unknown kind %d", ErrDamaged, kind)
	}
	return nil
}

// entry takes an entry in. One that comes again replaces what was there, and all behind it.
func (r *reader) entry(data []byte) error {
	var e raftpb.Entry
	if err := proto.Unmarshal(data, &e); err != nil {
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	}
	r.log.Last = e.GetIndex()
	if e.GetIndex() <= r.after {
		r.log.Entries = r.log.Entries[:0]
		return nil
	}
	kept := &r.log.Entries
	if n := len(*kept); n > 0 {
		first := (*kept)[0].Index
		switch {
		case e.GetIndex() < first || e.GetIndex() > first+uint64(n):
			return fmt.Errorf("%w: entry %d follows entry %d", ErrDamaged, e.GetIndex(), (*kept)[n-1].Index)
		default:
			*kept = (*kept)[:e.GetIndex()-first]
		}
	}
	*kept = append(*kept, Entry{
		Index: e.GetIndex(), Term: e.GetTerm(), Conf: e.GetType() != raftpb.EntryNormal, Data: e.Data,
	})
	return nil
}

// decode takes a record apart.
func decode(b []byte) (kind uint64, crc uint32, data []byte, err error) {
	for len(b) > 0 {
		number, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			return 0, 0, nil, fmt.Errorf("%w: no record", ErrDamaged)
		}
		b = b[n:]
		switch {
		case typ == protowire.VarintType && (number == 1 || number == 2):
			v, m := protowire.ConsumeVarint(b)
			if n = m; number == 1 {
				kind = v
			} else {
				crc = uint32(v)
			}
		case typ == protowire.BytesType && number == 3:
			data, n = protowire.ConsumeBytes(b)
		default:
			n = protowire.ConsumeFieldValue(number, typ, b)
		}
		if n < 0 {
			return 0, 0, nil, fmt.Errorf("%w: no record", ErrDamaged)
		}
		b = b[n:]
	}
	return kind, crc, data, nil
}

// firstVarint reads field 1 of a message, 0 if it is not there.
func firstVarint(b []byte) (uint64, error) {
	for len(b) > 0 {
		number, typ, n := protowire.ConsumeTag(b)
		if n < 0 {
			break
		}
		b = b[n:]
		if number == 1 && typ == protowire.VarintType {
			if v, n := protowire.ConsumeVarint(b); n >= 0 {
				return v, nil
			}
			break
		}
		if n = protowire.ConsumeFieldValue(number, typ, b); n < 0 {
			break
		}
		if b = b[n:]; len(b) == 0 {
			return 0, nil
		}
	}
	if len(b) == 0 {
		return 0, nil
	}
	return 0, fmt.Errorf("%w: no record of a snapshot", ErrDamaged)
}
