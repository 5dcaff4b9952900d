package raftlog

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/crc32"
	"io"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// The file newest says which segment the log had come to. Segments before it name their successors, but the newest one is
// named by no other: if its file vanished, the log would look as if it had ended before, and what was acknowledged in it
// would be forgotten without anybody noticing. The note is durable before the first record is written to the segment. It
// has two slots that are written in turn, so that a crash leaves one of them good; a log of before there was this file
// gets one when it is next opened.
const (
	newestName      = "newest"
	newestSlotBytes = 512 // a sector each
	newestUsedBytes = 12  // sequence number, CRC-32C of it
)

// noteNewest records, durably, that the log goes on in segment seq.
func (l *Log) noteNewest(seq uint64) error {
	path := l.fs.PathJoin(l.dir, newestName)
	_, err := l.fs.Stat(path)
	isNew := isNotExist(err)
	if err != nil && !isNew {
		return err
	}
	b := binary.LittleEndian.AppendUint64(make([]byte, 0, newestSlotBytes), seq)
	b = binary.LittleEndian.AppendUint32(b, crc32.Checksum(b, castagnoli))
	err = l.withRoom(func() error {
		f, err := l.fs.OpenReadWrite(path, vfs.WriteCategoryUnspecified)
		if err != nil {
			return err
		}
		if _, err = f.WriteAt(b[:newestSlotBytes], int64(seq%2)*newestSlotBytes); err == nil {
			err = f.Sync()
		}
		return errors.Join(err, f.Close())
	})
	if err != nil {
		return fmt.Errorf("note the newest raft log segment in %s: %w", path, err)
	}
	if !isNew {
		return nil
	}
	return l.syncNames()
}

// newestNoted is the segment that the log had come to, 0 if that was never noted.
func newestNoted(fs vfs.FS, dir string) (uint64, error) {
	f, err := fs.Open(fs.PathJoin(dir, newestName))
	if isNotExist(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer f.Close() // only read
	var newest uint64
	for slot := range int64(2) {
		var b [newestUsedBytes]byte
		if _, err := f.ReadAt(b[:], slot*newestSlotBytes); errors.Is(err, io.EOF) {
			continue // a slot that was never written
		} else if err != nil {
			return 0, err
		}
		if crc32.Checksum(b[:8], castagnoli) == binary.LittleEndian.Uint32(b[8:]) {
			newest = max(newest, binary.LittleEndian.Uint64(b[:]))
		}
	}
	return newest, nil
}

// missingNewest reports that the newest segment is gone.
func missingNewest(fs vfs.FS, dir string, live []uint64) (noted uint64, err error) {
	noted, err = newestNoted(fs, dir)
	if err != nil || noted == 0 || len(live) > 0 && live[len(live)-1] >= noted {
		return noted, err
	}
	return noted, &DamageError{File: fs.PathJoin(dir, segmentName(noted, liveSuffix)), Reason: "the file is missing; the log had come to it"}
}
