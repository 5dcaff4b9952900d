package raftlog

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"slices"

	"github.com/cockroachdb/pebble/v2/vfs"
)

func isNotExist(err error) bool { return errors.Is(err, fs.ErrNotExist) }

// listing is what a log directory holds.
type listing struct {
	live []uint64 // sequence numbers, ascending, without a gap
	free []uint64
	tmp  []string // names
}

// listDir reads the directory. Files that are not the log's are not looked at.
func listDir(vfsys vfs.FS, dir string) (listing, error) {
	names, err := vfsys.List(dir)
	if err != nil {
		return listing{}, err
	}
	var l listing
	slices.Sort(names)
	for _, name := range names {
		if seq, ok := parseName(name, liveSuffix); ok {
			if n := len(l.live); n > 0 && seq != l.live[n-1]+1 {
				return listing{}, &DamageError{File: vfsys.PathJoin(dir, segmentName(l.live[n-1]+1, liveSuffix)),
					Reason: fmt.Sprintf("the file is missing between segments %d and %d", l.live[n-1], seq)}
			}
			l.live = append(l.live, seq)
		} else if seq, ok := parseName(name, freeSuffix); ok {
			l.free = append(l.free, seq)
		} else if name == spareName || name == bigName {
			l.tmp = append(l.tmp, name)
		}
	}
	return l, nil
}

// Exists reports whether there is a log in dir, good or damaged. A folder that is not there holds none.
func Exists(vfsys vfs.FS, dir string) (bool, error) {
	names, err := vfsys.List(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	return slices.ContainsFunc(names, func(name string) bool { _, ok := parseName(name, liveSuffix); return ok }), err
}

// recover reads the directory into l.index and sets up the writer. It changes nothing before all is read and found good.
func (l *Log) recover() (err error) {
	if err := makeDir(l.fs, l.dir); err != nil {
		return err
	}
	// A process that was killed may have left names that only the page cache knows.
	if err := syncDir(l.fs, l.dir); err != nil {
		return err
	}
	files, err := listDir(l.fs, l.dir)
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, l.closeFiles())
		}
	}()
	r := replay{log: l}
	for _, seq := range files.live {
		if err := r.add(seq); err != nil {
			return err
		}
	}
	if err := r.finish(); err != nil {
		return err
	}
	noted, err := missingNewest(l.fs, l.dir, files.live)
	if err != nil {
		return err
	}
	if err := l.tidy(files); err != nil {
		return err
	}
	if len(files.live) == 0 {
		return l.firstSegment()
	}
	if newest := r.last().seq(); newest != noted {
		if err := l.noteNewest(newest); err != nil {
			return err
		}
	}
	return l.repairTail(&r)
}

// firstSegment makes an empty log.
func (l *Log) firstSegment() error {
	size := min(l.opt.SegmentBytes, firstSegmentBytes)
	path := l.fs.PathJoin(l.dir, bigName)
	file, err := zeroFill(l.fs, path, size, nil)
	if err != nil {
		return err
	}
	s, err := l.beginSegment(freeFile{file: file, path: path, size: size}, segmentHeader{seal: seal{seq: 1}})
	if err != nil {
		return errors.Join(err, file.Close())
	}
	l.index.segments = append(l.index.segments, s)
	l.w.activate(s, segmentHeaderBytes)
	return nil
}

// tidy removes what a crash left half made and takes in the files that can be used again.
func (l *Log) tidy(files listing) error {
	remove := files.tmp
	for _, seq := range files.free {
		name := segmentName(seq, freeSuffix)
		f, err := l.openFree(seq, name, files.live)
		if err != nil {
			return err
		}
		if f.file == nil {
			remove = append(remove, name)
		} else {
			l.w.free = append(l.w.free, f)
		}
	}
	for _, name := range remove {
		if err := l.fs.Remove(l.fs.PathJoin(l.dir, name)); err != nil && !isNotExist(err) {
			return err
		}
	}
	if len(remove) == 0 {
		return nil
	}
	return syncDir(l.fs, l.dir)
}

// openFree opens a recycled file, or gives none if it must not be used: a file that lives on under another name too (a
// crash in the middle of a renaming may leave both names of it) would be overwritten while it is part of the log. Such a
// file has a live segment's number in its name or in its header.
func (l *Log) openFree(seq uint64, name string, live []uint64) (freeFile, error) {
	f := freeFile{path: l.fs.PathJoin(l.dir, name), size: l.opt.SegmentBytes}
	if slices.Contains(live, seq) || len(l.w.free) == maxFree {
		return freeFile{}, nil
	}
	var err error
	if f.file, err = l.fs.OpenReadWrite(f.path, vfs.WriteCategoryUnspecified); err != nil {
		return freeFile{}, err
	}
	info, err := f.file.Stat()
	if err == nil && info.Size() == f.size {
		b := make([]byte, headerUsedBytes)
		if _, err = f.file.ReadAt(b, 0); err == nil {
			h, reason := decodeSegmentHeader(b)
			if reason == "" && h.version == formatVersion && h.seal.seq == seq {
				return f, nil
			}
		}
	}
	return freeFile{}, errors.Join(err, f.file.Close())
}

