package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"
	"math"

	"github.com/cockroachdb/pebble/v2/vfs"
	"go.etcd.io/raft/v3/raftpb"
)

// segment is one live segment file.
type segment struct {
	path string
	file vfs.File
	segmentHeader

	// Guarded by Log.mu, changed by the writer only.
	first   uint64   // index of the entry at offsets[0]
	offsets []uint32 // where the live entries from first on begin
	end     int64    // what is published: readers stay before it
	readers int      // readers at the file right now; it is not reused or closed before they are done
	retired bool     // cut: the last reader closes the file
}

// seq is the segment's sequence number: one more than that of the segment before.
func (s *segment) seq() uint64 { return s.seal.seq }

// readEntries reads the entries whose records begin at the given offsets, in order; the last record ends at or before end.
// The entries' data alias one buffer made for them.
func (s *segment) readEntries(first uint64, offsets []uint32, end int64) ([]*raftpb.Entry, error) {
	begin := int64(offsets[0])
	buf := make([]byte, end-begin)
	if _, err := s.file.ReadAt(buf, begin); err != nil {
		return nil, fmt.Errorf("read raft log segment %s at offset %d: %w", s.path, begin, err)
	}
	entries := make([]*raftpb.Entry, 0, len(offsets))
	for n, off := range offsets {
		rec, reason := s.decodeEntryAt(buf[int64(off)-begin:], int64(off))
		if reason == "" && rec.Index != first+uint64(n) {
			reason = fmt.Sprintf("entry %d is where entry %d should be", rec.Index, first+uint64(n))
		}
		if reason != "" {
			return nil, &DamageError{File: s.path, Offset: int64(off), Reason: reason}
		}
		entries = append(entries, &raftpb.Entry{Term: &rec.Term, Index: &rec.Index, Type: &rec.Type, Data: rec.Data})
	}
	return entries, nil
}

func (s *segment) decodeEntryAt(b []byte, off int64) (*Record, string) {
	if len(b) < recordHeaderBytes {
		return nil, "the record is cut short"
	}
	h, ok := s.seal.decodeHeader(b, off)
	if !ok || h.kind != KindEntry {
		return nil, "there is no entry's header"
	}
	b = b[recordHeaderBytes:]
	if uint64(len(b)) < uint64(h.length) {
		return nil, "the record is cut short"
	}
	payload := b[:h.length:h.length]
	if crc32.Checksum(payload, castagnoli) != h.payloadCRC {
		return nil, "the entry's checksum does not match"
	}
	rec := &Record{Kind: KindEntry}
	if err := decodePayload(rec, payload); err != nil {
		return nil, err.Error()
	}
	return rec, ""
}

// recordEnd reads the header of the record at off and gives where the record ends.
func (s *segment) recordEnd(off int64) (int64, error) {
	var b [recordHeaderBytes]byte
	if _, err := s.file.ReadAt(b[:], off); err != nil {
		return 0, fmt.Errorf("read raft log segment %s at offset %d: %w", s.path, off, err)
	}
	h, ok := s.seal.decodeHeader(b[:], off)
	if !ok {
		return 0, &DamageError{File: s.path, Offset: off, Reason: "there is no entry's header"}
	}
	return off + h.bytes(), nil
}

// Record is one record of the log as Read shows it.
type Record struct {
	Segment uint64 // sequence number
	File    string // path of the segment
	Offset  int64  // in the file, bytes
	Bytes   int64  // what the record takes in the file, header and padding included
	Kind    Kind
	Durable int64 // sync point: everything before this offset of the segment was durable when the record was made
	End     bool  // the last record of one write

	Index, Term uint64           // of an entry
	Type        raftpb.EntryType // of an entry
	Data        []byte           // of an entry; valid until the visit returns
	HardState   *raftpb.HardState
	Position    Position // of a truncation or reset; of a segment: the log's last position when it was begun
}

// window reads a file front to back through one buffer.
type window struct {
	file  vfs.File
	size  int64
	buf   []byte
	start int64 // offset of buf[0]
}

const windowBytes = 512 << 10

// at gives n bytes from off, valid until the next call; nil if the file ends before. An error is the disk's.
func (w *window) at(off, n int64) ([]byte, error) {
	if off+n > w.size {
		return nil, nil
	}
	if off < w.start || off+n > w.start+int64(len(w.buf)) {
		want := min(max(n, windowBytes), w.size-off)
		if int64(cap(w.buf)) < want {
			w.buf = make([]byte, want)
		}
		w.buf, w.start = w.buf[:want], off
		if _, err := io.ReadFull(io.NewSectionReader(w.file, off, want), w.buf); err != nil {
			w.buf = w.buf[:0]
			return nil, err
		}
	}
	return w.buf[off-w.start:][:n:n], nil
}

// scan is what reading a segment's records found.
type scan struct {
	good    int64 // end of the last complete write
	durable int64 // the largest sync point that a record before good notes
	// Set when the log does not simply end at good.
	bad     int64  // where the first record that does not validate begins; good <= bad
	reason  string // why it does not
	tornEnd int64  // end of the last record header that validates behind good; 0 if there is none
	proof   int64  // the largest sync point noted behind bad
	proofAt int64  // by the record here
}

