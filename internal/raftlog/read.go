package raftlog

import (
	"fmt"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// Read visits every record of the log in dir, oldest first, dead ones too, without changing a byte: for `trivet inspect
// log`. Each segment begins with a record of KindSegment, which carries what its header says. Where the log ends in a torn
// tail, a last record of KindTorn has the offset from which Open would cut (records that belong to the incomplete write
// were visited before it) and in Bytes how far remains of it were found. Damage ends the reading with a *DamageError after
// everything before it was visited; an error of visit ends it too. The log must not be open elsewhere.
func Read(fs vfs.FS, dir string, visit func(Record) error) error {
	files, err := listDir(fs, dir)
	if err != nil {
		return fmt.Errorf("read raft log in %s: %w", dir, err)
	}
	// The next segment's header says where a segment ends, so one is open ahead.
	var next *segment
	var nextSize int64
	defer func() {
		if next != nil {
			_ = next.file.Close() // only read
		}
	}()
	open := func(i int) (err error) {
		next, nextSize = nil, 0
		if i < len(files.live) {
			next, nextSize, err = openSegment(fs, dir, files.live[i], true)
		}
		return err
	}
	if err := open(0); err != nil {
		return fmt.Errorf("read raft log in %s: %w", dir, err)
	}
	for i := range files.live {
		s, size := next, nextSize
		// A bad header of the next segment is reported after this one was shown; its end is then found as if it were the
		// last.
		nextErr := open(i + 1)
		end := int64(-1)
		if next != nil {
			end = next.prevEnd
		}
		err := readSegment(s, size, end, visit)
		_ = s.file.Close() // only read
		if err == nil {
			err = nextErr
		}
		if err != nil {
			return fmt.Errorf("read raft log in %s: %w", dir, err)
		}
	}
	if _, err := missingNewest(fs, dir, files.live); err != nil {
		return fmt.Errorf("read raft log in %s: %w", dir, err)
	}
	return nil
}

// readSegment visits one segment.
func readSegment(s *segment, size, end int64, visit func(Record) error) error {
	err := visit(Record{Segment: s.seq(), File: s.path, Bytes: segmentHeaderBytes, Kind: KindSegment, Durable: s.prevEnd,
		End: true, HardState: s.hardState, Position: s.base})
	if err != nil {
		return err
	}
	sc, err := scanSegment(s, size, end, func(r *Record) error { return visit(*r) })
	if err != nil || sc.tornEnd == 0 {
		return err
	}
	return visit(Record{Segment: s.seq(), File: s.path, Offset: sc.good, Bytes: sc.tornEnd - sc.good, Kind: KindTorn,
		Durable: sc.durable})
}