// repairTail makes what was found durable and what is torn harmless, then points the writer at the end.
func (l *Log) repairTail(r *replay) error {
	s, sc := r.last(), r.scan
	if sc.tornEnd > 0 {
		l.log.LogAttrs(context.Background(), slog.LevelWarn, "raft log ended in the middle of a write, cut the torn tail",
			slog.String("file", s.path), slog.Int64("offset", sc.good), slog.Int64("bytes", sc.tornEnd-sc.good),
			slog.Uint64("last_index", l.index.terms.last))
		// Remains that still validate could join the log once new records reach up to them: wipe them out.
		if err := overwrite(s, sc.good, sc.tornEnd, false); err != nil {
			return err
		}
	}
	// Behind the last sync point nobody knows whether the disk has what was just read: after a failed sync, the page cache
	// may show it as clean. Make it dirty again and sync.
	if err := overwrite(s, sc.durable, sc.good, true); err != nil {
		return err
	}
	if err := s.file.SyncData(); err != nil {
		return fmt.Errorf("sync raft log segment %s: %w", s.path, err)
	}
	s.end = sc.good
	l.w.terms = l.index.terms
	l.w.terms.runs = slices.Clone(l.index.terms.runs)
	l.w.hardState = l.index.hardState
	l.w.resetSeq = r.resetSeq
	l.w.activate(s, sc.good)
	l.w.marked = r.marked
	return nil
}

// overwrite writes [from, to) of the segment: what is there already, or zeros.
func overwrite(s *segment, from, to int64, same bool) error {
	buf := make([]byte, min(max(to-from, 0), fillChunkBytes))
	for off := from; off < to; off += int64(len(buf)) {
		b := buf[:min(int64(len(buf)), to-off)]
		if same {
			if _, err := s.file.ReadAt(b, off); err != nil {
				return fmt.Errorf("read raft log segment %s at offset %d: %w", s.path, off, err)
			}
		}
		if _, err := s.file.WriteAt(b, off); err != nil {
			return fmt.Errorf("write raft log segment %s at offset %d: %w", s.path, off, err)
		}
	}
	return nil
}

// replay builds the index from the records of the segments, oldest first. A segment is read when the header of the next
// one has said where it ends.
type replay struct {
	log      *Log
	size     int64 // of the newest segment, by its header
	pending  []Record
	scan     scan // of the last segment
	resetSeq uint64
	marked   bool // the last complete write is the mark of a clean end
}

// last is the newest segment.
func (r *replay) last() *segment { return r.log.index.segments[len(r.log.index.segments)-1] }

// add opens the next segment, which tells where the one before it ends, and reads that one.
func (r *replay) add(seq uint64) error {
	x := &r.log.index
	s, size, err := openSegment(r.log.fs, r.log.dir, seq, false)
	if err != nil {
		return err
	}
	if len(x.segments) == 0 {
		x.reset(s.base)
		x.hardState = s.hardState
	} else {
		prev := r.last()
		if _, err := scanSegment(prev, r.size, s.prevEnd, r.visit); err != nil {
			return errors.Join(err, s.file.Close())
		}
		prev.end = s.prevEnd
		if got := x.terms.lastPosition(); got != s.base || !sameHardState(x.hardState, s.hardState) {
			return errors.Join(&DamageError{File: s.path, Reason: fmt.Sprintf(
				"it begins behind entry %d of term %d, but the segments before it end with entry %d of term %d, or in another hard state",
				s.base.Index, s.base.Term, got.Index, got.Term)}, s.file.Close())
		}
	}
	x.segments, r.size = append(x.segments, s), size
	return nil
}

// finish reads the last segment.
func (r *replay) finish() (err error) {
	if len(r.log.index.segments) == 0 {
		return nil
	}
	r.scan, err = scanSegment(r.last(), r.size, -1, r.visit)
	return err
}

// visit gathers the records of a write and applies them when it is complete.
func (r *replay) visit(rec *Record) error {
	rec.Data = nil // only the place of an entry matters
	r.pending = append(r.pending, *rec)
	if !rec.End {
		return nil
	}
	r.marked = false
	for i := range r.pending {
		if reason := r.apply(&r.pending[i]); reason != "" {
			return &DamageError{File: r.pending[i].File, Offset: r.pending[i].Offset, Reason: reason}
		}
	}
	r.pending = r.pending[:0]
	return nil
}

// apply applies one record of a complete write. The reason is empty unless it contradicts what came before.
func (r *replay) apply(rec *Record) (reason string) {
	x := &r.log.index
	switch rec.Kind {
	case KindEntry:
		if rec.Index != x.terms.last+1 {
			return fmt.Sprintf("entry %d follows entry %d", rec.Index, x.terms.last)
		}
		x.appendEntry(rec.Index, rec.Term, rec.Offset, nil)
	case KindHardState:
		x.hardState = rec.HardState
	case KindTruncate:
		if rec.Position.Index > x.terms.last {
			return fmt.Sprintf("the log is truncated behind entry %d, but ends with entry %d", rec.Position.Index, x.terms.last)
		}
		x.truncate(rec.Position)
	case KindReset:
		x.reset(rec.Position)
		r.resetSeq = rec.Segment
	case KindClosed:
		r.marked = true
	}
	return ""
}
