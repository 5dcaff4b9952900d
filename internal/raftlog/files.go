package raftlog

import (
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"

	"github.com/cockroachdb/pebble/v2/vfs"
)

// maxFree bounds how many cut segments wait to be used again; the rest is removed.
const maxFree = 2

// freeFile is a zero-filled or recycled file that can become a segment.
type freeFile struct {
	file vfs.File
	path string
	size int64
}

// beginSegment turns f into the live segment that h describes (salt and size are set here). Its header is durable before
// the file gets its name, and the name and the note of it (newest.go) are durable before anything is written behind the header. So a live segment always
// has a good header, and records of it are in no file that has another name.
func (l *Log) beginSegment(f freeFile, h segmentHeader) (*segment, error) {
	var salt [8]byte
	_, _ = rand.Read(salt[:]) // never fails
	h.version, h.size = formatVersion, f.size
	h.seal.salt = binary.LittleEndian.Uint64(salt[:])
	s := &segment{
		path: l.fs.PathJoin(l.dir, segmentName(h.seal.seq, liveSuffix)), file: f.file, segmentHeader: h,
		end: segmentHeaderBytes,
	}
	if err := l.withRoom(func() error {
		if _, err := f.file.WriteAt(h.encode(), 0); err != nil {
			return fmt.Errorf("write header of raft log segment %s: %w", s.path, err)
		}
		if err := f.file.SyncData(); err != nil {
			return fmt.Errorf("sync header of raft log segment %s: %w", s.path, err)
		}
		return nil
	}); err != nil {
		return nil, err
	}
	if err := l.withRoom(func() error { return l.fs.Rename(f.path, s.path) }); err != nil {
		return nil, fmt.Errorf("name raft log segment: %w", err)
	}
	if err := l.syncNames(); err != nil {
		return nil, err
	}
	return s, l.noteNewest(h.seal.seq)
}

// takeFree gives a file for the next segment: a recycled one, or the filler's. While the disk is full for a new one it looks
// for segments that may be cut meanwhile: nothing else may make room. Nothing of the log was in a file that could not be
// filled, so to try again is safe, and one attempt more is made after any failure: it may be long ago.
func (l *Log) takeFree() (f freeFile, err error) {
	w := &l.w
	tried := false
	err = l.withRoom(func() error {
		if tried {
			l.takeCut()
			if err := l.cutSegments(); err != nil {
				return err
			}
		}
		tried = true
		if n := len(w.free); n > 0 {
			f = w.free[n-1]
			w.free = w.free[:n-1]
			return nil
		}
		if !w.asked {
			l.filler.ask(w.smallGroups())
		}
		if f, err = l.filler.take(); err != nil {
			l.filler.ask(w.smallGroups())
			f, err = l.filler.take()
		}
		w.asked = false
		return err
	})
	return f, err
}

// takeCut takes what may be cut off the queue.
func (l *Log) takeCut() {
	l.queue.Lock()
	defer l.queue.Unlock()
	l.w.cut, l.queue.cut = max(l.w.cut, l.queue.cut), 0
}

// askForSpare has a file made ahead of need: when the segment is a quarter full and nothing is there to recycle.
func (l *Log) askForSpare() {
	if w := &l.w; !w.asked && len(w.free) == 0 && w.written > w.active.size/4 {
		l.filler.ask(w.smallGroups())
		w.asked = true
	}
}

// bigFile makes a file for a single write that is larger than a segment.
func (l *Log) bigFile(size int64) (freeFile, error) {
	f := freeFile{path: l.fs.PathJoin(l.dir, bigName), size: size}
	var err error
	err = l.withRoom(func() error {
		f.file, err = makeFile(l.fs, f.path, size, reserveFile)
		return err
	})
	return f, err
}

// cutSegments takes away the oldest segments that nobody needs: those before a reset, and those whose successor begins
// behind an entry that may go. The successor's header holds the position and hard state to begin with.
func (l *Log) cutSegments() error {
	w := &l.w
	for {
		l.mu.Lock()
		segs := l.index.segments
		l.mu.Unlock()
		if len(segs) < 2 {
			return nil
		}
		dead := segs[1].seq() <= w.resetSeq
		if !dead && segs[1].base.Index > w.cut {
			return nil
		}
		if err := l.retireOldest(); err != nil {
			return err
		}
	}
}

// retireOldest takes the oldest segment out of the log. Its file is recycled if it can be. The directory is synced before
// the next one may go, so that a crash leaves no gap, and before this one's file is written to again, so that its old
// name cannot come back over new bytes.
func (l *Log) retireOldest() error {
	w := &l.w
	l.pace.begin()
	defer l.pace.end(false)
	l.mu.Lock()
	s := l.index.dropOldest()
	busy := s.readers > 0
	s.retired = true
	l.mu.Unlock()

	if !busy && s.size == l.opt.SegmentBytes && len(w.free) < maxFree {
		f := freeFile{file: s.file, path: l.fs.PathJoin(l.dir, segmentName(s.seq(), freeSuffix)), size: s.size}
		if err := l.withRoom(func() error { return l.fs.Rename(s.path, f.path) }); err != nil {
			return fmt.Errorf("recycle raft log segment: %w", err)
		}
		if err := l.syncNames(); err != nil {
			return err
		}
		w.free = append(w.free, f)
		return nil
	}
	if err := l.withRoom(func() error { return l.fs.Remove(s.path) }); err != nil {
		return fmt.Errorf("remove raft log segment: %w", err)
	}
	if err := l.syncNames(); err != nil {
		return err
	}
	if busy {
		return nil // the last reader closes the file
	}
	if err := s.file.Close(); err != nil {
		return fmt.Errorf("close raft log segment %s: %w", s.path, err)
	}
	return nil
}

// closeFiles closes everything; files in use are left to their readers. The writer and the filler have ended.
func (l *Log) closeFiles() error {
	var errs []error
	l.mu.Lock()
	for _, s := range l.index.segments {
		s.retired = true
		if s.readers == 0 {
			errs = append(errs, s.file.Close())
		}
	}
	l.index.segments, l.index.cache, l.closed = nil, cache{}, true
	l.mu.Unlock()
	for _, f := range l.w.free {
		errs = append(errs, f.file.Close())
	}
	return errors.Join(errs...)
}

// syncDir makes the names in dir durable.
func syncDir(vfsys vfs.FS, dir string) error {
	d, err := vfsys.OpenDir(dir)
	if err != nil {
		return fmt.Errorf("open directory %s: %w", dir, err)
	}
	if err := errors.Join(d.Sync(), d.Close()); err != nil {
		return fmt.Errorf("sync directory %s: %w", dir, err)
	}
	return nil
}

// makeDir makes dir, durable in its parent. A dir that is there is synced too: the process that made it may have been killed
// before it came to that.
func makeDir(vfsys vfs.FS, dir string) error {
	if err := vfsys.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	parent := vfsys.PathDir(dir)
	if parent == "." { // not a name that a memory file system knows
		if _, err := vfsys.Stat(parent); errors.Is(err, fs.ErrNotExist) {
			parent = "/"
		}
	}
	return syncDir(vfsys, parent)
}