// scanSegment reads the records of s and hands each to visit, those of an incomplete last write too. With end >= 0 the
// records must reach exactly to end; without, the rest of the file is searched for what it says about where they stop. It
// returns a *DamageError, an error of the disk, or that of visit.
func scanSegment(s *segment, size, end int64, visit func(*Record) error) (scan, error) {
	w := &window{file: s.file, size: size}
	r := scan{good: segmentHeaderBytes, durable: segmentHeaderBytes}
	off := r.good
	rec := new(Record)
	for off != end {
		reason, err := readRecord(s, w, off, rec)
		if err != nil {
			return r, fmt.Errorf("read raft log segment %s at offset %d: %w", s.path, off, err)
		}
		if reason == "" && end >= 0 && off+rec.Bytes > end {
			reason = fmt.Sprintf("a record goes beyond %d, where the next segment says that this one ends", end)
		}
		if reason != "" {
			r.bad, r.reason = off, reason
			break
		}
		if err := visit(rec); err != nil {
			return r, err
		}
		off += rec.Bytes
		r.durable = max(r.durable, rec.Durable)
		if rec.End {
			r.good = off
		}
	}
	if end >= 0 {
		if r.reason == "" && r.good != end {
			r.bad, r.reason = r.good, "the segment ends within a write"
		}
		if r.reason != "" {
			return r, &DamageError{File: s.path, Offset: r.bad, Reason: r.reason}
		}
		return r, nil
	}
	if err := searchTail(s, w, &r); err != nil {
		return r, fmt.Errorf("read raft log segment %s: %w", s.path, err)
	}
	if r.proof > r.bad {
		return r, &DamageError{File: s.path, Offset: r.bad, Reason: fmt.Sprintf(
			"%s, but the record at offset %d proves that everything before offset %d had been synced", r.reason, r.proofAt, r.proof)}
	}
	return r, nil
}

// readRecord reads and checks the record at off into rec. The reason says why there is none.
func readRecord(s *segment, w *window, off int64, rec *Record) (reason string, err error) {
	b, err := w.at(off, recordHeaderBytes)
	if err != nil {
		return "", err
	}
	if b == nil {
		return "the file ends", nil
	}
	h, ok := s.seal.decodeHeader(b, off)
	if !ok {
		return "there is no valid record header", nil
	}
	b, err = w.at(off, recordHeaderBytes+int64(h.length))
	if err != nil {
		return "", err
	}
	if b == nil {
		return "a record goes beyond the file's end", nil
	}
	payload := b[recordHeaderBytes:]
	if crc32.Checksum(payload, castagnoli) != h.payloadCRC {
		return "the record's checksum does not match", nil
	}
	*rec = Record{Segment: s.seq(), File: s.path, Offset: off, Bytes: h.bytes(), Kind: h.kind, Durable: int64(h.durable),
		End: h.flags&flagEnd != 0}
	if err := decodePayload(rec, payload); err != nil {
		// The checksum is right, so this is what was written: by a newer version, or by a bug.
		return "", &DamageError{File: s.path, Offset: off, Reason: err.Error()}
	}
	return "", nil
}

// searchTail looks behind the last valid record for headers that validate: remains of writes that were not acknowledged,
// or the proof that some were.
func searchTail(s *segment, w *window, r *scan) error {
	from := r.bad
	if r.good < r.bad { // the incomplete write's own records are remains too
		r.tornEnd = r.bad
	}
	for off := from; off+recordHeaderBytes <= w.size; off += recordAlign {
		// Look at a large piece at once: this runs over the unused rest of the segment at every start.
		n := min(windowBytes, w.size-off)
		b, err := w.at(off, n)
		if err != nil {
			return err
		}
		i := 0
		for ; i+recordHeaderBytes <= len(b); i += recordAlign {
			if binary.LittleEndian.Uint32(b[i+16:]) != uint32(s.seal.seq) {
				continue // decodeHeader's first question, asked here because it is asked millions of times
			}
			h, ok := s.seal.decodeHeader(b[i:], off+int64(i))
			if !ok {
				continue
			}
			at := off + int64(i)
			r.tornEnd = max(r.tornEnd, min(at+h.bytes(), w.size))
			if int64(h.durable) > r.proof {
				r.proof, r.proofAt = int64(h.durable), at
			}
		}
		off += int64(i) - recordAlign
	}
	return nil
}

// openSegment opens the live segment with the given number and checks its header.
func openSegment(fs vfs.FS, dir string, seq uint64, readOnly bool) (*segment, int64, error) {
	s := &segment{path: fs.PathJoin(dir, segmentName(seq, liveSuffix))}
	var err error
	if readOnly {
		s.file, err = fs.Open(s.path)
	} else {
		s.file, err = fs.OpenReadWrite(s.path, vfs.WriteCategoryUnspecified)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open raft log segment: %w", err)
	}
	size, err := s.readHeader(seq)
	if err != nil {
		return nil, 0, errors.Join(err, s.file.Close())
	}
	return s, size, nil
}

func (s *segment) readHeader(seq uint64) (size int64, err error) {
	info, err := s.file.Stat()
	if err != nil {
		return 0, fmt.Errorf("stat raft log segment %s: %w", s.path, err)
	}
	size = info.Size()
	b := make([]byte, min(size, headerUsedBytes))
	if len(b) > 0 {
		if _, err := s.file.ReadAt(b, 0); err != nil {
			return 0, fmt.Errorf("read raft log segment %s: %w", s.path, err)
		}
	}
	h, reason := decodeSegmentHeader(b)
	switch {
	case reason != "":
	case h.version > formatVersion:
		return 0, &VersionError{File: s.path, Version: h.version}
	case h.seal.seq != seq:
		reason = fmt.Sprintf("the segment header belongs to segment %d", h.seal.seq)
	case size < h.size:
		reason = fmt.Sprintf("the file has %d of the %d bytes that its header gives", size, h.size)
	case size > math.MaxUint32:
		reason = fmt.Sprintf("the file has %d bytes, more than a segment can have", size)
	}
	if reason != "" {
		return 0, &DamageError{File: s.path, Reason: reason}
	}
	s.segmentHeader, s.end = h, segmentHeaderBytes
	return h.size, nil
}
