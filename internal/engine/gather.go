package engine

import (
	"strings"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// gatherBytes is how much of a table is written at once. Pebble writes block by block, each in two parts that begin and end
// anywhere, and a write of a few kilobytes costs more for the call than for the bytes (docs/decisions/0016).
const gatherBytes = 64 << 10

// gatherFS is a file system whose tables are written in pieces of gatherBytes. A table holds one piece while it is being
// written: that of a flush, and one for each compaction under way.
type gatherFS struct{ vfs.FS }

func (f gatherFS) Unwrap() vfs.FS { return f.FS }

func (f gatherFS) Create(name string, c vfs.DiskWriteCategory) (vfs.File, error) {
	file, err := f.FS.Create(name, c)
	if err != nil || !IsTable(name) {
		return file, err
	}
	return &gatherFile{File: file, piece: make([]byte, 0, gatherBytes)}, nil
}

// IsTable reports whether a file of the engine is written once, from its beginning to its end: one of rows or of large values.
func IsTable(name string) bool {
	return strings.HasSuffix(name, ".sst") || strings.HasSuffix(name, ".blob")
}

// gatherFile is a table that is being written, from its beginning to its end; who reads it opens it anew. What was not
// written yet is written before a sync and at the close. After a write that failed nothing more is written, because it
// would stand at the wrong place.
type gatherFile struct {
	vfs.File
	piece []byte
	err   error
}

func (f *gatherFile) Write(p []byte) (done int, err error) {
	for done < len(p) {
		n := copy(f.piece[len(f.piece):cap(f.piece)], p[done:])
		f.piece = f.piece[:len(f.piece)+n]
		done += n
		if len(f.piece) == cap(f.piece) {
			if err := f.write(); err != nil {
				return done, err
			}
		}
	}
	return done, f.err
}

func (f *gatherFile) write() error {
	if f.err == nil && len(f.piece) > 0 {
		_, f.err = f.File.Write(f.piece)
	}
	f.piece = f.piece[:0]
	return f.err
}

func (f *gatherFile) Stat() (vfs.FileInfo, error) {
	if err := f.write(); err != nil {
		return nil, err
	}
	return f.File.Stat()
}

func (f *gatherFile) Sync() error {
	if err := f.write(); err != nil {
		return err
	}
	return f.File.Sync()
}

func (f *gatherFile) SyncData() error {
	if err := f.write(); err != nil {
		return err
	}
	return f.File.SyncData()
}

func (f *gatherFile) SyncTo(length int64) (full bool, err error) {
	if err := f.write(); err != nil {
		return false, err
	}
	return f.File.SyncTo(length)
}

func (f *gatherFile) Close() error {
	err := f.write()
	if closed := f.File.Close(); err == nil {
		err = closed
	}
	return err
}
